"""Random models and data that the tests of the Pyro side share."""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import Tensor, nn

from calmrl_prob.data import MultimodalData
from calmrl_prob.linear_gaussian import LinearGaussian
from calmrl_prob.model import SharedLatentModel
from calmrl_prob.priors import NormalPrior

Module = TypeVar("Module", bound=nn.Module)

DIMS = {"image": 4, "text": 3, "audio": 2}


def random_prior(latent_dim: int, seed: int = 0) -> NormalPrior:
    """A normal prior with a mean that is not zero and a full covariance."""
    generator = torch.Generator().manual_seed(seed)
    root = torch.randn(latent_dim, latent_dim, generator=generator, dtype=torch.float64)
    mean = torch.randn(latent_dim, generator=generator, dtype=torch.float64)
    return NormalPrior(latent_dim, mean, root @ root.mT + 0.3 * torch.eye(latent_dim, dtype=torch.float64))


def random_model(noise: str = "isotropic", prior: NormalPrior | None = None, seed: int = 0) -> SharedLatentModel:
    """A model of ``DIMS`` with 2 latents and parameters of size 1."""
    model = SharedLatentModel(DIMS, latent_dim=2, noise=noise, prior=prior)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype))
    return model


def random_data(num_instances: int = 12, seed: int = 0, dims: dict[str, int] = DIMS) -> MultimodalData:
    """Normal features; about a third of the modalities missing, every pattern of three that is not empty possible."""
    generator = torch.Generator().manual_seed(seed)
    arrays = {d: torch.randn(num_instances, w, generator=generator, dtype=torch.float64) for d, w in dims.items()}
    observed = torch.rand(num_instances, len(dims), generator=generator) > 0.35
    observed[torch.arange(num_instances), torch.arange(num_instances) % len(dims)] = True
    return MultimodalData(arrays, observed_mask=observed)


def data_with_single_features_missing() -> MultimodalData:
    """The data above, with two rows that lack some features of a modality."""
    data = random_data()
    arrays = {name: data[name].clone() for name in DIMS}
    rows = {name: int(data.observed(name).nonzero()[0]) for name in ("image", "text")}
    arrays["image"][rows["image"], 1] = torch.nan
    arrays["text"][rows["text"], :2] = torch.nan
    return MultimodalData(arrays, missing="features")


def dense_conditional(lg: LinearGaussian, row: dict[str, Tensor], target: str) -> tuple[Tensor, Tensor]:
    """Mean and covariance of a modality given others, from the dense joint normal: the oracle."""
    given = list(row)
    second = f"{target} again"  # an independent second measurement, so that the target may be among those given
    twice = LinearGaussian(
        {**lg.loadings, second: lg.loadings[target]},
        {**lg.intercepts, second: lg.intercepts[target]},
        {**lg.noise_variance, second: lg.noise_variance[target]},
        lg.prior_mean,
        lg.prior_covariance,
    )
    mean, covariance = twice.joint([*given, second])
    split = sum(lg.dims[name] for name in given)
    gain = torch.linalg.solve(covariance[:split, :split], covariance[:split, split:]).mT
    residual = torch.cat([row[name] for name in given]) - mean[:split]
    return mean[split:] + gain @ residual, covariance[split:, split:] - gain @ covariance[:split, split:]


def observed_row(data: MultimodalData, row: int) -> dict[str, Tensor]:
    """What one instance has."""
    return {name: data[name][row] for name in data.names if bool(data.observed(name)[row])}


def jittered(module: Module, size: float, seed: int = 1) -> Module:
    """The module with all its parameters moved at random, in place."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += size * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
    return module
