"""Data drawn from models with Student-t sites."""

from __future__ import annotations

import torch
from torch import Tensor

from calmrl_prob.linear_gaussian import (
    LinearGaussian,
    ObservedBlocks,
)
from calmrl_prob.linear_gaussian.scale_mixture.shared_scale import sample_gamma
from tests.cases.linear_gaussian_cases import random_mask, random_model


def heavy_tailed(
    sites: tuple[str, ...], num_instances: int = 150, freedom: float = 3.0, seed: int = 0
) -> tuple[ObservedBlocks, LinearGaussian]:
    """Data drawn from the model that is Student-t at some sites, and its Gaussian part."""
    lg = random_model({"a": 6, "b": 5}, 2, seed, prior="standard", noise="isotropic")
    generator = torch.Generator().manual_seed(seed)
    nu = torch.full((num_instances,), freedom, dtype=torch.float64)

    def normal(width: int, site: str) -> Tensor:
        draws = torch.randn(num_instances, width, generator=generator, dtype=torch.float64)
        return draws * sample_gamma(nu, generator).rsqrt()[:, None] if site in sites else draws

    z = normal(2, "z")
    features = {
        name: z @ loadings.mT + lg.intercepts[name] + normal(len(loadings), name) * lg.noise_variance[name].sqrt()
        for name, loadings in lg.loadings.items()
    }
    return ObservedBlocks.from_arrays(features, random_mask(num_instances, 2, 0.3, seed)), lg
