"""All candidates of an index: shelves by missing pattern, and whose each place on them is."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from calmrl_prob._support.arguments import brief
from calmrl_prob.data.entries import entries
from calmrl_prob.errors import ArgumentError, ArgumentTypeError, DataError
from calmrl_prob.index.parts import Part, joined_ids, one_column
from calmrl_prob.index.shelves import Shelf


class Holdings:
    """Candidates, numbered in the order in which they came; the removed ones keep their numbers.

    Args:
        shelves: one for each missing pattern.
        ids: of all candidates that ever were, by their numbers.
        numbered: whether they came without ids, which are then their numbers.
    """

    def __init__(self, shelves: list[Shelf], ids: NDArray[Any], numbered: bool) -> None:
        self.shelves, self.all_ids, self.numbered = shelves, ids, numbered

    @classmethod
    def none(cls) -> Holdings:
        """No candidates yet."""
        return cls([], np.empty(0, np.int64), numbered=True)

    def take(self, parts: Sequence[Part]) -> None:
        """Put what was measured behind what there is.

        Raises:
            DataError: ids are lacking, not asked for, or there already.
        """
        new, by_pattern = self._new_ids(parts), {shelf.pattern.tobytes(): [shelf] for shelf in self.shelves}
        first = len(self.all_ids)
        for part in parts:
            for shelf in part.shelves:
                numbered = replace(shelf, rows=shelf.rows + first)
                by_pattern.setdefault(shelf.pattern.tobytes(), []).append(numbered)
            first += len(part)
        for start, *more in by_pattern.values():
            if more:
                start.extend(more)
        self.shelves = [shelves[0] for shelves in by_pattern.values()]
        self.all_ids = one_column([self.all_ids, new]) if len(self.all_ids) else new
        self._forget()

    def remove(self, ids: Iterable[object]) -> None:
        """Remove candidates.

        Raises:
            ArgumentError: there is no such candidate.
            ArgumentTypeError: these are no ids.
        """
        if isinstance(ids, str) or not isinstance(ids, Iterable):
            raise ArgumentTypeError(f"ids: expected a sequence of ids, got {brief(ids)}; pass [first, second, ...].")
        wanted = entries(list(ids)).tolist()
        unknown = [entry for entry in wanted if not isinstance(entry, Hashable) or entry not in self._row_of]
        if unknown:
            raise ArgumentError(f"ids: the index has no candidate {unknown[0]!r}, of {len(self)}.")
        rows = np.array([self._row_of[entry] for entry in wanted], dtype=np.int64)
        for shelf in self.shelves:
            places = np.flatnonzero(np.isin(shelf.rows, rows))
            if len(places):
                shelf.kill(places)
        self._forget()

    def __len__(self) -> int:
        """Number of candidates, without the removed ones."""
        return self._number

    @property
    def ids(self) -> NDArray[Any]:
        """The ids of all candidates that are left, in the order in which they came."""
        return self.all_ids[np.sort(self._alive_rows)]

    @cached_property
    def rows(self) -> NDArray[np.int64]:
        """The number of each candidate, shelf by shelf."""
        return np.concatenate([shelf.rows for shelf in self.shelves]) if self.shelves else np.empty(0, np.int64)

    @cached_property
    def _number(self) -> int:
        return sum(int(shelf.alive.sum()) for shelf in self.shelves)

    @property
    def _alive_rows(self) -> NDArray[np.int64]:
        rows: NDArray[np.int64] = self.rows[np.concatenate([shelf.alive for shelf in self.shelves])]
        return rows

    @cached_property
    def _row_of(self) -> dict[object, int]:
        rows = self._alive_rows
        return dict(zip(self.all_ids[rows].tolist(), rows.tolist(), strict=True))

    def _forget(self) -> None:
        for name in ("_number", "rows", "_row_of"):
            self.__dict__.pop(name, None)

    def _new_ids(self, parts: Sequence[Part]) -> NDArray[Any]:
        """Ids of candidates that are added."""
        if not len(self.all_ids):
            self.numbered = all(part.ids is None for part in parts)
        if not self.numbered:
            return joined_ids(parts, self._row_of if len(self.all_ids) else {})
        if any(part.ids is not None for part in parts):
            raise DataError("candidates: they have ids, but those in the index came without; build it with ids.")
        return np.arange(len(self.all_ids), len(self.all_ids) + sum(map(len, parts)))
