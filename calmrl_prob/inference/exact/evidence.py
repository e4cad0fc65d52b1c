"""The exact evidence of a discovered form, as a function that is called again and again while parameters change."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from calmrl_prob.conjugacy import ConjugateForm
from calmrl_prob.data import MultimodalData
from calmrl_prob.linear_gaussian import (
    Evidence,
    FeatureBlocks,
    LinearGaussian,
    SufficientStatistics,
    log_marginal,
)
from calmrl_prob.linear_gaussian.mixture.evidence import MixtureEvidence
from calmrl_prob.linear_gaussian.mixture.model import LinearGaussianMixture
from calmrl_prob.linear_gaussian.mixture.posterior import mixture_posterior

Structure = LinearGaussian | LinearGaussianMixture


class FormEvidence:
    """log p(data) in nats, at the model's present parameters and given values of global latents, with its gradient.

    What does not change from call to call is prepared once. For one linear-Gaussian structure, or several, from
    sufficient statistics, the cost of a call does not grow with N.

    Args:
        form: of the model on these data.
        data: the instances.
        evaluations: how many calls to expect; weighs the one pass that statistics take.
        statistics: of all instances, where ``data`` are only some of them; for a form with one structure.
    """

    def __init__(
        self,
        form: ConjugateForm,
        data: MultimodalData,
        evaluations: int = 200,
        statistics: SufficientStatistics | None = None,
    ) -> None:
        self.form, self._data = form, data
        index = torch.zeros(len(data), dtype=torch.int64) if form.structure_index is None else form.structure_index
        self._members = [(index == g).nonzero().squeeze(1) for g in range(len(form.structures))]
        self._prepared: list[Callable[..., Tensor]] = []
        if form.offsets is not None:
            return  # what is subtracted from the data changes with the parameters
        for structure, rows in zip(form.structures, self._members, strict=True):
            if isinstance(structure, LinearGaussianMixture):
                blocks = data.subset(rows).conform(structure.dims).blocks
                self._prepared.append(MixtureEvidence(blocks, structure.latent_dim, evaluations))
                continue
            given = data.subset(rows).conform(structure.dims).blocks if statistics is None else statistics
            self._prepared.append(Evidence(given, structure.latent_dim, evaluations=evaluations))

    def __call__(self, values: Mapping[str, Tensor] | None = None) -> Tensor:
        """The evidence (); ``values`` of global latents, those that were fitted where not given."""
        return self.of(self.form.read(values), values)

    def of(self, structures: Sequence[Structure], values: Mapping[str, Tensor] | None = None) -> Tensor:
        """The evidence () under structures that were read with these values already."""
        if self._prepared:
            terms = [part(structure) for part, structure in zip(self._prepared, structures, strict=True)]
            return torch.stack(terms).sum()
        data, offsets = self._data, self.form.read_offsets(values)[0] or {}
        moved = {name: data.filled(name).to(offset.dtype) - offset for name, offset in offsets.items()}
        given = data._derive(_values={**data._values, **moved}, _nan_where_absent=set())
        terms = []
        for structure, rows in zip(structures, self._members, strict=True):
            blocks = given.subset(rows).conform(structure.dims).blocks
            if isinstance(structure, LinearGaussianMixture):
                terms.append(mixture_posterior(structure, blocks).log_marginal.sum())
            else:
                given_form = structure.expanded() if isinstance(blocks, FeatureBlocks) else structure
                terms.append(log_marginal(given_form, blocks).sum())
        return torch.stack(terms).sum()
