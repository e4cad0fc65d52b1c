"""Warnings that point at the caller's line, however deep they arose."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterable

from calmrl_prob.errors import ReliabilityWarning


def level_of_caller() -> int:
    """The ``stacklevel`` at which a warning of the function that calls this points out of calmrl_prob and torch."""
    level, frame = 1, sys._getframe(1)
    while frame.f_back is not None and frame.f_globals.get("__name__", "").split(".")[0] in ("calmrl_prob", "torch"):
        level, frame = level + 1, frame.f_back
    return level


def warn_unreliable(problems: Iterable[str]) -> None:
    """One warning that names all that is wrong with an approximate result; none if nothing is.

    Warns:
        ReliabilityWarning: there are problems.
    """
    found = list(problems)
    if found:
        warnings.warn("; ".join(found) + ".", ReliabilityWarning, stacklevel=level_of_caller())
