"""Mixtures made of Gaussian models that were fitted before."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from scipy.stats import invgamma

from calmrl_prob.linear_gaussian import LinearGaussian, LinearGaussianMixture


def equal_mixture(models: Sequence[LinearGaussian]) -> LinearGaussianMixture:
    """Models of the same modalities with equal prior weights; those of fewer latents get some that do nothing."""
    latent_dim = max(model.latent_dim for model in models)

    def padded(model: LinearGaussian) -> LinearGaussian:
        idle = latent_dim - model.latent_dim
        loadings = {name: torch.nn.functional.pad(part, (0, idle)) for name, part in model.loadings.items()}
        return LinearGaussian(loadings, model.intercepts, model.noise_variance)

    return LinearGaussianMixture(torch.zeros(len(models), dtype=models[0].dtype), tuple(map(padded, models)))


def scale_mixture(
    model: LinearGaussian, degrees_of_freedom: float, count: int = 11, unit_mean: bool = True
) -> LinearGaussianMixture:
    """A Gaussian model times a random scale: quantiles of an inverse gamma, brought to mean 1 if asked for.

    Example:
        >>> lg = LinearGaussian({"x": torch.ones(2, 1)}, {"x": torch.zeros(2)}, {"x": torch.tensor(0.5)})
        >>> mixture = scale_mixture(lg, 10.0)
        >>> scales = torch.stack([part.noise_variance["x"][0] for part in mixture.components]) / 0.5
        >>> round(float(scales.mean()), 4), bool(scales.max() > 2 * scales.min())
        (1.0, True)
    """
    half = degrees_of_freedom / 2
    quantiles = invgamma.ppf((np.arange(count) + 0.5) / count, half, scale=half)
    scales = quantiles / quantiles.mean() if unit_mean else quantiles
    components = [
        LinearGaussian(
            {name: part * math.sqrt(scale) for name, part in model.loadings.items()},
            model.intercepts,
            {name: part * float(scale) for name, part in model.noise_variance.items()},
        )
        for scale in scales
    ]
    return LinearGaussianMixture(torch.zeros(count, dtype=model.dtype), tuple(components))
