"""Style of the figures: one colour, marker and line style for each variant, the same in every figure."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import matplotlib as mpl

from calmrl_prob.plots.canvas import BLACK, BLUE, GREEN, GREY, ORANGE, PURPLE, SETTINGS, SKY, VERMILION

_KNOWN = {
    "complete_rows": (VERMILION, "v", "--"),
    "zero": (GREY, "x", ":"),
    "mean": (ORANGE, "s", "--"),
    "knn": (GREEN, "^", "-."),
    "ridge": (PURPLE, "D", "-."),
    "calmrl_default": (GREEN, "X", "-"),
    "calmrl_paper": (BLUE, "o", ":"),
    "calmrl": (BLUE, "o", "-"),
    "calmrl_diagonal": (SKY, "P", "-"),
    "oracle": (BLACK, "*", "-"),
    # of experiments.align
    "observed": (VERMILION, "v", "--"),
    "imputed_mean": (ORANGE, "s", ":"),
    "imputed_draw": (ORANGE, "s", "-"),
    "input_draw": (BLUE, "o", "-"),
    "started": (GREEN, "^", "-"),
    "no_encoder": (GREY, "x", ":"),
}
_OTHERS = [(ORANGE, "p", "-"), (GREEN, "h", "--"), (PURPLE, "<", ":"), (VERMILION, ">", "-.")]

_SETTINGS: dict[Any, Any] = SETTINGS | {
    "figure.dpi": 144,
    "figure.constrained_layout.use": True,
    "svg.hashsalt": "calmrl-prob",
}


@contextmanager
def style() -> Iterator[None]:
    """Within this context figures are drawn in the house style; nothing global changes."""
    with mpl.rc_context(_SETTINGS):
        yield


def line(variant: str) -> dict[str, Any]:
    """Colour, marker and line style of a variant, as keywords of ``plot``; a new one gets one by its name.

    Example:
        >>> line("calmrl")["marker"]
        'o'
    """
    colour, marker, dashes = _KNOWN.get(variant) or _OTHERS[sum(variant.encode()) % len(_OTHERS)]
    return {"color": colour, "marker": marker, "linestyle": dashes}
