"""Draws of the parameters about a fit: against the delta method, each other and NUTS; and wrong requests."""

from __future__ import annotations

import math
import warnings
from dataclasses import replace
from importlib import import_module

import pytest
import torch
from torch import Tensor
from torch.autograd.functional import hessian

import calmrl_prob as cal
from calmrl_prob.errors import (
    ArgumentError,
    ArgumentTypeError,
    DataError,
    ReliabilityWarning,
    SchemaError,
    UnfittedWarning,
)
from calmrl_prob.inference import ParameterDraws
from calmrl_prob.linear_gaussian import Evidence, LinearGaussian, SufficientStatistics
from calmrl_prob.linear_gaussian.em.parameters import Parameters, Shape
from tests.cases.collapsed_cases import factor_model
from tests.cases.model_cases import DIMS, data_with_single_features_missing, random_data, random_model, random_prior

both = pytest.mark.parametrize("method", ["laplace", "bootstrap"])


def data_from_the_model(num_instances: int, noise: str = "isotropic", seed: int = 0) -> cal.MultimodalData:
    truth = random_model(noise, seed=3).linear_gaussian().detach()
    _, features = truth.sample(num_instances, torch.Generator().manual_seed(seed))
    return cal.MultimodalData(features, observed_mask=random_data(num_instances, seed).observed_mask)


def fitted(data: cal.MultimodalData, noise: str = "isotropic", **options: object) -> cal.FitResult:
    return cal.fit(cal.SharedLatentModel(DIMS, 2, noise), data, tolerance=1e-10, **options)


@pytest.fixture(scope="module")
def data() -> cal.MultimodalData:
    return data_from_the_model(300)


@pytest.fixture(scope="module")
def fit(data: cal.MultimodalData) -> cal.FitResult:
    return fitted(data)


def invariants(lg: LinearGaussian) -> Tensor:
    """The joint mean and covariance, stacked."""
    mean, covariance = lg.joint()
    return torch.cat([mean, covariance[torch.triu_indices(9, 9).unbind()]])


@pytest.mark.parametrize("noise", ["isotropic", "diagonal"])
def test_laplace_has_the_spread_of_the_delta_method(noise: str) -> None:
    """Oracle: second derivatives by autograd, pseudo-inverted, and first derivatives of the joint moments."""
    data = data_from_the_model(200, noise)
    result = fitted(data, noise)
    statistics = SufficientStatistics.from_blocks(data.blocks)
    shape, evidence, best = Shape.of(DIMS), Evidence(statistics, 2), result.linear_gaussian()
    at = Parameters.from_linear_gaussian(best, statistics.shift)
    per_feature = torch.eye(9, dtype=torch.float64)
    if noise == "isotropic":
        per_feature = torch.stack([per_feature[:, part].sum(1) for part in shape.slices], dim=1)

    def model(step: Tensor) -> LinearGaussian:
        loadings, intercepts, log_noise = step.split([18, 9, per_feature.shape[1]])
        moved = Parameters(
            at.loadings + loadings.view(9, 2),
            at.intercepts + intercepts,
            at.noise_variance * (per_feature @ log_noise).exp(),
        )
        return moved.to_linear_gaussian(shape, statistics.shift)

    origin = torch.zeros(27 + per_feature.shape[1], dtype=torch.float64)
    information = -hessian(lambda step: evidence(model(step)), origin)
    slope = torch.autograd.functional.jacobian(lambda step: invariants(model(step)), origin)
    expected = (slope @ torch.linalg.pinv(information, rtol=1e-8, hermitian=True) * slope).sum(1)
    count = 500
    draws = cal.parameter_draws(result, data, "laplace", num_draws=count, seed=1)
    # first order in the steps, as the delta method is: derivatives along the drawn steps
    steps = torch.stack([_step(draws, best, s, per_feature) for s in range(count)])
    found = (steps @ slope.mT).var(0)
    assert float((found / expected - 1).abs().max()) < 6 * math.sqrt(2 / count) + 0.01  # the weak prior's share


def _step(draws: ParameterDraws, best: LinearGaussian, s: int, per_feature: Tensor) -> Tensor:
    at = draws.at(s)
    loadings = torch.cat([at[f"loadings_{n}"] - best.loadings[n] for n in DIMS]).flatten()
    intercepts = torch.cat([at[f"intercepts_{n}"] - best.intercepts[n] for n in DIMS])
    logs = torch.cat([(at[f"noise_variance_{n}"] / best.noise_variance[n]).log() for n in DIMS])
    return torch.cat([loadings, intercepts, logs @ per_feature / per_feature.sum(0)])


