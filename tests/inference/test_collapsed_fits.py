"""The mode, a guide and chains over global latents, against closed forms; and what ``fit`` makes of them."""

from __future__ import annotations

import warnings

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoNormal

import calmrl_prob as cal
from calmrl_prob.errors import ArgumentError, ReliabilityWarning
from calmrl_prob.inference.parameters.map import climb
from calmrl_prob.inference.parameters.nuts import rotation_free
from calmrl_prob.inference.parameters.starts import from_em, starting_points
from calmrl_prob.linear_gaussian import LinearGaussian, ObservedBlocks, fit_em
from calmrl_prob.priors.loadings import LOADINGS_PRIORS, LoadingsPrior
from calmrl_prob.programs.bound import BoundModel
from tests.cases.collapsed_cases import (
    CASES,
    covariate_data,
    exact_intercepts,
    factor_model,
    intercepts_alone,
    with_parameter,
)
from tests.cases.linear_gaussian_cases import random_blocks, random_model
from tests.cases.model_cases import DIMS, random_data

pytestmark = (
    pytest.mark.slow
)  # fits take seconds each; the examples of models/group_ard.py and horseshoe.py are the fast check

every_case = pytest.mark.parametrize("name", CASES)


def as_data(blocks: ObservedBlocks) -> cal.MultimodalData:
    """The same instances, NaN where a modality is missing."""
    nothing = {n: torch.full((blocks.num_instances, w), torch.nan).double() for n, w in blocks.dims.items()}
    return cal.MultimodalData({n: x.index_copy(0, blocks.rows[n], blocks.values[n]) for n, x in nothing.items()})


# ---- the mode -------------------------------------------------------------------------------------------------------


def test_the_mode_of_intercepts_is_their_posterior_mean() -> None:
    data = random_data(30)
    result = cal.fit(intercepts_alone, data, "map", tolerance=1e-12)
    mean, _ = exact_intercepts(data)
    found = torch.cat([result.model.values[f"mu_{name}"] for name in DIMS])
    torch.testing.assert_close(found, mean, rtol=1e-4, atol=1e-5)
    assert result.converged
    assert bool((np.diff(result.objective) >= 0).all())
    assert len(result.log_likelihood) == len(result.objective)
    exact = cal.posterior(result, data)
    assert exact.route == "exact"
    assert float(exact.log_marginal.sum()) == pytest.approx(result.log_likelihood[-1], rel=1e-9)
    assert cal.impute(result, data).parameter_variance is None


def test_the_mode_of_normal_loadings_is_what_em_finds() -> None:
    """With flat priors on everything else, "map" climbs the objective of EM with loadings_prior="normal"."""
    blocks = random_blocks(random_model(DIMS, 2, prior="standard", noise="isotropic"), 200, rate=0.3)
    em = fit_em(blocks, 2, loadings_prior="normal", loadings_precision=3.0, tolerance=1e-13, max_iterations=3000)
    data = as_data(blocks)
    scale = {n: values.var(0, correction=0).mean().sqrt() for n, values in blocks.values.items()}

    def model(data: cal.MultimodalData) -> None:
        loadings, means, noise = {}, {}, {}
        for name, width in data.dims.items():
            normal = dist.Normal(torch.zeros(width, 2, dtype=torch.float64), scale[name] / 3.0**0.5)
            loadings[name] = pyro.sample(f"w_{name}", normal.to_event(2))
            flat = dist.Normal(torch.zeros(width, dtype=torch.float64), 1e5)
            means[name] = pyro.sample(f"mu_{name}", flat.to_event(1))
            noise[name] = pyro.sample(f"log_sigma_{name}", dist.Normal(torch.tensor(0.0).double(), 1e3)).exp()
        with pyro.plate("instances", len(data)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2).double(), 1.0).to_event(1))
            for name in data.names:
                x = dist.Normal(z @ loadings[name].mT + means[name], noise[name]).to_event(1)
                pyro.sample(name, x.mask(data.observed(name)), obs=data.filled(name))

    result = cal.fit(model, data, "map", tolerance=1e-12, max_iterations=2000)
    assert result.log_likelihood[-1] == pytest.approx(float(em.log_likelihood[-1]), abs=1e-3)
    lg = cal.discover(result.model, data).linear_gaussian()
    for name in DIMS:
        gram, expected = (part.loadings[name] @ part.loadings[name].mT for part in (lg, em.linear_gaussian))
        torch.testing.assert_close(gram, expected, rtol=1e-3, atol=1e-3)


