"""What every route's result promises: moments, draws, predictives, imputations, ArviZ; over a model for each route."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import Trace_ELBO
from torch import Tensor

import calmrl_prob as cal
from calmrl_prob.guide import ConjugateGuide
from calmrl_prob.inference import ParameterDraws, PosteriorResult
from calmrl_prob.linear_gaussian import BatchMoves
from calmrl_prob.programs.bound import BoundModel
from models.student_t import StudentT
from tests.cases.collapsed_cases import factor_model
from tests.cases.linear_gaussian_cases import random_model
from tests.cases.model_cases import DIMS, random_data
from tests.cases.route_cases import gaussian, loadings, observe

DRAWS = 4000


def correlated_noise(data: cal.MultimodalData) -> None:
    with pyro.plate("instances", len(data)):
        z = pyro.sample("z", dist.Normal(torch.zeros(2).double(), 1.0).to_event(1))
        for name in data.names:
            factor = 0.5 * loadings(name, 1)
            noise = dist.LowRankMultivariateNormal(
                z @ loadings(name, 2).T, factor, torch.full((DIMS[name],), 0.4).double()
            )
            pyro.sample(name, noise.mask(data.observed(name)), obs=data.filled(name))


def mixture(data: cal.MultimodalData) -> None:
    means = torch.tensor([[-1.5, 0.0], [1.5, 0.5]]).double()
    with pyro.plate("instances", len(data)):
        prior = dist.MixtureSameFamily(
            dist.Categorical(torch.tensor([0.3, 0.7]).double()), dist.Normal(means, 0.6).to_event(1)
        )
        observe(pyro.sample("z", prior), data)


def by_group(data: cal.MultimodalData) -> None:
    means = torch.tensor([[-1.0, 0.0], [1.0, 2.0]]).double()[torch.as_tensor(data.covariates["group"])]
    scales = torch.tensor([0.5, 1.5]).double()[torch.as_tensor(data.covariates["group"])]
    with pyro.plate("instances", len(data)):
        observe(pyro.sample("z", dist.Normal(means, scales[:, None]).to_event(1)), data)


def by_row(data: cal.MultimodalData) -> None:
    age = torch.as_tensor(data.covariates["age"])[:, None]
    with pyro.plate("instances", len(data)):
        observe(pyro.sample("z", dist.Normal(age.expand(-1, 2), 1.0).to_event(1)), data, shift=age.square())


def student_t() -> StudentT:
    model = StudentT(DIMS, latent_dim=2)
    with torch.no_grad():
        for name in DIMS:
            model.loadings[name].copy_(loadings(name, 2))
    return model


def student_t_prior(data: cal.MultimodalData) -> None:
    with pyro.plate("instances", len(data)):
        prior = dist.MultivariateStudentT(9.0, torch.ones(2).double(), 0.8 * torch.eye(2).double())
        observe(pyro.sample("z", prior), data)


def student_t_noise(data: cal.MultimodalData) -> None:
    with pyro.plate("instances", len(data)):
        z = pyro.sample("z", dist.Normal(torch.zeros(2).double(), 1.0).to_event(1))
        for name in data.names:
            mean, scale = z @ loadings(name, 2).T, 0.7 * torch.eye(DIMS[name]).double()
            noise = dist.MultivariateNormal(mean, scale_tril=scale)
            if name == "text":
                noise = dist.MultivariateStudentT(9.0, mean, scale)
            pyro.sample(name, noise.mask(data.observed(name)), obs=data.filled(name))


def full_noise() -> cal.SharedLatentModel:
    model = cal.SharedLatentModel(DIMS, latent_dim=2, noise="full")
    model.load_linear_gaussian(random_model(DIMS, 2, noise="full"))
    return model


def low_rank_noise() -> cal.SharedLatentModel:
    model = cal.SharedLatentModel(DIMS, latent_dim=2, noise="low_rank")
    model.load_linear_gaussian(random_model(DIMS, 2, noise="low_rank"))
    return model


def batches() -> cal.SharedLatentModel:
    """Two batches, of which one never had the text, each with a scale."""
    model = cal.SharedLatentModel(DIMS, latent_dim=2, noise="low_rank", batch=cal.BatchEffects("group", scale=True))
    model.load_linear_gaussian(random_model(DIMS, 2, noise="low_rank"))
    made = torch.Generator().manual_seed(4)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=made, dtype=torch.float64)

    count = {name: torch.tensor([3.0, 0.0 if name == "text" else 2.0, 0.0]).double() for name in DIMS}
    moves = BatchMoves(
        centre={name: normal(width) for name, width in DIMS.items()},
        shift={name: normal(3, width) * (count[name] > 0)[:, None] for name, width in DIMS.items()},
        scale={name: torch.where(count[name] > 0, (0.3 * normal(3)).exp(), 1.0) for name in DIMS},
        variance={name: normal(width).square() for name, width in DIMS.items()},
        count=count,
    )
    assert model.batch is not None
    model.batch.load(["0", "1"], moves)
    return model


ROUTES: dict[str, tuple[Callable[..., Any], str]] = {
    "student-t": (student_t(), "exact student-t"),
    "student-t prior": (student_t_prior, "scale mixture"),
    "student-t noise": (student_t_noise, "scale mixture"),
    "gaussian": (gaussian, "exact"),
    "correlated noise": (correlated_noise, "exact"),
    "full noise": (full_noise(), "exact"),
    "low-rank noise": (low_rank_noise(), "exact"),
    "batches": (batches(), "exact by structure"),
    "mixture": (mixture, "exact mixture"),
    "by group": (by_group, "exact by structure"),
    "by row": (by_row, "exact by structure"),
}


def example_data() -> cal.MultimodalData:
    data = random_data(10)
    covariates = {"group": np.arange(10) % 2, "age": np.random.default_rng(0).normal(size=10)}
    return cal.MultimodalData({name: data[name] for name in data.names}, covariates=covariates)


def over_parameter_draws(data: cal.MultimodalData) -> PosteriorResult:
    """A factor model's posterior over five draws of its parameters."""
    collapsed = cal.marginalize(factor_model(), data)
    theta = torch.stack([collapsed.draw(0) + 0.2 * collapsed.draw(s) for s in range(1, 6)])
    return ParameterDraws(collapsed.bound, collapsed.values(theta), "collapsed").posterior(data)


