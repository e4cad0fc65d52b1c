"""Random mixtures of linear-Gaussian models."""

from __future__ import annotations

import torch

from calmrl_prob.linear_gaussian import (
    LinearGaussianMixture,
)
from tests.cases.linear_gaussian_cases import random_model


def random_mixture(
    dims: dict[str, int], latent_dim: int, num_components: int, seed: int = 0, *, shared: bool = True
) -> LinearGaussianMixture:
    """LatentComponents that differ in their prior alone, or in everything."""
    generator = torch.Generator().manual_seed(seed)
    log_weights = torch.randn(num_components, generator=generator, dtype=torch.float64)
    models = [random_model(dims, latent_dim, seed + c) for c in range(num_components)]
    if not shared:
        return LinearGaussianMixture(log_weights, tuple(models))
    means = torch.stack([2 * model.prior_mean for model in models])
    return LinearGaussianMixture.from_prior(
        models[0], log_weights, means, torch.stack([model.prior_covariance for model in models])
    )
