"""fit() and posterior(): the checks before, the results, and agreement with the engine and with dense algebra."""

from __future__ import annotations

import io
import warnings
from dataclasses import FrozenInstanceError
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console
from torch import nn

import calmrl_prob as cal
from calmrl_prob._support.progress import progress_bar
from calmrl_prob.data import MultimodalData
from calmrl_prob.errors import (
    ArgumentError,
    ArgumentTypeError,
    ConvergenceWarning,
    DataError,
    IdentifiabilityWarning,
    ModelError,
    SchemaError,
    UnfittedWarning,
)
from calmrl_prob.evaluation import retrieve
from calmrl_prob.inference import METHODS, as_linear_gaussian, fit, posterior
from calmrl_prob.inference.methods import most_steps
from calmrl_prob.linear_gaussian import SufficientStatistics, log_marginal
from calmrl_prob.model import SharedLatentModel
from models.calmrl import CalMRL
from models.factor_analysis import FactorAnalysis
from tests.cases.model_cases import DIMS, observed_row, random_data, random_model, random_prior


def generated_data(num_instances: int = 300, seed: int = 0) -> MultimodalData:
    """Data drawn from a model of ``DIMS`` with 2 latents, about a third of the modalities missing."""
    lg = random_model("diagonal").linear_gaussian().detach()
    _, features = lg.sample(num_instances, torch.Generator().manual_seed(seed))
    return MultimodalData(features, observed_mask=random_data(num_instances, seed).observed_mask)


# ---- fit ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("noise", ["isotropic", "diagonal"])
def test_fit_reports_the_likelihood_of_what_it_leaves_in_the_model(noise: str) -> None:
    data, model = generated_data(), SharedLatentModel(DIMS, latent_dim=2, noise=noise)
    result = fit(model, data)
    assert result.converged
    assert result.model is model
    assert result.log_likelihood.dtype == np.float64
    assert (np.diff(result.log_likelihood) >= -1e-9 * abs(result.log_likelihood[-1])).all()
    total = log_marginal(model.linear_gaussian().detach(), data.blocks).sum()
    assert result.log_likelihood[-1] == pytest.approx(float(total), rel=1e-10)


def test_fit_is_a_stationary_point_of_the_exact_likelihood() -> None:
    data, model = generated_data(), SharedLatentModel(DIMS, latent_dim=2)
    fit(model, data, tolerance=1e-12, max_iterations=5_000)
    loss = log_marginal(model.linear_gaussian(), data.blocks).mean()
    for gradient in torch.autograd.grad(loss, list(model.parameters())):
        assert float(gradient.abs().max()) < 1e-4


def test_fit_beats_the_truth_on_its_own_data_and_nearly_matches_it_on_new_rows() -> None:
    train, test = generated_data(600, seed=1), generated_data(600, seed=2)
    truth = random_model("diagonal").linear_gaussian().detach()
    model = SharedLatentModel(DIMS, latent_dim=2, noise="diagonal")
    fit(model, train)
    fitted = model.linear_gaussian().detach()
    assert float((log_marginal(fitted, train.blocks) - log_marginal(truth, train.blocks)).sum()) > 0
    # on new rows a fit loses about (number of parameters) / (2 N) nats a row
    lost = log_marginal(truth, test.blocks) - log_marginal(fitted, test.blocks)
    expected = model.num_parameters / (2 * len(train))
    assert abs(float(lost.mean()) - expected) < 6 * float(lost.std()) / len(test) ** 0.5 + expected


def test_fit_keeps_the_prior_and_loses_nothing_by_it() -> None:
    data, prior = generated_data(), random_prior(2)
    standard, moved = SharedLatentModel(DIMS, 2), SharedLatentModel(DIMS, 2, prior=prior)
    fit(standard, data)
    fit(moved, data)
    assert torch.equal(moved.linear_gaussian().prior_covariance, prior.covariance)
    mine, theirs = (log_marginal(m.linear_gaussian().detach(), data.blocks) for m in (moved, standard))
    torch.testing.assert_close(mine, theirs, rtol=1e-8, atol=1e-8)


def test_same_seed_same_fit() -> None:
    data = generated_data()
    models = [SharedLatentModel(DIMS, 2, seed=start) for start in (0, 1)]  # their own start does not matter to EM
    for model in models:
        fit(model, data, seed=4)
    for mine, theirs in zip(*(model.linear_gaussian().joint() for model in models), strict=True):
        assert torch.equal(mine, theirs)


