"""Latents and predictions over draws of the parameters: moments, alignment, mixtures, and memory by chunks."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

import calmrl_prob as cal
from calmrl_prob.errors import ArgumentError
from calmrl_prob.inference import MixturePredictive, ParameterDraws
from calmrl_prob.inference.parameters.parameter_draws import procrustes
from calmrl_prob.linear_gaussian import LinearGaussian, log_marginal
from calmrl_prob.posteriors.gaussian import GaussianPosterior
from calmrl_prob.posteriors.quantiles import mixture_quantile
from calmrl_prob.programs.bound import BoundModel
from tests.cases.collapsed_cases import (
    CASES,
    Model,
    covariate_data,
    exact_intercepts,
    factor_model,
    intercepts_alone,
    known_loadings,
)
from tests.cases.linear_gaussian_cases import random_model
from tests.cases.model_cases import DIMS, random_data

every_case = pytest.mark.parametrize("name", CASES)


def prior_draws(build: Model, data: cal.MultimodalData, count: int) -> ParameterDraws:
    """Draws of the global latents from their prior: as good as any to average over."""
    model = cal.marginalize(build, data)
    return ParameterDraws(model.bound, model.values(torch.stack([model.draw(s) for s in range(count)])), "prior")


def given_each(build: Model, data: cal.MultimodalData, draws: ParameterDraws) -> list[cal.PosteriorResult]:
    """The exact posteriors one by one, by the public route."""
    found = []
    for s in range(len(draws)):
        bound = BoundModel(build)
        bound.values = draws.at(s)
        found.append(cal.posterior(bound, data))
    return found


@every_case
def test_predictions_are_mixtures_over_the_draws(name: str) -> None:
    """Moments by the law of total variance, log densities and quantiles of the mixture, for every form."""
    build, data = CASES[name][0], covariate_data()
    draws = prior_draws(build, data, 5)
    ours, each = draws.posterior(data), given_each(build, data, draws)
    assert ours.route == "prior"
    assert ours.num_draws == 5
    evidence = torch.stack([part.log_marginal for part in each])
    torch.testing.assert_close(ours.log_marginal, evidence.logsumexp(0) - math.log(5))
    for modality in DIMS:
        predictive, parts = ours.predictive(modality), [part.predictive(modality) for part in each]
        means = torch.stack([part.mean for part in parts])
        torch.testing.assert_close(predictive.mean, means.mean(0))
        torch.testing.assert_close(predictive.parameter_variance, means.var(0, correction=0))
        latent = torch.stack([part.latent_variance for part in parts]).mean(0)
        torch.testing.assert_close(predictive.latent_variance, latent)
        noise = torch.stack([part.noise_variance.expand_as(latent) for part in parts]).mean(0)
        torch.testing.assert_close(predictive.noise_variance, noise)
        at = data.filled(modality)
        density = torch.stack([part.log_density(at) for part in parts]).logsumexp(0) - math.log(5)
        torch.testing.assert_close(predictive.log_density(at), density)
        if CASES[name][1] != "exact mixture":
            mixture = MixturePredictive(
                torch.full((5, len(data)), -math.log(5), dtype=torch.float64),
                means,
                torch.stack([part.latent_variance for part in parts]),
                torch.stack([part.noise_variance.expand_as(latent) for part in parts]),
                between="parameter",
            )
            torch.testing.assert_close(predictive.quantile(0.1), mixture.quantile(0.1), rtol=1e-6, atol=1e-6)


def test_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    for build in (factor_model(), CASES["groups"][0], CASES["regression"][0]):
        data = covariate_data()
        draws = prior_draws(build, data, 4)
        whole = draws.posterior(data)
        expected = whole.predictive("text").quantile(0.9)
        monkeypatch.setattr("calmrl_prob.posteriors.draws_predictive._CHUNK_BUDGET", 30)
        monkeypatch.setattr("calmrl_prob.inference.parameters.parameter_draws._KEEP_BUDGET", 0)
        chunked = draws.posterior(data)
        torch.testing.assert_close(chunked.predictive("text").quantile(0.9), expected)
        torch.testing.assert_close(chunked.mean, whole.mean)
        assert not chunked._kept
        monkeypatch.undo()


def test_parameter_variance_is_that_of_the_exact_posterior() -> None:
    """Draws of intercepts from their exact posterior; the prediction is linear in them, so its variance is known."""
    data = random_data(12)
    mean, covariance = exact_intercepts(data)
    generator = torch.Generator().manual_seed(0)
    count = 400
    noise = torch.randn(count, len(mean), generator=generator, dtype=torch.float64)
    stacked = mean + noise @ torch.linalg.cholesky(covariance).mT
    widths = list(DIMS.values())
    values = {f"mu_{name}": part for name, part in zip(DIMS, stacked.split(widths, dim=1), strict=True)}
    draws = ParameterDraws(BoundModel(intercepts_alone), values, "exact")
    result = draws.posterior(data, num_draws=count)
    row = 1
    names = [name for name in DIMS if bool(data.observed(name)[row])]
    loadings = known_loadings()
    inside = torch.cat([torch.full((w,), name in names) for name, w in DIMS.items()])
    have = torch.cat([loadings[name] for name in names])
    inner = have @ have.mT + 0.49 * torch.eye(len(have), dtype=torch.float64)
    everything = torch.cat(list(loadings.values()))
    gain = torch.linalg.solve(inner, have @ everything.mT).mT  # of x on all features
    slope = torch.eye(len(mean), dtype=torch.float64)
    slope[:, inside] -= gain
    exact = (slope @ covariance @ slope.mT).diagonal()
    found = torch.cat([result.predictive(name).parameter_variance[row] for name in DIMS])
    assert float((found / exact - 1).abs().max()) < 6 * (2 / count) ** 0.5
    imputed = cal.impute(result, data)
    assert imputed.parameter_variance is not None
    total = imputed.latent_variance["text"] + imputed.noise_variance["text"] + imputed.parameter_variance["text"]
    torch.testing.assert_close(imputed.variance["text"], total)


def test_rotated_draws_agree_once_aligned() -> None:
    """The same model in several rotations: the average is each one's own posterior, nothing is between them."""
    data = random_data(15)
    build = factor_model()
    model = cal.marginalize(build, data)
    values = model.values(model.draw(0))
    generator = torch.Generator().manual_seed(0)
    turns = [torch.linalg.qr(torch.randn(2, 2, generator=generator, dtype=torch.float64)).Q for _ in range(6)]
    turned = {
        name: torch.stack([value @ turn if name.startswith("w_") else value for turn in turns])
        for name, value in values.items()
    }
    draws = ParameterDraws(model.bound, turned, "rotations", reference=3)
    result = draws.posterior(data)
    single = given_each(build, data, draws)[3]
    torch.testing.assert_close(result.mean, single.mean)
    torch.testing.assert_close(result.covariance, single.covariance)
    assert float(result.predictive("image").parameter_variance.max()) < 1e-20
    naive = torch.stack([part.mean for part in given_each(build, data, draws)]).mean(0)
    assert float((naive - single.mean).abs().max()) > 0.1
    sampled = result.sample(3000, seed=1)
    standard = (sampled.mean(0) - single.mean) / single.covariance.diagonal(dim1=1, dim2=2).sqrt()
    assert float(standard.abs().max()) < 6 / 3000**0.5


