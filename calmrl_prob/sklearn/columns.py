"""Columns of a table grouped into modalities: by name, position, selector, or the first level of their index."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from calmrl_prob._support.arguments import brief, described
from calmrl_prob.errors import ArgumentError, ArgumentTypeError, SchemaError

#: Columns that a message lists at most.
_LISTED = 5
#: The modality that all columns are in where nothing groups them.
ALONE = "X"


def levels(X: object) -> list[tuple[Hashable, ...]] | None:
    """The columns of a pandas frame with a MultiIndex, as tuples; None of anything else.

    Example:
        >>> import pandas as pd
        >>> levels(pd.DataFrame([[1, 2]], columns=pd.MultiIndex.from_product([["image"], ["red", "green"]])))
        [('image', 'red'), ('image', 'green')]
    """
    columns: Any = getattr(X, "columns", None)
    return columns.tolist() if getattr(columns, "nlevels", 1) > 1 else None


def grouped_columns(
    modalities: object, X: object, labels: Sequence[Hashable] | None, width: int
) -> dict[str, NDArray[np.intp]]:
    """The numbers of the columns of each modality, in the order given.

    Args:
        modalities: a mapping of names to columns (:func:`positions`), or pairs of these; None for the first level of a
            MultiIndex, or for one modality of all columns where there is none.
        X: the table, for selectors that look at it.
        labels: its columns' names; None where they have none.
        width: number of its columns D.

    Raises:
        ArgumentTypeError: it is no mapping, or has names that are not text.
        ArgumentError: a modality has no columns, or a column is in two modalities or in none.
        SchemaError: a column is not there.

    Example:
        >>> found = grouped_columns({"text": ["t"], "image": slice(0, 2)}, None, ["red", "green", "t"], 3)
        >>> {name: numbers.tolist() for name, numbers in found.items()}
        {'text': [2], 'image': [0, 1]}
    """
    if modalities is None:
        return _by_first_level(levels(X), width)
    try:
        given = dict(modalities)  # type: ignore[call-overload]
    except (TypeError, ValueError):
        raise ArgumentTypeError(
            f"modalities: expected a mapping of names to columns, got {described(modalities)}; pass one such as "
            "{'image': ['red', 'green'], 'text': slice(2, None)}."
        ) from None
    found: dict[str, NDArray[np.intp]] = {}
    for name, columns in given.items():
        if not isinstance(name, str):
            raise ArgumentTypeError(f"modalities: expected text as names, got {brief(name)}; use {str(name)!r}.")
        found[name] = positions(name, columns, X, labels, width)
    _require_partition(found, labels, width)
    return found


def positions(name: str, columns: object, X: object, labels: Sequence[Hashable] | None, width: int) -> NDArray[np.intp]:
    """The numbers of the columns that one modality is given.

    Args:
        name: the modality, for messages.
        columns: as in a ``ColumnTransformer``: a name, a position, a slice of either (of names with its end), a
            sequence of either, (D,) bool, or a function of the table that returns one of these, such as
            ``make_column_selector``.
        X: the table.
        labels: its columns' names; None where they have none.
        width: number of its columns D.

    Raises:
        ArgumentTypeError, ArgumentError, SchemaError: as there.
    """
    chosen: Any = columns(X) if callable(columns) else columns
    if isinstance(chosen, slice):
        start, stop = (_end(name, chosen.start, labels, 0), _end(name, chosen.stop, labels, 1))
        chosen = range(width)[start : stop : chosen.step]
    elif isinstance(chosen, str | int | np.integer) or (isinstance(chosen, tuple) and chosen in (labels or ())):
        chosen = [chosen]
    elif not hasattr(chosen, "__len__"):
        raise ArgumentTypeError(
            f"modalities[{name!r}]: expected columns by name or position, a slice, booleans or a function of the table,"
            f" got {described(chosen)}; pass a list."
        )
    listed = chosen.tolist() if hasattr(chosen, "tolist") else list(chosen)
    if listed and all(isinstance(entry, bool) for entry in listed):
        if len(listed) != width:
            raise ArgumentError(f"modalities[{name!r}]: expected {width} booleans, one a column, got {len(listed)}.")
        return np.flatnonzero(listed)
    return np.array([_position(name, entry, labels, width) for entry in listed], dtype=np.intp)


def _by_first_level(columns: Sequence[tuple[Hashable, ...]] | None, width: int) -> dict[str, NDArray[np.intp]]:
    if columns is None:
        return {ALONE: np.arange(width)}
    first = [str(column[0]) for column in columns]
    return {name: np.array([k for k, own in enumerate(first) if own == name]) for name in dict.fromkeys(first)}


def _end(name: str, end: object, labels: Sequence[Hashable] | None, beyond: int) -> Any:  # noqa: ANN401 - int or None
    """One end of a slice as a position; that of a name lies ``beyond`` it."""
    known = labels or ()
    return _position(name, end, labels, len(known)) + beyond if isinstance(end, str | tuple) else end


def _position(name: str, column: object, labels: Sequence[Hashable] | None, width: int) -> int:
    """The number of one column."""
    where = f"modalities[{name!r}]"
    if isinstance(column, int | np.integer) and not isinstance(column, bool):
        if not -width <= column < width:
            raise SchemaError(f"{where}: expected positions below {width}, the number of columns, got {column}.")
        return int(column) % width
    if not isinstance(column, str | tuple):
        raise ArgumentTypeError(f"{where}: expected names or positions of columns, got {described(column)} among them.")
    if labels is None:
        raise SchemaError(
            f"{where}: column {column!r} is named, and X has no names; pass a frame, or "
            "positions; within a pipeline, set_output(transform='pandas') hands names on."
        )
    if (count := list(labels).count(column)) != 1:
        there = "no column" if count == 0 else f"{count} columns"
        raise SchemaError(f"{where}: expected one column {column!r}, got {there}; the columns are {_shown(labels)}.")
    return list(labels).index(column)


def _require_partition(found: Mapping[str, NDArray[np.intp]], labels: Sequence[Hashable] | None, width: int) -> None:
    """Refuse modalities without columns, and columns that are in none or in several."""
    empty = [name for name, numbers in found.items() if not len(numbers)]
    if empty or not found:
        raise ArgumentError(f"modalities: {empty[0] if empty else 'nothing'!r} has no columns; leave it out.")
    counts = np.bincount(np.concatenate([*found.values()]), minlength=width)
    called = range(width) if labels is None else labels
    for wrong, problem, remedy in (
        (counts > 1, "are chosen twice", "give each column one modality"),
        (counts == 0, "are in no modality", "give them one; what is to stay as it is goes past by a ColumnTransformer"),
    ):
        if wrong.any():
            shown = _shown([column for column, bad in zip(called, wrong, strict=True) if bad])
            raise ArgumentError(f"modalities: columns {shown} {problem}; {remedy}.")


def _shown(columns: Sequence[Hashable]) -> str:
    listed = ", ".join(repr(column) for column in columns[:_LISTED])
    return f"[{listed}{f', ... ({len(columns)} in all)' if len(columns) > _LISTED else ''}]"