def test_fit_takes_modalities_in_any_order() -> None:
    data, model = generated_data(), SharedLatentModel(DIMS, 2)
    shuffled = SharedLatentModel(DIMS, 2)
    first = fit(model, data)
    second = fit(shuffled, data.select(["audio", "image", "text"]))
    assert second.log_likelihood[-1] == pytest.approx(first.log_likelihood[-1], rel=1e-9)


@pytest.mark.parametrize(("template", "noise"), [(CalMRL, "isotropic"), (FactorAnalysis, "diagonal")])
def test_hand_written_models_fit_as_the_library_model_does(template: type[nn.Module], noise: str) -> None:
    data, model, reference = generated_data(), template(DIMS, latent_dim=2), SharedLatentModel(DIMS, 2, noise)
    assert fit(model, data).log_likelihood[-1] == pytest.approx(fit(reference, data).log_likelihood[-1], rel=1e-12)
    torch.testing.assert_close(posterior(model, data).mean, posterior(reference, data).mean, rtol=1e-9, atol=1e-9)


def test_float32_data_fit_nearly_as_well() -> None:
    data = generated_data()
    double, single = SharedLatentModel(DIMS, 2), SharedLatentModel(DIMS, 2)
    fit(double, data)
    fit(single, data.to(torch.float32))
    mine, theirs = (log_marginal(m.linear_gaussian().detach(), data.blocks).mean() for m in (single, double))
    assert float(mine) == pytest.approx(float(theirs), rel=1e-4)


def test_result_reads_well_and_cannot_be_changed() -> None:
    result = fit(SharedLatentModel(DIMS, 2), generated_data(), seed=3, tolerance=1e-5)
    assert repr(result).startswith("FitResult: em(seed=3, tolerance=1e-05), converged in ")
    assert "per instance" in repr(result)
    assert (result.method, result.seed, dict(result.options)) == ("em", 3, {"tolerance": 1e-5})
    assert result.seconds > 0
    with pytest.raises(FrozenInstanceError):
        result.seed = 1


def test_progress_bar_shows_iterations_and_evidence() -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=100)
    with progress_bar("em", 10, console) as report:
        report(3, -1234.5)
    shown = console.file.getvalue()
    assert "3/10" in shown
    assert "-1,234.50" in shown
    assert "left" in shown


@pytest.mark.parametrize(
    ("method", "options", "total"),
    [
        ("nuts", {"num_draws": 10, "num_chains": 2}, 2 * (10 + 500)),
        ("collapsed svi", {}, 2000),
        ("map", {"max_iterations": 7}, 7),
        ("nuts", {"num_draws": "many"}, None),
    ],
)
def test_the_progress_bar_knows_how_far_it_is(method: str, options: dict[str, Any], total: int | None) -> None:
    assert most_steps(next(known for known in METHODS if known.name == method), options) == total


def test_progress_goes_to_standard_error_only_when_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    fit(SharedLatentModel(DIMS, 2), generated_data())
    assert capsys.readouterr() == ("", "")
    fit(SharedLatentModel(DIMS, 2), generated_data(), progress=True)
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "log likelihood" in shown.err


def test_stopping_early_warns() -> None:
    model = SharedLatentModel(DIMS, 2)
    with pytest.warns(ConvergenceWarning, match="Raise max_iterations"):
        result = fit(model, generated_data(), max_iterations=2)
    assert not result.converged
    assert "NOT" in repr(result)


def test_modalities_that_never_meet_warn() -> None:
    data = generated_data(40)
    apart = torch.zeros(40, 3, dtype=torch.bool)
    apart[:20, 0], apart[20:, 1], apart[20:, 2] = True, True, True
    full = {name: torch.randn(40, width, dtype=torch.float64) for name, width in data.dims.items()}
    with pytest.warns(IdentifiabilityWarning, match="'image'; 'text', 'audio'"):
        fit(SharedLatentModel(DIMS, 1), MultimodalData(full, observed_mask=apart))


X = torch.randn(6, 3, generator=torch.Generator().manual_seed(0)).double()
CONSTANT = torch.cat([X[:, :2], torch.ones(6, 1)], dim=1)
HALF_CONSTANT = torch.where(torch.arange(6)[:, None] < 2, torch.nan, torch.ones(6, 2).double())


