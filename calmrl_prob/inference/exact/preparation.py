"""Data as closed-form EM works on them, checked to be enough for the model."""

from __future__ import annotations

import torch
from torch import Tensor

from calmrl_prob.data import MultimodalData, require_fittable, warn_unidentifiable
from calmrl_prob.errors import ArgumentError, DataError, SchemaError
from calmrl_prob.inference.protocols import Fittable
from calmrl_prob.linear_gaussian import FeatureBlocks, ObservedBlocks, SufficientStatistics

#: Rows looked at to rule out that a feature is constant, before all rows are.
_FIRST_ROWS = 256


def checked_blocks(
    model: Fittable, data: MultimodalData | SufficientStatistics
) -> ObservedBlocks | FeatureBlocks | SufficientStatistics:
    """Data as closed-form steps work on them, checked to be enough for the model.

    Raises:
        SchemaError, DataError, ArgumentError: as ``fit`` does.
    """
    if isinstance(data, MultimodalData):
        data.require_schema(model.dims)
        require_fittable(data)
        require_spread(data, each=model.noise != "isotropic")
        blocks: ObservedBlocks | FeatureBlocks | SufficientStatistics = data.conform(model.dims).blocks
    else:
        if list(data.dims.items()) != list(model.dims.items()):
            raise SchemaError(f"data: expected statistics of {dict(model.dims)} in this order, got {data.dims}.")
        if data.num_instances < 2:
            raise DataError(f"data: expected statistics of at least 2 instances, got {data.num_instances}.")
        warn_unidentifiable(data)
        blocks = data
    _require_carried(model, blocks.num_instances)
    return blocks


def _require_carried(model: Fittable, num_instances: int) -> None:
    """Refuse more latents than the centred data have dimensions."""
    total = sum(model.dims.values())
    largest = min(total, num_instances) - 1
    if model.latent_dim > largest:
        raise ArgumentError(
            f"latent_dim: {model.latent_dim} latents are more than {num_instances} instances of {total} features in "
            f"all can carry; the largest that they can is {largest}."
        )


def require_spread(data: MultimodalData, *, each: bool) -> None:
    """Refuse modalities that never vary, and single features where their noise would go to zero.

    Args:
        data: the rows.
        each: whether each feature has a noise variance of its own.

    Raises:
        DataError: there is one; names it.
    """
    first_rows = data.subset(slice(0, _FIRST_ROWS))
    for name, width in data.dims.items():
        columns = _constant(first_rows[name]).nonzero().squeeze(1)
        if len(columns):
            columns = columns[_constant(data[name][:, columns])]
        if len(columns) == width:
            raise DataError(
                f"modality {name!r}: {_sameness(data, name)}, so there is nothing to learn; "
                "leave it out with data.select."
            )
        if len(columns) and each:
            first = int(columns[0])
            which = f"feature {first} is" if len(columns) == 1 else f"{len(columns)} features, first {first}, are"
            seen = int(data.feature_mask(name)[:, first].sum())
            what = "constant" if seen > 1 else "seen in 1 row alone"
            raise DataError(
                f"modality {name!r}: {which} {what}, so that noise variances would go to zero; leave such "
                "features out, or make the model with noise='isotropic'."
            )


def _sameness(data: MultimodalData, name: str) -> str:
    count = int(data.observed(name).sum())
    return "only 1 instance has it" if count == 1 else f"all of the {count} rows that it has are the same"


def _constant(values: Tensor) -> Tensor:
    """Mask of the columns of (N, D) that hold at most one distinct number besides NaN, (D,) bool."""
    low = values.nan_to_num(nan=torch.inf).amin(dim=0)
    high = values.nan_to_num(nan=-torch.inf).amax(dim=0)
    return low >= high
