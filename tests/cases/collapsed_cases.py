"""Pyro models with global latents that the tests of collapsed inference share."""

from __future__ import annotations

from collections.abc import Callable

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from torch import Tensor

import calmrl_prob as cal
from tests.cases.model_cases import DIMS, random_data

Model = Callable[[cal.MultimodalData], None]


def normal(*shape: int, scale: float = 1.0) -> dist.TorchDistribution:
    """Independent normals of mean zero."""
    return dist.Normal(torch.zeros(shape, dtype=torch.float64), scale).to_event(len(shape))


def observe(
    z: Tensor,
    loadings: dict[str, Tensor],
    data: cal.MultimodalData,
    means: dict[str, Tensor],
    noise: dict[str, Tensor],
) -> None:
    """The observed sites."""
    for name in data.names:
        x = dist.Normal(z @ loadings[name].mT + means[name], noise[name]).to_event(1)
        pyro.sample(name, x.mask(data.observed(name)), obs=data.filled(name))


def factor_model(latent_dim: int = 2) -> Model:
    """Loadings, intercepts and noise scales of every modality with priors of their own."""

    def model(data: cal.MultimodalData) -> None:
        loadings, means, noise = {}, {}, {}
        for name, width in data.dims.items():
            loadings[name] = pyro.sample(f"w_{name}", normal(width, latent_dim))
            means[name] = pyro.sample(f"mu_{name}", normal(width))
            noise[name] = pyro.sample(f"sigma_{name}", dist.LogNormal(torch.zeros((), dtype=torch.float64), 0.5))
        with pyro.plate("instances", len(data)):
            z = pyro.sample("z", normal(latent_dim))
            observe(z, loadings, data, means, noise)

    return model


def known_loadings(latent_dim: int = 2) -> dict[str, Tensor]:
    """The same ones each time."""
    generator = torch.Generator().manual_seed(5)
    return {n: torch.randn(w, latent_dim, generator=generator, dtype=torch.float64) for n, w in DIMS.items()}


def intercepts_alone(data: cal.MultimodalData) -> None:
    """Only the intercepts are unknown, so that their posterior is normal and known in closed form."""
    means = {name: pyro.sample(f"mu_{name}", normal(width)) for name, width in data.dims.items()}
    noise = {name: torch.tensor(0.7, dtype=torch.float64) for name in data.dims}
    with pyro.plate("instances", len(data)):
        observe(pyro.sample("z", normal(2)), known_loadings(), data, means, noise)


def varying_noise(data: cal.MultimodalData) -> None:
    """A noise scale for each of two groups of instances: one structure for each."""
    sigma = pyro.sample("sigma", dist.LogNormal(torch.zeros(2, dtype=torch.float64), 0.5).to_event(1))
    group = torch.as_tensor(data.covariates["group"])
    with pyro.plate("instances", len(data)):
        z = pyro.sample("z", normal(2))
        for name in data.names:
            x = dist.Normal(z @ known_loadings()[name].mT, sigma[group][:, None]).to_event(1)
            pyro.sample(name, x.mask(data.observed(name)), obs=data.filled(name))


def regression(data: cal.MultimodalData) -> None:
    """An unknown effect of age on every feature: offsets that differ from row to row."""
    slope = {name: pyro.sample(f"slope_{name}", normal(width)) for name, width in data.dims.items()}
    age = torch.as_tensor(data.covariates["age"])[:, None]
    with pyro.plate("instances", len(data)):
        z = pyro.sample("z", normal(2))
        for name in data.names:
            x = dist.Normal(z @ known_loadings()[name].mT + age * slope[name], 0.7).to_event(1)
            pyro.sample(name, x.mask(data.observed(name)), obs=data.filled(name))


def mixture(data: cal.MultimodalData) -> None:
    """A mixture prior whose centres are unknown."""
    centres = pyro.sample("centres", normal(2, 2, scale=2.0))
    with pyro.plate("instances", len(data)):
        prior = dist.MixtureSameFamily(
            dist.Categorical(torch.tensor([0.4, 0.6], dtype=torch.float64)), dist.Normal(centres, 0.5).to_event(1)
        )
        z = pyro.sample("z", prior)
        noise = {name: torch.tensor(0.7, dtype=torch.float64) for name in data.dims}
        means = {name: torch.zeros(width, dtype=torch.float64) for name, width in data.dims.items()}
        observe(z, known_loadings(), data, means, noise)


def with_parameter(data: cal.MultimodalData) -> None:
    """Loadings with a prior beside a noise scale that is a parameter."""
    sigma = pyro.param("sigma", torch.tensor(3.0, dtype=torch.float64), constraint=constraints.positive)
    loadings = {name: pyro.sample(f"w_{name}", normal(width, 2)) for name, width in data.dims.items()}
    means = {name: torch.zeros(width, dtype=torch.float64) for name, width in data.dims.items()}
    with pyro.plate("instances", len(data)):
        observe(pyro.sample("z", normal(2)), loadings, data, means, dict.fromkeys(data.dims, sigma))


def covariate_data(num_instances: int = 20) -> cal.MultimodalData:
    """Random data with the covariates "age" (real) and "group" (0 or 1)."""
    data = random_data(num_instances)
    generator = torch.Generator().manual_seed(9)
    age = torch.randn(num_instances, generator=generator, dtype=torch.float64).numpy()
    return cal.MultimodalData(
        {name: data[name] for name in data.names},
        observed_mask=data.observed_mask,
        covariates={"age": age, "group": (torch.arange(num_instances) % 2).numpy()},
    )


CASES: dict[str, tuple[Model, str]] = {
    "factor model": (factor_model(), "exact"),
    "intercepts": (intercepts_alone, "exact"),
    "groups": (varying_noise, "exact by structure"),
    "regression": (regression, "exact by structure"),
    "mixture": (mixture, "exact mixture"),
}


def exact_intercepts(data: cal.MultimodalData) -> tuple[Tensor, Tensor]:
    """Mean and covariance of the stacked intercepts of ``intercepts_alone`` given the data, from dense algebra."""
    loadings = torch.cat(list(known_loadings().values()))
    covariance = loadings @ loadings.mT + 0.49 * torch.eye(len(loadings), dtype=torch.float64)
    feature = torch.repeat_interleave(torch.arange(len(DIMS)), torch.tensor(list(DIMS.values())))
    precision = torch.eye(len(loadings), dtype=torch.float64)
    natural = torch.zeros(len(loadings), dtype=torch.float64)
    for n in range(len(data)):
        here = data.observed_mask[n][feature]
        row = torch.cat([data[name][n] for name in DIMS])[here]
        inverse = torch.linalg.inv(covariance[here][:, here])
        index = here.nonzero().squeeze(1)
        precision[index[:, None], index] += inverse
        natural[index] += inverse @ row
    posterior = torch.linalg.inv(precision)
    return posterior @ natural, posterior