@pytest.mark.parametrize(
    ("arrays", "model", "options", "error", "message"),
    [
        (
            {"x": X},
            {"latent_dim": 1},
            {"method": "magic"},
            ArgumentError,
            r"method: expected one of \['auto'.*'magic'",
        ),
        ({"x": X}, {"latent_dim": 1}, {"steps": 3}, ArgumentError, "no option 'steps'; it has .*max_iterations"),
        ({"x": X}, {"latent_dim": 3}, {}, ArgumentError, "latent_dim: 3 latents .*the largest that they can is 2"),
        ({"x": X[:2]}, {"latent_dim": 2}, {}, ArgumentError, "2 latents are more than 2 instances.*is 1"),
        ({"x": X[:1]}, {"latent_dim": 1}, {}, DataError, "at least 2 instances, got 1"),
        ({"x": X[:, :2]}, {"latent_dim": 1}, {}, SchemaError, "'x': expected 3 features, got 2"),
        ({"x": X, "y": X}, {"latent_dim": 1}, {}, SchemaError, "y"),
        ({"x": torch.ones(6, 3)}, {"latent_dim": 1}, {}, DataError, "modality 'x': all of the 6 rows .* the same"),
        (
            {"x": CONSTANT},
            {"latent_dim": 1, "noise": "diagonal"},
            {},
            DataError,
            "'x': feature 2 is constant",
        ),
    ],
)
def test_what_cannot_be_fitted_is_refused_and_the_model_left_alone(
    arrays: dict[str, torch.Tensor],
    model: dict[str, Any],
    options: dict[str, Any],
    error: type[Exception],
    message: str,
) -> None:
    made = SharedLatentModel({"x": 3}, **model)
    before = {key: value.clone() for key, value in made.state_dict().items()}
    with pytest.raises(error, match=message):
        fit(made, MultimodalData(arrays), **options)
    assert all(torch.equal(before[key], value) for key, value in made.state_dict().items())


def test_constant_features_are_fine_under_isotropic_noise() -> None:
    assert fit(SharedLatentModel({"x": 3}, 1), MultimodalData({"x": CONSTANT})).converged


def test_constant_rows_are_found_behind_missing_ones() -> None:
    data = MultimodalData({"x": X, "y": HALF_CONSTANT})
    with pytest.raises(DataError, match=r"modality 'y': all of the \d+ rows .* the same"):
        fit(SharedLatentModel(data.dims, 1), data)