def test_the_density_of_the_latents_is_the_mixture_over_draws_in_one_set_of_axes() -> None:
    """Its integral is 1, and its value for one draw is that of the exact posterior."""
    data = random_data(3)
    draws = prior_draws(factor_model(1), data, 3)
    result = draws.posterior(data)
    grid = torch.linspace(-12, 12, 2001, dtype=torch.float64)
    density = torch.stack([result.log_density(z.expand(3, 1)).exp() for z in grid])
    torch.testing.assert_close(torch.trapezoid(density, grid, dim=0), torch.ones(3).double(), rtol=1e-6, atol=0)
    mean = torch.trapezoid(density * grid[:, None], grid, dim=0)
    torch.testing.assert_close(mean, result.mean[:, 0], rtol=1e-5, atol=1e-6)


def test_alignment_keeps_every_density_under_any_normal_prior() -> None:
    goal, start = (random_model(DIMS, 3, seed=seed) for seed in (1, 2))
    found = procrustes(start, goal, 3)
    inverse = torch.linalg.inv(found.matrix)
    moved = LinearGaussian(
        {name: part @ inverse for name, part in start.loadings.items()},
        {name: start.intercepts[name] - start.loadings[name] @ inverse @ found.offset for name in DIMS},
        start.noise_variance,
        found.latents(start.prior_mean),
        found.covariances(start.prior_covariance),
    )
    torch.testing.assert_close(moved.prior_mean, goal.prior_mean)
    torch.testing.assert_close(moved.prior_covariance, goal.prior_covariance)
    data = random_data(20)
    torch.testing.assert_close(log_marginal(moved, data.blocks), log_marginal(start, data.blocks))
    torch.testing.assert_close(procrustes(goal, goal, 3).matrix, torch.eye(3, dtype=torch.float64), rtol=0, atol=1e-10)


