"""Draws from the prior: what a model says of instances before it sees their values.

Of a Pyro model everything is drawn from it, global latents included, with parameters (``pyro.param``, or those of a
module) as they were fitted; of a linear-Gaussian form, or a mixture, latents and modalities. Covariates are those of
the data.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.distributions import constraints

from calmrl_prob._support.randomness import seeded, spread_seeds
from calmrl_prob.data import MultimodalData
from calmrl_prob.inference.parameters.parameter_draws import DrawsPosterior, ParameterDraws
from calmrl_prob.inference.result import FitResult
from calmrl_prob.linear_gaussian import LinearGaussian, LinearGaussianMixture
from calmrl_prob.posteriors.gaussian import GaussianPosterior
from calmrl_prob.posteriors.posterior import PosteriorResult, seeded_generator
from calmrl_prob.programs.bound import BoundModel


@dataclass(frozen=True)
class PriorDraws:
    """S draws.

    Attributes:
        latents: (S, N, K).
        values: for each modality (S, N, D_m), in the data's type.
        globals: for each global latent (S, ...).
    """

    latents: Tensor
    values: Mapping[str, Tensor]
    globals: Mapping[str, Tensor]


@torch.no_grad()
def draw_prior(model: object, data: MultimodalData, num_draws: int, seed: int, latent_dim: int) -> PriorDraws | None:
    """Draw N instances from the prior, S times; None of what has no generative form to draw from.

    Args:
        model: whatever ``to_arviz`` takes.
        data: N instances, of which covariates and the modalities are read.
        num_draws: S.
        seed: the same seed gives the same draws.
        latent_dim: K, of the posterior: where a program has more latents than that, those that are integrated out
            (labels of components, scales) are left out.
    """
    source = _source(model)
    if isinstance(source, BoundModel):
        return _of_program(source, data, spread_seeds(seed, num_draws), latent_dim)
    if not source:
        return None
    generator = seeded_generator(seed, data.device)
    found = [source[s % len(source)].sample(len(data), generator) for s in range(num_draws)]
    names = found[0].features
    values = {name: torch.stack([draw.features[name] for draw in found]).to(data.dtype) for name in names}
    return PriorDraws(torch.stack([draw.latents for draw in found]), values, {})


def _source(model: Any) -> BoundModel | list[LinearGaussian | LinearGaussianMixture]:  # noqa: ANN401
    """Source of the draws: a program, or a form for each draw of the parameters; an empty list if there is none."""
    if isinstance(model, FitResult):
        return _source(model.model)
    if isinstance(model, DrawsPosterior):
        return _source(model.parameters)
    if isinstance(model, ParameterDraws):
        return [f.structure for f in model.structures()] if isinstance(model.bound, LinearGaussian) else model.bound
    if isinstance(model, GaussianPosterior):
        return [model.linear_gaussian]
    if isinstance(model, LinearGaussian | LinearGaussianMixture):
        return [model]
    if isinstance(model, BoundModel):
        return model
    if isinstance(model, PosteriorResult) or not callable(model):
        return []
    return BoundModel(model)


def _is_real(support: Any) -> bool:  # noqa: ANN401 - constraints have no common type that says what is inside
    return getattr(support, "base_constraint", support) in (constraints.real, constraints.real_vector)


def _of_program(bound: BoundModel, data: MultimodalData, seeds: list[int], latent_dim: int) -> PriorDraws:
    latents, values, everywhere = [], [], []
    fitted, bound.values = bound.values, {}
    try:
        for seed in seeds:
            call = bound.call(data, seed=seed)
            columns = {name: site.rows(site.value) for name, site in call.latents.items()}
            if sum(part.shape[1] for part in columns.values()) > latent_dim:
                columns = {name: part for name, part in columns.items() if _is_real(call.latents[name].fn.support)}
            latents.append(torch.cat(list(columns.values()), dim=1))
            everywhere.append({name: site.value for name, site in call.globals.items()})
            with seeded(seed + 1, data.device):  # another stream than that of the latents
                values.append({n: site.rows(site.fn.sample()).to(data.dtype) for n, site in call.observed.items()})
    finally:
        bound.values = fitted
    return PriorDraws(
        torch.stack(latents),
        {name: torch.stack([draw[name] for draw in values]) for name in values[0]},
        {name: torch.stack([draw[name] for draw in everywhere]) for name in everywhere[0]},
    )
