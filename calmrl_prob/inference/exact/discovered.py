"""The posterior of a model whose closed form was stated or discovered: the exact routes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from calmrl_prob.conjugacy import ConjugateForm
from calmrl_prob.data import MultimodalData
from calmrl_prob.data.stream import require_data
from calmrl_prob.errors import ArgumentError
from calmrl_prob.linear_gaussian import (
    FeatureBlocks,
    LinearGaussian,
    LinearGaussianMixture,
    ObservedBlocks,
    Structure,
    StructuresByInstance,
    StudentTModel,
    mixture_posterior,
    posterior,
    student_t_posterior,
)
from calmrl_prob.posteriors.gaussian import GaussianPosterior
from calmrl_prob.posteriors.mixture import MixtureResult
from calmrl_prob.posteriors.posterior import PosteriorResult
from calmrl_prob.posteriors.structured import StructuredPosterior
from calmrl_prob.posteriors.student_t import StudentTResult


@dataclass(frozen=True)
class OneStructure:
    """A form that is known without a Pyro model: the same for all instances, whatever the data.

    Attributes:
        structure: the form.
        structure_index, offsets, latent_offset, route: as :class:`~calmrl_prob.conjugacy.ConjugateForm` has them.
    """

    structure: LinearGaussian
    structure_index: Tensor | None = None
    offsets: Mapping[str, Tensor] | None = None
    latent_offset: Tensor | None = None
    route: str = "exact"

    @property
    def structures(self) -> tuple[LinearGaussian]:
        """The one structure."""
        return (self.structure,)

    @property
    def latent_dim(self) -> int:
        """K."""
        return self.structure.latent_dim


Form = ConjugateForm | OneStructure


def form_posterior(form: Form, data: MultimodalData) -> PosteriorResult:
    """The exact posterior of the latents under a form.

    Args:
        form: as discovered on ``data``, or one that holds for all data.
        data: N instances.
    """
    offsets = form.offsets
    if offsets is not None:
        values = {name: data[name] - offset.to(data.dtype) for name, offset in offsets.items()}
        data = data._derive(_values={**data._values, **values})
    if form.structure_index is None:
        whole = structure_posterior(form.structures[0], data, form.latent_dim)
        if offsets is None:
            return whole
        everyone = torch.arange(len(data), device=data.device)
        return StructuredPosterior([(everyone, whole)], offsets, form.latent_offset)
    parts = []
    for g, structure in enumerate(form.structures):
        rows = (form.structure_index == g).nonzero().squeeze(1)
        parts.append((rows, structure_posterior(structure, data.subset(rows), form.latent_dim)))
    return StructuredPosterior(parts, offsets, form.latent_offset, route=form.route)


def structure_posterior(
    structure: LinearGaussian | LinearGaussianMixture | StudentTModel,
    data: MultimodalData,
    latent_dim: int | None = None,
) -> PosteriorResult:
    """The exact posterior under one form, of whose latents the first K are the model's own."""
    return RESULTS[type(structure)](structure, data.conform(structure.dims).blocks, latent_dim)


def stated_posterior(
    structure: LinearGaussian | LinearGaussianMixture | StudentTModel | StructuresByInstance, data: MultimodalData
) -> PosteriorResult:
    """The exact posterior under a form that a model states, cut off from the autograd graph.

    Raises:
        SchemaError: a modality that the model does not know, or one of another width.
        ArgumentError: data and model are on different devices.
    """
    if not isinstance(structure, StructuresByInstance):
        return structure_posterior(structure.detach(), on_device(structure, data))
    data = on_device(structure.structures[0], data)
    parts = []
    for g in structure.index.unique().tolist():
        rows = (structure.index == g).nonzero().squeeze(1)
        parts.append((rows, structure_posterior(structure.structures[g].detach(), data.subset(rows))))
    return StructuredPosterior(parts)


def on_device(structure: Structure, data: MultimodalData) -> MultimodalData:
    """The data with the modalities of a model, in its order.

    Raises:
        SchemaError: a modality that the model does not know, or one of another width.
        ArgumentTypeError: ``data`` is not MultimodalData.
        ArgumentError: data and model are on different devices.
    """
    require_data(data)
    if data.device != structure.device:
        raise ArgumentError(
            f"data: it is on {data.device}, the model on {structure.device}; move one with .to(device=...)."
        )
    return data.conform(structure.dims)


def _gaussian_result(
    lg: LinearGaussian, blocks: ObservedBlocks | FeatureBlocks, latent_dim: int | None
) -> GaussianPosterior:
    """By patterns of modalities; of single features with correlated noise written as latents, which they tell of."""
    if lg.noise_factor is not None and isinstance(blocks, FeatureBlocks):
        return GaussianPosterior(posterior(lg.expanded(), blocks), lg.latent_dim, keep_noise=True)
    return GaussianPosterior(posterior(lg, blocks), latent_dim)


#: For each family the result of its exact posterior: from (structure, blocks, latent_dim).
RESULTS: dict[type, Callable[..., PosteriorResult]] = {
    LinearGaussian: _gaussian_result,
    LinearGaussianMixture: lambda mix, blocks, latent_dim: MixtureResult(mixture_posterior(mix, blocks), latent_dim),
    StudentTModel: lambda model, blocks, _: StudentTResult(student_t_posterior(model, blocks)),
}