def test_draws_are_spread_evenly_over_the_parameters_and_go_with_their_latents() -> None:
    data = random_data(8)
    draws = prior_draws(factor_model(), data, 3)
    result = draws.posterior(data)
    generator = torch.Generator().manual_seed(0)
    found = list(result.draws(7, generator, ["image"]))
    assert len(found) == 7
    noises = torch.stack([draw.noise_variance["image"][0] for draw in found])
    counts = sorted(int((noises == value).sum()) for value in noises.unique())
    assert counts == [2, 2, 3]
    again = list(result.draws(7, torch.Generator().manual_seed(0), ["image"]))
    assert torch.equal(found[4].latents, again[4].latents)
    many = list(result.draws(3000, generator, ["image"]))
    location = torch.stack([draw.location["image"] for draw in many])
    predictive = result.predictive("image")
    variance = predictive.latent_variance + predictive.parameter_variance
    assert float(((location.mean(0) - predictive.mean) / variance.sqrt()).abs().max()) < 6 / 3000**0.5
    latents = torch.stack([draw.latents for draw in many])
    scale = result.covariance.diagonal(dim1=1, dim2=2).sqrt()
    assert float(((latents.mean(0) - result.mean) / scale).abs().max()) < 6 / 3000**0.5


def test_new_instances_and_fewer_draws() -> None:
    data, others = random_data(10), random_data(4, seed=9)
    draws = prior_draws(factor_model(), data, 9)
    result = draws.posterior(others, num_draws=4)
    assert result.num_draws == 4
    assert tuple(result.mean.shape) == (4, 2)
    assert isinstance(result.given(0), GaussianPosterior)
    assert repr(draws).startswith("ParameterDraws(9 draws by prior")
    with pytest.raises(ArgumentError, match="num_draws"):
        draws.posterior(data, num_draws=0)
    with pytest.raises(ArgumentError, match="options"):
        draws.posterior(data, thin=2)


@pytest.mark.parametrize("probability", [1e-4, 0.05, 0.5, 0.999])
def test_quantiles_of_mixtures(probability: float) -> None:
    """Modes far apart, of very different widths: where Newton's step alone would fly off."""
    location = torch.tensor([-50.0, 0.0, 0.1, 30.0, 31.0], dtype=torch.float64)[:, None]
    scale = torch.tensor([0.01, 2.0, 0.1, 5.0, 0.02], dtype=torch.float64)[:, None]
    found = mixture_quantile(location, scale, probability)
    below: Tensor = torch.special.ndtr((found - location) / scale).mean(0)
    assert float(below) == pytest.approx(probability, rel=1e-6)
