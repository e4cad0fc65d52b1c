"""Labels of rows: what belongs to which instance, where the user's frames, series and arrays say it."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from calmrl_prob.errors import DataError


def row_index(value: object) -> Any:  # noqa: ANN401 - a pandas Index
    """The pandas Index that names the rows of what a user hands over; None of what has none.

    That of pandas frames and series, of xarray arrays (the coordinate of their first dimension), and of AnnData
    (``obs_names``).

    Example:
        >>> import pandas as pd
        >>> row_index(pd.Series([1, 2], index=["a", "b"])).tolist(), row_index([1, 2])
        (['a', 'b'], None)
    """
    # A frame can only come from a pandas that is already imported, so the library need not import it (it is slow).
    pandas: Any = sys.modules.get("pandas")
    if pandas is None:
        return None
    if isinstance(value, pandas.DataFrame | pandas.Series):
        return value.index
    if hasattr(value, "obs_names") and hasattr(value, "X"):
        return pandas.Index(value.obs_names)
    if hasattr(value, "indexes") and hasattr(value, "dims") and len(tuple(value.dims)):
        return value.indexes.get(next(iter(value.dims)))
    return None


def counts_rows(index: Any) -> bool:  # noqa: ANN401 - a pandas Index
    """Whether an index is 0, 1, 2 ..., as frames that were given none have it."""
    return index.dtype.kind == "i" and np.array_equal(np.asarray(index), np.arange(len(index)))


def shared_index(arrays: Mapping[str, Any]) -> tuple[Any, dict[str, NDArray[np.int64]]]:
    """The index of the first modality that has one, and how the rows of others are brought into its order.

    Returns:
        The index, None without one; and row numbers of each modality whose rows stand in another order.

    Raises:
        DataError: two modalities have indexes of different rows, or an index has a label twice.

    Example:
        >>> import pandas as pd
        >>> x = pd.DataFrame({"u": [1.0, 2.0]}, index=["a", "b"])
        >>> shared_index({"x": x, "y": x.iloc[::-1]})[1]["y"].tolist()
        [1, 0]
    """
    first: tuple[str, Any] | None = None
    orders = {}
    for name, array in arrays.items():
        index = row_index(array)
        if index is None:
            continue
        if first is None:
            first = name, index
        elif not index.equals(first[1]):
            order = _order(index, first[1])
            if order is None:
                raise DataError(
                    f"modality {name!r}: its index differs from that of modality {first[0]!r}, so rows would not "
                    "belong together; align it (frame.reindex(other.index) gives NaN rows where a modality is absent)."
                )
            orders[name] = order
    return (None if first is None else first[1]), orders


def is_flags(value: object) -> bool:
    """Whether rows are chosen by labelled booleans: a Series of them, or an xarray array."""
    kind: Any = getattr(value, "dtype", None)
    return row_index(value) is not None and (getattr(kind, "kind", "") == "b" or str(kind) == "boolean")


@dataclass(frozen=True)
class RowLabels:
    """Labels of the N rows, by which what else is given for them is put in order.

    Attributes:
        num_instances: N.
        index: the pandas Index of the modalities; None if they have none.
        ids: (N,) identifiers; None if there are none.
    """

    num_instances: int
    index: Any = None
    ids: NDArray[Any] | None = None

    def arranged(self, argument: str, value: Any) -> Any:  # noqa: ANN401 - whatever the user gives
        """Values given for the rows, in their order: by its labels where it has some, by position where it has none.

        Args:
            argument: how messages call it.
            value: an array, or a series, frame or xarray array, with N rows.

        Raises:
            DataError: its labels are not those of the rows.

        Example:
            >>> import pandas as pd
            >>> rows = RowLabels(2, ids=np.array(["a", "b"]))
            >>> rows.arranged("labels", pd.Series([1, 2], index=["b", "a"])).tolist()
            [2, 1]
        """
        index = row_index(value)
        if index is None or len(index) != self.num_instances:  # what has another length is refused for it
            return value
        known = [self.index] if self.index is not None else []
        if self.ids is not None:
            known.append(_as_index(self.ids))
        if any(index.equals(rows) for rows in known):
            return value
        for rows in known:
            order = _order(index, rows)
            if order is not None:
                return _take(value, order)
        if self.index is None and counts_rows(index):  # arrays have no labels: their rows are counted
            return value
        if known:
            named = f"its labels, such as {str(index[0])!r}, are not those of the rows, such as {str(known[0][0])!r}"
            raise DataError(
                f"{argument}: {named}; give it the same labels (reindex), or .to_numpy() to take it by position."
            )
        raise DataError(
            f"{argument}: its rows have labels, such as {str(index[0])!r}, the modalities have none, so that which "
            "belongs to which is not known; pass ids=, or .to_numpy() to take it by position."
        )


def require_no_contradiction(ids: NDArray[Any], index: Any) -> None:  # noqa: ANN401 - a pandas Index
    """Refuse identifiers that are the labels of the modalities' own rows, in another order.

    Raises:
        DataError: they are.
    """
    if index is not None and not counts_rows(index) and len(index) == len(ids):
        given = _as_index(ids)
        if not given.equals(index) and _order(given, index) is not None:
            raise DataError(
                "ids: they are those of the modalities' own index in another order, so they contradict it; leave ids "
                "out, or take the index off with reset_index(drop=True)."
            )


def _as_index(ids: NDArray[Any]) -> Any:  # noqa: ANN401 - a pandas Index
    import pandas as pd

    return pd.Index(ids)


def _order(index: Any, reference: Any) -> NDArray[np.int64] | None:  # noqa: ANN401 - pandas Indexes
    """Places in ``index`` of the labels of ``reference``; None where the labels are others, or one stands twice."""
    if len(index) != len(reference) or not (index.is_unique and reference.is_unique):
        return None
    places: NDArray[np.int64] = np.asarray(index.get_indexer(reference), dtype=np.int64)
    return None if bool((places < 0).any()) else places


def _take(value: Any, order: NDArray[np.int64]) -> Any:  # noqa: ANN401 - as given
    if hasattr(value, "iloc"):
        return value.iloc[order]
    if hasattr(value, "isel"):
        return value.isel({next(iter(value.dims)): order})
    return np.asarray(value)[order]