@every_case
def test_the_gradient_vanishes_at_the_mode(name: str) -> None:
    data = covariate_data(40)
    result = cal.fit(CASES[name][0], data, "map", tolerance=1e-12, max_iterations=2000)
    model = cal.marginalize(result.model, data)
    theta = result.report.theta.requires_grad_()
    (gradient,) = torch.autograd.grad(model.log_joint(theta), theta)
    assert float(gradient.abs().max()) < 1e-2
    torch.testing.assert_close(model.pack(result.model.values), theta.detach(), rtol=1e-8, atol=1e-8)
    assert len(result.diagnostics["log_joint_by_start"]) == 2


def test_parameters_are_maximised_along_with_global_latents() -> None:
    data = random_data(40)
    result = cal.fit(with_parameter, data, "map", tolerance=1e-12)
    sigma = result.model.parameter_values()["sigma"]
    assert float(sigma.detach()) < 2.0  # it started at 3
    model = cal.marginalize(result.model, data)
    value = model.log_joint(result.report.theta)
    (gradient,) = torch.autograd.grad(value, list(result.model.parameters()))
    assert float(gradient.abs().max()) < 1e-2


@pytest.mark.parametrize("prior", [make() for make in LOADINGS_PRIORS.values()], ids=list(LOADINGS_PRIORS))
def test_em_gives_a_good_start_whatever_the_prior_of_the_loadings(prior: LoadingsPrior) -> None:
    """The start is within a few nats for each unknown of where an ascent from it ends, a draw from the prior is not."""
    truth = random_model(DIMS, 2, seed=3, prior="standard", noise="isotropic")
    _, features = truth.sample(300, torch.Generator().manual_seed(0))
    data = cal.MultimodalData(features)

    def model(data: cal.MultimodalData) -> None:
        loadings = prior.sample_all(data.dims, 2)
        means = {
            n: pyro.sample(f"mu_{n}", dist.Normal(torch.zeros(w).double(), 3.0).to_event(1))
            for n, w in data.dims.items()
        }
        sigma = {n: pyro.sample(f"sigma_{n}", dist.LogNormal(torch.tensor(0.0).double(), 1.0)) for n in data.dims}
        with pyro.plate("instances", len(data)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2).double(), 1.0).to_event(1))
            for name in data.names:
                x = dist.Normal(z @ loadings[name].mT + means[name], sigma[name]).to_event(1)
                pyro.sample(name, x.mask(data.observed(name)), obs=data.filled(name))

    collapsed = cal.marginalize(model, data)
    start = from_em(collapsed, "normal", seed=0)
    assert start is not None
    em = fit_em(data.blocks, 2, tolerance=1e-8)
    with torch.no_grad():
        evidence = float(collapsed.terms(start).evidence)
    assert evidence > float(em.log_likelihood[-1]) - 10
    end = climb(collapsed, start, max_iterations=50)
    with torch.no_grad():
        assert float(end.trace.objective[-1]) - float(collapsed.log_joint(start)) < 5 * collapsed.dim
        assert float(collapsed.log_joint(collapsed.draw(0))) < float(collapsed.log_joint(start)) - 100
    points = list(starting_points(collapsed, 4, seed=0))
    assert [tuple(point.shape) for point in points] == [(collapsed.dim,)] * 4


# ---- guides ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("guide", [pytest.param("full", marks=pytest.mark.slow), "laplace"])
def test_guides_that_can_be_exact_are(guide: str) -> None:
    """The posterior of the intercepts is normal: a normal guide with full covariance finds it, and k-hat is low."""
    data = random_data(30)
    options = {} if guide == "laplace" else {"num_steps": 1500, "learning_rate": 0.05, "num_particles": 2}
    result = cal.fit(intercepts_alone, data, "svi", guide=guide, num_draws=500, **options)
    mean, covariance = exact_intercepts(data)
    draws = torch.cat([result.report.draws.values[f"mu_{name}"] for name in DIMS], dim=1)
    standard = (draws.mean(0) - mean) / covariance.diagonal().sqrt()
    slack = 0.0 if guide == "laplace" else 0.1  # of a standard deviation, for what is left of the noise of gradients
    assert float(standard.abs().max()) < slack + 6 / 500**0.5
    ratio = draws.var(0) / covariance.diagonal()
    assert float((ratio - 1).abs().max()) < 2 * slack + 6 * (2 / 500) ** 0.5
    assert result.diagnostics["k_hat"] < 0.7
    evidence = cal.marginalize(intercepts_alone, data)
    with torch.no_grad():  # log p(x) = log p(theta, x) - log p(theta | x), anywhere
        posterior = torch.distributions.MultivariateNormal(mean, covariance)
        exact = float(evidence.log_joint(mean) - posterior.log_prob(mean))
    assert result.diagnostics["log_evidence"] == pytest.approx(exact, abs=0.1)
    assert result.converged


