"""Telling: results on standard output, as text, JSON or CSV; errors and warnings on standard error, a line each.

This folder is the one place of the library that prints, as that is what a command is for; it does so through this file.
"""

from __future__ import annotations

import json
import math
import re
import traceback
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import typer

from calmrl_prob.errors import CalmrlError, CalmrlWarning

if TYPE_CHECKING:
    import pandas as pd


@contextmanager
def guarded(debug: bool) -> Iterator[None]:
    """Tell errors and warnings of what runs within in a line each, and end with exit code 1 after an error.

    Errors that nobody foresaw keep their traceback.

    Args:
        debug: show the traceback of any error.

    Raises:
        typer.Exit: with code 1, after an error of the library or the file system.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("always", CalmrlWarning)
        warnings.showwarning = _tell_warning
        try:
            yield
        except BrokenPipeError:  # whoever read has had enough: typer ends quietly
            raise
        except (CalmrlError, OSError) as error:
            typer.echo(traceback.format_exc() if debug else f"Error: {as_options(one_line(error))}", err=True)
            raise typer.Exit(1) from None


def _tell_warning(message: Warning | str, category: type[Warning], *_: object, **__: object) -> None:
    kind = "Warning" if issubclass(category, CalmrlWarning) else category.__name__
    typer.echo(f"{kind}: {one_line(message)}", err=True)


def one_line(said: object) -> str:
    r"""A message in one line.

    Example:
        >>> one_line(ValueError("rows:\n  expected two"))
        'rows: expected two'
    """
    return " ".join(str(said).split())


def as_options(said: str) -> str:
    """A message whose remedies are written as options of commands, not as arguments of Python.

    Example:
        >>> as_options("pass empty='drop' to leave them out")
        'pass --empty drop to leave them out'
        >>> as_options("name the column of each, as ids={'text': 'doc'}.")
        'name the column of each, as --ids text=doc.'
    """
    said = re.sub(r"\bids=\{'([^']+)': '([^']+)'\}", r"--ids \1=\2", said)
    return re.sub(r"\b(empty|ids|labels|sep|join)='(\w+)'", r"--\1 \2", said)


def tell(*lines: str) -> None:
    """Write lines to standard output."""
    for line in lines:
        typer.echo(line)


def tell_json(facts: Any) -> None:  # noqa: ANN401 - whatever becomes JSON
    """Write facts to standard output as JSON, in which NaN and infinities are null."""
    typer.echo(json.dumps(plain(facts), indent=2))


def tell_table(table: pd.DataFrame, csv: bool = False) -> None:
    """Write a table to standard output, in columns or as CSV."""
    if csv:
        typer.echo(table.to_csv(index=False), nl=False)
    elif len(table):
        typer.echo(table.to_string(index=False, float_format="{:.4g}".format))


def plain(value: Any) -> Any:  # noqa: ANN401
    """A value as JSON holds it: of numpy what Python has, of a frame its rows, null for what is no number.

    Example:
        >>> import numpy as np
        >>> plain({"gain": np.float32(0.5), "k": np.arange(2), "none": float("nan")})
        {'gain': 0.5, 'k': [0, 1], 'none': None}
    """
    if hasattr(value, "to_dict"):
        return plain(value.to_dict("records"))
    if hasattr(value, "tolist"):
        return plain(value.tolist())
    if isinstance(value, Mapping):
        return {str(key): plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [plain(entry) for entry in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if isinstance(value, str | int | bool | None) else str(value)
