"""Threads: Pyro's stack and torch's generators are one for the process, and calls must neither mix nor leave traces."""

from __future__ import annotations

import random
import warnings
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch

import calmrl_prob as cal
from calmrl_prob._support.randomness import seeded
from calmrl_prob.evaluation import simulate_model
from calmrl_prob.priors import FlowPrior

NUM_THREADS, NUM_CALLS = 8, 50


def _data() -> cal.MultimodalData:
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(12, 1, generator=generator, dtype=torch.float64)
    x = {name: z + 0.3 * torch.randn(12, 3, generator=generator, dtype=torch.float64) for name in ("image", "text")}
    x["text"][:4] = torch.nan
    return cal.MultimodalData(x)


def _linear(data: cal.MultimodalData) -> None:
    with pyro.plate("instances", len(data)):
        z = pyro.sample("z", dist.Normal(torch.zeros(2).double(), 1.0).to_event(1))
        for name, width in data.dims.items():
            w = pyro.param("w" + name, lambda width=width: torch.randn(width, 2).double())
            x = dist.Normal(z @ w.T, 0.3).to_event(1)
            pyro.sample(name, x.mask(data.observed(name)), obs=data.filled(name))


def _curved(data: cal.MultimodalData) -> None:
    with pyro.plate("instances", len(data)):
        z = pyro.sample("z", dist.Normal(torch.zeros(1).double(), 1.0).to_event(1))
        for name, width in data.dims.items():
            x = dist.Normal((z + 0.3 * torch.tanh(z)).expand(-1, width), 1.0).to_event(1)
            pyro.sample(name, x.mask(data.observed(name)), obs=data.filled(name))


def _process_state() -> tuple[object, ...]:
    """What belongs to the process, as far as torch, Pyro, numpy, Python and warnings have such."""
    pyros = pyro.distributions.is_validation_enabled, pyro.infer.is_validation_enabled
    return (
        torch.get_rng_state().tolist(),
        torch.distributions.Distribution._validate_args,
        *(enabled() for enabled in pyros),
        pyro.poutine.is_validation_enabled(),
        list(pyro.poutine.runtime._PYRO_STACK),
        dict(pyro.get_param_store().items()),
        random.getstate(),
        np.random.get_state()[1].tolist(),  # noqa: NPY002 - the state that the whole process shares
        list(warnings.filters),
        torch.get_default_dtype(),
        torch.get_num_threads(),
        torch.is_grad_enabled(),
    )


def test_calls_in_threads_find_what_they_find_alone() -> None:
    data = _data()
    alone = [cal.posterior(cal.fit(_linear, data, tolerance=1e-2, seed=seed), data).mean for seed in range(3)]
    fitted = [cal.fit(_linear, data, tolerance=1e-2, seed=seed) for seed in range(3)]
    before = _process_state()
    with ThreadPoolExecutor(NUM_THREADS) as pool:
        calls = [pool.submit(cal.posterior, fitted[i % 3], data) for i in range(NUM_CALLS)]
        found = [call.result().mean for call in calls]
    assert all(torch.equal(mean, alone[i % 3]) for i, mean in enumerate(found))
    assert _process_state() == before


@pytest.mark.filterwarnings("ignore:Pareto k-hat")  # calls are to agree, not to be good
def test_approximate_routes_in_threads() -> None:
    data = _data()
    options = {"method": "svi", "num_draws": 100, "max_iterations": 2}
    alone = cal.posterior(_curved, data, **options).mean
    before = _process_state()
    with ThreadPoolExecutor(NUM_THREADS) as pool:
        calls = [pool.submit(cal.posterior, _curved, data, **options) for _ in range(NUM_THREADS)]
        found = [call.result().mean for call in calls]
    assert all(torch.equal(mean, alone) for mean in found)
    assert _process_state() == before


@pytest.mark.parametrize("validates", [True, False])
@pytest.mark.filterwarnings("ignore:Pareto k-hat")
def test_validation_stays_as_torch_was_told(validates: bool) -> None:
    kept = torch.distributions.Distribution._validate_args
    torch.distributions.Distribution.set_default_validate_args(validates)
    try:
        before, data = _process_state(), _data()
        cal.posterior(_curved, data, method="svi", num_draws=100, max_iterations=2)
        FlowPrior(2, num_transforms=1)
        simulate_model(_curved, data, seed=0)
        assert _process_state() == before
    finally:
        torch.distributions.Distribution.set_default_validate_args(kept)


def test_a_thread_does_not_put_back_what_another_has_borrowed() -> None:
    before = torch.get_rng_state()

    def drawn(seed: int) -> torch.Tensor:
        with seeded(seed):
            return torch.stack([torch.rand(4) for _ in range(20)])

    alone = [drawn(seed) for seed in range(4)]
    with ThreadPoolExecutor(NUM_THREADS) as pool:
        found = list(pool.map(drawn, [i % 4 for i in range(NUM_CALLS)]))
    assert all(torch.equal(draws, alone[i % 4]) for i, draws in enumerate(found))
    assert torch.equal(torch.get_rng_state(), before)
