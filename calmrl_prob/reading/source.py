"""Sources of rows: modalities, ids and columns of one origin, of which any rows can be had without the others."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from calmrl_prob._support.remote import Remote
from calmrl_prob.data.features import Names
from calmrl_prob.errors import DataError

#: Rows between two that are wanted, up to which what lies between is read along rather than sought past.
_GAP = 64


class Lazy(Protocol):
    """An array (N, ...) whose rows are read when a slice of them is taken."""

    @property
    def shape(self) -> tuple[int, ...]:
        """(N, ...)."""

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of its entries."""

    def __getitem__(self, rows: slice) -> Any:  # noqa: ANN401 - an array
        """Some rows."""


#: Names under which identifiers, labels and parts are among the columns.
IDS, LABELS, PARTITION = "(ids)", "(labels)", "(partition)"


class Rows(NamedTuple):
    """Rows that were read.

    Attributes:
        arrays: (n, D_m) numbers of each modality.
        columns: (n, ...) of each label or covariate, and the identifiers, if any, as ``IDS``.
    """

    arrays: dict[str, NDArray[Any]]
    columns: dict[str, NDArray[Any]]

    @property
    def ids(self) -> NDArray[Any] | None:
        """(n,) identifiers, or None."""
        return self.columns.get(IDS)

    def first(self, count: int) -> Rows:
        """The first so many rows."""
        return Rows(*({name: array[:count] for name, array in part.items()} for part in self))


class Piece(NamedTuple):
    """Rows that are stored together: a row group of a file, or all of an array.

    Attributes:
        name: what it is called in messages and tokens; the same on every machine.
        num_rows: how many.
    """

    name: str
    num_rows: int


class Source(ABC):
    """Modalities, ids and columns of the same rows, from one origin.

    Attributes:
        where: the origin, as messages name it.
        modalities: the number of features D_m of each.
        features: names of the features of each modality, None where they have none.
        dtypes: of each modality.
        columns: labels and covariates, by name.
        pieces: in which the rows are stored, in their order.
        files: that it reads.
        has_ids: whether the rows have identifiers.
    """

    where: str
    modalities: Mapping[str, int]
    features: Mapping[str, Names | None]
    dtypes: Mapping[str, np.dtype[Any]]
    columns: Mapping[str, Any]
    pieces: tuple[Piece, ...]
    files: tuple[Path | Remote, ...]
    has_ids: bool

    @property
    def num_rows(self) -> int:
        """Number of rows N."""
        return sum(piece.num_rows for piece in self.pieces)

    @abstractmethod
    def load(self, piece: int, start: int, stop: int) -> Rows:
        """The rows ``start`` to ``stop`` of one piece."""

    @abstractmethod
    def all_ids(self) -> NDArray[Any]:
        """The identifiers of all rows, (N,), of a source that has some."""

    def name_of(self, row: int) -> str:
        """A row as messages name it: by the piece that it is in.

        Example:
            >>> ArraySource("cells.csv", {"x": np.ones((3, 1))}).name_of(2)
            'row 2 of cells.csv'
        """
        for piece in self.pieces:
            if row < piece.num_rows:
                return f"row {row} of {piece.name}"
            row -= piece.num_rows
        return f"row {row}"

    def called(self, names: Mapping[str, str]) -> Source:
        """The same with other names of its modalities."""
        return self if all(old == new for old, new in names.items()) else _Renamed(self, dict(names))

    def span(self, start: int, stop: int) -> Rows:
        """The rows ``start`` to ``stop`` of all, by one copy at most of each."""
        parts: list[tuple[int, int, int]] = []
        first = 0
        for number, piece in enumerate(self.pieces):
            low, high = max(start - first, 0), min(stop - first, piece.num_rows)
            if low < high:
                parts.append((number, low, high))
            first += piece.num_rows
        if len(parts) == 1:
            return self.load(*parts[0])
        return _gathered((self.load(*part) for part in parts), [np.arange(0, high - low) for _, low, high in parts])

    def take(self, rows: NDArray[np.int64]) -> Rows:
        """Rows by their numbers, in the order given; those between wanted ones are read along where few."""
        if len(rows) and bool((np.diff(rows) == 1).all()):
            return self.span(int(rows[0]), int(rows[-1]) + 1)
        order = np.argsort(rows, kind="stable")
        ascending = rows[order]
        runs = np.split(ascending, np.flatnonzero(np.diff(ascending) > _GAP) + 1)
        found = (self.span(int(run[0]), int(run[-1]) + 1) for run in runs)
        return _gathered(found, [run - run[0] for run in runs], order)


def _gathered(parts: Iterator[Rows], chosen: list[NDArray[Any]], order: NDArray[Any] | None = None) -> Rows:
    """Chosen rows of several parts in one, each put where ``order`` says, one after another without it."""
    total, done = sum(map(len, chosen)), 0
    places = np.arange(total) if order is None else order
    out = Rows({}, {})
    for part, rows in zip(parts, chosen, strict=True):
        here = places[done : done + len(rows)]
        done += len(rows)
        for into, found in zip(out, part, strict=True):
            for name, array in found.items():
                into[name] = _roomy(into.get(name), array, total)
                into[name][here] = array[rows]
    return out


