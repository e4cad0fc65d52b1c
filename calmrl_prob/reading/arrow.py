"""Tables of Arrow: columns of numbers and of lists as arrays, nulls as NaN."""

from __future__ import annotations

import ast
import json
from collections.abc import Hashable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from calmrl_prob._support.extras import optional
from calmrl_prob.data.entries import entries
from calmrl_prob.data.features import Names, as_names
from calmrl_prob.errors import SchemaError
from calmrl_prob.reading.request import LATENTS, Kind, Request, Shares, called, shared_out
from calmrl_prob.reading.source import IDS, ArraySource, Rows, Source

# A pyarrow.Table, Schema, DataType or ChunkedArray: the package has no annotations.
Arrow = Any


class TableColumns:
    """Columns of an Arrow schema, shared out.

    Args:
        schema: of a table, with what pandas wrote about its index.
        request: what is asked for.
        where: the table, for messages.

    Attributes:
        shares: by the names that pandas had, where it wrote the file.
        stored: the column of the schema that each of these names stands for.
        dtypes: of each modality.
    """

    def __init__(self, schema: Arrow, request: Request, where: str) -> None:
        self.stored = _labels(schema)
        kinds = {label: _kind(schema.field(name).type) for label, name in self.stored.items()}
        index = None if request.ids in self.stored else _index_column(schema)
        if index is not None:
            kinds.pop(index, None)
        for label in _besides(kinds, request):
            kinds.pop(label)
        self.shares: Shares = shared_out(kinds, request, where)
        if index is not None:
            self.shares.ids = index
        self.types = {label: schema.field(name).type for label, name in self.stored.items()}
        self.dtypes = {
            name: _dtype([self.types[column] for column in columns]) for name, columns in self.shares.modalities.items()
        }
        about = {label: schema.field(name).metadata or {} for label, name in self.stored.items()}
        self._listed: dict[str, Names | None] = {
            name: as_names(json.loads(about[columns[0]][b"features"]))
            for name, columns in self.shares.modalities.items()
            if b"features" in about[columns[0]]
        }
        self.lists = {name: kinds[columns[0]] == "list" for name, columns in self.shares.modalities.items()}

    @property
    def features(self) -> dict[str, Names | None]:
        """Names of the features: of columns, or those that ``cal.write`` put beside a column of lists."""
        return dict(self.shares.features) | self._listed

    def widen(self, schema: Arrow, where: str, first: str) -> None:
        """Take in the types of another table of the same columns: the widest are read.

        Raises:
            SchemaError: a column holds another kind of things.
        """
        for label, name in self.stored.items():
            ours, theirs = schema.field(name).type, self.types[label]
            if _kind(ours) != _kind(theirs):
                raise SchemaError(
                    f"{where}: column {name!r} is of type {ours}, in {first} of type {theirs}; write both alike."
                )
            sizes = [kind.list_size for kind in (ours, theirs) if hasattr(kind, "list_size")]
            if len(set(sizes)) > 1:
                raise SchemaError(
                    f"{where}: column {name!r} holds lists of {sizes[0]} numbers, in {first} of {sizes[1]}; write both "
                    "alike."
                )
        for name, columns in self.shares.modalities.items():
            wider = _dtype([schema.field(self.stored[column]).type for column in columns])
            self.dtypes[name] = max(self.dtypes[name], wider, key=lambda dtype: dtype.itemsize)

    def used(self) -> list[str]:
        """Names of the columns that are read."""
        shares = self.shares
        beside = [] if shares.ids is None else [shares.ids]
        columns = [c for found in shares.modalities.values() for c in found] + list(shares.columns.values()) + beside
        return [self.stored[column] for column in columns]

    def rows(self, table: Arrow, widths: Mapping[str, int], where: str) -> Rows:
        """The rows of a table with this schema.

        Raises:
            SchemaError: lists have other lengths than ``widths`` says.
        """
        arrays = {}
        for name, columns in self.shares.modalities.items():
            stored = [table.column(self.stored[column]) for column in columns]
            place = f"{where}: column {columns[0]!r}"
            arrays[name] = (
                _lists(stored[0], widths[name], self.dtypes[name], place)
                if self.lists[name]
                else _numbers(stored, self.dtypes[name])
            )
        beside = dict(self.shares.columns) | ({} if self.shares.ids is None else {IDS: self.shares.ids})
        return Rows(arrays, {name: column_entries(table.column(self.stored[c])) for name, c in beside.items()})

    def widths(self, tables: Iterator[Arrow]) -> dict[str, int]:
        """D_m of each modality, with tables in which to look for the length of lists, until one has some."""
        found = {name: len(columns) for name, columns in self.shares.modalities.items() if not self.lists[name]}
        for name in self.lists:
            if name not in found:
                kind = self.types[self.shares.modalities[name][0]]
                if hasattr(kind, "list_size"):
                    found[name] = kind.list_size
        while len(found) < len(self.lists) and (table := next(tables, None)) is not None:
            for name in self.lists.keys() - found.keys():
                column = table.column(self.stored[self.shares.modalities[name][0]]).drop_null()
                if len(column):
                    found[name] = len(column[0])
        return {name: found.get(name, 0) for name in self.lists}


