"""Variational inference of counts and normal values: the defaults of ``fit_svi`` against a plain loop of Pyro's.

Both fit the same model with the same family of guides, a normal of its own for each of 400 instances. The plain loop is
what one writes oneself: ``pyro.infer.SVI``, ``Trace_ELBO``, Adam at a rate that suits it (0.01, the best of 0.05,
0.02 and 0.01), all rows at each step. Bounds are of the same draws, looked at from outside the clock; the best is the
highest that either reached. A loop has no criterion: it is given as many steps as it needs, at most 4,000.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable

import pyro
import pyro.distributions as dist
import torch
from pyro.infer import SVI, Trace_ELBO
from torch import Tensor

import calmrl_prob as cal
from benchmarks.tables import Row
from calmrl_prob._support.randomness import seeded
from calmrl_prob.inference import fit_svi
from calmrl_prob.inference.approximate.guides import PerInstanceGuide
from calmrl_prob.inference.approximate.variational import elbo, make_guide
from calmrl_prob.posteriors.instances import InstanceModel

NUM_INSTANCES, NUM_COUNTS, NUM_VALUES, LATENT_DIM = 400, 20, 15, 3
#: What counts as near the best bound: nats for each observed value.
NEAR = 0.005
#: The rate of the plain loop, and steps: between looks, and at most.
RATE, LOOK, MOST = 0.01, 50, 4000

Model = Callable[[cal.MultimodalData], None]


def problem(seed: int = 0) -> tuple[Model, cal.MultimodalData]:
    """Counts with a log link and normal values of three latents; one row in ten lacks the one, one in ten the other."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    z = normal(NUM_INSTANCES, LATENT_DIM)
    counts = torch.poisson((z @ normal(LATENT_DIM, NUM_COUNTS) / 2 + 0.5).exp(), generator=generator)
    values = z @ normal(LATENT_DIM, NUM_VALUES) + 1 + 0.5 * normal(NUM_INSTANCES, NUM_VALUES)
    counts[: NUM_INSTANCES // 10], values[-NUM_INSTANCES // 10 :] = torch.nan, torch.nan

    def model(data: cal.MultimodalData) -> None:
        zeros = torch.zeros(LATENT_DIM, dtype=torch.float64)
        weights = {
            name: pyro.param(f"weights_{name}", lambda width=width: 0.1 * torch.randn(LATENT_DIM, width).double())
            for name, width in data.dims.items()
        }
        offsets = {name: pyro.param(f"offset_{name}", torch.zeros(width).double()) for name, width in data.dims.items()}
        scale = pyro.param("scale", torch.ones(NUM_VALUES).double(), constraint=dist.constraints.positive)
        with pyro.plate("instances", len(data)):
            z = pyro.sample("z", dist.Normal(zeros, 1.0).to_event(1))
            at = {name: z @ weights[name] + offsets[name] for name in data.dims}
            sites = {"counts": dist.Poisson(at["counts"].exp()), "values": dist.Normal(at["values"], scale)}
            for name, site in sites.items():
                pyro.sample(name, site.to_event(1).mask(data.observed(name)), obs=data.filled(name))

    return model, cal.MultimodalData({"counts": counts, "values": values})


def bound_of(instances: InstanceModel, guide: PerInstanceGuide, data: cal.MultimodalData) -> float:
    """The lower bound of all rows, nats, always by the same draws."""
    with torch.no_grad(), seeded(0, data.device):
        return float(elbo(instances, guide, data, torch.arange(len(data)), 8).sum())


def by_default(model: Model, data: cal.MultimodalData) -> tuple[list[tuple[float, float]], int]:
    """CPU seconds and bound after each round of a fit by its defaults, the guide's start included; and its steps."""
    clock = _Clock()
    instances = InstanceModel(model, data)
    guide = make_guide("full", instances, data)
    assert isinstance(guide, PerInstanceGuide)
    found = fit_svi(
        instances, data, guide=guide, callback=lambda *_: clock.look(lambda: bound_of(instances, guide, data))
    )
    clock.look(lambda: bound_of(instances, guide, data))
    if not found.converged:
        raise RuntimeError("the defaults did not converge")
    return clock.seen, found.num_steps


def by_hand(model: Model, data: cal.MultimodalData, enough: float) -> tuple[list[tuple[float, float]], int]:
    """The same of a plain loop, until its bound is at ``enough`` nats."""
    shape = (len(data), LATENT_DIM)

    def guide(data: cal.MultimodalData) -> None:
        mean = pyro.param("guide_mean", torch.zeros(shape).double())
        factor = pyro.param(
            "guide_factor",
            torch.eye(LATENT_DIM).double().repeat(len(data), 1, 1),
            constraint=dist.constraints.lower_cholesky,
        )
        with pyro.plate("instances", len(data)):
            pyro.sample("z", dist.MultivariateNormal(mean, scale_tril=factor))

    pyro.clear_param_store()
    torch.manual_seed(0)
    clock = _Clock()

    def bound() -> float:
        store = pyro.get_param_store()
        own = PerInstanceGuide(store["guide_mean"].detach(), store["guide_factor"].detach())
        return bound_of(InstanceModel(model, data), own, data)

    svi = SVI(model, guide, pyro.optim.Adam({"lr": RATE}), Trace_ELBO())
    step = 0
    while step < MOST and not (clock.seen and clock.seen[-1][1] >= enough):
        for _ in range(LOOK):
            svi.step(data)
        step += LOOK
        clock.look(bound)
    pyro.clear_param_store()
    return clock.seen, step


class _Clock:
    """CPU seconds of what is measured, and the bounds seen meanwhile, which take no time."""

    def __init__(self) -> None:
        self.seen: list[tuple[float, float]] = []
        self._spent, self._since = 0.0, time.process_time()

    def look(self, bound: Callable[[], float]) -> None:
        """Note the bound as it is, with the clock stopped."""
        self._spent += time.process_time() - self._since
        self.seen.append((self._spent, bound()))
        self._since = time.process_time()


def measure() -> list[Row]:
    """CPU seconds of each until within ``NEAR`` nats for each value of the best bound, and until it stopped."""
    model, data = problem()
    num_values = sum(int(data.feature_mask(name).sum()) for name in data.names)
    runs = {"calmrl_prob, defaults": by_default(model, data)}
    best = max(bound for _, bound in runs["calmrl_prob, defaults"][0])
    runs["pyro, plain loop"] = by_hand(model, data, best)
    best = max(bound for seen, _ in runs.values() for _, bound in seen)
    enough = best - NEAR * num_values
    return [
        {
            "route": name,
            "near_s": next((seconds for seconds, bound in seen if bound >= enough), math.nan),
            "all_s": seen[-1][0],
            "steps": steps,
            "short_of_best": (best - max(bound for _, bound in seen)) / num_values,
        }
        for name, (seen, steps) in runs.items()
    ]


if __name__ == "__main__":
    from rich.console import Console

    from benchmarks.tables import show

    torch.set_num_threads(1)
    show(Console(width=120), f"Bound within {NEAR} nats for each value of the best", measure())
