"""Base class of priors of the loadings inside a Pyro model."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor

from calmrl_prob._support.arguments import checked_dtype, real_number, whole_number
from calmrl_prob.errors import ArgumentError


class LoadingsPrior(ABC):
    """A distribution p(W^1 .. W^M) of the loadings, stated as Pyro sample sites outside the plate of instances.

    Use it inside any Pyro model; collapsed inference (``calmrl_prob.marginalize``) then finds the sites, and inference
    over them keeps z marginalised exactly. Site names begin with ``loadings_<modality>``.

    Args:
        scale: the size of a loading that is in use, in the data's units for each unit of the latent. Give it the
            features' spread where data are not standardised.
        dtype: of the sites, which are made on torch's default device.
    """

    #: The key in ``LOADINGS_PRIORS``.
    name: ClassVar[str]

    def __init__(self, scale: float = 1.0, *, dtype: torch.dtype = torch.float64) -> None:
        self.scale, self.dtype = positive("scale", scale), checked_dtype(dtype)

    @abstractmethod
    def sample(self, name: str, width: int, latent_dim: int) -> Tensor:
        """State the sites of one modality; call it inside a Pyro model.

        Args:
            name: the modality.
            width: D_m.
            latent_dim: K.

        Returns:
            W^m, shape (D_m, K).
        """

    def sample_all(self, dims: Mapping[str, int], latent_dim: int) -> dict[str, Tensor]:
        """State the sites of every modality.

        Args:
            dims: number of features D_m of each modality, as ``data.dims`` has them.
            latent_dim: K.

        Returns:
            For each modality W^m, shape (D_m, K).
        """
        latent_dim = whole_number("latent_dim", latent_dim, least=1)
        return {name: self.sample(name, width, latent_dim) for name, width in dims.items()}

    def full(self, value: float, *shape: int) -> Tensor:
        """A constant of the prior's type, for parameters of its distributions."""
        return torch.full(shape, value, dtype=self.dtype)

    def __repr__(self) -> str:
        settings = ", ".join(f"{key}={value}" for key, value in vars(self).items() if not key.startswith("_"))
        return f"{type(self).__name__}({settings})"


def positive(argument: str, value: object) -> float:
    """A positive finite number.

    Raises:
        ArgumentTypeError: it is no number.
        ArgumentError: it is not positive, or not finite.
    """
    number = real_number(argument, value, 1.0)
    if not 0 < number < float("inf"):
        raise ArgumentError(f"{argument}: expected a positive number, got {number}.")
    return number
