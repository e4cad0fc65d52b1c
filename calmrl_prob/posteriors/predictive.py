"""The posterior predictive of one modality, feature by feature: what every route's imputation is made of.

    p(x_nd | x_n) = sum_c w_nc N(x_nd; mean_ncd, latent_ncd + noise_ncd)

with one component where the posterior is Gaussian, and several for mixture priors, draws of parameters, or draws of
latents. Its variance has three parts (the law of total variance): latent, which seeing more modalities could remove;
noise, which it could not; and parameter, from not knowing the parameters.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from functools import cached_property
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from calmrl_prob.posteriors.quantiles import mixture_quantile

#: Nodes (less 1/2) and weights on (0, 1) of the integral over quantiles that is the CRPS of what is not normal.
_NODES, _WEIGHTS = (0.5 * part for part in np.polynomial.legendre.leggauss(64))


class Predictive(ABC):
    """p(x_n^m | x_n) of D features of N instances, in the data's units. Normal, unless a subclass says otherwise.

    Attributes:
        normal: whether each feature's predictive is normal.
    """

    normal: bool = True

    @property
    @abstractmethod
    def mean(self) -> Tensor:
        """(N, D)."""

    @property
    @abstractmethod
    def latent_variance(self) -> Tensor:
        """(N, D): from not knowing the latents."""

    @property
    @abstractmethod
    def noise_variance(self) -> Tensor:
        """(D,) or (N, D): what no modality could tell."""

    @property
    def parameter_variance(self) -> Tensor | None:
        """(N, D): from not knowing the parameters; None where they were fitted as one value."""
        return None

    @cached_property
    def variance(self) -> Tensor:
        """The sum of the parts, (N, D)."""
        total = self.latent_variance + self.noise_variance
        return total if self.parameter_variance is None else total + self.parameter_variance

    @property
    def whole(self) -> bool:
        """Whether the values are whole numbers."""
        return False

    def settle(self, values: Tensor) -> Tensor:
        """Values (N, D) brought to the nearest that it takes: as they are where that is any real number."""
        return values

    def quantile(self, probability: float) -> Tensor:
        """The value that each feature stays below with this probability, (N, D)."""
        standard = float(torch.special.ndtri(torch.tensor(probability, dtype=torch.float64)))
        return self.mean + standard * self.variance.sqrt()

    def log_density(self, values: Tensor) -> Tensor:
        """log p(x_nd | x_n) at ``values`` (N, D), nats, shape (N, D)."""
        return normal_log_density(values, self.mean, self.variance)

    def cdf(self, values: Tensor) -> Tensor:
        """P(x_nd below ``values``), (N, D): at the truth, the probability integral transform."""
        below: Tensor = torch.special.ndtr((values - self.mean) / self.variance.sqrt())
        return below

    def crps(self, values: Tensor) -> Tensor:
        """Continuous ranked probability score at ``values`` (N, D), data units, (N, D); lower is better.

        With z the standardised value, sd (z (2 Phi(z) - 1) + 2 phi(z) - 1 / sqrt(pi)) where the predictive is normal;
        where it is not, twice the integral over p of the pinball loss of its p-quantile, by 64 Gauss-Legendre nodes
        (within 0.1% for a normal). Source: Gneiting & Raftery, Strictly Proper Scoring Rules, Prediction, and
        Estimation, 2007.
        """
        if not self.normal:
            total = torch.zeros_like(self.mean)
            for node, weight in zip(_NODES, _WEIGHTS, strict=True):
                probability = 0.5 + float(node)
                error = values - self.quantile(probability)
                total += 2 * float(weight) * torch.maximum(probability * error, (probability - 1) * error)
            return total
        scale = self.variance.sqrt()
        z = (values - self.mean) / scale
        density = torch.exp(-0.5 * z.square()) / math.sqrt(2 * math.pi)
        score: Tensor = scale * (z * (2 * torch.special.ndtr(z) - 1) + 2 * density - 1 / math.sqrt(math.pi))
        return score


class NormalPredictive(Predictive):
    """A normal predictive from its moments.

    Args:
        mean: (N, D).
        latent_variance: (N, D).
        noise_variance: (D,) or (N, D).

    Example:
        >>> predictive = NormalPredictive(torch.zeros(1, 1), torch.full((1, 1), 3.0), torch.ones(1))
        >>> predictive.variance.tolist(), round(float(predictive.quantile(0.975)), 2)
        ([[4.0]], 3.92)
    """

    def __init__(self, mean: Tensor, latent_variance: Tensor, noise_variance: Tensor) -> None:
        self._mean, self._latent_variance, self._noise_variance = mean, latent_variance, noise_variance

    @property
    def mean(self) -> Tensor:
        """(N, D)."""
        return self._mean

    @property
    def latent_variance(self) -> Tensor:
        """(N, D)."""
        return self._latent_variance

    @property
    def noise_variance(self) -> Tensor:
        """(D,) or (N, D)."""
        return self._noise_variance


class MixturePredictive(Predictive):
    """A mixture of normals, weighted by instance.

    Args:
        log_weight: (C, N), log of weights that sum to one over C.
        location: (C, N, D).
        latent_variance: (C, N, D), within each component; 0 where components are draws of the latents.
        noise_variance: (C, D) or (C, N, D).
        between: what tells the components apart: "latent" (components of the prior, draws of the latents) or
            "parameter" (draws of the parameters). The variance between their means counts as that part.

    Example:
        >>> half = torch.full((2, 1), 0.5).log()
        >>> two = MixturePredictive(half, torch.tensor([[[-3.0]], [[3.0]]]), torch.zeros(2, 1, 1), torch.ones(2, 1))
        >>> two.variance.tolist(), abs(round(float(two.quantile(0.5)), 3))
        ([[10.0]], 0.0)
    """

    normal = False

    def __init__(
        self,
        log_weight: Tensor,
        location: Tensor,
        latent_variance: Tensor,
        noise_variance: Tensor,
        between: Literal["latent", "parameter"] = "latent",
    ) -> None:
        self.log_weight, self.location = log_weight, location
        self._within = latent_variance
        self._noise = noise_variance if noise_variance.ndim == 3 else noise_variance[:, None]
        self._between = between

    def _average(self, values: Tensor) -> Tensor:
        return torch.einsum("cn,cnd->nd", self.log_weight.exp(), values.expand_as(self.location))

    @cached_property
    def mean(self) -> Tensor:
        """(N, D)."""
        return self._average(self.location)

    @cached_property
    def _spread(self) -> Tensor:
        return self._average((self.location - self.mean).square())

    @cached_property
    def latent_variance(self) -> Tensor:
        """(N, D)."""
        within = self._average(self._within)
        return within + self._spread if self._between == "latent" else within

    @cached_property
    def noise_variance(self) -> Tensor:
        """(N, D)."""
        return self._average(self._noise)

    @property
    def parameter_variance(self) -> Tensor | None:
        """(N, D), where the components are draws of the parameters."""
        return self._spread if self._between == "parameter" else None

    @cached_property
    def _scale(self) -> Tensor:
        return (self._within + self._noise).sqrt().expand_as(self.location)

    def quantile(self, probability: float) -> Tensor:
        """Of the mixture, (N, D)."""
        return mixture_quantile(self.location, self._scale, probability, self.log_weight.exp())

    def log_density(self, values: Tensor) -> Tensor:
        """log sum_c w_nc N(x_nd; ...), nats, shape (N, D)."""
        parts = normal_log_density(values, self.location, self._scale.square())
        return torch.logsumexp(self.log_weight[:, :, None] + parts, dim=0)

    def cdf(self, values: Tensor) -> Tensor:
        """sum_c w_nc Phi((x_nd - mean_ncd) / sd_ncd), (N, D)."""
        return self._average(torch.special.ndtr((values - self.location) / self._scale))


def normal_log_density(values: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
    """log N(x; mean, variance), elementwise, nats."""
    return -0.5 * ((2 * math.pi * variance).log() + (values - mean).square() / variance)
