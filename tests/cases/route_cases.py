"""Pyro models with known loadings, and the Gaussian one among them, that the tests of routes share."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

import calmrl_prob as cal
from tests.cases.model_cases import DIMS


def loadings(name: str, latent_dim: int) -> Tensor:
    """Loadings of a modality of ``DIMS``, the same ones each time."""
    generator = torch.Generator().manual_seed(len(name))
    return torch.randn(DIMS[name], latent_dim, generator=generator, dtype=torch.float64)


def observe(z: Tensor, data: cal.MultimodalData, shift: Tensor | float = 0.0) -> None:
    """The sites of all modalities given the latents."""
    for name in data.names:
        features = dist.Normal(z @ loadings(name, z.shape[-1]).T + shift, 0.7).to_event(1)
        pyro.sample(name, features.mask(data.observed(name)), obs=data.filled(name))


def gaussian(data: cal.MultimodalData) -> None:
    """A model whose form is one Gaussian."""
    with pyro.plate("instances", len(data)):
        observe(pyro.sample("z", dist.Normal(torch.zeros(2).double(), 1.0).to_event(1)), data)
