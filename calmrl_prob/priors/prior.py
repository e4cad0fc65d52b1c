"""What a prior of the shared latent has to offer."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor, nn

from calmrl_prob.data import MultimodalData


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

    def config(self) -> dict[str, Any]:
        """The settings besides ``latent_dim`` that make a prior of the same shape: JSON values by argument."""
        return {}

    def forward(self) -> Tensor:
        """One draw, shape (K,)."""
        draw: Tensor = self.distribution().sample()
        return draw

    @property
    def dtype(self) -> torch.dtype:
        """The floating-point type of its tensors."""
        return next(iter([*self.buffers(), *self.parameters()])).dtype
