"""What every EM does before its first step: the E-step in the form asked for, the noise model, and the checks."""

from __future__ import annotations

import torch
from torch import Tensor

from calmrl_prob.errors import ArgumentError, DataError, NumericalError
from calmrl_prob.linear_gaussian.blocks import FeatureBlocks, ObservedBlocks
from calmrl_prob.linear_gaussian.cost import choose_form
from calmrl_prob.linear_gaussian.expectation import ExpectationStep
from calmrl_prob.linear_gaussian.maximization import NoiseModel
from calmrl_prob.linear_gaussian.parameters import Shape
from calmrl_prob.linear_gaussian.rowwise import ByFeature, ByModality, ByPattern, RowwiseStep
from calmrl_prob.linear_gaussian.structure import LinearGaussian

NOT_FINITE = (
    "data: the evidence is not finite. Look for features of very different scale (standardise them), raise "
    "noise_floor, or lower latent_dim."
)


def rowwise_step(
    data: ObservedBlocks | FeatureBlocks, latent_dim: int, form: str = "auto"
) -> tuple[RowwiseStep, Tensor, ObservedBlocks | FeatureBlocks, str]:
    """An E-step that goes over the rows.

    Args:
        data: the observed rows.
        latent_dim: K.
        form: "modality", "pattern", or "auto" for the cheaper of the two.

    Returns:
        The step, the shift that it works about (D,), the data about that shift, and the form that was chosen.

    Raises:
        ArgumentError: the form is another one, or these data cannot have it.
    """
    forms = ("auto", "modality", "pattern")
    if form not in forms:
        raise ArgumentError(f"form: expected one of {forms}, got {form!r}.")
    if isinstance(data, FeatureBlocks):
        if form != "auto":
            raise ArgumentError(f"form: data that lack single features have one form only, 'auto'; got {form!r}.")
        features, shift = data.centred()
        return ByFeature(features, latent_dim), shift, features, "features"
    if form == "auto":
        form = choose_form(data, latent_dim, forms[1:])
    blocks, shift = data.centred()
    step = ByModality(blocks, latent_dim) if form == "modality" else ByPattern(blocks, latent_dim)
    return step, shift, blocks, form


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


def noise_model_for(
    variance: Tensor, step: ExpectationStep, isotropic: bool, floor: float, pseudo_count: float
) -> NoiseModel:
    """Floors and prior in the units of the data; a constant feature takes its modality's scale, or the unit."""
    typical = torch.cat([variance[part].mean().expand(part.stop - part.start) for part in step.shape.slices])
    typical = torch.where(typical > 0, typical, 1.0)
    scale = typical if isotropic else torch.maximum(variance, 1e-6 * typical)
    return NoiseModel(isotropic, floor * scale, pseudo_count, 0.5 * scale)


def check_options(
    step: ExpectationStep,
    latent_dim: int,
    noise: str,
    max_iterations: int,
    tolerance: float,
    noise_floor: float,
    pseudo_count: float,
) -> None:
    """Refuse options out of range, and data that no fit can use.

    Raises:
        ArgumentError: an option is out of range.
        NumericalError: the data hold values that are not finite.
        DataError: a modality or feature has no rows.
    """
    if not 1 <= latent_dim <= step.shape.total:
        raise ArgumentError(
            f"latent_dim: expected 1 to {step.shape.total} (the total number of features), got {latent_dim}."
        )
    if noise not in ("isotropic", "diagonal"):
        raise ArgumentError(f"noise: expected 'isotropic' or 'diagonal', got {noise!r}.")
    limits = {
        "max_iterations": (max_iterations, 0),
        "tolerance": (tolerance, 0),
        "noise_floor": (noise_floor, 1e-12),
        "noise_pseudo_count": (pseudo_count, 0),
    }
    for argument, (value, least) in limits.items():
        if not value >= least:
            raise ArgumentError(f"{argument}: expected at least {least}, got {value}.")
    broken = (~step.totals.square.isfinite()).nonzero().flatten().tolist()
    if broken:
        name = list(step.shape.dims)[int(step.shape.feature_modality[broken[0]])]
        raise NumericalError(
            f"data: modality '{name}' holds values that are not finite, or so large that their squares are not. "
            "Remove or replace the former; divide the modality by its scale for the latter."
        )
    empty = (step.totals.count == 0).nonzero().flatten().tolist()
    if empty:
        where = list(step.shape.dims)[empty[0]] if len(step.totals.count) == len(step.shape.dims) else empty[0]
        raise DataError(f"data: nothing of modality or feature {where!r} is observed in any row. Leave it out.")