@pytest.fixture(scope="module", params=[*ROUTES, "parameter draws"])
def case(request: pytest.FixtureRequest) -> tuple[PosteriorResult, cal.MultimodalData]:
    data = example_data()
    if request.param == "parameter draws":
        return over_parameter_draws(data), data
    model, route = ROUTES[request.param]
    result = cal.posterior(model, data)
    assert result.route == route
    return result, data


Case = tuple[PosteriorResult, cal.MultimodalData]


@pytest.fixture(scope="module")
def draws(case: Case) -> dict[str, Tensor]:
    """Of the modalities of a case, made once: they are most of what these tests take."""
    result, data = case
    return dict(cal.impute(result, data).sample(DRAWS, seed=2))


def within_six_errors(draws: Tensor, mean: Tensor, variance: Tensor) -> None:
    """Mean and variance of independent draws (S, ...), the fourth moment from the draws themselves."""
    number = len(draws)
    assert bool(((draws.mean(0) - mean).abs() < 6 * (variance / number).sqrt() + 1e-9).all())
    squares = (draws - mean).square()
    spread = squares.std(0) / number**0.5
    assert bool(((squares.mean(0) - variance).abs() < 6 * spread + 1e-9).all())


def test_draws_of_the_latents_have_the_moments(case: Case) -> None:
    result, data = case
    draws = result.sample(DRAWS, seed=1)
    assert draws.shape == (DRAWS, len(data), result.mean.shape[1])
    within_six_errors(draws, result.mean, result.covariance.diagonal(dim1=1, dim2=2))
    centred = draws - result.mean
    products = centred[..., 0] * centred[..., 1]
    error = products.std(0) / DRAWS**0.5
    assert bool(((products.mean(0) - result.covariance[:, 0, 1]).abs() < 6 * error).all())


def test_draws_of_the_modalities_have_the_predictive_moments(case: Case, draws: dict[str, Tensor]) -> None:
    result, data = case
    imputed = cal.impute(result, data)
    for name in data.names:
        within_six_errors(draws[name], imputed.mean[name], imputed.variance[name])


def test_quantiles_hold_their_share_of_the_draws(case: Case, draws: dict[str, Tensor]) -> None:
    result, data = case
    imputed = cal.impute(result, data)
    for name in data.names:
        lower, upper = imputed.interval(0.8)[name]
        share = ((draws[name] >= lower) & (draws[name] <= upper)).double().mean(0)
        assert bool(((share - 0.8).abs() < 6 * (0.16 / DRAWS) ** 0.5).all())


def test_predictive_density_integrates_to_one(case: Case) -> None:
    result, _ = case
    predictive = result.predictive("text")
    grid = torch.linspace(-40, 40, 1001, dtype=torch.float64)
    shape = predictive.mean.shape
    density = torch.stack([predictive.log_density(x.expand(shape)).exp() for x in grid])
    assert torch.allclose(torch.trapezoid(density, grid, dim=0), torch.ones(shape).double(), atol=1e-6)


def test_same_seed_same_draws_and_another_seed_others(case: Case) -> None:
    result, _ = case
    one, again, other = result.sample(3, seed=5), result.sample(3, seed=5), result.sample(3, seed=6)
    assert torch.equal(one, again)
    assert not torch.equal(one, other)


