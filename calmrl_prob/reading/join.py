"""Joining sources: rows with one identifier become one instance, whichever sources have it."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from calmrl_prob._support.warnings import level_of_caller
from calmrl_prob.data import MultimodalData
from calmrl_prob.data.entries import check_distinct, entries
from calmrl_prob.data.features import names_of, with_names
from calmrl_prob.errors import ArgumentError, DataError, IdentifiabilityWarning
from calmrl_prob.reading.source import IDS, LABELS, PARTITION, Rows, Source, common_type


@dataclass(frozen=True, eq=False)
class Joined:
    """Sources whose rows are put together.

    Attributes:
        sources: the origins.
        ids: (N,) of the instances; None where there is one source, or none has identifiers.
        rows: for each source the row of each instance, (N,), -1 where it has none; None where they are the same.
        order: of modalities; those it does not name come behind.
    """

    sources: tuple[Source, ...]
    ids: NDArray[Any] | None
    rows: tuple[NDArray[np.int64] | None, ...]
    order: tuple[str, ...] = ()

    @property
    def num_rows(self) -> int:
        """Number of instances N."""
        return self.sources[0].num_rows if self.ids is None else len(self.ids)

    @property
    def dims(self) -> dict[str, int]:
        """Number of features of each modality, with their names."""
        widths = {name: width for source in self.sources for name, width in source.modalities.items()}
        widths = {name: widths[name] for name in dict.fromkeys([*self.order, *widths]) if name in widths}
        return with_names(widths, {name: names for source in self.sources for name, names in source.features.items()})

    @property
    def dtype(self) -> torch.dtype:
        """The widest floating-point type of the modalities."""
        found = {_floating(dtype) for source in self.sources for dtype in source.dtypes.values()}
        return torch.float64 if np.dtype(np.float64) in found else torch.float32

    def chunk(self, start: int, stop: int, missing: str, empty: str) -> MultimodalData:
        """The instances ``start`` to ``stop``, as data.

        Raises:
            DataError: the values break a rule, or sources say different things of one instance.
        """
        if len(self.sources) == 1 and self.rows[0] is None:
            rows = self.sources[0].span(start, stop)
            ids = rows.columns.pop(IDS, None)
            if ids is not None:
                ids = _distinct(entries(ids), self.sources[0], start)
        else:
            rows, ids = self._put_together(start, stop), None if self.ids is None else self.ids[start:stop]
        columns = rows.columns
        partition = columns.pop(PARTITION, None)
        settings: dict[str, Any] = {
            "ids": ids,
            "labels": columns.pop(LABELS, None),
            "partition": None if partition is None else np.where(_lacking(partition), "", partition),
            "covariates": columns,
            "empty": empty,
        }
        arrays = {name: rows.arrays[name] for name in self.dims}
        try:
            return _data(arrays, missing, settings).renamed(names_of(self.dims))
        except DataError as error:
            raise type(error)(f"{', '.join(source.where for source in self.sources)}: {error}") from error

    def _put_together(self, start: int, stop: int) -> Rows:
        """Rows of the sources side by side, NaN and None where one has nothing."""
        out = Rows({}, {})
        count = stop - start
        for source, places in zip(self.sources, self.rows, strict=True):
            here = np.arange(start, stop) if places is None else places[start:stop]
            there = np.flatnonzero(here >= 0)
            # of a source that has nothing here a row is read for its columns alone
            found = source.take(here[there] if len(there) else np.zeros(1, dtype=np.int64)).first(len(there))
            whole = len(there) == count and bool((np.diff(there) == 1).all())
            for name, width in source.modalities.items():
                if whole:
                    out.arrays[name] = found.arrays[name]
                    continue
                array = np.full((count, width), np.nan, dtype=_floating(source.dtypes[name]))
                array[there] = found.arrays[name]
                out.arrays[name] = array
            for name, column in found.columns.items():
                if name != IDS:
                    spread = column if whole else _spread(column, there, count)
                    known = out.columns.get(name)
                    out.columns[name] = spread if known is None else self._agreed(name, known, spread, start)
        return out

    def _agreed(self, name: str, one: NDArray[Any], other: NDArray[Any], start: int) -> NDArray[Any]:
        """A column that two sources have: what either says, where only one does.

        Raises:
            DataError: they say different things.
        """
        first, second = _lacking(one), _lacking(other)
        differ = np.flatnonzero(~first & ~second & (one != other))
        if len(differ):
            row = int(differ[0])
            who = f"row {start + row}" if self.ids is None else f"id {str(self.ids[start + row])!r}"
            raise DataError(
                f"column {name!r}: two sources differ, {str(one[row])!r} and {str(other[row])!r} for {who}; "
                "rename one, or choose with covariates= and labels=."
            )
        kind = common_type(one.dtype, other.dtype)
        joined: NDArray[Any] = np.where(first, other.astype(kind), one.astype(kind))
        return entries(joined)


def joined(sources: Sequence[Source], join: Literal["outer", "inner"]) -> Joined:
    """Put sources together by their identifiers, instances in the order in which the sources first have them.

    Args:
        sources: each with or without identifiers; without, they must all be, and of equal length.
        join: "outer" for the instances of any source, "inner" for those of all.

    Raises:
        DataError: identifiers repeat, some sources have none, or they are of different kinds; or nothing is left.
        ArgumentError: ``join`` is another word.

    Warns:
        IdentifiabilityWarning: none of the identifiers of a source is in another.

    Example:
        >>> from calmrl_prob.reading.source import ArraySource
        >>> x = ArraySource("x", {"x": np.ones((2, 1))}, ids=np.array(["a", "b"]))
        >>> y = ArraySource("y", {"y": np.ones((2, 1))}, ids=np.array(["b", "c"]))
        >>> found = joined([x, y], "outer")
        >>> found.ids.tolist(), found.rows[1].tolist(), joined([x, y], "inner").ids.tolist()
        (['a', 'b', 'c'], [-1, 0, 1], ['b'])
    """
    if join not in ("outer", "inner"):
        raise ArgumentError(f"join: expected 'outer' or 'inner', got {join!r}.")
    without = [source for source in sources if not source.has_ids]
    if len(sources) == 1 or len(without) == len(sources):
        first = sources[0]
        for source in sources:
            if source.num_rows != first.num_rows:
                raise DataError(
                    f"ids: {first.where} has {first.num_rows} rows, {source.where} has {source.num_rows}, and neither "
                    "has identifiers to join them by; give frames an index, or name the column of each, as "
                    f"{own_ids(source)}."
                )
        return Joined(tuple(sources), None, (None,) * len(sources))
    if without:
        raise DataError(
            f"ids: {without[0].where} has none, other sources have; name the column of each, as "
            f"{own_ids(without[0])} for this one, or give it an index."
        )
    return _by_ids(tuple(sources), join)


def own_ids(source: Source) -> str:
    """The option that names the column of identifiers of one of several origins, for messages.

    Example:
        >>> from calmrl_prob.reading.source import ArraySource
        >>> own_ids(ArraySource("the frame", {"text": np.ones((1, 2))}, columns={"doc": np.array(["a"])}))
        "ids={'text': 'doc'}"
    """
    names = list(source.modalities)
    # several modalities of one origin are called by its key and names of their own
    key = names[0] if len(names) == 1 else names[0].partition(":")[0] if names else "..."
    column = next((name for name in source.columns if name not in (LABELS, PARTITION)), "...")
    return f"ids={{{key!r}: {column!r}}}"


def _by_ids(sources: tuple[Source, ...], join: str) -> Joined:
    import pandas as pd

    indexes = []
    for source in sources:
        ids = _distinct(entries(source.all_ids()), source, 0)
        indexes.append(pd.Index(ids, dtype=object if ids.dtype.kind in "US" else None))
    kinds = {
        ("text" if index.inferred_type == "string" else index.inferred_type): source.where
        for index, source in zip(indexes, sources, strict=True)
        if len(index)
    }
    if "text" in kinds and kinds.keys() & {"integer", "floating"}:
        other = next(kind for kind in ("integer", "floating") if kind in kinds)
        raise DataError(
            f"ids: those of {kinds['text']} are texts, those of {kinds[other]} numbers, so that none would be joined; "
            "make them one kind, .astype(str)."
        )
    union = indexes[0]
    for index in indexes[1:] if join == "outer" else ():
        union = union.append(index[~index.isin(union)])
    if join == "inner":
        for source, index in zip(sources, indexes, strict=True):
            if source.modalities:
                union = union[union.isin(index)]
    if not len(union):
        raise DataError("ids: no instance is in all sources; join='outer' keeps those that are in some.")
    _warn_of_strangers(sources, indexes)
    rows = tuple(np.asarray(index.get_indexer(union), dtype=np.int64) for index in indexes)
    return Joined(sources, entries(union.to_numpy()), rows)


def _warn_of_strangers(sources: Sequence[Source], indexes: Sequence[Any]) -> None:
    """Tell of sources of modalities whose identifiers none of the others has.

    Warns:
        IdentifiabilityWarning: there are some; with the first identifiers of each side.
    """
    held = [(source, index) for source, index in zip(sources, indexes, strict=True) if source.modalities and len(index)]
    for source, index in held[:1] if len(held) == 2 else held:
        others = [pair for pair in held if pair[0] is not source]
        if others and not any(index.isin(other).any() for _, other in others):
            theirs, first = others[0]
            warnings.warn(
                f"ids: none of {_called(source)} is in another source: it has {_some(index)}, {_called(theirs)} has "
                f"{_some(first)}, so that no instance has modalities of both; write ids alike, or name the column "
                f"of each, as {own_ids(source)}.",
                IdentifiabilityWarning,
                stacklevel=level_of_caller(),
            )


def _called(source: Source) -> str:
    return f"{', '.join(source.modalities)} ({source.where})"


def _some(ids: Any) -> str:  # noqa: ANN401 - a pandas index
    """The first few, as messages name them."""
    return ", ".join(repr(str(entry)) for entry in ids[:3])


def _data(arrays: dict[str, Any], missing: str, settings: dict[str, Any]) -> MultimodalData:
    """Data that may lack single features where some do, by "auto"."""
    if missing != "auto":
        return MultimodalData(arrays, **settings, missing=missing)  # type: ignore[arg-type]  # checked there
    try:  # what lacks none is checked once, and is the faster kind
        return MultimodalData(arrays, **settings)
    except DataError:
        return MultimodalData(arrays, **settings, missing="features")


def _distinct(ids: NDArray[Any], source: Source, start: int) -> NDArray[Any]:
    """Identifiers of rows from ``start`` on, if each is had once.

    Raises:
        DataError: one stands twice; says where. Or one is missing.
    """
    import pandas as pd

    repeated = pd.Index(ids, dtype=object if ids.dtype.kind in "US" else None).duplicated()
    if repeated.any():
        again = int(repeated.argmax())
        first = int((ids == ids[again]).argmax())
        raise DataError(
            f"ids: {str(ids[again])!r} stands twice, in {source.name_of(start + first)} and in "
            f"{source.name_of(start + again)}; keep one of them, or name another column with ids=."
        )
    try:
        check_distinct(ids)
    except DataError as error:
        raise DataError(f"{source.where}: {error}") from error
    return ids


def _floating(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """The type that a modality is brought to: as of MultimodalData."""
    return np.dtype(np.float32 if dtype.kind == "f" and dtype.itemsize <= 4 else np.float64)


def _spread(column: NDArray[Any], there: NDArray[np.int64], count: int) -> NDArray[Any]:
    """A column over all instances: NaN or NaT where it has nothing, None of other kinds."""
    kind = column.dtype if column.dtype.kind in "fM" else np.dtype(object)
    missing: Any = np.datetime64("NaT") if kind.kind == "M" else np.nan if kind.kind == "f" else None
    out = np.full((count, *column.shape[1:]), missing, dtype=kind)
    out[there] = column
    return out


def _lacking(column: NDArray[Any]) -> NDArray[np.bool_]:
    """Entries that are missing."""
    if column.dtype.kind in "fM":
        return np.asarray(column != column)
    if column.dtype.kind != "O":
        return np.zeros(column.shape, dtype=bool)
    return np.array([entry is None for entry in column.reshape(-1)], dtype=bool).reshape(column.shape)
