"""Cost of discovering the linear-Gaussian form of a plain Pyro program, against one EM fit of the native model.

The program is ``models.calmrl.CalMRL`` called as a function, so that nothing of it is known but what calling it shows.
A second program lets a covariate, another number in each row, move the intercepts: then every row has to be looked at.
"""

from __future__ import annotations

import statistics

import pyro
import pyro.distributions as dist
import torch

import calmrl_prob as cal
from benchmarks.clock import Work, cpu_seconds
from benchmarks.problems import Problem
from benchmarks.tables import Row
from models.calmrl import CalMRL


def with_covariate(model: CalMRL, data: cal.MultimodalData) -> None:
    """The same program, with intercepts that regress on a covariate."""
    age = torch.as_tensor(data.covariates["age"])[:, None]
    with pyro.plate("instances", len(data)):
        z = pyro.sample("z", dist.Normal(age.new_zeros(model.latent_dim), 1.0).to_event(1))
        for name in data.names:
            mean = z @ model.loadings[name].mT + model.intercepts[name] * (1 + age)
            features = dist.Normal(mean, (0.5 * model.log_noise[name]).exp()).to_event(1)
            pyro.sample(name, features.mask(data.observed(name)), obs=data.filled(name))


def measure(problem: Problem, rounds: int = 5) -> list[Row]:
    """CPU seconds of each step, in turn, and what a program costs over the native model as a share of the fit."""
    synthetic = problem.make()
    generator = torch.Generator().manual_seed(0)
    ages = torch.randn(len(synthetic.data), generator=generator, dtype=torch.float64)
    arrays = {name: synthetic.data[name] for name in synthetic.data.names}
    data = cal.MultimodalData(arrays, covariates={"age": ages.numpy()})
    data.blocks  # noqa: B018  # what every route needs and the data keep is no part of the comparison
    native = cal.SharedLatentModel(data.dims, problem.latent_dim)
    native.load_linear_gaussian(synthetic.truth)
    program = CalMRL(data.dims, problem.latent_dim)
    program.load_linear_gaussian(synthetic.truth)
    works: dict[str, Work] = {
        "fit": lambda: cal.fit(cal.SharedLatentModel(data.dims, problem.latent_dim), data),
        "native": lambda: cal.posterior(native, data).log_marginal,
        "discovery": lambda: cal.discover(program.forward, data),
        "posterior": lambda: cal.posterior(program.forward, data).log_marginal,
        "discovery, covariate": lambda: cal.discover(lambda rows: with_covariate(program, rows), data),
    }
    seconds: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(rounds):
        for name, work in works.items():
            seconds[name].append(cpu_seconds(work))
    median = {name: statistics.median(values) for name, values in seconds.items()}
    overheads = {
        "discovery": median["discovery"],
        "posterior": median["posterior"] - median["native"],
        "discovery, covariate": median["discovery, covariate"],
    }
    return [
        {
            "problem": problem.name,
            "step": step,
            "cpu_s": median[step],
            "native_s": median["native"] if step == "posterior" else 0.0,
            "fit_s": median["fit"],
            "overhead_of_fit": overhead / median["fit"],
        }
        for step, overhead in overheads.items()
    ]
