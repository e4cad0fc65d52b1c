"""Candidates as an index keeps them: K numbers each in 48 bits, in shelves of one pattern each.

A shelf holds g = L^-1 h for the natural means h of its candidates, with one L for the whole index (``pairs.py``). Each
number is the sum of two of float32: a search reads the first of all candidates, and both of the few that it finds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from calmrl_prob.index.measured import Floats, Mask

#: Rows brought to float64 at once.
CHUNK = 8192


@dataclass(eq=False)
class Shelf:
    """n candidates of one missing pattern; rows are only ever added at the end.

    Attributes:
        pattern: (D,) bool, True = PRESENT.
        rows: (n,) int64, the numbers of the candidates in the index.
        high, low: g = high + low, (n, K) float32 each; they may be maps of a file.
        alive: (n,) bool, False where a candidate was removed.
    """

    pattern: Mask
    rows: NDArray[np.int64]
    high: NDArray[np.float32]
    low: NDArray[np.float32]
    alive: Mask

    @classmethod
    def of(cls, pattern: Mask, rows: NDArray[np.int64], g: Floats) -> Shelf:
        """A shelf of new candidates."""
        high = g.astype(np.float32)
        return cls(pattern, rows, high, (g - high).astype(np.float32), np.ones(len(g), bool))

    def __len__(self) -> int:
        """Number of candidates n, the removed ones too."""
        return len(self.rows)

    @cached_property
    def all_alive(self) -> bool:
        """Whether none was removed."""
        return bool(self.alive.all())

    @cached_property
    def longest(self) -> float:
        """The largest norm |g|."""
        return max(
            (float(np.linalg.norm(part, axis=1).max()) for part in np.split(self.high, _cuts(len(self)))), default=0
        )

    def numbers(self, places: slice | NDArray[np.int64]) -> Floats:
        """g of some, (m, K), in float64."""
        found: Floats = self.high[places].astype(np.float64)
        found += self.low[places]
        return found

    def extend(self, others: Sequence[Shelf]) -> None:
        """Put the candidates of other shelves of this pattern at the end; what was mapped is copied."""
        for name in ("rows", "high", "low", "alive"):
            setattr(self, name, np.concatenate([getattr(shelf, name) for shelf in (self, *others)]))
        self._forget()

    def kill(self, places: NDArray[np.int64]) -> None:
        """Mark some as removed."""
        self.alive = self.alive.copy()  # it may be a map of a file
        self.alive[places] = False
        self._forget()

    def _forget(self) -> None:
        for name in ("all_alive", "longest"):
            self.__dict__.pop(name, None)


def _cuts(length: int) -> list[int]:
    return list(range(CHUNK, length, CHUNK))
