"""The route "nuts": exact posteriors of linear-Gaussian models, and quadrature for a model that is bent."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import pytest
import torch

import calmrl_prob as cal
from calmrl_prob.arviz.adapter import chain_diagnostics
from calmrl_prob.data import MultimodalData
from calmrl_prob.errors import ArgumentError, ModelError, ReliabilityWarning
from calmrl_prob.inference.approximate.nuts import nuts_posterior
from tests.cases.approximate_cases import bent_program, linear_case, on_a_grid
from tests.cases.model_cases import random_data

# Chains take minutes; the example of nuts_posterior is the fast check.
pytestmark = pytest.mark.slow


def effective(draws: torch.Tensor, num_chains: int) -> torch.Tensor:
    """Bulk effective sample size of each entry of (C S, N, K)."""
    by_chain = draws.reshape(num_chains, -1, *draws.shape[1:]).numpy()
    return torch.from_numpy(chain_diagnostics({"z": by_chain})["ess_bulk"]["z"])


def test_the_exact_posterior_is_found() -> None:
    program, data = bent_program(0.0), random_data(2)
    exact = cal.posterior(program, data, method="exact")
    found = nuts_posterior(program, data, num_draws=200, num_warmup=40, num_chains=2, seed=1)
    assert found.route == "nuts"
    assert found.latents.shape == (400, 2, 1)
    size = effective(found.latents, 2)
    assert float(size.min()) > 100
    variance = exact.covariance.diagonal(dim1=-2, dim2=-1)
    assert bool(((found.mean - exact.mean).abs() < 6 * (variance / size).sqrt()).all())
    spread = found.covariance.diagonal(dim1=-2, dim2=-1)
    assert bool(((spread - variance).abs() < 6 * variance * (2 / size).sqrt()).all())
    error = torch.from_numpy(found.diagnostics["log_marginal_error"])
    assert bool(((found.log_marginal - exact.log_marginal).abs() < 6 * error).all())
    assert found.diagnostics["max_k_hat"] < 0.7
    assert found.diagnostics["r_hat"] < 1.01
    assert found.diagnostics["num_divergences"] == 0


@pytest.mark.slow
def test_the_exact_posterior_of_two_latents_is_found() -> None:
    model, data, exact = linear_case(3)
    found = nuts_posterior(model, data, num_draws=1500, num_warmup=200, num_chains=2, seed=1)
    size = effective(found.latents, 2)
    variance = exact.covariance.diagonal(dim1=-2, dim2=-1)
    assert bool(((found.mean - exact.mean).abs() < 6 * (variance / size).sqrt()).all())
    error = torch.from_numpy(found.diagnostics["log_marginal_error"])
    assert bool(((found.log_marginal - exact.log_marginal).abs() < 6 * error).all())


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Pareto k-hat:calmrl_prob.errors.ReliabilityWarning")  # of evidence, not of z
def test_a_bent_model_by_quadrature() -> None:
    program, data = bent_program(0.3), random_data(4)
    evidence, mean, variance = on_a_grid(program, data)
    found = cal.posterior(program, data, method="nuts", num_draws=1500, num_warmup=200, num_chains=2, seed=2)
    size = effective(found.latents, 2).squeeze(-1)  # type: ignore[attr-defined]
    assert bool(((found.mean.squeeze(1) - mean).abs() < 6 * (variance / size).sqrt()).all())
    error = torch.from_numpy(found.diagnostics["log_marginal_error"])
    told = torch.as_tensor(found.diagnostics["k_hat"]) < 0.7  # the errors of the others are not to be relied on either
    assert int(told.sum()) >= 2
    assert bool(((found.log_marginal - evidence).abs() < 6 * error)[told].all())


def test_chains_in_different_modes_are_reported_once() -> None:
    """x = z^2 + noise of scale 0.05: two narrow modes, between which no chain can go."""

    def program(data: MultimodalData) -> None:
        with pyro.plate("instances", len(data)):
            z = pyro.sample("z", dist.Normal(torch.zeros(1).double(), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z.square().expand(-1, 2), 0.05).to_event(1), obs=data.filled("x"))

    data = MultimodalData({"x": torch.full((3, 2), 2.0, dtype=torch.float64)})
    with pytest.warns(ReliabilityWarning, match="R-hat is .* for 'z', above 1.01") as caught:
        found = nuts_posterior(program, data, num_draws=20, num_warmup=20, num_chains=4, seed=0)
    assert len(caught) == 1
    assert caught[0].filename == __file__
    assert found.diagnostics["r_hat"] > 1.01


def test_it_repeats_and_one_chain_says_that_it_is_one() -> None:
    program, data = bent_program(0.0), random_data(2)
    draws = []
    for seed in (5, 5, 6):
        with pytest.warns(ReliabilityWarning, match="R-hat cannot be computed: run two chains"):
            found = nuts_posterior(program, data, num_draws=30, num_warmup=30, num_chains=1, seed=seed)
        draws.append(found.latents)
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])


def test_what_cannot_work_is_refused() -> None:
    model, data, _ = linear_case(2)
    with pytest.raises(ArgumentError, match="evidence_draws"):
        nuts_posterior(model, data, evidence_draws=10)
    with pytest.raises(ArgumentError, match="num_chains"):
        nuts_posterior(model, data, num_chains=0)

    def broken(data: MultimodalData) -> None:
        with pyro.plate("instances", len(data)):
            z = pyro.sample("z", dist.Normal(torch.zeros(1).double(), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z.log().expand(-1, 2), 1.0).to_event(1), obs=data.filled("x"))

    with pytest.raises(ModelError, match="site 'x': its log density is"):
        nuts_posterior(broken, MultimodalData({"x": torch.ones(2, 2).double()}), num_draws=10, num_warmup=10)
