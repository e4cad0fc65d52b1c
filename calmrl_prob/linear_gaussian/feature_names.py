"""Names of features, as far as statistics need them: those of other features, or in another order, are not added."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from calmrl_prob.errors import SchemaError

#: For each modality the D_m names of its features, or None where they are not known.
FeatureNames = Mapping[str, tuple[Any, ...] | None]


def joined_names(known: FeatureNames, found: FeatureNames, argument: str) -> dict[str, tuple[Any, ...] | None]:
    """The names of two sets of instances together, each had by one of them or the same in both.

    Args:
        known: of the first.
        found: of those that are added.
        argument: how the message calls these.

    Raises:
        SchemaError: a modality has other names in the two, or the same in another order.

    Example:
        >>> joined_names({"x": ("u", "v"), "y": None}, {"x": ("u", "v"), "y": ("w",)}, "blocks")
        {'x': ('u', 'v'), 'y': ('w',)}
    """
    joined = dict(known)
    for name, names in found.items():
        before = joined.get(name)
        if before is None or names is None or before == names:
            joined[name] = names if before is None else before
            continue
        if not _number_alone(before, names):
            place = next(i for i, pair in enumerate(zip(before, names, strict=True)) if pair[0] != pair[1])
            raise SchemaError(
                f"{argument}: modality {name!r}: expected feature {place} to be {before[place]!r}, got "
                f"{names[place]!r}; bring the columns into one order first, with data.in_order_of(first.dims)."
            )
    return joined


def _number_alone(before: tuple[Any, ...], names: tuple[Any, ...]) -> bool:
    """Whether one of the two merely numbers its columns, and the other is no other order of the same numbers."""
    numbers = tuple(range(len(names)))
    return numbers in (before, names) and set(before) != set(names)
