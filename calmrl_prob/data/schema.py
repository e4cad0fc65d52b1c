"""Checks of data before a model uses them: the right modalities, and enough to fit."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from calmrl_prob._support.arguments import brief
from calmrl_prob.data.stored import StoredModalities
from calmrl_prob.errors import ArgumentTypeError, DataError, IdentifiabilityWarning, SchemaError

if TYPE_CHECKING:
    from calmrl_prob.linear_gaussian import SufficientStatistics

#: Rows looked at to rule out that a feature varies too little, before all rows are.
_FIRST_ROWS = 256
#: Times the root of the smallest normal number that a feature has to vary by: noise is a small share of its variance.
_MARGIN = 1e4


def require_schema(
    data: StoredModalities, dims: Mapping[str, int], argument: str = "data", source: str = "the model"
) -> None:
    """Check that data have exactly the modalities in ``dims``, in any order, with those widths.

    Args:
        data: what is checked.
        dims: the number of features of each modality, of ``source``.
        argument: how messages call ``data``.
        source: what has those modalities.

    Raises:
        ArgumentTypeError: ``dims`` is not a mapping.
        SchemaError: a modality is missing or unknown, or has another width; the message lists them.
    """
    _require_mapping(dims)
    lacking = [name for name in dims if name not in data]
    extra = [name for name in data.names if name not in dims]
    if lacking or extra:
        found = [f"lack {lacking}"] * bool(lacking) + [f"have {extra} besides"] * bool(extra)
        remedies = ["add those that no instance has with conform(dims)"] * bool(lacking)
        remedies += ["leave the others out with select(names)"] * bool(extra)
        raise SchemaError(
            f"{argument}: expected the modalities {list(dims)} of {source}, but the data {' and '.join(found)}; "
            f"{'; '.join(remedies)}."
        )
    require_widths(data, dims, argument, source)


def require_widths(
    data: StoredModalities, dims: Mapping[str, int], argument: str = "data", source: str = "the model"
) -> None:
    """Check that every modality of the data is in ``dims`` with its width; arguments as in :func:`require_schema`.

    Raises:
        ArgumentTypeError: ``dims`` is not a mapping.
        SchemaError: one is not.
    """
    _require_mapping(dims)
    for name, width in data.dims.items():
        if name not in dims:
            raise SchemaError(
                f"{argument}: modality {name!r} is unknown, expected {list(dims)}; leave it out with select."
            )
        if width != dims[name]:
            raise SchemaError(
                f"{argument}: modality {name!r}: expected {dims[name]} features, got {width}; "
                f"make the representations as those that {source} has."
            )


def _require_mapping(dims: object) -> None:
    if not isinstance(dims, Mapping):
        raise ArgumentTypeError(
            f"dims: expected a mapping of modalities to numbers of features, got {brief(dims)}; pass model.dims, say."
        )


def require_fittable(data: StoredModalities) -> None:
    """Check that a model can be fitted to data: at least two instances, and no modality that none of them has.

    Warns as :func:`warn_unidentifiable` does.

    Raises:
        DataError: there is one instance, a modality has no rows, or a feature is in units so small that its variance is
            below what the data's type can hold.

    Example:
        >>> import torch
        >>> from calmrl_prob import MultimodalData
        >>> require_fittable(MultimodalData({"image": torch.ones(1, 3)}))
        Traceback (most recent call last):
        ...
        calmrl_prob.errors.DataError: data: fitting needs at least 2 instances, got 1.
    """
    require_enough(data)
    warn_unidentifiable(data)


def require_enough(data: StoredModalities) -> None:
    """The same check without the warning, for what comes before a fit that warns.

    Raises:
        DataError: as :func:`require_fittable` does.
    """
    if len(data) < 2:
        raise DataError(f"data: fitting needs at least 2 instances, got {len(data)}.")
    for name in data.names:
        if not bool(data.observed(name).any()):
            raise DataError(f"modality {name!r}: no instance has it, so it cannot be fitted; leave it out with select.")
        _require_squares(data, name)


def _require_squares(data: StoredModalities, name: str) -> None:
    """Refuse features whose spread is so small that squares of it would underflow, and all variances be nonsense."""
    kind = torch.finfo(data.dtype)
    least = _MARGIN * kind.tiny**0.5
    values = data[name]
    first = _spread(values[data.observed(name).nonzero().squeeze(1)[:_FIRST_ROWS]])
    suspects = (first < least).nonzero().squeeze(1)
    if len(suspects) == 0:
        return
    spread = _spread(values[:, suspects])
    small = ((spread > 0) & (spread < least)).nonzero().squeeze(1)
    if len(small):
        power = math.floor(-math.log10(float(spread[small[0]])))
        wider = "" if data.dtype == torch.float64 else ", or give float64"
        raise DataError(
            f"modality {name!r}: {len(small)} of its {data.dims[name]} features vary so little, first feature "
            f"{int(suspects[small[0]])} by {float(spread[small[0]]):.2g}, that "
            f"{str(data.dtype).removeprefix('torch.')} cannot hold their variances; take other units, such as "
            f"1e{power} times these values{wider}, or leave these features out."
        )


def _spread(values: Tensor) -> Tensor:
    """Largest less smallest of the numbers in each column of (N, D) besides NaN, (D,); 0 where there are none."""
    high, low = values.nan_to_num(nan=-torch.inf).amax(dim=0), values.nan_to_num(nan=torch.inf).amin(dim=0)
    return (high - low).clamp(min=0)


def warn_unidentifiable(data: StoredModalities | SufficientStatistics) -> None:
    """Warn if some modalities never share an instance with the rest, not even through others in between.

    Warns:
        IdentifiabilityWarning: names the groups, and what cannot be learned.

    Example:
        >>> import torch
        >>> from calmrl_prob import MultimodalData
        >>> warn_unidentifiable(MultimodalData({"image": torch.ones(2, 3), "text": torch.ones(2, 4)}))
    """
    groups = data.modality_groups()
    if len(groups) > 1:
        listed = "; ".join(", ".join(repr(name) for name in group) for group in groups)
        warnings.warn(
            f"no instance links these groups of modalities: {listed}. How modalities of different groups go together "
            "cannot be learned from these data: imputing or retrieving one from another rests on the prior alone. "
            "Add instances that have modalities of two groups, or model each group by itself.",
            IdentifiabilityWarning,
            stacklevel=2,
        )
