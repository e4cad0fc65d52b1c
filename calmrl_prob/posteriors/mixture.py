"""The exact-mixture route: a weighted mixture of Gaussians for each instance."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from calmrl_prob.linear_gaussian.mixture.model import LinearGaussianMixture
from calmrl_prob.linear_gaussian.mixture.posterior import MixturePosterior
from calmrl_prob.posteriors.gaussian import GaussianPosterior, GaussianPredictive
from calmrl_prob.posteriors.posterior import Draw, PosteriorResult
from calmrl_prob.posteriors.predictive import MixturePredictive, Predictive


class MixtureResult(PosteriorResult):
    """The posterior sum_c r_nc N(mean_nc, V_nc) of the latents of N instances, exact.

    Args:
        exact: what the engine computed.
        latent_dim: K, where that is less than the engine's; as for ``GaussianPosterior``.

    Attributes:
        exact: the same.
    """

    route = "exact mixture"

    def __init__(self, exact: MixturePosterior, latent_dim: int | None = None) -> None:
        self.exact = exact
        self.dims = exact.mixture.dims
        self._latent_dim = exact.mixture.latent_dim if latent_dim is None else latent_dim

    @property
    def latent_dim(self) -> int:
        """K, of the latents that are shown."""
        return self._latent_dim

    @property
    def mixture(self) -> LinearGaussianMixture:
        """The model that it is the posterior of."""
        return self.exact.mixture

    @property
    def responsibilities(self) -> Tensor:
        """r_nc, the probability of each component given what the instance has, shape (N, C)."""
        return self.exact.responsibilities

    @property
    def mean(self) -> Tensor:
        """E[z_n | x_n], shape (N, K), in units of the prior."""
        return self.exact.mean[:, : self._latent_dim]

    @property
    def covariance(self) -> Tensor:
        """Cov[z_n | x_n], within components and between them, shape (N, K, K)."""
        return self.exact.covariance[:, : self._latent_dim, : self._latent_dim]

    @property
    def log_marginal(self) -> Tensor:
        """log p(x_n) of what each instance has, shape (N,), nats."""
        return self.exact.log_marginal

    def predictive(self, name: str, dtype: torch.dtype | None = None) -> Predictive:
        """A mixture of normals, one for each component; C N D_m numbers."""
        kind = self.mean.dtype if dtype is None else dtype
        parts = [GaussianPredictive(part, name, kind, self._latent_dim) for part in self.exact.components]
        return MixturePredictive(
            self.exact.log_responsibilities.mT.to(kind),
            torch.stack([part.mean for part in parts]),
            torch.stack([part.latent_variance for part in parts]),
            torch.stack([part.noise_variance for part in parts]),
        )

    def log_density(self, latents: Tensor) -> Tensor:
        """log sum_c r_nc N(z_n; mean_nc, V_nc) at ``latents`` (N, K), nats, shape (N,)."""
        parts = [GaussianPosterior(part, self._latent_dim).log_density(latents) for part in self.exact.components]
        return (self.exact.log_responsibilities + torch.stack(parts, dim=1)).logsumexp(1)

    def draws(self, num_draws: int, generator: torch.Generator, names: Sequence[str] = ()) -> Iterator[Draw]:
        """Joint draws: the component of each instance first, then its latents."""
        labels = self.exact.sample_components(num_draws, generator)
        own = self._latent_dim
        for chosen, latents in zip(labels, self.exact.sample_given(labels, generator), strict=True):
            if own < self.mixture.latent_dim:  # correlated noise is drawn afresh
                latents[:, own:].normal_(generator=generator)
            location, noise = {}, {}
            for name in names:
                location[name] = latents.new_empty(len(latents), self.dims[name])
                noise[name] = torch.empty_like(location[name])
                for c, part in enumerate(self.mixture.components):
                    rows = (chosen == c).nonzero().squeeze(1)
                    location[name][rows] = latents[rows] @ part.loadings[name].mT + part.intercepts[name]
                    noise[name][rows] = part.noise_variance[name]
            yield Draw(latents[:, :own], location, noise)
