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
from calmrl_prob.linear_gaussian.posterior import Posterior, posterior, project_data


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


def _average(weights: Tensor, values: Iterable[Tensor]) -> Tensor:
    """sum_c weights[:, c] values[c], shape (N, D), without stacking the values."""
    terms = (weight[:, None] * value for weight, value in zip(weights.mT, values, strict=True))
    return sum(terms, start=weights.new_zeros(()))
