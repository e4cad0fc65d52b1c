"""Random models and incomplete data that the tests of the value of information share."""

from __future__ import annotations

import torch
from torch import Tensor

import calmrl_prob as cal
from calmrl_prob.linear_gaussian import LinearGaussian, LinearGaussianMixture

DIMS = {"image": 4, "text": 3, "audio": 2, "depth": 1}


def random_model(latent_dim: int = 3, seed: int = 0, dims: dict[str, int] = DIMS) -> LinearGaussian:
    """Parameters of size 1, a prior with a mean and correlations."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    root = normal(latent_dim, latent_dim)
    return LinearGaussian(
        {name: normal(width, latent_dim) for name, width in dims.items()},
        {name: normal(width) for name, width in dims.items()},
        {name: 0.3 + normal(width).square() for name, width in dims.items()},
        normal(latent_dim),
        root @ root.mT + torch.eye(latent_dim),
    )


def incomplete(lg: LinearGaussian, num_instances: int = 24, seed: int = 1) -> cal.MultimodalData:
    """Draws of it of which about half is there: all of the first instance, only the first modality of the second."""
    generator = torch.Generator().manual_seed(seed)
    mask = torch.rand(num_instances, len(lg.names), generator=generator) < 0.5
    mask[~mask.any(1), 0] = True
    mask[0], mask[1] = True, torch.tensor([True] + [False] * (len(lg.names) - 1))
    return cal.MultimodalData(lg.sample(num_instances, generator).features, observed_mask=mask)


def mixture_of(lg: LinearGaussian, apart: float) -> LinearGaussianMixture:
    """Two components, so far from the mean of the model's prior; the same ones at 0."""
    means = torch.stack([lg.prior_mean - apart, lg.prior_mean + apart])
    covariances = torch.stack([lg.prior_covariance, 0.5 * lg.prior_covariance if apart else lg.prior_covariance])
    return LinearGaussianMixture.from_prior(lg, torch.tensor([0.3, 0.7]).double().log(), means, covariances)