def _roomy(held: NDArray[Any] | None, array: NDArray[Any], total: int) -> NDArray[Any]:
    """Room for all rows, of a type that holds both what is there and what comes: texts may get longer."""
    if held is None:
        return np.empty((total, *array.shape[1:]), dtype=array.dtype)
    if held.dtype == array.dtype:
        return held
    return held.astype(common_type(held.dtype, array.dtype))


def common_type(one: np.dtype[Any], other: np.dtype[Any]) -> np.dtype[Any]:
    """The type that holds entries of both unchanged: objects for texts beside numbers, which numpy would make texts.

    Example:
        >>> common_type(np.dtype("U2"), np.dtype("U5")), common_type(np.dtype("U2"), np.dtype("i8"))
        (dtype('<U5'), dtype('O'))
    """
    mixed = (one.kind in "USO") != (other.kind in "USO") or (one.kind == "M") != (other.kind == "M")
    return np.dtype(object) if mixed else np.promote_types(one, other)


class _Renamed(Source):
    """A source whose modalities are called by other names."""

    def __init__(self, base: Source, names: dict[str, str]) -> None:
        self._base, self._names = base, names
        self.where, self.pieces, self.files, self.has_ids = base.where, base.pieces, base.files, base.has_ids
        self.columns = base.columns
        self.modalities = {names[name]: width for name, width in base.modalities.items()}
        self.features = {names[name]: found for name, found in base.features.items()}
        self.dtypes = {names[name]: dtype for name, dtype in base.dtypes.items()}

    def load(self, piece: int, start: int, stop: int) -> Rows:
        """The rows of the base."""
        found = self._base.load(piece, start, stop)
        return Rows({self._names[name]: array for name, array in found.arrays.items()}, found.columns)

    def all_ids(self) -> NDArray[Any]:
        """The identifiers of the base."""
        return self._base.all_ids()


@dataclass(frozen=True, eq=False)
class ArraySource(Source):
    """A source made of arrays, in memory or read lazily.

    Args:
        where: the origin.
        arrays: (N, D_m) of each modality.
        features: names of the features of a modality.
        ids: (N,), or None.
        columns: labels and covariates, (N, ...) each.
        files: that the arrays are read from.

    Raises:
        DataError: the arrays have different numbers of rows.

    Example:
        >>> source = ArraySource("the frame", {"text": np.eye(3)}, ids=np.array(["a", "b", "c"]))
        >>> source.take(np.array([2, 0])).ids.tolist(), source.take(np.array([2, 0])).arrays["text"].tolist()
        (['c', 'a'], [[0.0, 0.0, 1.0], [1.0, 0.0, 0.0]])
    """

    where: str
    arrays: Mapping[str, Lazy]
    features: Mapping[str, Names | None] = field(default_factory=dict)
    ids: Lazy | None = None
    columns: Mapping[str, Lazy] = field(default_factory=dict)
    files: tuple[Path | Remote, ...] = ()

    def __post_init__(self) -> None:
        counts = {name: array.shape[0] for name, array in {**self.arrays, **self.columns}.items()}
        if self.ids is not None:
            counts["ids"] = self.ids.shape[0]
        if len(set(counts.values())) > 1:
            raise DataError(
                f"{self.where}: its arrays have different numbers of rows, {counts}; give each one row per instance, "
                "or read them as a dict of modalities with ids each, by which they are joined."
            )

    @property
    def modalities(self) -> dict[str, int]:  # type: ignore[override]  # computed here
        """D_m of each modality."""
        return {name: array.shape[1] for name, array in self.arrays.items()}

    @property
    def dtypes(self) -> dict[str, np.dtype[Any]]:  # type: ignore[override]  # computed here
        """Types of the modalities."""
        return {name: array.dtype for name, array in self.arrays.items()}

    @property
    def has_ids(self) -> bool:  # type: ignore[override]  # computed here
        """Whether there are ids."""
        return self.ids is not None

    @property
    def pieces(self) -> tuple[Piece, ...]:  # type: ignore[override]  # computed here
        """All rows as one piece."""
        known = [*self.arrays.values(), *self.columns.values(), *([] if self.ids is None else [self.ids])]
        return (Piece(self.where, known[0].shape[0] if known else 0),)

    def load(self, piece: int, start: int, stop: int) -> Rows:
        """Slices of the arrays."""
        del piece
        rows = slice(start, stop)
        columns = self.columns if self.ids is None else {IDS: self.ids, **self.columns}
        return Rows(
            {name: array[rows] for name, array in self.arrays.items()},
            {name: np.asarray(column[rows]) for name, column in columns.items()},
        )

    def all_ids(self) -> NDArray[Any]:
        """The ids."""
        return np.empty(0) if self.ids is None else np.asarray(self.ids[:])