def test_laplace_leaves_rotations_alone() -> None:
    """The posterior of loadings under a normal prior is flat along rotations: there the guide does not move."""
    data = random_data(60)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ReliabilityWarning)
        result = cal.fit(factor_model(), data, "svi", guide="laplace", num_draws=100)
    quantities = result.report.quantities
    assert bool(quantities["signal_covariance"].isfinite().all())
    assert float(quantities["noise_variance"].std(1).mean()) > 0.01


def test_a_guide_of_the_users_own_and_reproducible_steps() -> None:
    data = random_data(20)

    def make(model: object, **settings: object) -> AutoNormal:
        return AutoNormal(model, init_scale=0.1, **settings)

    with pyro.get_param_store().scope():
        pyro.set_rng_seed(3)
        before = pyro.util.get_rng_state()
        runs = [
            cal.fit(intercepts_alone, data, "svi", guide=make, num_steps=30, num_draws=100, seed=1).report
            for _ in range(2)
        ]
        assert torch.equal(runs[0].theta, runs[1].theta)
        assert torch.equal(before["torch"], pyro.util.get_rng_state()["torch"])
        assert not list(pyro.get_param_store().keys())
    assert len(runs[0].objective) == 30


def test_svi_warns_of_a_guide_that_misses_much() -> None:
    with pytest.warns(ReliabilityWarning, match="k-hat"):
        result = cal.fit(factor_model(), random_data(60), "svi", num_steps=5, num_draws=100)
    assert result.diagnostics["k_hat"] > 0.7
    assert not result.converged


# ---- chains ---------------------------------------------------------------------------------------------------------


def test_nuts_finds_the_posterior_of_intercepts() -> None:
    """R-hat of 11 quantities of 2 x 250 independent draws is above 1.01 one time in seven; hence more of them."""
    data = random_data(12)
    result = cal.fit(intercepts_alone, data, "nuts", num_draws=800, num_warmup=200, num_chains=2, seed=0)
    mean, covariance = exact_intercepts(data)
    draws = torch.cat([result.report.draws.values[f"mu_{name}"] for name in DIMS], dim=1)
    size = result.diagnostics["ess"]
    assert float(((draws.mean(0) - mean) / covariance.diagonal().sqrt()).abs().max()) < 6 / size**0.5
    assert float((draws.var(0) / covariance.diagonal() - 1).abs().max()) < 6 * (2 / size) ** 0.5
    assert result.diagnostics["num_divergences"] == 0
    assert len(result.objective) == 1600


def test_chains_that_disagree_are_warned_about_once_and_reported() -> None:
    with pytest.warns(ReliabilityWarning, match="R-hat") as caught:
        result = cal.fit(
            factor_model(1), random_data(10), "nuts", num_draws=8, num_warmup=4, num_chains=2, max_tree_depth=2
        )
    assert len(caught) == 1
    assert caught[0].filename == __file__
    assert not result.converged
    assert "R-hat" in result.stop_reason
    assert result.criterion > 1.01
    inference_data = result.report.to_arviz()
    posterior = inference_data["posterior"]
    assert dict(posterior["w_image"].sizes) == {"chain": 2, "draw": 8, "w_image_0": 4, "w_image_1": 1}
    assert posterior["log_evidence"].shape == (2, 8)
    assert "lp" in inference_data["sample_stats"]


def test_r_hat_is_of_what_rotations_leave_alone() -> None:
    """Draws that differ by a rotation of the latent give the same quantities."""
    data = random_data(20)
    model = cal.marginalize(factor_model(), data)
    theta = model.draw(0)
    values = model.values(theta)
    turn = torch.tensor([[0.6, -0.8], [0.8, 0.6]], dtype=torch.float64)
    turned = model.pack({n: value @ turn if n.startswith("w_") else value for n, value in values.items()})
    found = rotation_free(model, torch.stack([theta, turned])[None])
    assert set(found) == {"log_evidence", "log_prior", "signal_covariance", "signal_mean", "noise_variance"}
    for values in found.values():
        torch.testing.assert_close(values[0, 0], values[0, 1])


def test_errors() -> None:
    data = random_data()
    for method, option, value in (
        ("map", "num_starts", 0),
        ("nuts", "num_chains", 0),
        ("svi", "num_steps", 0),
        ("svi", "learning_rate", -1.0),
        ("svi", "guide", "mean field"),
        ("svi", "num_draws", 3),
    ):
        with pytest.raises(ArgumentError, match=option):
            cal.fit(factor_model(), data, method, **{option: value})
    bound = BoundModel(factor_model())
    assert isinstance(cal.marginalize(bound, data).form.structures[0], LinearGaussian)
