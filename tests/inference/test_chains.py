"""Chains of NUTS: against a density known in closed form, and what the runner promises about seeds and diagnostics."""

from __future__ import annotations

import random

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from calmrl_prob._support.randomness import seeded, spread_seeds
from calmrl_prob.errors import ArgumentError, ArgumentTypeError, NumericalError
from calmrl_prob.inference.optimisers.chains import Chains, run_chains

MEAN = torch.tensor([1.0, -2.0], dtype=torch.float64)
COVARIANCE = torch.tensor([[1.0, 0.6], [0.6, 0.5]], dtype=torch.float64)


def gaussian(at: dict[str, Tensor]) -> Tensor:
    centred = at["z"] - MEAN
    return 0.5 * centred @ torch.linalg.solve(COVARIANCE, centred)


def starts(num_chains: int = 2) -> dict[str, Tensor]:
    return {"z": torch.zeros(num_chains, 2, dtype=torch.float64)}


@pytest.fixture(scope="module")
def chains() -> Chains:
    return run_chains(potential=gaussian, initial=starts(), num_chains=2, num_draws=300, num_warmup=100, seed=1)


def test_draws_have_the_moments_of_the_density(chains: Chains) -> None:
    """Within 6 standard errors, from as many draws as the chains say that theirs are worth."""
    found = chains.diagnose()
    assert found.max_r_hat < 1.02
    assert found.min_ess > 100
    assert not found.num_divergences
    draws, variance = chains.stacked("z"), COVARIANCE.diagonal()
    size = torch.as_tensor(found.ess_bulk["z"])
    assert bool(((draws.mean(0) - MEAN).abs() < 6 * (variance / size).sqrt()).all())
    assert bool(((draws.var(0) - variance).abs() < 6 * variance * (2 / size).sqrt()).all())


def test_chains_move_after_a_short_warm_up() -> None:
    """Pyro's schedule of 25 draws has two to find a step size in after the mass matrix; chains stood still."""
    chains = run_chains(potential=gaussian, initial=starts(8), num_chains=8, num_draws=10, num_warmup=25)
    assert chains.acceptance.min() > 0.4


def test_the_same_seed_gives_the_same_draws_and_another_seed_others() -> None:
    first, same, other = (
        run_chains(potential=gaussian, initial=starts(), num_chains=2, num_draws=20, num_warmup=10, seed=seed)
        for seed in (1, 1, 2)
    )
    assert torch.equal(same.draws["z"], first.draws["z"])
    assert not torch.equal(other.draws["z"], first.draws["z"])
    assert len(set(first.seeds)) == 2
    assert not torch.equal(first.draws["z"][0], first.draws["z"][1])


def test_the_global_generators_are_left_as_they_were() -> None:
    before = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()  # noqa: NPY002 - looked at only
    run_chains(potential=gaussian, initial=starts(), num_chains=2, num_draws=5, num_warmup=5)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (np.random.get_state()[1] == before[1]).all()  # noqa: NPY002
    assert random.getstate() == before[2]


def test_a_pyro_model_is_sampled_on_its_own_scale() -> None:
    """Scale ~ Gamma(3, 2), on the positive numbers: mean 3/2, variance 3/4."""

    def model() -> None:
        pyro.sample("scale", dist.Gamma(torch.tensor(3.0).double(), torch.tensor(2.0).double()))

    chains = run_chains(model, num_chains=2, num_draws=200, num_warmup=100, seed=5)
    draws = chains.stacked("scale")
    assert bool((draws > 0).all())
    size = float(chains.diagnose().ess_bulk["scale"])
    assert abs(float(draws.mean()) - 1.5) < 6 * (0.75 / size) ** 0.5


def test_chains_that_sit_in_different_modes_are_reported() -> None:
    def two_modes(at: dict[str, Tensor]) -> Tensor:
        return -torch.logsumexp(torch.stack([-50 * (at["z"] - 3).square(), -50 * (at["z"] + 3).square()]), 0).sum()

    initial = {"z": torch.tensor([[3.0], [-3.0]], dtype=torch.float64)}
    chains = run_chains(potential=two_modes, initial=initial, num_chains=2, num_draws=100, num_warmup=50)
    found = chains.diagnose()
    assert found.max_r_hat > 1.5
    assert "chains disagree" in found.problems()[0]
    # ... and what does not tell the modes apart agrees
    agreed = chains.diagnose({"distance": chains.draws["z"].abs()})
    assert agreed.max_r_hat < 1.1


def test_divergences_are_counted() -> None:
    """Neal's funnel, with a step size far too large for its neck."""

    def funnel(at: dict[str, Tensor]) -> Tensor:
        v, x = at["v"], at["x"]
        return 0.5 * (v / 3).square() + 0.5 * (x.square() * (-v).exp()).sum() + 0.5 * len(x) * v

    initial = {"v": torch.zeros(2).double(), "x": torch.ones(2, 9).double()}
    chains = run_chains(potential=funnel, initial=initial, num_chains=2, num_draws=80, num_warmup=40, target_accept=0.5)
    assert chains.num_divergences > 0
    assert "divergent" in chains.diagnose().problems()[0]
    assert chains.diagnose().summary()["num_divergences"] == chains.num_divergences


def test_progress_is_reported_once_for_every_draw() -> None:
    seen: list[int] = []
    run_chains(
        potential=gaussian,
        initial=starts(),
        num_chains=2,
        num_draws=4,
        num_warmup=3,
        callback=lambda number, _density: seen.append(number),
    )
    assert seen == list(range(1, 15))


def test_wrong_arguments_are_refused_by_name() -> None:
    with pytest.raises(ArgumentError, match="model, potential"):
        run_chains()
    with pytest.raises(ArgumentError, match="model, potential"):
        run_chains(lambda: None, potential=gaussian)
    with pytest.raises(ArgumentError, match="initial: a potential needs"):
        run_chains(potential=gaussian)
    with pytest.raises(ArgumentError, match=r"initial\['z'\]: expected 4 starts"):
        run_chains(potential=gaussian, initial=starts(2))
    with pytest.raises(ArgumentError, match="num_chains"):
        run_chains(potential=gaussian, initial=starts(0), num_chains=0)
    with pytest.raises(ArgumentError, match="target_accept"):
        run_chains(potential=gaussian, initial=starts(2), num_chains=2, target_accept=1.0)
    with pytest.raises(ArgumentTypeError, match="num_draws"):
        run_chains(potential=gaussian, initial=starts(2), num_chains=2, num_draws=2.5)  # type: ignore[arg-type]
    with pytest.raises(ArgumentError, match="no latent site"):
        run_chains(lambda: None, num_chains=1, num_draws=2, num_warmup=0)


def test_a_density_that_is_nowhere_finite_is_refused() -> None:
    def model() -> None:
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.factor("broken", z * torch.nan)

    with pytest.raises(NumericalError, match="no start was found"):
        run_chains(model, num_chains=1, num_draws=2, num_warmup=2)


def test_seeding_is_undone_even_after_an_error() -> None:
    before = torch.get_rng_state()
    with pytest.raises(ZeroDivisionError), seeded(0):
        _ = torch.rand(1) / (1 // 0)
    assert torch.equal(torch.get_rng_state(), before)
    assert all(0 <= seed < 2**63 for seed in spread_seeds(2**63 - 1, 100))
