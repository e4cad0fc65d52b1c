"""Columns of any kind of entries: texts, numbers, dates, tuples, several of these together, and missing ones."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from calmrl_prob._support.arrays import own_array
from calmrl_prob.errors import DataError


def entries(value: object) -> NDArray[Any]:
    """A column as a numpy array that changes no entry: lists of several kinds, tuples and missing ones stay themselves.

    Entries that are missing among objects (NaN, NaT, pandas' NA) become None.

    Example:
        >>> entries(["a", 1, float("nan")]).tolist(), entries([("a", 1), ("b", 2)]).shape
        (['a', 1, None], (2,))
    """
    if isinstance(value, Tensor):
        return own_array(value)
    if isinstance(value, list | tuple):
        kinds = {str if isinstance(entry, str) else type(entry) for entry in value}
        if tuple in kinds or (len(kinds) > 1 and kinds & {str, bytes}):
            return _none_where_missing(_objects(value))
    array = np.asarray(value)
    if array.dtype.kind == "O":
        array = _none_where_missing(array)
        if array.size and all(isinstance(entry, str) for entry in array.flat):
            array = array.astype(np.str_)
    return array


def grouped(values: NDArray[Any], argument: str = "entries") -> tuple[NDArray[Any], NDArray[np.int64]]:
    """The distinct entries, and for each entry the number of its own, of entries of any kind.

    As ``numpy.unique(values, return_inverse=True)``, but entries that cannot be compared (text beside numbers or None)
    are sorted by kind and text; the missing one, None, is last.

    Raises:
        DataError: entries cannot be told apart, such as lists and dicts.

    Example:
        >>> kinds, index = grouped(np.array(["b", None, 3, "b"], dtype=object))
        >>> kinds.tolist(), index.tolist()
        ([3, 'b', None], [1, 2, 0, 1])
    """
    if values.dtype.kind != "O":
        kinds, index = np.unique(values, return_inverse=True)
        return kinds, index.reshape(-1)
    try:
        distinct = set(values.tolist())
    except TypeError as error:
        raise DataError(
            f"{argument}: expected text, numbers, dates or tuples of these, got entries that cannot be told apart "
            f"({error}); turn them into text."
        ) from error
    order = sorted(distinct, key=lambda entry: (entry is None, type(entry).__name__, str(entry)))
    place = {entry: number for number, entry in enumerate(order)}
    return _objects(order), np.array([place[entry] for entry in values.tolist()], dtype=np.int64)


def check_distinct(ids: NDArray[Any] | None) -> None:
    """Check that every row has an identifier of its own.

    Raises:
        DataError: one is missing, stands twice, or cannot be looked up by.
    """
    if ids is None:
        return
    lacking = np.array([entry is None for entry in ids]) if ids.dtype.kind == "O" else ids != ids
    if lacking.any():
        raise DataError(
            f"ids: row {int(lacking.nonzero()[0][0])} has none (None, NaN or NaT); give each row one, or take the "
            "index off with reset_index(drop=True)."
        )
    try:
        distinct, index = grouped(ids)
    except DataError:
        raise DataError(
            "ids: expected identifiers that can be looked up by, such as text, numbers, dates or tuples of these, got "
            f"{type(ids[0]).__name__}; use .astype(str)."
        ) from None
    if len(distinct) < len(ids):
        repeated = int((np.bincount(index) > 1).nonzero()[0][0])
        rows = (index == repeated).nonzero()[0][:2].tolist()
        raise DataError(f"ids: expected distinct identifiers, but {str(distinct[repeated])!r} stands in rows {rows}.")


def _objects(listed: Sequence[Any]) -> NDArray[Any]:
    array: NDArray[Any] = np.empty(len(listed), dtype=object)
    for place, entry in enumerate(listed):  # one by one: numpy would make tuples rows of a matrix
        array[place] = entry
    return array


def _none_where_missing(array: NDArray[Any]) -> NDArray[Any]:
    missing = [place for place, entry in enumerate(array.flat) if entry is not None and _is_missing(entry)]
    if missing:
        array = array.copy()
        array.flat[missing] = None
    return array


def _is_missing(entry: object) -> bool:
    if isinstance(entry, float | np.floating):
        return bool(np.isnan(entry))
    return type(entry).__name__ in ("NAType", "NaTType") or (isinstance(entry, np.datetime64) and bool(np.isnat(entry)))
