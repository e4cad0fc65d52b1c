"""Frames of pandas and polars, and text files that are read as such."""

from __future__ import annotations

import csv
import sys
from collections.abc import Hashable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from calmrl_prob._support.extras import optional
from calmrl_prob._support.files import said
from calmrl_prob.data.entries import entries
from calmrl_prob.data.features import Names, feature_names
from calmrl_prob.data.intake import as_matrix
from calmrl_prob.data.row_labels import counts_rows
from calmrl_prob.errors import FileFormatError, SchemaError
from calmrl_prob.reading.arrow import table_source
from calmrl_prob.reading.request import USUAL, Kind, Request, shared_out
from calmrl_prob.reading.source import ArraySource, Source

_SEPARATORS = {".csv": ",", ".tsv": "\t"}


def is_frame(value: object) -> bool:
    """Whether it is a pandas frame."""
    pandas: Any = sys.modules.get("pandas")
    return pandas is not None and isinstance(value, pandas.DataFrame)


def is_polars(value: object) -> bool:
    """Whether it is a polars frame, lazy or not."""
    polars: Any = sys.modules.get("polars")
    return polars is not None and isinstance(value, polars.DataFrame | polars.LazyFrame)


def open_polars(frame: Any, request: Request) -> list[Source]:  # noqa: ANN401 - a polars frame
    """A polars frame as a source; a lazy one is collected."""
    optional("pyarrow", "arrow", "reading polars frames")
    collected = frame.collect() if hasattr(frame, "collect") else frame
    return [table_source(collected.to_arrow(), request, "the frame")]


def open_text(files: Sequence[Path], request: Request) -> list[Source]:
    """A file of values separated by commas or tabs, with a line of names.

    Raises:
        FileFormatError: it is empty, or no table.
    """
    import pandas as pd

    (path,) = files
    separator = _SEPARATORS[path.suffix.lower()]
    try:
        with open(path, newline="", encoding="utf-8") as file:
            names = next(csv.reader(file, delimiter=separator), [])
        _require_separated(path, names, separator)
        ids = next((n for n in ((request.ids,) if request.ids else USUAL["ids"]) if n in names), None)
        index = 0 if names and not names[0] and ids is None else None
        # as text first: numbers would lose the zeros that identifiers begin with
        kinds = {names[0] or "Unnamed: 0": str} if index == 0 else {ids: str} if ids is not None else None
        frame = pd.read_csv(path, sep=separator, dtype=kinds, index_col=index)
    except UnicodeError as error:
        raise FileFormatError(f"{path}: it is no text in UTF-8 ({said(error)}); save it as UTF-8.") from error
    except FileFormatError:
        raise
    except (ValueError, pd.errors.ParserError) as error:  # EmptyDataError is a ValueError
        raise FileFormatError(
            f"{path}: it is no table with a line of names ({said(error)}); write it again."
        ) from error
    if not len(frame):
        raise FileFormatError(f"{path}: it has no rows below its names; write it again.")
    if index == 0:
        frame.index = pd.Index(_numbered(frame.index.to_numpy(dtype=object)))
    elif ids in frame.columns:
        frame[ids] = _numbered(frame[ids].to_numpy(dtype=object))
    return [frame_source(frame, request, str(path), (path,))]


def _require_separated(path: Path, names: Sequence[str], separator: str) -> None:
    """Refuse a file whose line of names is one name to the separator of its ending, and several to another."""
    other = next((sign for sign in (";", "\t", ",", "|") if len(names) == 1 and sign in names[0]), None)
    if other is not None:
        raise FileFormatError(
            f"{path}: {other!r} stands between its names, and {separator!r} is expected; write it so, or pass the "
            f"frame of pandas.read_csv(..., sep={other!r}), with decimal=',' if its numbers are written so."
        )


def _numbered(column: NDArray[Any]) -> NDArray[Any]:
    """Identifiers as whole numbers, if each is written as one is."""
    texts = column.tolist()
    plain = all(
        isinstance(text, str) and text.isascii() and text.isdigit() and str(int(text)) == text for text in texts
    )
    return np.array([int(text) for text in texts]) if plain else column


def open_frame(frame: Any, request: Request) -> list[Source]:  # noqa: ANN401 - a pandas frame
    """A pandas frame as a source."""
    return [frame_source(frame, request, "the frame")]


def frame_source(frame: Any, request: Request, where: str, files: tuple[Path, ...] = ()) -> Source:  # noqa: ANN401
    """A pandas frame as a source: its index names the rows, unless it merely counts them or a column does.

    Raises:
        SchemaError: two columns have one name, or no column can be a modality.

    Example:
        >>> import pandas as pd
        >>> frame = pd.DataFrame({"rna:A": [1.0, 2.0], "age": [30, 40]}, index=["a", "b"])
        >>> source = frame_source(frame, Request(sep=":"), "the frame")
        >>> source.modalities, source.features, source.all_ids().tolist(), list(source.columns)
        ({'rna': 1}, {'rna': ('A',)}, ['a', 'b'], ['age'])
    """
    if not frame.columns.is_unique:
        twice = frame.columns[frame.columns.duplicated()][0]
        raise SchemaError(f"{where}: column {twice!r} stands twice; rename one.")
    kinds: dict[Hashable, Kind] = {column: _kind(frame[column]) for column in frame.columns}
    by_index = request.ids is not None and request.ids == frame.index.name and request.ids not in kinds
    if by_index:
        kinds[request.ids] = "other"
    shares = shared_out(kinds, request, where)
    arrays: dict[str, NDArray[Any]] = {}
    features: dict[str, Names | None] = {}
    for name, columns in shares.modalities.items():
        if kinds[columns[0]] == "list":
            arrays[name] = _stacked(frame[columns[0]], f"{where}: column {columns[0]!r}")
        else:
            arrays[name] = as_matrix(name, frame[columns]).numpy()
            named = frame[columns].set_axis(list(shares.features[name]), axis=1) if name in shares.features else None
            features[name] = feature_names(named, len(columns))
    ids = None
    if shares.ids is not None and not by_index:
        ids = entries(frame[shares.ids].to_numpy())
    elif by_index or not counts_rows(frame.index):
        ids = entries(frame.index.to_numpy())
    columns_beside = {name: entries(frame[column].to_numpy()) for name, column in shares.columns.items()}
    return ArraySource(where, arrays, features, ids, columns_beside, files)


def _kind(column: Any) -> Kind:  # noqa: ANN401 - a pandas series
    if getattr(column.dtype, "kind", "O") in "fiub":
        return "number"
    if column.dtype == object:
        present = column[column.notna()]
        if len(present) and isinstance(present.iloc[0], list | tuple | np.ndarray):
            return "list"
    return "other"


def _stacked(column: Any, where: str) -> NDArray[Any]:  # noqa: ANN401 - a pandas series
    """A column of lists as (N, D), NaN where there is none.

    Raises:
        SchemaError: the lists are of different lengths.
    """
    rows = [np.asarray(entry) if isinstance(entry, list | tuple | np.ndarray) else None for entry in column]
    lengths = {row.shape for row in rows if row is not None}
    if len(lengths) > 1 or len(next(iter(lengths))) != 1:
        raise SchemaError(f"{where} has lists of different lengths, {sorted(lengths)[:3]}; give all the same length.")
    (width,) = next(iter(lengths))
    missing = np.full(width, np.nan, dtype=next(row.dtype for row in rows if row is not None))
    return np.stack([missing if row is None else row for row in rows])
