"""The exact route: one Gaussian for each instance, computed by missing pattern."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property, partial

import torch
from torch import Tensor
from torch.distributions import MultivariateNormal

from calmrl_prob.linear_gaussian import LinearGaussian, Posterior
from calmrl_prob.linear_gaussian.noise import CorrelatedNoise
from calmrl_prob.posteriors.posterior import Deferred, Draw, PosteriorResult, checked_draws, seeded_generator
from calmrl_prob.posteriors.predictive import Predictive

#: Numbers that are worked on at once in the model's type before they are stored in the data's.
_CHUNK_BUDGET = 2**22


class GaussianPosterior(PosteriorResult):
    """The posterior p(z_n | x_n) = N(mean_n, covariance_n) of N instances.

    Args:
        exact: what the engine computed, with natural parameters and patterns.
        latent_dim: K, where that is less than the engine's: further latents carry noise that is correlated between
            features. They are not shown, and what they explain counts as noise.
        keep_noise: whether what the data tell of those further latents is used for the features that they lack, as
            where single features of a modality are missing; else a modality is predicted as measured anew.

    Attributes:
        exact: the same.
    """

    route = "exact"

    def __init__(self, exact: Posterior, latent_dim: int | None = None, *, keep_noise: bool = False) -> None:
        self.exact = exact
        self.dims = exact.linear_gaussian.dims
        self._latent_dim = exact.linear_gaussian.latent_dim if latent_dim is None else latent_dim
        self._keep_noise = keep_noise

    @property
    def latent_dim(self) -> int:
        """K, of the latents that are shown."""
        return self._latent_dim

    @property
    def mean(self) -> Tensor:
        """E[z_n | x_n], shape (N, K), in units of the prior."""
        return self.exact.mean[:, : self._latent_dim]

    @property
    def covariance(self) -> Tensor:
        """Cov[z_n | x_n], shape (N, K, K), made when asked for: N K^2 numbers. ``pattern_covariance`` has P K^2."""
        return self.pattern_covariance[self.pattern_index]

    @property
    def pattern_covariance(self) -> Tensor:
        """The covariance of each missing pattern, shape (P, K, K): it depends on nothing else."""
        return self.exact.pattern_covariance[:, : self._latent_dim, : self._latent_dim]

    @property
    def pattern_index(self) -> Tensor:
        """The missing pattern of each instance, shape (N,) int64."""
        return self.exact.pattern_index

    @property
    def log_marginal(self) -> Tensor:
        """log p(x_n) of what each instance has, shape (N,), nats."""
        return self.exact.log_marginal

    @property
    def linear_gaussian(self) -> LinearGaussian:
        """The model that it is the posterior of."""
        return self.exact.linear_gaussian

    def subset(self, rows: slice) -> GaussianPosterior:
        """The posterior of some of the instances."""
        return GaussianPosterior(self.exact.subset(rows), self._latent_dim, keep_noise=self._keep_noise)

    def predictive(self, name: str, dtype: torch.dtype | None = None) -> Predictive:
        """N(W E[z_n] + mu, W V_n W^T + Psi) of one modality, feature by feature."""
        shown = None if self._keep_noise else self._latent_dim
        return GaussianPredictive(self.exact, name, self.mean.dtype if dtype is None else dtype, shown)

    def log_density(self, latents: Tensor) -> Tensor:
        """log N(z_n; mean_n, V_n) at ``latents`` (N, K), nats, shape (N,)."""
        factor = torch.linalg.cholesky(self.pattern_covariance)[self.pattern_index]
        density: Tensor = MultivariateNormal(self.mean, scale_tril=factor, validate_args=False).log_prob(latents)
        return density

    def sample(self, num_draws: int, seed: int = 0) -> Tensor:
        """Independent draws of the latents, shape (S, N, K).

        Raises:
            ArgumentError: ``num_draws`` is below 1 or takes more than the memory, or ``seed`` is negative.
            ArgumentTypeError: one of them is not a whole number.
        """
        generator = seeded_generator(seed, self.mean.device)
        num_draws = checked_draws(num_draws, self.exact.mean.numel(), self.exact.mean.dtype)
        return self.exact.sample(num_draws, generator)[..., : self._latent_dim]

    def draws(self, num_draws: int, generator: torch.Generator, names: Sequence[str] = ()) -> Iterator[Draw]:
        """Joint draws: each modality's location is W z + mu, and what its correlated noise adds, drawn afresh."""
        lg, own = self.linear_gaussian, self._latent_dim
        found = {name: lg.correlated_noise(name) for name in names}
        correlated = {name: part for name, part in found.items() if part is not None}
        own_noise = {name: part.specific for name, part in correlated.items()}
        noise: Mapping[str, Tensor] = {name: lg.noise_variance[name] for name in names} | own_noise
        likelihood = lg if own == lg.latent_dim else None
        step = max(1, _CHUNK_BUDGET // max(1, self.exact.mean.numel()))  # (S, N, K) may not fit
        for start in range(0, num_draws, step):
            for latents in self.exact.sample(min(step, num_draws - start), generator):
                if own < lg.latent_dim and not self._keep_noise:
                    latents[:, own:].normal_(generator=generator)
                plain = Deferred({name: partial(_location, lg, name, latents) for name in names})
                scores = {name: part.draw_scores(len(latents), generator) for name, part in correlated.items()}
                moved = {name: partial(_moved, plain, name, part, scores[name]) for name, part in correlated.items()}
                location = Deferred({name: moved.get(name, partial(plain.__getitem__, name)) for name in names})
                signal = Deferred({name: partial(plain.__getitem__, name) for name in correlated})
                yield Draw(latents[:, :own], location, noise, None, signal, correlated, likelihood=likelihood)


def _location(lg: LinearGaussian, name: str, latents: Tensor) -> Tensor:
    """W z + mu, (N, D_m)."""
    return torch.addmm(lg.intercepts[name], latents, lg.loadings[name].mT)


def _moved(plain: Mapping[str, Tensor], name: str, noise: CorrelatedNoise, scores: Tensor) -> Tensor:
    """The same and a draw of what features' noise has in common, B y."""
    return plain[name] + scores @ noise.factor.mT


class GaussianPredictive(Predictive):
    """The normal predictive of one modality; each part is computed when first asked for.

    Args:
        exact: the posterior of the latents.
        name: the modality.
        dtype: of the results. Arithmetic is in the model's type, in chunks of rows.
        latent_dim: K, where that is less than the engine's; what the other latents explain is noise.
    """

    def __init__(self, exact: Posterior, name: str, dtype: torch.dtype, latent_dim: int | None = None) -> None:
        self._exact, self._dtype = exact, dtype
        self._loadings = exact.linear_gaussian.loadings[name]
        self._intercept = exact.linear_gaussian.intercepts[name]
        self._noise = exact.linear_gaussian.noise_variance[name]
        if latent_dim is not None and latent_dim < self._loadings.shape[1]:
            self._noise = self._noise + self._loadings[:, latent_dim:].square().sum(1)
            self._loadings = self._loadings.clone()
            self._loadings[:, latent_dim:] = 0

    @cached_property
    def mean(self) -> Tensor:
        """W E[z_n] + mu, shape (N, D)."""
        latents, width = self._exact.mean, len(self._loadings)
        out = latents.new_empty(len(latents), width, dtype=self._dtype)
        step = max(1, _CHUNK_BUDGET // width)
        for start in range(0, len(out), step):
            rows = slice(start, start + step)
            out[rows] = torch.addmm(self._intercept, latents[rows].to(self._loadings.dtype), self._loadings.mT)
        return out

    @cached_property
    def latent_variance(self) -> Tensor:
        """diag(W V_n W^T), shape (N, D)."""
        return self._exact.feature_variance(self._loadings).to(self._dtype)[self._exact.pattern_index]

    @cached_property
    def noise_variance(self) -> Tensor:
        """diag(Psi), shape (D,)."""
        return self._noise.to(self._dtype)
