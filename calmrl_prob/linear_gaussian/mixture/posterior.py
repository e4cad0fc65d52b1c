"""The exact posterior under a mixture of linear-Gaussian models (``mixture.py``): a mixture of Gaussians again.

With N(mean_nc, V_nc) and log p(x_n | c) the posterior and the evidence of component c alone (``posterior.py``),

    log p(x_n) = logsumexp_c (log pi_c + log p(x_n | c)),   r_nc = pi_c p(x_n | c) / p(x_n)
    z_n | x_n ~ sum_c r_nc N(mean_nc, V_nc)
    E[z_n | x_n] = sum_c r_nc mean_nc
    Cov[z_n | x_n] = sum_c r_nc (V_nc + (mean_nc - E[z_n]) (mean_nc - E[z_n])^T)

Components that share loadings, intercepts and noise, as under a mixture prior, share every product with the data; what
each adds is K-dimensional.

Source: Bishop, Pattern Recognition and Machine Learning (2006), section 9.2, for the responsibilities.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cached_property

import torch
from torch import Tensor

from calmrl_prob.linear_gaussian.blocks import FeatureBlocks, ObservedBlocks
from calmrl_prob.linear_gaussian.mixture.model import LinearGaussianMixture, likelihood_key
from calmrl_prob.linear_gaussian.posterior import Posterior, Predictive, posterior, project_data
from calmrl_prob.linear_gaussian.products import row_chunks


class MixturePosterior:
    """The posterior sum_c r_nc N(mean_nc, V_nc) of the latent of each of N instances.

    Attributes:
        mixture: the model it belongs to.
        components: the posterior of each component alone.
        log_responsibilities: log r_nc, shape (N, C), nats.
        log_marginal: log p(x_n), shape (N,), nats.
    """

    def __init__(
        self,
        mixture: LinearGaussianMixture,
        components: Sequence[Posterior],
        log_responsibilities: Tensor,
        log_marginal: Tensor,
    ) -> None:
        self.mixture = mixture
        self.components = tuple(components)
        self.log_responsibilities = log_responsibilities
        self.log_marginal = log_marginal

    @cached_property
    def responsibilities(self) -> Tensor:
        """r_nc, shape (N, C): the probability of each component given what the instance has."""
        return self.log_responsibilities.exp()

    @cached_property
    def mean(self) -> Tensor:
        """E[z_n | x_n], shape (N, K), latent units."""
        return _average(self.responsibilities, (part.mean for part in self.components))

    @property
    def covariance(self) -> Tensor:
        """Cov[z_n | x_n], shape (N, K, K): within components and between them. N K^2 numbers, made when asked for."""
        out = self.mean.new_zeros(*self.mean.shape, self.mean.shape[1])
        for weight, part in zip(self.responsibilities.mT[:, :, None], self.components, strict=True):
            spread = part.mean - self.mean
            out = out + weight[:, :, None] * part.covariance
            out = out + (weight * spread)[:, :, None] * spread[:, None, :]
        return out

    def sample(self, num_draws: int, generator: torch.Generator | None = None) -> Tensor:
        """Draw latents.

        Returns:
            Shape (S, N, K); draws are independent.
        """
        return self.sample_given(self.sample_components(num_draws, generator), generator)

    def sample_components(self, num_draws: int, generator: torch.Generator | None = None) -> Tensor:
        """Draw components, shape (S, N) int64."""
        return torch.multinomial(self.responsibilities, num_draws, replacement=True, generator=generator).mT

    def sample_given(self, labels: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Draw latents given components.

        Args:
            labels: (S, N) int64, from ``sample_components``.
            generator: source of randomness; torch's global one if not given.

        Returns:
            Shape (S, N, K).
        """
        shape = (*labels.shape, self.mixture.latent_dim)
        noise = torch.randn(*shape, generator=generator, dtype=self.mean.dtype, device=self.mean.device).flatten(0, 1)
        draws = torch.empty_like(noise)
        for c, part in enumerate(self.components):
            chosen = (labels.flatten() == c).nonzero().squeeze(1)
            rows = chosen % labels.shape[1]
            draws[chosen] = part.mean[rows] + part.deviate(noise[chosen], rows)
        return draws.view(shape)


