"""Compares what is printed with what a page says: words to the letter, figures within what the page claims of them.

Processors add in different orders, iterations stop a step apart, and a figure that lies near the edge of its last digit
is printed as its neighbour: a page is right or wrong by its figures, not by their last digit. README.md, docs/,
docstrings and notebooks are all compared here, and by these rules alone:

- A figure is a number with a decimal point or an exponent, and a whole number before ``%`` or ``iterations`` or beside
  ``±``. Printed with its uncertainty (``71±2``, ``0.34 +- 0.02``, ``0.34 (se 0.02)``) it may be off by that; without,
  by ``UNITS`` of its last digit if that is no more than ``SHARE`` of it, and by one unit at least.
- A whole number with a bare point (``2.``, as torch prints) claims to be whole: it may be off by ``WHOLE``.
- Every other whole number (a count, a shape, a seed, an id) and every number within a word (``R@1``, ``float64``,
  ``1.2.3``) is as good as a word.
- ``...`` stands for anything, and a number that touches it is a word: ``0.8...`` is all that begins so.

Example:
    >>> print("lowest 49%, width 3.80 sd, recall 69±2 over 3 seeds")
    lowest 48%, width 3.81 sd, recall 71±2 over 3 seeds
"""

from __future__ import annotations

import doctest
import re
from dataclasses import dataclass

#: Units of the last digit that a figure may be off by: its own rounding, and as much again for what was added up to it.
UNITS = 2
#: ... where that is no more than this share of the figure: two units of 0.2 would be all of it.
SHARE = 0.05
#: What a number may differ from the whole number that it is: torch prints four decimals, and none if all are 0.
WHOLE = 1e-4

_NUMBER = r"[+-]?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d*)?(?:[eE][+-]?\d+)?(?!\.?\w)"
# Not within a word: of "2026-01-31" and "R@1" nothing is a figure.
_ALONE = re.compile(rf"(?<![\w.@]){_NUMBER}")
_UNCERTAINTY = re.compile(rf"\s?%?\s?(?:(?:±|\+-|\+/-)\s?({_NUMBER})|\(se ({_NUMBER})\))")
_IS_UNCERTAINTY = re.compile(r"(?:±|\+-|\+/-)\s?$|\(se $")
_COUNTS_ROUNDS = re.compile(r"\s?%|\siterations\b")


@dataclass(frozen=True)
class Figure:
    """A number that a page states, and what it may be off by."""

    value: float
    tolerance: float
    decimal: bool

    def end_of_match(self, got: str, start: int) -> int | None:
        """Where a number that agrees with it ends, if one begins there."""
        found = _ALONE.match(got, start)
        if found is None or (self.decimal and _is_whole(found[0])):  # 1 for 1.0 is another type
            return None
        # in binary two units of a decimal are a little more or less than two
        return found.end() if abs(_value(found[0]) - self.value) <= self.tolerance * (1 + 1e-9) else None


def agrees(want: str, got: str, *, whitespace: bool = True) -> bool:
    """Whether something printed is what a page says.

    Args:
        want: what the page says, with ``...`` for what it leaves open.
        got: what was printed.
        whitespace: whether amounts of white space matter.
    """
    if not whitespace:
        want, got = " ".join(want.split()), " ".join(got.split())
    first, *others = _parts(want)
    end = _end_of_match(first, got, 0)
    if end is None or not others:
        return end == len(got)
    for part in others[:-1]:  # the earliest match leaves most to those that follow
        ends = (_end_of_match(part, got, start) for start in range(end, len(got) + 1))
        end = next((found for found in ends if found is not None), None)
        if end is None:
            return False
    return any(_end_of_match(others[-1], got, start) == len(got) for start in range(end, len(got) + 1))


class PrintedChecker(doctest.OutputChecker):
    """Holds doctests to ``agrees``; the conftest.py of the repository hands it to pytest."""

    def check_output(self, want: str, got: str, optionflags: int) -> bool:
        if super().check_output(want, got, optionflags):
            return True
        blank = re.sub(rf"(?m)^{re.escape(doctest.BLANKLINE_MARKER)}$", "", want)
        return agrees(blank, got, whitespace=not optionflags & doctest.NORMALIZE_WHITESPACE)


def _parts(want: str) -> list[list[str | Figure]]:
    """The words and figures of every piece between two ``...``."""
    pieces = want.split("...")
    found: list[list[str | Figure]] = []
    for place, piece in enumerate(pieces):
        parts: list[str | Figure] = []
        done = 0
        for number in _ALONE.finditer(piece):
            touches = (number.start() == 0 and place > 0) or (number.end() == len(piece) and place < len(pieces) - 1)
            figure = None if touches else _figure(number)
            if figure is not None:
                parts += [piece[done : number.start()], figure]
                done = number.end()
        found.append([*parts, piece[done:]])
    return found


def _figure(found: re.Match[str]) -> Figure | None:
    text, before, after = found[0], found.string[: found.start()], found.string[found.end() :]
    uncertainty = _UNCERTAINTY.match(after)
    if _is_whole(text) and not (uncertainty or _COUNTS_ROUNDS.match(after) or _IS_UNCERTAINTY.search(before)):
        return None
    value = _value(text)
    if text.endswith("."):
        return Figure(value, WHOLE, True)
    mantissa, _, exponent = text.lower().partition("e")
    unit = 10.0 ** (int(exponent or 0) - len(mantissa.partition(".")[2]))
    tolerance = max(unit, min(UNITS * unit, SHARE * abs(value)))
    if uncertainty:
        tolerance = max(tolerance, abs(_value(uncertainty[1] or uncertainty[2])))
    return Figure(value, tolerance, not _is_whole(text))


def _is_whole(number: str) -> bool:
    return number.lstrip("+-").replace(",", "").isdigit()


def _value(number: str) -> float:
    return float(number.replace(",", ""))


def _end_of_match(parts: list[str | Figure], got: str, start: int) -> int | None:
    """Where these words and figures end in what was printed, if they begin there."""
    end: int | None = start
    for part in parts:
        if isinstance(part, Figure):
            end = part.end_of_match(got, end)
        else:
            end = end + len(part) if got.startswith(part, end) else None
        if end is None:
            return None
    return end
