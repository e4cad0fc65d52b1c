"""The posterior of a model whose linear-Gaussian form was discovered: the exact routes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from calmrl_prob.conjugacy import ConjugateForm
from calmrl_prob.data import MultimodalData
from calmrl_prob.linear_gaussian import LinearGaussian, posterior
from calmrl_prob.linear_gaussian.mixture.model import LinearGaussianMixture
from calmrl_prob.linear_gaussian.mixture.posterior import mixture_posterior
from calmrl_prob.posteriors.gaussian import GaussianPosterior
from calmrl_prob.posteriors.mixture import MixtureResult
from calmrl_prob.posteriors.posterior import PosteriorResult
from calmrl_prob.posteriors.structured import StructuredPosterior


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
    structure: LinearGaussian | LinearGaussianMixture, data: MultimodalData, latent_dim: int | None = None
) -> GaussianPosterior | MixtureResult:
    """The exact posterior under one Gaussian or mixture form, of whose latents the first K are the model's own."""
    blocks = data.conform(structure.dims).blocks
    if isinstance(structure, LinearGaussianMixture):
        return MixtureResult(mixture_posterior(structure, blocks), latent_dim)
    return GaussianPosterior(posterior(structure, blocks), latent_dim)
