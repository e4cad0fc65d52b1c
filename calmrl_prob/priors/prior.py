"""What a prior of the shared latent has to offer."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor, nn


class Prior(nn.Module, ABC):
    """A distribution p(z) of the K latents of one instance.

    Whatever defines it is a buffer (fixed) or a parameter (learned with the model), so that it moves, and is saved,
    with the model that has it. ``type(prior)(latent_dim)`` makes one with default values, for a saved model to fill.
    """

    #: The key in ``PRIORS``.
    name: ClassVar[str]

    def __init__(self, latent_dim: int) -> None:
        super().__init__()
        self.latent_dim = latent_dim

    @abstractmethod
    def distribution(self) -> TorchDistribution:
        """p(z) as a Pyro distribution with batch shape () and event shape (K,)."""

    @abstractmethod
    def gaussian(self) -> tuple[Tensor, Tensor]:
        """Mean (K,) and covariance (K, K) if p(z) is Gaussian: what makes the posterior exact."""

    def forward(self) -> Tensor:
        """One draw, shape (K,)."""
        draw: Tensor = self.distribution().sample()
        return draw

    @property
    def dtype(self) -> torch.dtype:
        """The floating-point type of its tensors."""
        return next(iter([*self.buffers(), *self.parameters()])).dtype
