"""Preparation of every EM before its first step: the noise model, and the checks."""

from __future__ import annotations

import torch
from torch import Tensor

from calmrl_prob.errors import ArgumentError, DataError, NumericalError
from calmrl_prob.linear_gaussian.em.expectation import ExpectationStep
from calmrl_prob.linear_gaussian.em.noise_model import NoiseModel
from calmrl_prob.linear_gaussian.em.options import EMOptions
from calmrl_prob.linear_gaussian.em.parameters import Shape
from calmrl_prob.linear_gaussian.structure import LinearGaussian

NOT_FINITE = (
    "data: the evidence is not finite. Look for features of very different scale (standardise them), raise "
    "noise_floor, or lower latent_dim."
)


def require_same_shape(start: LinearGaussian, shape: Shape, latent_dim: int) -> None:
    """Refuse a start that has other modalities, widths or latents.

    Raises:
        ArgumentError: it has.
    """
    if start.dims != shape.dims or start.latent_dim != latent_dim:
        raise ArgumentError(
            f"start: expected modalities {dict(shape.dims)} and latent_dim {latent_dim}, got {start.dims} and "
            f"{start.latent_dim}."
        )


def mean_variance(step: ExpectationStep) -> tuple[Tensor, Tensor]:
    """Mean and variance of each feature over the rows that have it, about the shift."""
    count = step.feature_count.clamp(min=1)
    mean = step.totals.total / count
    return mean, (step.totals.square / count - mean.square()).clamp(min=0)


def feature_scale(variance: Tensor, step: ExpectationStep, isotropic: bool) -> Tensor:
    """s_d^2, the variance of each feature, or of its modality's features on average; the unit where there is none."""
    typical = torch.cat([variance[part].mean().expand(part.stop - part.start) for part in step.shape.slices])
    typical = torch.where(typical > 0, typical, 1.0)
    # of its own alone: next to a feature in units a million times larger, a share of the average would be its ruin
    return typical if isotropic else torch.where(variance > 0, variance, 1e-6 * typical)


def noise_model_for(
    variance: Tensor, step: ExpectationStep, isotropic: bool, floor: float, pseudo_count: float
) -> NoiseModel:
    """Floors and prior in the units of the data."""
    scale = feature_scale(variance, step, isotropic)
    return NoiseModel(isotropic, floor * scale, pseudo_count, 0.5 * scale)


def require_rows_for_full_noise(step: ExpectationStep, options: EMOptions) -> None:
    """Refuse a full covariance of the noise of modalities that have fewer rows than features, and no prior.

    Raises:
        ArgumentError: one has.
    """
    if options.pseudo_rows > 0 or options.noise_pseudo_count > 0:
        return
    for (name, width), rows in zip(step.shape.dims.items(), step.totals.count.tolist(), strict=True):
        if rows <= width + 1:
            raise ArgumentError(
                f"noise: 'full' takes more rows than features, or a prior; modality {name!r} has {int(rows)} rows and "
                f"{width} features. Use noise='low_rank', or pseudo_rows={max(1, width // 2)}, which shrinks the "
                "covariance."
            )


def require_usable(step: ExpectationStep, latent_dim: int) -> None:
    """Refuse more latents than features, and data that no fit can use.

    Raises:
        ArgumentError: ``latent_dim`` is out of range.
        NumericalError: the data hold values that are not finite.
        DataError: a modality or feature has no rows.
    """
    if not 1 <= latent_dim <= step.shape.total:
        raise ArgumentError(
            f"latent_dim: expected 1 to {step.shape.total} (the total number of features), got {latent_dim}."
        )
    broken = (~step.totals.square.isfinite()).nonzero().flatten().tolist()
    if broken:
        name = list(step.shape.dims)[int(step.shape.feature_modality[broken[0]])]
        raise NumericalError(
            f"data: modality '{name}' holds values that are not finite, or so large that their squares are not. "
            "Remove or replace the former; divide the modality by its scale for the latter."
        )
    empty = (step.totals.count == 0).nonzero().flatten().tolist()
    if empty:
        first = int(step.grouping.first[empty[0]])
        modality = int(step.shape.feature_modality[first])
        where, features = f"modality {list(step.shape.dims)[modality]!r}", step.shape.slices[modality]
        if bool((step.feature_count[features] > 0).any()):
            where = f"feature {first - features.start} of {where}"
        raise DataError(f"data: nothing of {where} is observed in any row. Leave it out.")