def table_source(table: Arrow, request: Request, where: str) -> Source:
    """An Arrow table as a source.

    Raises:
        SchemaError: no column can be a modality, or lists have different lengths.

    Example:
        >>> import pyarrow as pa
        >>> table = pa.table({"id": ["a", "b"], "text": [[1.0, 2.0], None]})
        >>> table_source(table, Request(), "the table").take(np.array([0, 1])).arrays["text"].tolist()
        [[1.0, 2.0], [nan, nan]]
    """
    columns = TableColumns(table.schema, request, where)
    rows = columns.rows(table, columns.widths(iter([table])), where)
    ids = rows.columns.pop(IDS, None)
    return ArraySource(where, rows.arrays, columns.features, ids, rows.columns)


def _besides(kinds: Mapping[Hashable, Kind], request: Request) -> list[Hashable]:
    """Columns that a table has of an imputation besides completed values, but for what is asked for by name."""
    lists = [label for label, kind in kinds.items() if kind == "list"]
    whole = [label for label in lists if set(called(str(label))) <= set(lists)]
    found = [name for label in whole for name in called(str(label))] + [name for name in LATENTS if whole]
    wanted = request.modalities.values() if isinstance(request.modalities, Mapping) else request.modalities or ()
    asked = {name for entry in wanted for name in ([entry] if isinstance(entry, str) or callable(entry) else entry)}
    return [name for name in found if name in kinds and name not in asked]


def _labels(schema: Arrow) -> dict[Hashable, str]:
    """Names of the columns, tuples where pandas had levels of them, and what each is stored as."""
    about = schema.pandas_metadata or {}
    if len(about.get("column_indexes", ())) < 2:
        return {name: name for name in schema.names}
    return {(ast.literal_eval(n) if n.startswith("(") and n.endswith(")") else n): n for n in schema.names}


def _index_column(schema: Arrow) -> str | None:
    """The column that was the index of the pandas frame that was written."""
    found = [name for name in (schema.pandas_metadata or {}).get("index_columns", ()) if isinstance(name, str)]
    return found[0] if len(found) == 1 and found[0] in schema.names else None


def _kind(kind: Arrow) -> Kind:
    types = optional("pyarrow", "arrow", "reading Arrow tables").types

    def number(kind: Arrow) -> bool:
        return bool(types.is_integer(kind) or types.is_floating(kind) or types.is_boolean(kind))

    if number(kind):
        return "number"
    if types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind):
        return "list" if number(kind.value_type) else "other"
    return "other"


def _dtype(kinds: Sequence[Arrow]) -> np.dtype[Any]:
    """float32 of halves and singles alone, else float64, as of arrays."""
    names = {str(getattr(kind, "value_type", kind)) for kind in kinds}
    return np.dtype(np.float32 if names <= {"halffloat", "float"} else np.float64)


def _numbers(columns: Sequence[Arrow], dtype: np.dtype[Any]) -> NDArray[Any]:
    """Columns side by side, (n, D): each is one run of memory, so that none is written with strides."""
    types = optional("pyarrow", "arrow", "reading Arrow tables").types
    out = np.empty((len(columns), len(columns[0])), dtype=dtype)
    for place, column in enumerate(columns):
        out[place] = (column.cast("int8") if types.is_boolean(column.type) else column).to_numpy()
    return out.T


def _lists(column: Arrow, width: int, dtype: np.dtype[Any], where: str) -> NDArray[Any]:
    """A column of lists, (n, D), NaN where there is none; the memory of Arrow itself where all is one run of it.

    Raises:
        SchemaError: some have another length.
    """
    parts = []
    for chunk in column.chunks:
        present = chunk.is_valid().to_numpy(zero_copy_only=False)
        values = chunk.flatten().to_numpy(zero_copy_only=False).astype(dtype, copy=False)
        if getattr(chunk.type, "list_size", None) != width:
            _require_length(chunk, width, where)
        if present.all():
            parts.append(values.reshape(len(chunk), width))
            continue
        out = np.full((len(chunk), width), np.nan, dtype=dtype)
        out[present] = values.reshape(-1, width)
        parts.append(out)
    return parts[0] if len(parts) == 1 else np.concatenate([np.empty((0, width), dtype=dtype), *parts])


def _require_length(lists: Arrow, width: int, where: str) -> None:
    lengths = optional("pyarrow.compute", "arrow", "reading lists").list_value_length(lists).fill_null(width).to_numpy()
    wrong = np.flatnonzero(lengths != width)
    if len(wrong):
        raise SchemaError(
            f"{where}: expected lists of {width} numbers, row {wrong[0]} has {lengths[wrong[0]]}; give all the same "
            "length, null where an instance has none."
        )


def column_entries(column: Arrow) -> NDArray[Any]:
    """A column of anything, (n,): numbers and dates as they are, missing ones of other kinds as None."""
    types = optional("pyarrow", "arrow", "reading Arrow tables").types
    if types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    plain = types.is_integer(column.type) or types.is_boolean(column.type)
    if types.is_floating(column.type) or (plain and not column.null_count) or types.is_temporal(column.type):
        found: NDArray[Any] = column.to_numpy()
        return found
    return entries(column.to_pylist())