def test_curvature_of_priors_is_that_of_what_em_climbs(data: cal.MultimodalData) -> None:
    """Oracle: autograd of the evidence and of each log prior as ``fit_em`` documents it."""
    laplace = import_module("calmrl_prob.linear_gaussian.curvature.laplace")
    statistics = SufficientStatistics.from_blocks(data.blocks)
    shape, evidence = Shape.of(DIMS), Evidence(statistics, 2)
    at = Parameters.from_linear_gaussian(random_model("isotropic", seed=3).linear_gaussian().detach(), statistics.shift)
    variance = torch.cat([data[n][data.observed(n)].var(0, correction=0) for n in DIMS])
    centre = torch.cat([data[n][data.observed(n)].mean(0) for n in DIMS]) - statistics.shift
    scale = torch.cat([variance[part].mean().expand(part.stop - part.start) for part in shape.slices])
    settings = {"noise_pseudo_count": 7.0, "loadings_precision": 2.0, "pseudo_rows": 5.0, "pseudo_row_pooling": 1.0}
    found, where = laplace.curvature(statistics, at, isotropic=True, **settings)

    def objective(step: Tensor) -> Tensor:
        moved = where.moved(at, step)
        psi = moved.noise_variance
        noise = -0.5 * 7 * (psi.log() + 0.5 * scale / psi).sum()
        loadings = -0.5 * 2 * (moved.loadings.square() / scale[:, None]).sum()
        sigma = moved.loadings @ moved.loadings.mT + torch.diag(psi)
        spread = torch.diag(scale) + torch.outer(centre - moved.intercepts, centre - moved.intercepts)
        rows = -0.5 * 5 * (torch.logdet(sigma) + torch.linalg.solve(sigma, spread).trace())
        return evidence(moved.to_linear_gaussian(shape, statistics.shift)) + noise + loadings + rows

    expected = -hessian(objective, torch.zeros(sum(where.sizes), dtype=torch.float64))
    torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-8)


def test_bootstrap_and_laplace_agree_on_data_from_the_model() -> None:
    """They share nothing but the fit, and estimate the same spread where the model holds and rows are many."""
    data = data_from_the_model(1000)
    result, count = fitted(data), 60
    spread = []
    for method in ("laplace", "bootstrap"):
        structures = cal.parameter_draws(result, data, method, num_draws=count).structures()
        spread.append(torch.stack([invariants(form.structure) for form in structures]).std(0))
    error = 6 * math.sqrt(1 / count)  # of the ratio of two standard deviations, each with error sqrt(1 / 2S)
    assert float((spread[0] / spread[1]).log().abs().max()) < error


@both
def test_impute_reports_the_parameter_part(method: str, fit: cal.FitResult, data: cal.MultimodalData) -> None:
    draws = cal.parameter_draws(fit, data, method, num_draws=30)
    imputed, plain = cal.impute(draws, data), cal.impute(fit, data)
    assert plain.parameter_variance is None
    assert imputed.posterior.route == method
    structures = draws.structures()
    for name in DIMS:
        means = torch.stack([cal.impute(form.structure, data).mean[name] for form in structures])
        torch.testing.assert_close(imputed.parameter_variance[name], means.var(0, correction=0))
        parts = imputed.latent_variance[name] + imputed.noise_variance[name] + imputed.parameter_variance[name]
        torch.testing.assert_close(imputed.variance[name], parts)
        assert bool((imputed.parameter_variance[name] > 0).all())


def test_noise_makes_up_for_what_other_parameters_take_up(fit: cal.FitResult, data: cal.MultimodalData) -> None:
    """By exp((K + 1) / n_d): exactly so on (geometric) average for the bootstrap, draw by draw for Laplace."""
    laplace = import_module("calmrl_prob.linear_gaussian.curvature.laplace")
    best, generator = fit.linear_gaussian(), torch.Generator().manual_seed(4)
    plain = laplace.laplace_draws(data.blocks, best, 5, generator, isotropic=True)
    ours = cal.parameter_draws(fit, data, num_draws=5, seed=4)
    resampled = cal.parameter_draws(fit, data, "bootstrap", num_draws=5)
    for name in DIMS:
        shift = 3 / int(data.observed(name).sum())
        drawn = torch.stack([draw.noise_variance[name] for draw in plain])
        torch.testing.assert_close(ours.values[f"noise_variance_{name}"], drawn * math.exp(shift))
        mean = resampled.values[f"noise_variance_{name}"].log().mean()
        torch.testing.assert_close(mean, best.noise_variance[name][0].log() + shift)


@both
def test_parameter_variance_shrinks_with_rows(method: str) -> None:
    """As 1 / N: 16 times as many rows, a 16th of it."""
    mean = []
    for count in (100, 1600):
        data = data_from_the_model(count)
        imputed = cal.impute(cal.parameter_draws(fitted(data), data, method, num_draws=25), data, names=["text"])
        mean.append(float(imputed.parameter_variance["text"].mean()))
    assert 8 < mean[0] / mean[1] < 32


