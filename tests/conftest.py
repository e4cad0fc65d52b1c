"""Fixtures that several test files share: random models and random missingness, seeded."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from typing import TypeVar

import pytest
import torch
from torch import Tensor, nn

from calmrl_prob.linear_gaussian import LinearGaussian, ObservedBlocks

Module = TypeVar("Module", bound=nn.Module)

os.environ.setdefault("MPLBACKEND", "Agg")  # no test needs a screen


class FiguresAreClosed:
    """A plugin, so that doctests outside this folder leave no figure open either: many at once are warned about."""

    def pytest_runtest_teardown(self) -> None:
        if pyplot := sys.modules.get("matplotlib.pyplot"):
            pyplot.close("all")


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(FiguresAreClosed())


DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]


def random_model(
    dims: Mapping[str, int], latent_dim: int, seed: int = 0, *, prior: str = "full", noise: str = "diagonal"
) -> LinearGaussian:
    """A model with random parameters; ``prior`` is "full" or "standard", ``noise`` "diagonal" or "isotropic"."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    root = normal(latent_dim, latent_dim)
    return LinearGaussian(
        {name: normal(width, latent_dim) for name, width in dims.items()},
        {name: normal(width) for name, width in dims.items()},
        {name: normal(width if noise == "diagonal" else 1).exp() for name, width in dims.items()},
        normal(latent_dim) if prior == "full" else None,
        root @ root.mT / latent_dim + 0.5 * torch.eye(latent_dim).double() if prior == "full" else None,
    )


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


def jittered(module: Module, size: float, seed: int = 1) -> Module:
    """The module with all its parameters moved at random, in place."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += size * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
    return module


@pytest.fixture(params=DEVICES)
def device(request: pytest.FixtureRequest) -> str:
    """Every device of this machine in turn."""
    return str(request.param)
