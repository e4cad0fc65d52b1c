"""Models and data that the tests of the approximate routes share."""

from __future__ import annotations

from collections.abc import Callable

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from calmrl_prob.data import MultimodalData
from calmrl_prob.inference.posterior import posterior
from calmrl_prob.model import SharedLatentModel
from calmrl_prob.posteriors.gaussian import GaussianPosterior
from tests.cases.model_cases import DIMS, random_data, random_model, random_prior


def linear_case(num_instances: int = 12, seed: int = 0) -> tuple[SharedLatentModel, MultimodalData, GaussianPosterior]:
    """A linear-Gaussian model with a prior of mean not zero, data with every kind of gap, and the exact posterior."""
    model = random_model("diagonal", random_prior(2, seed=seed), seed=seed + 1)
    data = random_data(num_instances, seed=seed + 2)
    exact = posterior(model, data)
    assert isinstance(exact, GaussianPosterior)
    return model, data, exact


def bent_program(bend: float = 1.0) -> Callable[[MultimodalData], Tensor]:
    """One latent, seen through a curve: x = w z + bend z^2 + noise, the noise of scale 0.5, for each of ``DIMS``."""
    generator = torch.Generator().manual_seed(4)
    slopes = {name: torch.randn(width, generator=generator, dtype=torch.float64) for name, width in DIMS.items()}

    def program(data: MultimodalData) -> Tensor:
        with pyro.plate("instances", len(data)):
            z: Tensor = pyro.sample("z", dist.Normal(torch.zeros(1).double(), 1.0).to_event(1))
            for name in data.names:
                location = z * slopes[name] + bend * z.square()
                site = dist.Normal(location, 0.5).to_event(1).mask(data.observed(name))
                pyro.sample(name, site, obs=data.filled(name))
        return z

    return program


def on_a_grid(program: Callable[[MultimodalData], Tensor], data: MultimodalData) -> tuple[Tensor, Tensor, Tensor]:
    """Evidence (N,), mean (N,) and variance (N,) of a program with one latent "z", by quadrature."""
    grid = torch.linspace(-7, 7, 2801, dtype=torch.float64)
    everywhere = data.subset(torch.arange(len(data)).repeat(len(grid)))
    given = pyro.poutine.condition(program, data={"z": grid.repeat_interleave(len(data))[:, None]})
    trace = pyro.poutine.trace(given).get_trace(everywhere)
    trace.compute_log_prob()
    density = torch.stack([trace.nodes[name]["log_prob"] for name in ("z", *data.names)]).sum(0)
    density = density.reshape(len(grid), len(data)).detach()
    evidence = torch.logsumexp(density, dim=0) + (grid[1] - grid[0]).log()
    weight = torch.softmax(density, dim=0)
    mean = (weight * grid[:, None]).sum(0)
    return evidence, mean, (weight * (grid[:, None] - mean).square()).sum(0)
