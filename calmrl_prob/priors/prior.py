"""Base class of priors of the shared latent."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import replace
from typing import Any, ClassVar

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor, nn

from calmrl_prob.data import MultimodalData
from calmrl_prob.linear_gaussian import LinearGaussian, Structure, StructuresByInstance


class Prior(nn.Module, ABC):
    """A distribution p(z) of the K latents of one instance.

    Whatever defines it is a buffer (fixed) or a parameter (learned with the model), so that it moves, and is saved,
    with the model that has it. ``type(prior)(latent_dim, **prior.config())`` makes one with default values, for a saved
    model to fill. Which route its posterior takes is not declared: it is found from ``distribution``.
    """

    #: The key in ``PRIORS``.
    name: ClassVar[str]

    def __init__(self, latent_dim: int) -> None:
        super().__init__()
        self.latent_dim = latent_dim

    @abstractmethod
    def distribution(self, data: MultimodalData | None = None) -> TorchDistribution:
        """p(z) as a Pyro distribution with event shape (K,).

        Its batch shape is (), or (N,) for priors that look at the instances: at their covariates, say.

        Args:
            data: the instances; None where complete ones are drawn from nothing.
        """

    def gaussian(self) -> tuple[Tensor, Tensor] | None:
        """Mean (K,) and covariance (K, K), if p(z) is one Gaussian for all instances; else None."""
        return None

    def structure(
        self, likelihood: LinearGaussian, data: MultimodalData | None = None
    ) -> Structure | StructuresByInstance | None:
        """The closed form of a model with this prior, differentiable; None where it has none.

        What a prior states here is not looked for again: its posterior and its fit are found without calling the model.

        Args:
            likelihood: loadings, intercepts and noise; its prior is left out.
            data: the instances, for priors that look at them.
        """
        found = self.gaussian()
        return None if found is None else with_prior(likelihood, *found)

    def load(self, structure: Structure | StructuresByInstance) -> None:
        """Take over the parameters of this prior from a structure as :meth:`structure` states it; none by default."""
        del structure

    def config(self) -> dict[str, Any]:
        """The settings besides ``latent_dim`` that make a prior of the same shape: JSON values by argument."""
        return {}

    @classmethod
    def least_numbers(cls, latent_dim: int, **config: Any) -> int:
        """Count of the numbers that a prior of these settings holds, or a bound from below: told before one is made.

        A file that says it has a prior of a size must be as large; :func:`calmrl_prob.load` compares.

        Args:
            latent_dim: K.
            **config: what :meth:`config` returns, or what a file says that it was.

        Raises:
            ArgumentError, ArgumentTypeError: a setting is not one.
        """
        del config
        return latent_dim

    def forward(self) -> Tensor:
        """One draw, shape (K,)."""
        draw: Tensor = self.distribution().sample()
        return draw

    @property
    def dtype(self) -> torch.dtype:
        """The floating-point type of its tensors."""
        return next(iter([*self.buffers(), *self.parameters()])).dtype


def with_prior(likelihood: LinearGaussian, mean: Tensor, covariance: Tensor) -> LinearGaussian:
    """A likelihood under the prior N(mean, covariance); the one that it had is left out."""
    if likelihood.prior_mean is mean and likelihood.prior_covariance is covariance:
        return likelihood
    return replace(likelihood, prior_mean=mean, prior_covariance=covariance)
