"""Parquet files, one or a folder of them, read by row groups and within these by batches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from calmrl_prob._support.extras import optional
from calmrl_prob._support.files import existing_file, said, size_and_time
from calmrl_prob._support.remote import Remote
from calmrl_prob.errors import DataError, FileFormatError, SchemaError
from calmrl_prob.reading.arrow import TableColumns, column_entries
from calmrl_prob.reading.request import Request, listed
from calmrl_prob.reading.source import Piece, Rows, Source

_TASK = "reading parquet"
#: Rows that are decoded at once of a row group that is taken in parts.
_BATCH = 2**14


class ParquetSource(Source):
    """Files of one schema, one after another.

    Args:
        files: in the order of their rows.
        request: what is asked for.

    Raises:
        FileFormatError: a file is none, or damaged.
        SchemaError: it has other columns than the first one.
        DataError: there are no rows.
    """

    def __init__(self, files: Sequence[Path | Remote], request: Request) -> None:
        self.files = tuple(files)
        beside = {1: "", 2: " and a file beside it"}.get(len(files), f" and {len(files) - 1} files beside it")
        self.where = f"{files[0]}{beside}"
        first = _schema_and_groups(files[0])[0]
        self._columns = TableColumns(first, request, str(files[0]))
        self._places: list[tuple[Path | Remote, int]] = []
        pieces = []
        for path in files:
            schema, counts = _schema_and_groups(path)
            _require_same(path, schema, files[0], first)
            self._columns.widen(schema, str(path), str(files[0]))
            for group, count in enumerate(counts):
                if count:
                    self._places.append((path, group))
                    pieces.append(Piece(f"{path.name}, row group {group}", count))
        self.pieces = tuple(pieces)
        if not pieces:
            raise DataError(f"{self.where}: no rows in it; write it again.")
        self._cursor: _Cursor | None = None
        self.modalities = self._widths()
        self.features, self.columns = self._columns.features, self._columns.shares.columns
        self.dtypes = self._columns.dtypes
        self.has_ids = self._columns.shares.ids is not None

    def _widths(self) -> dict[str, int]:
        columns = self._columns
        stored = [columns.stored[found[0]] for name, found in columns.shares.modalities.items() if columns.lists[name]]

        def tables() -> Iterator[Any]:
            for path, group in self._places:
                with _told(path, group):
                    yield from _file(path).iter_batches(row_groups=[group], columns=stored, batch_size=_BATCH)

        widths = columns.widths(tables())
        for name, width in widths.items():
            if width == 0:
                raise DataError(f"modality {name!r}: {self.where} has no value of it; leave it out with modalities=.")
        return widths

    def load(self, piece: int, start: int, stop: int) -> Rows:
        """Rows of one row group."""
        path, group = self._places[piece]
        with _told(path, group):
            if (start, stop) == (0, self.pieces[piece].num_rows):
                table = _file(path).read_row_group(group, columns=self._columns.used())
            else:
                # sequential parts of a large row group are decoded once, not once a part
                if self._cursor is None or (self._cursor.piece, self._cursor.row) != (piece, start):
                    self._cursor = _Cursor(path, group, self._columns.used(), piece, start)
                table = self._cursor.take(stop - start)
        if table.num_rows != stop - start:
            raise DataError(
                f"{path}, row group {group}: it had {self.pieces[piece].num_rows} rows when it was opened, and has "
                f"{table.num_rows}; it has changed: read it anew."
            )
        return self._columns.rows(table, self.modalities, f"{path}, row group {group}")

    def all_ids(self) -> NDArray[Any]:
        """The column of identifiers, read by itself."""
        stored = self._columns.stored[self._columns.shares.ids]
        parts = []
        for path in self.files:
            with _told(path):
                parts.append(column_entries(_file(path).read(columns=[stored]).column(stored)))
        parts = [part for part in parts if len(part)]
        mixed = len({part.dtype.kind for part in parts}) > 1
        return np.concatenate([part.astype(object) if mixed else part for part in parts])

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_cursor": None}  # an open file does not travel


class _Cursor:
    """Rows of a row group taken part after part."""

    def __init__(self, path: Path | Remote, group: int, columns: list[str], piece: int, start: int) -> None:
        self.piece, self.row = piece, 0
        self._batches = _file(path).iter_batches(row_groups=[group], columns=columns, batch_size=_BATCH)
        self._rest: list[Any] = []
        while start > self.row:
            self.take(min(_BATCH, start - self.row))

    def take(self, count: int) -> Any:  # noqa: ANN401 - a pyarrow.Table
        """The next rows."""
        held = sum(batch.num_rows for batch in self._rest)
        while held < count:
            self._rest.append(next(self._batches))
            held += self._rest[-1].num_rows
        last = self._rest.pop()
        kept = last.num_rows - (held - count)
        table = optional("pyarrow", "arrow", _TASK).Table.from_batches([*self._rest, last.slice(0, kept)])
        self._rest = [last.slice(kept)] if kept < last.num_rows else []
        self.row += count
        return table


def open_parquet(files: Sequence[Path | Remote], request: Request) -> list[Source]:
    """Parquet files as a source."""
    return [ParquetSource([path if isinstance(path, Remote) else existing_file(path) for path in files], request)]


def _file(path: Path | Remote) -> Any:  # noqa: ANN401 - a pyarrow.parquet.ParquetFile
    # pages are read as they are decoded, so that a row group never lies in memory as a whole besides
    source = path.open() if isinstance(path, Remote) else path
    return optional("pyarrow.parquet", "arrow", _TASK).ParquetFile(source, buffer_size=2**16, pre_buffer=False)


def _schema_and_groups(path: Path | Remote) -> tuple[Any, list[int]]:
    """The schema of a file, and the numbers of rows of its row groups."""
    with _told(path), _file(path) as file:
        about = file.metadata
        return file.schema_arrow, [about.row_group(group).num_rows for group in range(about.num_row_groups)]


@contextmanager
def _told(path: Path | Remote, group: int | None = None) -> Iterator[None]:
    """Turn what Arrow makes of a damaged file into the typed error that names file and row group."""
    arrow = optional("pyarrow", "arrow", _TASK)
    try:
        yield
    except (arrow.ArrowException, OSError, StopIteration) as error:
        if isinstance(error, FileNotFoundError):
            raise
        where = f"{path}" if group is None else f"{path}, row group {group}"
        kind = "an empty file" if size_and_time(path)[0] == 0 else f"not parquet, or damaged: {said(error)}"
        raise FileFormatError(f"{where}: it cannot be read ({kind}); copy or write this file again.") from error


def _require_same(path: Path | Remote, schema: Any, first: Path | Remote, expected: Any) -> None:  # noqa: ANN401 - pyarrow.Schema
    """Refuse a file with other columns than the first one."""
    lacking = [name for name in expected.names if name not in schema.names]
    extra = [name for name in schema.names if name not in expected.names]
    if lacking or extra:
        raise SchemaError(
            f"{path}: its columns are not those of {first}: it lacks {listed(lacking)} and has {listed(extra)} "
            "besides; read files of one schema at a time, and join them by their ids as a dict."
        )
