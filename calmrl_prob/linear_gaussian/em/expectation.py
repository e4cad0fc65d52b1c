"""The E-step: expected moments of the latents, and the evidence, at given parameters.

With the latent's prior standard normal, A = Psi^-1 W and data about a shift, for each pattern p

    P_p = I + sum_{m in p} A^mT W^m,   b_p = sum_{m in p} A^mT mu^m,   z_n ~ N(V_p (A_p^T x_n - b_p), V_p)

The M-step needs sum x E[z]^T for each feature, and the moments of the latent augmented by a 1 for each modality, both
over the rows that have it. Three forms of the E-step give the same numbers, at costs that differ by orders of magnitude
between data sets (``cost.py`` chooses): by modality and by pattern (``rowwise.py``), which go over the rows, and from
sufficient statistics (``statistics.py``), which does not.

Source: Rubin & Thayer, EM algorithms for ML factor analysis (1982), with missing blocks.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from calmrl_prob.linear_gaussian.em.parameters import Parameters, Shape
from calmrl_prob.linear_gaussian.em.scatter import Scatter, trace_solve
from calmrl_prob.linear_gaussian.grouping import Grouping


@dataclass(frozen=True)
class Totals:
    """Totals that the data contribute to every E-step unchanged, in float64.

    Attributes:
        count: (G,) rows with each group: a modality, or features of one that are always missing together.
        total: (D,) sum of x over the rows that have it.
        square: (D,) sum of its square.
        scatters: sum of x x^T of each modality, where noise is correlated within; else None.
    """

    count: Tensor
    total: Tensor
    square: Tensor
    scatters: tuple[Scatter, ...] | None = None


@dataclass(frozen=True)
class Moments:
    """Expected sufficient statistics for the M-step.

    Attributes:
        log_likelihood: evidence of all data at the parameters that were given, nats.
        cross: (D, K) sum of x E[z]^T over the rows that have the feature.
        latent: (G + 1, K + 1, K + 1) sum of E[zz^T] for z augmented by a 1: over the rows that have group g, and,
            last, over all rows.
        log_prior: log density of a prior that the moments include, up to a constant; nats.
    """

    log_likelihood: float
    cross: Tensor
    latent: Tensor
    log_prior: float = 0.0


class ExpectationStep(ABC):
    """One form of the E-step, holding the data in the order that suits it.

    Attributes:
        shape: the stacked layout.
        grouping: the group of each feature.
        totals: the constants of the data.
    """

    shape: Shape
    grouping: Grouping
    totals: Totals

    @abstractmethod
    def __call__(self, parameters: Parameters) -> Moments:
        """Expected moments and evidence at ``parameters``."""

    @property
    def feature_count(self) -> Tensor:
        """(D,) rows that have each feature."""
        return self.totals.count[self.grouping.feature_group]

    def feature_log_density(self, parameters: Parameters) -> Tensor:
        """sum_n log N(x_n; mu, Psi) over all observed values: known from the totals alone."""
        if parameters.noise_factor is not None:
            return self._correlated_log_density(parameters)
        mean, noise = parameters.intercepts, parameters.noise_variance
        count = self.feature_count
        deviation = self.totals.square - 2 * mean * self.totals.total + count * mean.square()
        return -0.5 * (count * (math.log(2 * math.pi) + noise.log()) + deviation / noise).sum()

    def _correlated_log_density(self, parameters: Parameters) -> Tensor:
        """The same where noise is correlated within modalities, from one scatter matrix of each."""
        assert self.totals.scatters is not None
        value = parameters.intercepts.new_zeros(())
        parts = zip(self.shape.slices, parameters.noises, self.totals.scatters, self.totals.count, strict=True)
        for part, noise, scatter, count in parts:
            mean = parameters.intercepts[part]
            solved = noise.solve(mean[:, None]).squeeze(1)
            deviation = trace_solve(noise, scatter) + solved @ (count * mean - 2 * self.totals.total[part])
            log_determinant = len(mean) * math.log(2 * math.pi) + noise.log_determinant()
            value = value - 0.5 * (count * log_determinant + deviation)
        return value

    def group_precisions(self, weights: Tensor, parameters: Parameters) -> tuple[Tensor, Tensor]:
        """A^T W, shape (G, K, K), and A^T mu, shape (G, K), of each group."""
        augmented = torch.cat([parameters.loadings, parameters.intercepts[:, None]], dim=1)
        parts = self.grouping.products(weights, augmented)
        return parts[..., :-1], parts[..., -1]


def augment(first: Tensor, second: Tensor, count: Tensor) -> Tensor:
    """Moments of [z; 1], shape (G, K + 1, K + 1), from sums of z (G, K) and zz^T (G, K^2), and counts (G,)."""
    groups, latent_dim = first.shape
    moments = first.new_empty(groups, latent_dim + 1, latent_dim + 1)
    moments[:, :-1, :-1] = second.view(groups, latent_dim, latent_dim)
    moments[:, -1, :-1] = moments[:, :-1, -1] = first
    moments[:, -1, -1] = count
    return moments