def test_arviz_takes_every_route(case: Case) -> None:
    result, data = case
    idata: Any = cal.to_arviz(result, data, num_draws=40, names=["text"])
    assert dict(idata["posterior"]["z"].sizes) == {"chain": 4, "draw": 10, "instance": 10, "latent": 2}
    assert dict(idata["posterior_predictive"]["text"].sizes)["feature_text"] == DIMS["text"]
    assert idata["posterior"].attrs["route"] == result.route
    assert bool(np.isfinite(idata["log_likelihood"]["text"].values[..., data.observed("text").numpy()]).all())


def test_distribution_functions_invert_quantiles_and_the_crps_is_its_expectation(
    case: Case, draws: dict[str, Tensor]
) -> None:
    result, data = case
    imputed = cal.impute(result, data)
    for name in data.names:
        predictive = imputed.predictive[name]
        for probability in (0.1, 0.6):
            below = predictive.cdf(predictive.quantile(probability))
            assert torch.allclose(below, torch.full_like(below, probability), atol=1e-6)
        truth = data.filled(name)
        half = DRAWS // 2
        terms = (draws[name][:half] - truth).abs() - 0.5 * (draws[name][:half] - draws[name][half : 2 * half]).abs()
        error = 6 * terms.std(0) / half**0.5 + 2e-3 * terms.mean(0).abs()  # 64 nodes integrate over the quantiles
        assert bool(((predictive.crps(truth) - terms.mean(0)).abs() < error).all())


#: Routes whose result has a density of the latents, with no error but rounding.
WITH_DENSITY = [name for name in ROUTES if not name.startswith("student-t")]


@pytest.mark.parametrize("route", WITH_DENSITY)
def test_elbo_is_the_evidence_for_every_single_draw(route: str) -> None:
    """log p(x, z) - log q(z) = log p(x) whatever z is: the traced model's densities against the exact posterior's."""
    model, data = ROUTES[route][0], example_data()
    exact = cal.posterior(model, data)
    bound = BoundModel(model)
    for z in (*exact.sample(3, seed=4), exact.mean + 5.0):
        call = bound.call(data, {"z": z}, densities=True)
        sites = (*call.latents.values(), *call.observed.values())
        joint = torch.stack([site.instance_log_density() for site in sites]).sum(0)
        assert torch.allclose(joint - exact.log_density(z), exact.log_marginal, rtol=1e-9, atol=1e-8)


def two_sites(data: cal.MultimodalData) -> None:
    with pyro.plate("instances", len(data)):
        one = pyro.sample("one", dist.Normal(torch.zeros(()).double(), 1.0))
        rest = pyro.sample("rest", dist.Normal(one[:, None] * torch.ones(2).double(), 1.0).to_event(1))
        observe(torch.cat([one[:, None], rest], dim=1), data)


def discrete(data: cal.MultimodalData) -> None:
    means = torch.tensor([[-1.5, 0.0], [1.5, 0.5], [0.0, 3.0]]).double()
    with pyro.plate("instances", len(data)):
        group = pyro.sample("group", dist.Categorical(torch.tensor([0.3, 0.5, 0.2]).double()))
        observe(pyro.sample("z", dist.Normal(means[group], 0.6).to_event(1)), data)


GUIDED = {**{name: ROUTES[name][0] for name in WITH_DENSITY}, "two sites": two_sites, "discrete": discrete}


@pytest.mark.parametrize("name", GUIDED)
def test_the_exact_posterior_is_a_guide_for_every_form(name: str) -> None:
    model, data = GUIDED[name], example_data()
    exact = float(cal.posterior(model, data).log_marginal.sum())
    guide = ConjugateGuide(model)
    for seed in range(3):
        pyro.set_rng_seed(seed)
        assert -Trace_ELBO().loss(model, guide, data) == pytest.approx(exact, rel=1e-9)
    assert not list(pyro.get_param_store().keys())


@pytest.mark.parametrize("route", ROUTES)
def test_order_of_rows_and_company_change_nothing(route: str) -> None:
    model, data = ROUTES[route][0], example_data()
    whole = cal.posterior(model, data)
    rows = torch.tensor([7, 2, 3])
    few = cal.posterior(model, data.subset(rows))
    assert torch.allclose(few.mean, whole.mean[rows], rtol=1e-9, atol=1e-9)
    assert torch.allclose(few.covariance, whole.covariance[rows], rtol=1e-9, atol=1e-9)
    assert torch.allclose(few.log_marginal, whole.log_marginal[rows], rtol=1e-9, atol=1e-9)


def test_correlated_noise_counts_as_noise() -> None:
    data = example_data()
    imputed = cal.impute(correlated_noise, data)
    for name in data.names:
        expected = 0.4 + (0.5 * loadings(name, 1)).square().squeeze(1)
        assert torch.allclose(imputed.noise_variance[name], expected)
