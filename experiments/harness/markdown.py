"""Tables in Markdown."""

from __future__ import annotations

import pandas as pd


def markdown(text: pd.DataFrame) -> str:
    """A table of text in Markdown.

    Example:
        >>> print(markdown(pd.DataFrame({"a": ["x"], "b": ["y"]})), end="")
        | a | b |
        | --- | --- |
        | x | y |
    """
    lines = [list(text.columns), ["---"] * len(text.columns), *text.to_numpy().tolist()]
    return "".join(f"| {' | '.join(str(cell).replace('|', '/') for cell in line)} |\n" for line in lines)
