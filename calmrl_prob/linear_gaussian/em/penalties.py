"""Priors of the loadings that keep EM's steps in closed form: normal, and automatic relevance determination (ARD).

With s_d^2 the scale of feature d's variance, so that units of the data do not matter, and q_mk = sum_{d in m} w_dk^2 /
s_d^2 the strength of latent k in modality m (loadings for a standard normal latent):

    normal    w_dk / s_d ~ N(0, 1 / alpha)                           log p = -alpha/2 sum_mk q_mk + const
    ARD       w_dk / s_d | alpha_mk ~ N(0, 1 / alpha_mk),   alpha_mk ~ Gamma(a, b), integrated out:
                                                         log p = -sum_mk (a + D_m/2) log(b + q_mk/2) + const

ARD's density falls off so slowly, and peaks so sharply at 0, that a latent which a modality does not need is switched
off for it altogether. Given the loadings, E[alpha_mk] = (a + D_m/2) / (b + q_mk/2), which makes each step of EM one for
normal priors.

The evidence does not change when the latent is rotated; ARD's prior does. EM would crawl along rotations, so they are
searched directly (``rotation.py``).

Sources: Virtanen, Klami, Khan & Kaski, Bayesian group factor analysis (2012), which also turns latents explicitly;
Klami, Virtanen, Leppaaho & Kaski, Group factor analysis (2015); Tipping & Bishop (1999) for the normal prior's step.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from calmrl_prob.linear_gaussian.em.parameters import Parameters, Shape
from calmrl_prob.linear_gaussian.em.rotation import best_rotation


@dataclass(frozen=True)
class LoadingsPenalty(ABC):
    """A prior of the loadings.

    Attributes:
        shape: the stacked layout.
        scale: (D,) s_d^2, in the data's units squared.
    """

    shape: Shape
    scale: Tensor

    def strength(self, loadings: Tensor) -> Tensor:
        """q_mk, shape (M, K), of stacked loadings (D, K)."""
        squares = loadings.square() / self.scale[:, None]
        return torch.stack([squares[part].sum(0) for part in self.shape.slices])

    @abstractmethod
    def precision(self, loadings: Tensor) -> Tensor:
        """alpha_mk, shape (M, K): that of the normal prior whose log density touches this one's from below."""

    @abstractmethod
    def log_density(self, loadings: Tensor) -> float:
        """log p of stacked loadings (D, K) up to a constant; nats."""

    def turned(self, parameters: Parameters, most_rounds: int) -> Parameters:
        """The same model with its latents rotated to where the prior is higher; here no place is."""
        del most_rounds
        return parameters


@dataclass(frozen=True)
class NormalPenalty(LoadingsPenalty):
    """w_dk / s_d ~ N(0, 1 / alpha) for all features and latents.

    Attributes:
        alpha: the precision.
    """

    alpha: float

    def precision(self, loadings: Tensor) -> Tensor:
        """alpha, shape (M, K)."""
        return loadings.new_full((len(self.shape.dims), loadings.shape[1]), self.alpha)

    def log_density(self, loadings: Tensor) -> float:
        """log p of stacked loadings (D, K) up to a constant; nats."""
        return -0.5 * self.alpha * float(self.strength(loadings).sum())


@dataclass(frozen=True)
class ARDPenalty(LoadingsPenalty):
    """w_dk / s_d | alpha_mk ~ N(0, 1 / alpha_mk), alpha_mk ~ Gamma(a, b), with alpha integrated out.

    Attributes:
        a: shape of the gamma prior.
        b: its rate. A latent that is switched off ends with q_mk far below it.
    """

    a: float = 1e-3
    b: float = 1e-6

    def _half_counts(self, like: Tensor) -> Tensor:
        widths = like.new_tensor(list(self.shape.dims.values()))
        return self.a + widths / 2

    def precision(self, loadings: Tensor) -> Tensor:
        """E[alpha_mk | W], shape (M, K)."""
        return self._half_counts(loadings)[:, None] / (self.b + self.strength(loadings) / 2)

    def log_density(self, loadings: Tensor) -> float:
        """log p of stacked loadings (D, K) up to a constant; nats."""
        return -float(self._half_counts(loadings) @ (self.b + self.strength(loadings) / 2).log().sum(1))

    def turned(self, parameters: Parameters, most_rounds: int) -> Parameters:
        """The same model with its latents rotated to where the prior is higher."""
        whitened = parameters.loadings * self.scale.rsqrt()[:, None]
        gram = torch.stack([whitened[part].mT @ whitened[part] for part in self.shape.slices])
        rotation = best_rotation(gram, self._half_counts(gram), self.b, most_rounds)
        if rotation is None:
            return parameters
        return replace(parameters, loadings=parameters.loadings @ rotation)
