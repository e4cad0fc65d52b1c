"""Names of features: kept with data and models, so that columns in another order are put right and others refused."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from numbers import Integral, Real
from typing import Any

import numpy as np

from calmrl_prob.errors import SchemaError

#: Names of the D_m features of a modality, as the user's frame has them.
Names = tuple[Any, ...]
#: Names that a message lists at most.
_LISTED = 5


class NamedDims(dict[str, int]):
    """Numbers of features by modality, with the names of the features where they are known.

    ``data.dims`` and ``model.dims`` are such mappings where a modality came as a frame. It is a dict like any other;
    data that are made to conform to it have their columns put into the order of its names.

    Args:
        dims: D_m of each modality.
        feature_names: D_m names of each modality, or None where they are not known.

    Example:
        >>> dims = NamedDims({"image": 2, "text": 1}, {"image": ("red", "green")})
        >>> dims, dims.feature_names["text"] is None
        ({'image': 2, 'text': 1}, True)
    """

    feature_names: dict[str, Names | None]

    def __init__(
        self, dims: Mapping[str, int] | None = None, feature_names: Mapping[str, Names | None] | None = None
    ) -> None:
        super().__init__(dims or {})
        self.feature_names = {name: (feature_names or {}).get(name) for name in self}


def names_of(dims: object) -> Mapping[str, Names | None]:
    """Names of features that a mapping of widths carries; empty of one that carries none.

    Example:
        >>> dict(names_of({"image": 2}))
        {}
    """
    return dims.feature_names if isinstance(dims, NamedDims) else {}


def with_names(dims: dict[str, int], *sources: Mapping[str, Names | None]) -> dict[str, int]:
    """Widths with the names that the first source that knows them gives; as they are where none does.

    Example:
        >>> with_names({"image": 1, "text": 1}, {"text": None}, {"text": ("t",)}).feature_names
        {'image': None, 'text': ('t',)}
    """
    found = {name: next((s[name] for s in sources if s.get(name) is not None), None) for name in dims}
    return NamedDims(dims, found) if any(names is not None for names in found.values()) else dims


def feature_names(value: object, width: int) -> Names | None:
    """The names that a frame has for its columns; None of what has none.

    Read off pandas and polars frames (``columns``), two-dimensional xarray arrays (the coordinate of their second
    dimension), and AnnData (``var_names``), by what they offer. A frame whose columns are numbered has these numbers.

    Example:
        >>> import pandas as pd
        >>> feature_names(pd.DataFrame({"u": [1.0], "v": [2.0]}), 2), feature_names(np.ones((1, 2)), 2)
        (('u', 'v'), None)
    """
    labels: Any = None
    if hasattr(value, "var_names") and hasattr(value, "X"):
        labels = value.var_names
    elif hasattr(value, "indexes") and hasattr(value, "dims"):
        dims = tuple(value.dims)
        labels = value.indexes.get(dims[1]) if len(dims) == 2 else None
    elif hasattr(value, "columns"):
        labels = value.columns
    if labels is None or isinstance(labels, str) or not hasattr(labels, "__len__") or len(labels) != width:
        return None
    return as_names(labels.tolist() if hasattr(labels, "tolist") else labels)


def as_names(labels: Iterable[Any]) -> Names:
    """Labels of any kind as names of features.

    Example:
        >>> as_names([np.int64(3), "u", ["dark", "red"]])
        (3, 'u', ('dark', 'red'))
    """
    return tuple(_plain(tuple(label) if isinstance(label, list) else label) for label in labels)


def from_lists(dims: dict[str, int], found: object) -> dict[str, int]:
    """Widths with names as JSON gives them back, where tuples have become lists.

    Raises:
        SchemaError: they are not names of so many features.

    Example:
        >>> from_lists({"image": 2}, {"image": ["red", ["dark", "green"]]}).feature_names
        {'image': ('red', ('dark', 'green'))}
    """
    if found is None:
        return dims
    if not isinstance(found, Mapping):
        raise SchemaError(f"feature_names: expected a mapping, got {type(found).__name__}; save the model again.")
    for name, listed in found.items():
        if listed is not None and (not isinstance(listed, list) or len(listed) != dims.get(name)):
            raise SchemaError(f"feature_names: expected the names of {dict(dims)}; save the model again.")
    return with_names(dims, {name: None if listed is None else _tuples(listed) for name, listed in found.items()})


def reconciled(
    name: str, have: Names | None, want: Names | None, argument: str = "data", source: str = "the model"
) -> tuple[list[int] | None, Names | None]:
    """Order in which the columns of a modality are those wanted, and what they are called then.

    Args:
        name: the modality.
        have: names of the columns as they are.
        want: names in the order wanted.
        argument: how messages call what has the columns.
        source: how they call what has the names wanted.

    Returns:
        Numbers of columns in the order wanted, None where they stay as they are; and the names. Where one of the two
        has no names, or merely numbers its columns, there is nothing to go by, and columns stay.

    Raises:
        SchemaError: the names are others, or one stands twice.

    Example:
        >>> reconciled("image", ("green", "red"), ("red", "green"))
        ([1, 0], ('red', 'green'))
    """
    if want is None or have is want or have == want:
        return None, have
    if have is None:
        return None, want
    places = {label: place for place, label in enumerate(have)}
    if len(places) == len(have) == len(want) and all(label in places for label in want):
        return [places[label] for label in want], want
    if _numbers(have) or _numbers(want):
        return None, have if _numbers(want) else want
    lacking = [label for label in want if label not in places]
    extra = [label for label in have if label not in set(want)]
    found = f"lack {_listed(lacking)} and have {_listed(extra)} besides" if lacking or extra else "have names twice"
    raise SchemaError(
        f"{argument}: modality {name!r}: expected the features {_listed(want)} of {source}, but the data {found}; "
        "give it the same columns, renamed or chosen by name; or, if only the names differ, frame.to_numpy()."
    )


def _numbers(names: Names) -> bool:
    """Whether names merely number the columns."""
    return bool(names) and type(names[0]) is int and names == tuple(range(len(names)))


def _listed(names: Sequence[Any]) -> str:
    shown = ", ".join(repr(name) for name in names[:_LISTED])
    return f"[{shown}{f', ... ({len(names)} in all)' if len(names) > _LISTED else ''}]"


def _plain(label: object) -> Any:  # noqa: ANN401 - text, numbers, None, or tuples of them
    """A name as JSON can hold it and as compares by value: dates and other objects as their text, missing ones None."""
    found: Any = None
    if isinstance(label, str):
        found = str(label)
    elif isinstance(label, tuple):
        found = tuple(_plain(part) for part in label)
    elif isinstance(label, bool | np.bool_):
        found = bool(label)
    elif isinstance(label, Integral):
        found = int(label)
    elif isinstance(label, Real):
        found = float(label) if label == label else None
    elif not (label is None or label is getattr(sys.modules.get("pandas"), "NA", None)):
        found = str(label)
    return found


def _tuples(listed: Sequence[Any]) -> Names:
    return tuple(_tuples(label) if isinstance(label, list) else label for label in listed)
