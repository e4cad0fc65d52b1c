"""The posterior of the latents as weighted draws: what the routes without a closed form return."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.distributions import MultivariateNormal

from calmrl_prob._support.randomness import seeded
from calmrl_prob.data import MultimodalData
from calmrl_prob.errors import SchemaError
from calmrl_prob.posteriors.diagnostics import Diagnostics
from calmrl_prob.posteriors.importance import ImportanceWeights, resample, weighted_moments
from calmrl_prob.posteriors.instances import InstanceModel
from calmrl_prob.posteriors.posterior import Draw, PosteriorResult
from calmrl_prob.posteriors.predictive import MixturePredictive, Predictive
from calmrl_prob.posteriors.site_predictive import SitePredictive


class SampledPosterior(PosteriorResult):
    """Weighted draws of the latents of N instances.

        p(z_n | x_n) ~ sum_s w_ns delta(z_ns),   p(x_n^m | x_n) ~ sum_s w_ns p(x_n^m | z_ns)

    Moments and predictives are sums over the draws, of what the site itself is given each: counts are counts, shares
    are shares. Only of sites whose features have no marginals that are known do normals with their mean and variance
    stand in for them.

    Args:
        model: the model as densities of instances.
        data: the N instances.
        latents: (S, N, K), draws of the stretched latents.
        log_weights: (S, N), normalised over S.
        log_marginal: (N,), the estimate of log p(x_n), nats.
        route: how the draws were made.
        diagnostics: what the route has to report.

    Attributes:
        log_weights: as given. stretched: the draws as given.
    """

    def __init__(
        self,
        model: InstanceModel,
        data: MultimodalData,
        latents: Tensor,
        log_weights: Tensor,
        log_marginal: Tensor,
        route: str,
        diagnostics: Mapping[str, Any],
    ) -> None:
        self.dims, self.route, self.diagnostics = model.dims, route, Diagnostics(diagnostics)
        self.stretched, self.log_weights = latents, log_weights
        self._model, self._data, self._log_marginal = model, data, log_marginal

    @cached_property
    def latents(self) -> Tensor:
        """The draws in the model's own units, sites one after another, (S, N, K)."""
        return torch.stack([self._model.constrain(draw) for draw in self.stretched])

    @cached_property
    def _moments(self) -> tuple[Tensor, Tensor]:
        return weighted_moments(self.latents, self.log_weights)

    @property
    def mean(self) -> Tensor:
        """E[z_n | x_n], shape (N, K), in the model's own units."""
        return self._moments[0]

    @property
    def covariance(self) -> Tensor:
        """Cov[z_n | x_n], shape (N, K, K)."""
        return self._moments[1]

    @property
    def log_marginal(self) -> Tensor:
        """The importance-weighted estimate of log p(x_n), shape (N,), nats; on average a lower bound."""
        return self._log_marginal

    @torch.no_grad()
    def predictive(self, name: str, dtype: torch.dtype | None = None) -> Predictive:
        """The mixture over draws of what a modality's site is given each, feature by feature: 2 S N D_m numbers.

        Raises:
            SchemaError: the model has no such modality.
        """
        if name not in self.dims:
            raise SchemaError(f"name: the model has no modality {name!r}; it has {list(self.dims)}.")
        given = self._model.site_of_draws(self._data, self.stretched, name)
        if given is not None:
            return SitePredictive(self.log_weights, given, dtype or self.stretched.dtype)
        location, variance = self._model.moments_of_draws(self._data, self.stretched, name)
        location, variance = location.to(dtype), variance.to(dtype)
        nothing = location.new_zeros(()).expand_as(location)
        return MixturePredictive(self.log_weights.to(location.dtype), location, nothing, variance)

    @torch.no_grad()
    def draws(self, num_draws: int, generator: torch.Generator, names: Sequence[str] = ()) -> Iterator[Draw]:
        """Draws with equal weights, resampled from the weighted ones: more of them than S repeat themselves."""
        for latents in resample(self.stretched, self.log_weights, num_draws, generator):
            own = {name: self._model.site_of_draws(self._data, latents[None], name) for name in names}
            sites = {name: parts[0] for name, parts in own.items() if parts is not None}
            normal = [name for name in names if name not in sites]
            moments = self._model.moments(self._data, latents, normal) if normal else {}
            for name, site in sites.items():
                mean, variance = site.moments()
                moments[name] = mean[0], variance[0]
            yield Draw(
                self._model.constrain(latents),
                {name: location for name, (location, _) in moments.items()},
                {name: variance for name, (_, variance) in moments.items()},
                sites=sites,
            )


@torch.no_grad()
def draw_and_weigh(
    model: InstanceModel, data: MultimodalData, q: MultivariateNormal, num_draws: int, seed: int
) -> tuple[Tensor, Tensor]:
    """Draws (S, N, K) from q, and log p(x_n, z) - log q(z) of each, (S, N), nats."""
    with seeded(seed, data.device):
        latents = q.rsample((num_draws,))
    return latents, model.log_joint_of_draws(data, latents)[0] - q.log_prob(latents)


def weight_report(weights: ImportanceWeights) -> dict[str, Any]:
    """Diagnostics of importance weights, under the names that ``PosteriorResult.diagnostics`` uses."""
    return {
        "k_hat": weights.k_hat.cpu().numpy(),
        "max_k_hat": float(weights.k_hat.max()),
        "effective_draws": weights.effective_draws.cpu().numpy(),
        "log_marginal_error": weights.standard_error.cpu().numpy(),
    }