@both
def test_draws_lie_in_the_axes_of_the_fit(method: str, fit: cal.FitResult, data: cal.MultimodalData) -> None:
    """Turned as near as can be, so that means of z over draws are near those of the fit and not near zero."""
    draws = cal.parameter_draws(fit, data, method, num_draws=40)
    best = fit.linear_gaussian()
    for name in DIMS:
        spread = draws.values[f"loadings_{name}"].std(0)
        assert bool(((draws.values[f"loadings_{name}"].mean(0) - best.loadings[name]).abs() < spread).all())
    mean = cal.posterior(draws, data).mean
    assert float((mean - cal.posterior(fit, data).mean).abs().max()) < 0.3


@both
def test_same_seed_same_draws_and_the_global_generator_stays(
    method: str, fit: cal.FitResult, data: cal.MultimodalData
) -> None:
    state = torch.random.get_rng_state()
    first, again, other = (cal.parameter_draws(fit, data, method, num_draws=3, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(torch.random.get_rng_state(), state)
    assert torch.equal(first.values["loadings_text"], again.values["loadings_text"])
    assert not torch.equal(first.values["loadings_text"], other.values["loadings_text"])


@both
def test_priors_of_the_fit_are_kept(method: str, fit: cal.FitResult, data: cal.MultimodalData) -> None:
    """A strong prior leaves little to be uncertain about; a start is not one, and is ignored."""
    weak = cal.parameter_draws(fit, data, method, num_draws=8)
    options = {"loadings_prior": "normal", "loadings_precision": 1e5}
    strong = fitted(data, start=fit.model, **options)
    tight = cal.parameter_draws(strong, data, method, num_draws=8)
    given = cal.parameter_draws(strong.model, data, method, num_draws=8, **options)
    assert float(tight.values["loadings_text"].std(0).mean()) < 0.3 * float(weak.values["loadings_text"].std(0).mean())
    assert torch.equal(given.values["loadings_text"], tight.values["loadings_text"])


@both
def test_a_prior_of_z_that_is_not_standard_is_kept(method: str, data: cal.MultimodalData) -> None:
    prior = random_prior(2)
    model = cal.SharedLatentModel(DIMS, 2, prior=prior)
    draws = cal.parameter_draws(cal.fit(model, data, tolerance=1e-10), data, method, num_draws=3)
    for form in draws.structures():
        torch.testing.assert_close(form.structure.prior_covariance, prior.covariance)
    plain, other = (cal.parameter_draws(model, data, method, num_draws=3) for model in (fitted(data).model, model))
    ours, theirs = (cal.impute(draws, data, names=["text"]) for draws in (other, plain))
    torch.testing.assert_close(ours.mean["text"], theirs.mean["text"], rtol=1e-3, atol=1e-2)
    torch.testing.assert_close(ours.parameter_variance["text"], theirs.parameter_variance["text"], rtol=0.05, atol=1e-3)


def test_laplace_from_statistics_alone(fit: cal.FitResult, data: cal.MultimodalData) -> None:
    halves = (data.subset(slice(0, 100)), data.subset(slice(100, None)))
    statistics = SufficientStatistics.from_blocks(halves[0].blocks) + SufficientStatistics.from_blocks(halves[1].blocks)
    ours, theirs = (cal.parameter_draws(fit, given, num_draws=3) for given in (statistics, data))
    for name, value in theirs.values.items():
        torch.testing.assert_close(ours.values[name], value, rtol=1e-5, atol=1e-7)


def test_bootstrap_serves_single_missing_features() -> None:
    data = data_with_single_features_missing()
    data = cal.MultimodalData.concat([data] * 4)
    result = cal.fit(cal.SharedLatentModel(DIMS, 1), data)
    draws = cal.parameter_draws(result, data, "bootstrap", num_draws=4)
    assert bool((cal.impute(draws, data).parameter_variance["image"] > 0).all())
    with pytest.raises(ArgumentError, match=r"single features.*bootstrap"):
        cal.parameter_draws(result, data, "laplace")


def test_bad_arguments_are_refused(fit: cal.FitResult, data: cal.MultimodalData) -> None:
    with pytest.raises(ArgumentError, match=r"method: expected one of .*'bootstrap'.*got 'jackknife'"):
        cal.parameter_draws(fit, data, "jackknife")
    with pytest.raises(ArgumentError, match="num_draws"):
        cal.parameter_draws(fit, data, num_draws=0)
    with pytest.raises(ArgumentError, match="no option 'num_chains'"):
        cal.parameter_draws(fit, data, num_chains=2)
    with pytest.raises(ArgumentTypeError, match="data: expected MultimodalData, got 3"):
        cal.parameter_draws(fit, 3)
    with pytest.raises(SchemaError, match="audio"):
        cal.parameter_draws(fit, data.subset(data.rows_with("image")).select(["image", "text"]))
    with pytest.raises(ArgumentTypeError, match=r"statistics cannot tell apart.*laplace"):
        cal.parameter_draws(fit, SufficientStatistics.from_blocks(data.blocks), "bootstrap")
    with pytest.raises(ArgumentError, match=r"loadings_prior='ard'.*use 'bootstrap'"):
        cal.parameter_draws(fit.model, data, loadings_prior="ard")
    with pytest.warns(UnfittedWarning):
        cal.parameter_draws(cal.SharedLatentModel(DIMS, 2), data, "bootstrap", num_draws=1)
    few = data.subset(slice(0, 20))
    gradient = cal.fit(factor_model(1), few, "map", num_starts=1, max_iterations=30, tolerance=1.0)
    with pytest.raises(ArgumentTypeError, match=r"expected a fit by 'em', got one by 'map'.*'nuts' or 'svi'"):
        cal.parameter_draws(gradient, data)


def test_too_many_unknowns_are_refused(monkeypatch: pytest.MonkeyPatch, fit: cal.FitResult) -> None:
    monkeypatch.setattr(import_module("calmrl_prob.linear_gaussian.curvature.laplace"), "MOST_UNKNOWNS", 29)
    with pytest.raises(ArgumentError, match=r"here 30; it is offered for 29 at most. Use method='bootstrap'"):
        cal.parameter_draws(fit, data_from_the_model(20))


def test_a_modality_that_resamples_lose_is_named(fit: cal.FitResult, monkeypatch: pytest.MonkeyPatch) -> None:
    data = data_from_the_model(40)
    mask = data.observed_mask.clone()
    mask[:, 2] = False
    mask[3, 2] = True
    mask[:, 0] = True
    rare = cal.MultimodalData({n: data[n].nan_to_num() for n in DIMS}, observed_mask=mask)
    monkeypatch.setattr(import_module("calmrl_prob.inference.parameters.about_a_fit"), "_TRIES", 0)
    with pytest.raises(DataError, match=r"'audio': only 1 of 40.*laplace"):
        cal.parameter_draws(fit, rare, "bootstrap")


def test_away_from_a_maximum_laplace_says_so(data: cal.MultimodalData) -> None:
    with pytest.raises(cal.CalmrlError, match="not at a maximum"):
        cal.parameter_draws(random_model("diagonal", seed=5).linear_gaussian().detach(), data)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["laplace", "bootstrap"])
def test_predictive_sd_is_that_of_nuts(method: str) -> None:
    """Within 20%, over the missing cells of new rows; collapsed NUTS under priors that say next to nothing."""
    from benchmarks.parameter_uncertainty import predictions, wide_priors
    from calmrl_prob.data.missingness import mcar

    dims = {"a": 6, "b": 5, "c": 4}
    made = cal.datasets.make_synthetic(260, dims, latent_dim=2, seed=4).complete
    train, complete = made.subset(slice(0, 60)), made.subset(slice(60, None))
    train, seen = train.mask(mcar(train, 0.3, seed=1)), complete.mask(mcar(complete, 0.3, seed=2))
    result = cal.fit(cal.SharedLatentModel(dims, 2), train)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ReliabilityWarning)  # chains in two rotations
        chains = cal.fit(wide_priors(train, 2), train, "nuts", num_draws=300, num_warmup=300, num_chains=2)
    oracle = predictions(chains, seen, complete)
    found = predictions(cal.parameter_draws(result, train, method, num_draws=200), seen, complete)
    assert float((found["sd"] / oracle["sd"] - 1).abs().max()) < 0.2
    assert 0.7 < float((found["parameter"] / oracle["parameter"]).median()) < 1.4


def test_a_chain_is_its_part_of_the_draws(fit: cal.FitResult, data: cal.MultimodalData) -> None:
    draws = replace(cal.parameter_draws(fit, data, num_draws=6, seed=0), num_chains=2)
    for number, kept in ((0, slice(0, 3)), (1, slice(3, 6))):
        chain = draws.chain(number)
        assert (len(chain), chain.num_chains) == (3, 1)
        for name, values in draws.values.items():
            assert torch.equal(chain.values[name], values[kept])
        for name, values in draws.quantities.items():
            assert torch.equal(chain.quantities[name], values[kept])
    with pytest.raises(ArgumentError, match="expected a chain from 0 to 1, got 2"):
        draws.chain(2)
