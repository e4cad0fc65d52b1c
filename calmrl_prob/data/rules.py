"""The rules that MultimodalData keeps, each refusing with modality, row and remedy."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from calmrl_prob.data.intake import RowCheck
from calmrl_prob.errors import DataError


def describe_row(row: int, ids: np.ndarray | None) -> str:
    """A row as messages name it.

    Example:
        >>> describe_row(1, None), describe_row(1, np.array(["a", "b"]))
        ('row 1', "row 1 (id 'b')")
    """
    return f"row {row}" if ids is None else f"row {row} (id {str(ids[row])!r})"


def same_kind(values: dict[str, Tensor]) -> dict[str, Tensor]:
    """Check that row counts and devices agree, and bring all modalities to the widest type.

    Raises:
        DataError: they do not agree.
    """
    first = next(iter(values))
    for name, value in values.items():
        if len(value) != len(values[first]):
            raise DataError(
                f"modality {name!r}: it has {len(value)} rows, modality {first!r} has {len(values[first])}; give every "
                "modality one row per instance, NaN where the instance lacks it."
            )
        if value.device != values[first].device:
            raise DataError(
                f"modality {name!r}: it is on {value.device}, modality {first!r} on {values[first].device}; "
                "move them to one device."
            )
    widest = max((value.dtype for value in values.values()), key=lambda kind: kind.itemsize)
    return {name: value.to(widest) for name, value in values.items()}


def refuse_bad_rows(
    name: str, values: Tensor, found: RowCheck, present: Tensor, *, partial_allowed: bool, ids: np.ndarray | None
) -> None:
    """Refuse infinities in present rows (N,), and, unless allowed, rows that are NaN in part.

    Raises:
        DataError: there are such rows.
    """
    bad = found.infinite & present
    if bool(bad.any()):
        row = int(bad.nonzero()[0])
        feature = int(values[row].isinf().nonzero()[0])
        raise DataError(
            f"modality {name!r}: {_rows(bad)} infinities, first {describe_row(row, ids)}, feature {feature}; "
            "replace them, or make the whole row NaN if the modality is missing there."
        )
    bad = found.partial & present
    if bool(bad.any()) and not partial_allowed:
        row = int(bad.nonzero()[0])
        lacking = int(values[row].isnan().sum())
        raise DataError(
            f"modality {name!r}: {_rows(bad)} NaN in some features, first {describe_row(row, ids)}, which lacks "
            f"{lacking} of {values.shape[1]}; missing='features' handles this exactly, but slower. "
            "Otherwise fill them, or make the whole row NaN if the modality is missing there."
        )


def refuse_overflow(name: str, narrowed: Tensor, infinite: Tensor, ids: np.ndarray | None) -> None:
    """Refuse present rows ``infinite`` (N,) that hold infinities since the values were brought to a narrower type.

    Raises:
        DataError: there are such rows.
    """
    if bool(infinite.any()):
        row = int(infinite.nonzero()[0])
        feature = int(narrowed[row].isinf().nonzero()[0])
        kind = str(narrowed.dtype).removeprefix("torch.")
        raise DataError(
            f"modality {name!r}: {_rows(infinite)} values that {kind} cannot hold (beyond "
            f"{torch.finfo(narrowed.dtype).max:.2g}), first {describe_row(row, ids)}, feature {feature}; rescale them, "
            "or keep float64."
        )


def refuse_empty(observed_mask: Tensor, ids: np.ndarray | None, argument: str, remedy: str) -> None:
    """Refuse an observed mask (N, M) that leaves an instance without any modality.

    Raises:
        DataError: it does.
    """
    nothing = (~observed_mask.any(dim=1)).nonzero().squeeze(1)
    if len(nothing):
        first = describe_row(int(nothing[0]), ids)
        count = "1 instance" if len(nothing) == 1 else f"{len(nothing)} instances"
        raise DataError(f"{argument}: {count} would have nothing left, first {first}; {remedy}.")


def join_columns(what: str, columns: list[np.ndarray | None]) -> np.ndarray | None:
    """Concatenate a column of several data, which all or none must have.

    Raises:
        DataError: some have it and some do not.
    """
    had = [column for column in columns if column is not None]
    if had and len(had) < len(columns):
        raise DataError(f"{what}: {len(had)} of {len(columns)} parts have it; give it to all parts or to none.")
    if len({column.dtype.kind in "US" for column in had}) > 1:  # numpy would make texts of numbers
        had = [column.astype(object) for column in had]
    return np.concatenate(had) if had else None


def _rows(which: Tensor) -> str:
    count = int(which.sum())
    return "1 row holds" if count == 1 else f"{count} rows hold"
