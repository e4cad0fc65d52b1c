"""The exact search: all candidates scored in float32, and in float64 those that rounding could hide among the best."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from calmrl_prob.errors import NumericalError
from calmrl_prob.index.measured import Floats
from calmrl_prob.index.pairs import Asked
from calmrl_prob.index.shelves import Shelf

Places = NDArray[np.int64]
#: Margins of scores that float32 holds: a score is at most 2^22 times as large.
_LARGEST = 2.0**100


class Against(NamedTuple):
    """n queries of one pattern against one shelf, whose candidates have the numbers ``start``, .. among all.

    Attributes:
        j: the number of the shelf.
        shelf: the shelf.
        start: the place of its first candidate when shelves stand one after another.
        v, a: what the candidates are multiplied with, (n, K), and what is added, (n,); see ``pairs.py``.
    """

    j: int
    shelf: Shelf
    start: int
    v: Floats
    a: Floats

    @property
    def stop(self) -> int:
        """The place after its last candidate."""
        return self.start + len(self.shelf)


def against_all(asked: Asked, shelves: list[Shelf], natural: Floats) -> list[Against]:
    """Queries with natural means (n, K) against all shelves."""
    found, start = [], 0
    for j, shelf in enumerate(shelves):
        found.append(Against(j, shelf, start, *asked.pair(j, shelf).asked(natural, asked.scale)))
        start += len(shelf)
    return found


def coarse(asked: Asked, against: list[Against]) -> tuple[NDArray[np.float32], Floats]:
    """Scores in float32 of all candidates side by side, (n, N), -inf of removed ones; and how far off any can be, (n,).

    The product is numpy's: torch may be set to multiply float32 in fewer digits.

    Raises:
        NumericalError: a score is too large for float32.
    """
    scores = np.empty((len(against[0].a), sum(len(part.shelf) for part in against)), np.float32)
    margin = np.max([asked.margin(part.j, part.shelf, part.v, part.a) for part in against], axis=0)
    if not (margin < _LARGEST).all():
        raise NumericalError(
            "queries: one has values so far from the model's that scores overflow; rescale it as the data of the fit "
            "were, or remove it."
        )
    for part in against:
        own = scores[:, part.start : part.stop]
        np.matmul(part.v.astype(np.float32), part.shelf.high.T, out=own)
        own += asked.terms[part.j].astype(np.float32)
        own += part.a.astype(np.float32)[:, None]
        if not part.shelf.all_alive:
            own[:, ~part.shelf.alive] = -np.inf
    return scores, margin


def contenders(scores: NDArray[np.float32], margin: float, k: int) -> Places:
    """Places of all candidates that can be among the k best, given scores (N,) that may be off by ``margin``."""
    kth = np.partition(scores, len(scores) - k)[len(scores) - k] if k < len(scores) else scores.min()
    least = np.nextafter(np.float32(kth - 2 * margin), np.float32(-np.inf))
    found: Places = np.flatnonzero((scores >= least) & (scores > -np.inf))
    return found


def best(asked: Asked, against: list[Against], query: int, places: Places, k: int) -> tuple[Places, Floats]:
    """The k best of some candidates for one query by exact scores, best first; of equal ones the first comes first."""
    scores = np.empty(len(places))
    for part in against:
        if len(against) == 1:
            inside, own = np.arange(len(places)), places
        else:
            inside = np.flatnonzero((places >= part.start) & (places < part.stop))
            own = places[inside] - part.start
        if len(own):
            # sums row by row: a product of matrices may round equal candidates differently
            products = (part.shelf.numbers(own) * part.v[query]).sum(1)
            scores[inside] = products + asked.terms[part.j][own] + part.a[query]
    order = np.lexsort((places, -scores))[:k]
    return places[order], scores[order]


def log_total(scores: NDArray[np.float32], places: Places, exact: Floats) -> float:
    """Log of the sum over all candidates of exp score, with the exact scores of those at ``places``."""
    wide = scores.astype(np.float64)
    wide[places] = exact
    top = float(wide.max())
    return top + float(np.log(np.exp(wide - top).sum()))