def test_a_modality_of_one_instance_is_refused_as_such() -> None:
    once = X.clone()
    once[1:] = torch.nan
    data = MultimodalData({"x": X, "y": once})
    with pytest.raises(DataError, match="modality 'y': only 1 instance has it"):
        fit(SharedLatentModel(data.dims, 1), data)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"tolerance": "x"}, ArgumentTypeError, "tolerance: expected a number, got 'x'"),
        ({"tolerance": -1.0}, ArgumentError, "tolerance: expected at least 0"),
        ({"noise_pseudo_count": "x"}, ArgumentTypeError, "noise_pseudo_count: expected a number, got 'x'"),
        ({"noise_floor": None}, ArgumentTypeError, "noise_floor: expected a number, got None"),
        ({"max_iterations": "x", "progress": True}, ArgumentTypeError, "max_iterations: expected a whole number"),
        ({"max_iterations": 2.5}, ArgumentTypeError, r"max_iterations: .*got 2\.5"),
        ({"anderson_memory": -1}, ArgumentError, "anderson_memory: .*got -1"),
        ({"seed": "x"}, ArgumentTypeError, "seed: expected a whole number.*got 'x'"),
        ({"seed": None}, ArgumentTypeError, "seed: .*got None"),
        ({"seed": -1}, ArgumentError, "seed: .*got -1"),
        ({"method": ["em"]}, ArgumentError, r"method: .*got \['em'\]"),
        ({"start": "spectral"}, ArgumentTypeError, "start: expected a LinearGaussian or a model.*got 'spectral'"),
        ({"start": SharedLatentModel}, ArgumentTypeError, "start: .*got the class SharedLatentModel itself"),
        ({"prior_mean": "x"}, ArgumentTypeError, "prior_mean: expected numbers"),
        ({"prior_mean": torch.zeros(3)}, ArgumentError, r"prior_mean: expected shape \(1,\), got \(3,\)"),
        ({"prior_covariance": -torch.eye(1)}, ArgumentError, "prior_covariance: expected a symmetric positive"),
    ],
)
def test_bad_options_are_refused(options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        fit(SharedLatentModel({"x": 3}, 1), MultimodalData({"x": X}), **options)


def test_a_fit_starts_from_a_model_as_from_its_linear_gaussian_form() -> None:
    data, start = generated_data(100), random_model("diagonal")
    lg = start.linear_gaussian().detach()
    fits = []
    for given in (start, lg):
        model = SharedLatentModel(DIMS, 2, "diagonal")
        with pytest.warns(ConvergenceWarning):
            fits.append(fit(model, data, start=given, max_iterations=3).log_likelihood)
    assert np.array_equal(*fits)
    assert fits[0][0] == pytest.approx(float(log_marginal(lg, data.blocks).sum()), rel=1e-9)


def test_a_prior_may_be_given_in_single_precision() -> None:
    data = MultimodalData({"x": X})
    prior = {"prior_mean": torch.ones(1), "prior_covariance": 2 * torch.eye(1)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        with_prior = fit(SharedLatentModel(data.dims, 1), data, max_iterations=5, **prior)
        without = fit(SharedLatentModel(data.dims, 1), data, max_iterations=5)
    np.testing.assert_allclose(with_prior.log_likelihood, without.log_likelihood, rtol=1e-9)


def test_a_model_that_was_not_fitted_says_so() -> None:
    data, model = generated_data(20), SharedLatentModel(DIMS, 2)
    with pytest.warns(UnfittedWarning, match=r"random loadings.*calmrl_prob\.fit") as caught:
        posterior(model, data)
    assert [warning.filename for warning in caught] == [__file__]
    with pytest.warns(UnfittedWarning) as caught:
        retrieve(model, *(MultimodalData({name: torch.ones(3, DIMS[name])}) for name in ("image", "text")))
    assert {warning.filename for warning in caught} == {__file__}
    model.load_linear_gaussian(random_model().linear_gaussian())
    posterior(model, data)  # warnings are errors here


def test_wrong_types_are_refused() -> None:
    with pytest.raises(ArgumentTypeError, match=r"model: .*got the class SharedLatentModel itself"):
        fit(SharedLatentModel, generated_data(5))
    with pytest.raises(ArgumentTypeError, match=r"model: .*got the class SharedLatentModel itself"):
        posterior(SharedLatentModel, generated_data(5))
    with pytest.raises(ArgumentTypeError, match=r"model: .*got 3"):
        fit(3, random_data())
    with pytest.raises(ArgumentTypeError, match=r"method 'em' needs dims.*Linear lacks"):
        fit(nn.Linear(2, 2), random_data(), method="em")
    with pytest.raises(ModelError, match="raised TypeError when called"):
        fit(nn.Linear(2, 2), random_data())
    with pytest.raises(ArgumentTypeError, match="data: expected MultimodalData or SufficientStatistics, got dict"):
        fit(random_model(), {"image": X})


@pytest.mark.parametrize("method", ["em", "gradient"])
def test_every_method_raises_the_likelihood(method: str) -> None:
    data, model = generated_data(100), SharedLatentModel(DIMS, 2)
    before = log_marginal(model.linear_gaussian().detach(), data.blocks).sum()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        result = fit(model, data, method)
    after = log_marginal(model.linear_gaussian().detach(), data.blocks).sum()
    assert float(after) > float(before) + 1
    assert result.num_iterations >= 1


def test_streamed_statistics_fit_as_the_rows_do() -> None:
    """Data in chunks, then a fit from their sums: the model that the rows together give."""
    data = generated_data(200)
    rows, sums = SharedLatentModel(DIMS, 2), SharedLatentModel(DIMS, 2)
    fit(rows, data, tolerance=1e-10)
    statistics = SufficientStatistics(DIMS)
    for start in range(0, 200, 64):
        statistics.update(data.subset(slice(start, start + 64)).blocks)
    result = fit(sums, statistics, tolerance=1e-10)
    assert result.form == "statistics"
    assert result.num_instances == 200
    evidence = [float(log_marginal(m.linear_gaussian().detach(), data.blocks).sum()) for m in (rows, sums)]
    assert evidence[1] == pytest.approx(evidence[0], rel=1e-8)
    with pytest.raises(SchemaError, match="expected statistics of"):
        fit(SharedLatentModel({"other": 3}, 1), statistics)
    with pytest.raises(DataError, match="at least 2 instances"):
        fit(sums, SufficientStatistics(DIMS))


# ---- posterior ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("noise", ["isotropic", "diagonal"])
def test_posterior_is_that_of_dense_conditioning(noise: str) -> None:
    model, data = random_model(noise, random_prior(2)), random_data(14)
    result, lg = posterior(model, data), model.linear_gaussian().detach()
    assert result.route == "exact"
    for row in range(len(data)):
        seen = observed_row(data, row)
        mean, covariance = lg.joint(list(seen))
        values = torch.cat(list(seen.values()))
        loadings = torch.cat([lg.loadings[name] for name in seen])
        gain = torch.linalg.solve(covariance, loadings @ lg.prior_covariance).mT
        expected = lg.prior_mean + gain @ (values - mean)
        torch.testing.assert_close(result.mean[row], expected, rtol=1e-9, atol=1e-9)
        rest = lg.prior_covariance - gain @ loadings @ lg.prior_covariance
        torch.testing.assert_close(result.covariance[row], rest, rtol=1e-9, atol=1e-9)
        dense = torch.distributions.MultivariateNormal(mean, covariance).log_prob(values)
        torch.testing.assert_close(result.log_marginal[row], dense, rtol=1e-9, atol=1e-9)


def test_posterior_draws_have_its_moments_and_repeat() -> None:
    result = posterior(random_model(prior=random_prior(2)), random_data(4))
    num_draws = 20_000
    draws = result.sample(num_draws, seed=1)
    assert draws.shape == (num_draws, 4, 2)
    assert torch.equal(draws, result.sample(num_draws, seed=1))
    for row in range(4):
        covariance = result.covariance[row]
        variance = covariance.diagonal()
        error = ((torch.outer(variance, variance) + covariance.square()) / num_draws).sqrt()
        assert bool(((draws[:, row].mean(0) - result.mean[row]).abs() < 6 * (variance / num_draws).sqrt()).all())
        assert bool(((torch.cov(draws[:, row].mT) - covariance).abs() < 6 * error).all())


def test_posterior_takes_any_model_that_states_its_form() -> None:
    model, data = random_model(), random_data()
    expected = posterior(model, data).mean
    assert torch.equal(posterior(model.linear_gaussian(), data).mean, expected)
    template = CalMRL(DIMS, 2)
    template.load_linear_gaussian(model.linear_gaussian())
    torch.testing.assert_close(posterior(template, data).mean, expected, rtol=1e-12, atol=1e-12)
    assert not expected.requires_grad
    assert not as_linear_gaussian(model).loadings["image"].requires_grad


def test_data_may_lack_modalities_but_not_bring_unknown_ones() -> None:
    model, data = random_model(), random_data().subset([0]).select(["image"])
    alone = posterior(model.linear_gaussian().select(["image"]), data)
    torch.testing.assert_close(posterior(model, data).mean, alone.mean, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(posterior(model, data).log_marginal, alone.log_marginal, rtol=1e-12, atol=1e-12)
    with pytest.raises(SchemaError, match="'video' is unknown"):
        posterior(model, MultimodalData({"video": X}))
    with pytest.raises(ArgumentTypeError, match="linear_gaussian"):
        posterior(3, data)
    with pytest.raises(ArgumentError, match=r"num_draws.*got 0"):
        posterior(model, data).sample(0)


@pytest.mark.parametrize("seed", ["a", -1, 1.5, 2**63])
def test_every_route_checks_its_seed(seed: Any) -> None:  # noqa: ANN401 - what no seed is
    model, data = random_model(), random_data(20)
    for call in (cal.posterior, cal.impute, lambda m, d, seed: cal.retrieve(m, d, d, seed=seed)):
        with pytest.raises((ArgumentError, ArgumentTypeError), match=r"^seed: expected a whole number"):
            call(model, data, seed=seed)


def test_every_route_of_retrieval_checks_what_only_some_use() -> None:
    model, data = random_model(), random_data(20)
    with pytest.raises(ArgumentError, match=r"^method: expected one of"):
        cal.retrieve(model, data, data, method="nonsense")
    with pytest.raises(ArgumentTypeError, match=r"^num_draws: expected a whole number"):
        cal.retrieve(model, data, data, num_draws="x")  # type: ignore[arg-type]