def mixture_posterior(mixture: LinearGaussianMixture, blocks: ObservedBlocks | FeatureBlocks) -> MixturePosterior:
    """The exact posterior under a mixture: one Cholesky factorisation per component and missing pattern.

    Differentiable in all parameters. The products with the data are made once for components that share loadings,
    intercepts and noise.

    Args:
        mixture: the model, in the floating-point type that the K-dimensional algebra is to use.
        blocks: N instances with any modalities, or any features, missing; modalities as in the model.

    Raises:
        NumericalError: a precision is not positive definite, or the evidence of an instance is not finite.

    Example:
        >>> import torch
        >>> from calmrl_prob.linear_gaussian import LinearGaussian, ObservedBlocks
        >>> lg = LinearGaussian({"x": torch.ones(1, 1)}, {"x": torch.zeros(1)}, {"x": torch.tensor(1.0)})
        >>> two = LinearGaussianMixture.from_prior(
        ...     lg, torch.tensor([0.5, 0.5]).log(), torch.tensor([[-3.0], [3.0]]), torch.ones(2, 1, 1)
        ... )
        >>> data = ObservedBlocks.from_arrays({"x": torch.tensor([[3.0], [0.0]])}, torch.ones(2, 1).bool())
        >>> [[round(r, 4) for r in row] for row in mixture_posterior(two, data).responsibilities.tolist()]
        [[0.0001, 0.9999], [0.5, 0.5]]
    """
    projections = {likelihood_key(part): part for part in mixture.components}
    made = {key: project_data(part, blocks) for key, part in projections.items()}
    parts = [posterior(part, blocks, made[likelihood_key(part)]) for part in mixture.components]
    log_joint = torch.stack([part.log_marginal for part in parts], dim=1) + mixture.log_weights
    log_marginal = log_joint.logsumexp(1)
    return MixturePosterior(mixture, parts, log_joint - log_marginal[:, None], log_marginal)


def predict_mixture(given: MixturePosterior, names: Sequence[str] | None = None) -> Predictive:
    """Mean and variance of the posterior predictive of modalities, which is itself a mixture of normals.

    With mu_nc = W_c mean_nc + mu_c, feature by feature:

        mean = sum_c r_nc mu_nc
        latent_variance = sum_c r_nc (diag(W_c V_nc W_c^T) + (mu_nc - mean)^2)
        noise_variance = sum_c r_nc psi_c

    Args:
        given: the posterior of the latents.
        names: which modalities; all by default.

    Returns:
        As for a single component; the noise variance has shape (N, D_m) where components differ in it.

    Raises:
        SchemaError: a name is not a modality of the model.
    """
    chosen = given.mixture.select(given.mixture.names if names is None else names)
    mean: dict[str, Tensor] = {}
    latent: dict[str, Tensor] = {}
    noise: dict[str, Tensor] = {}
    for name in chosen.names:
        mean[name], latent[name] = _feature_moments(given, [part.loadings[name] for part in chosen.components], name)
        variances = [part.noise_variance[name] for part in chosen.components]
        same = all(variance is variances[0] for variance in variances)
        noise[name] = variances[0] if same else given.responsibilities @ torch.stack(variances)
    return Predictive(mean, latent, noise)


def _feature_moments(given: MixturePosterior, loadings: Sequence[Tensor], name: str) -> tuple[Tensor, Tensor]:
    weights, parts = given.responsibilities, given.components
    within = [part.feature_variance(rows) for part, rows in zip(parts, loadings, strict=True)]
    means, variances = [], []
    for rows in row_chunks(len(weights), len(loadings[0])):
        centres = [
            torch.addmm(part.linear_gaussian.intercepts[name], part.mean[rows], loading.mT)
            for part, loading in zip(parts, loadings, strict=True)
        ]
        mean = _average(weights[rows], centres)
        spread = (
            variance[part.pattern_index[rows]] + (centre - mean).square()
            for variance, part, centre in zip(within, parts, centres, strict=True)
        )
        means.append(mean)
        variances.append(_average(weights[rows], spread))
    return torch.cat(means), torch.cat(variances)


def _average(weights: Tensor, values: Iterable[Tensor]) -> Tensor:
    """sum_c weights[:, c] values[c], shape (N, D), without stacking the values."""
    terms = (weight[:, None] * value for weight, value in zip(weights.mT, values, strict=True))
    return sum(terms, start=weights.new_zeros(()))
