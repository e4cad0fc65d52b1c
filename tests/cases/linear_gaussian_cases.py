"""Random linear-Gaussian models, random missingness, and data drawn from them, seeded, for tests of the engine."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor
from torch.distributions import MultivariateNormal

from calmrl_prob.linear_gaussian import (
    LinearGaussian,
    ObservedBlocks,
)


def random_model(
    dims: Mapping[str, int], latent_dim: int, seed: int = 0, *, prior: str = "full", noise: str = "diagonal"
) -> LinearGaussian:
    """A model with random parameters; ``prior`` is "full" or "standard", ``noise`` a form of the noise."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    root = normal(latent_dim, latent_dim)
    model = LinearGaussian(
        {name: normal(width, latent_dim) for name, width in dims.items()},
        {name: normal(width) for name, width in dims.items()},
        {name: normal(1 if noise == "isotropic" else width).exp() for name, width in dims.items()},
        normal(latent_dim) if prior == "full" else None,
        root @ root.mT / latent_dim + 0.5 * torch.eye(latent_dim).double() if prior == "full" else None,
    )
    if noise not in ("full", "low_rank"):
        return model
    factors = {name: normal(width, width if noise == "full" else width // 3) for name, width in dims.items()}
    variance = {name: model.noise_variance[name] + factor.square().sum(1) for name, factor in factors.items()}
    return replace(model, noise_variance=variance, noise_factor=factors)


def random_mask(num_instances: int, num_modalities: int, rate: float, seed: int = 0, *, empty: bool = False) -> Tensor:
    """A mask with about ``rate`` of the cells missing; rows without any modality only where ``empty``."""
    generator = torch.Generator().manual_seed(seed + 1000)
    mask = torch.rand(num_instances, num_modalities, generator=generator) >= rate
    if not empty:
        keep = torch.randint(num_modalities, (num_instances,), generator=generator)
        mask[torch.arange(num_instances), keep] = True
    return mask


def random_blocks(
    model: LinearGaussian, num_instances: int, rate: float, seed: int = 0, *, empty: bool = False
) -> ObservedBlocks:
    """Data drawn from a model, with modalities missing at random."""
    _, features = model.sample(num_instances, torch.Generator().manual_seed(seed + 2000))
    mask = random_mask(num_instances, len(features), rate, seed, empty=empty)
    return ObservedBlocks.from_arrays(features, mask)


def stacked(blocks: ObservedBlocks) -> tuple[Tensor, Tensor]:
    """All features side by side (N, D), and which of them are there."""
    rows = torch.zeros(blocks.num_instances, sum(blocks.dims.values()), dtype=torch.float64)
    start = 0
    for name, values in blocks.values.items():
        rows[blocks.rows[name], start : start + values.shape[1]] = values.double()
        start += values.shape[1]
    widths = torch.tensor(list(blocks.dims.values()))
    return rows, blocks.observed_mask.repeat_interleave(widths, dim=1)


def assert_close(got: Tensor, expected: Tensor, tolerance: float = 1e-9) -> None:
    """Within a tolerance of the size of what is expected, or of 1."""
    assert float((got - expected).abs().max()) <= tolerance * max(float(expected.abs().max()), 1.0)


def dense_conditioning(model: LinearGaussian, row: Tensor, present: Tensor) -> dict[str, Tensor]:
    """Everything about one instance from the joint normal of (z, x), by textbook conditioning."""
    loadings = torch.cat(list(model.loadings.values()))
    mean, covariance = model.joint()
    cross = loadings @ model.prior_covariance  # Cov(x, z)
    seen = covariance[present][:, present]
    deviation = (row - mean)[present]
    gain_z = torch.linalg.solve(seen, cross[present]).mT
    gain_x = torch.linalg.solve(seen, covariance[present]).mT
    noise = torch.cat(list(model.noise_variance.values()))
    predictive = covariance - gain_x @ covariance[present]
    # for a feature that was seen, the predictive is that of a second measurement: latent uncertainty and fresh noise
    signal = loadings @ (model.prior_covariance - gain_z @ cross[present]) @ loadings.mT
    evidence = MultivariateNormal(mean[present], seen).log_prob(row[present]) if present.any() else torch.zeros(())
    return {
        "mean": model.prior_mean + gain_z @ deviation,
        "covariance": model.prior_covariance - gain_z @ cross[present],
        "evidence": evidence,
        "predicted": loadings @ (model.prior_mean + gain_z @ deviation) + torch.cat(list(model.intercepts.values())),
        "variance": signal.diagonal() + noise,
        "missing_variance": predictive.diagonal()[~present],
    }
