"""Imputation against dense conditioning of the joint normal, and against its own draws."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats

import calmrl_prob as cal
from calmrl_prob.data import MultimodalData
from calmrl_prob.datasets import make_synthetic
from calmrl_prob.errors import ArgumentError, ArgumentTypeError, NotConjugateError, SchemaError, UnfittedWarning
from calmrl_prob.imputation import impute
from calmrl_prob.inference import posterior
from calmrl_prob.inference.fingerprint import fingerprint
from calmrl_prob.model import SharedLatentModel
from calmrl_prob.priors import StudentTPrior
from tests.cases.model_cases import (
    DIMS,
    data_with_single_features_missing,
    dense_conditional,
    observed_row,
    random_data,
    random_model,
    random_prior,
)

PARTS = ("mean", "completed", "latent_variance", "noise_variance", "variance")


@pytest.mark.parametrize("noise", ["isotropic", "diagonal"])
def test_mean_and_variance_are_those_of_dense_conditioning(noise: str) -> None:
    model, data = random_model(noise, random_prior(2)), random_data(14)
    lg = model.linear_gaussian().detach()
    result = impute(model, data)
    for row in range(len(data)):
        for name in DIMS:
            mean, covariance = dense_conditional(lg, observed_row(data, row), name)
            torch.testing.assert_close(result.mean[name][row], mean, rtol=1e-9, atol=1e-9)
            torch.testing.assert_close(result.variance[name][row], covariance.diagonal(), rtol=1e-9, atol=1e-9)


def test_variance_is_the_sum_of_its_parts_and_noise_is_the_models() -> None:
    model, data = random_model("diagonal"), random_data()
    result = impute(model, data)
    for name in DIMS:
        total = result.latent_variance[name] + result.noise_variance[name]
        assert torch.equal(result.variance[name], total)
        assert torch.equal(result.noise_variance[name], model.linear_gaussian().noise_variance[name].detach())
    assert result.parameter_variance is None


def test_completed_keeps_what_was_observed_and_fills_in_the_rest() -> None:
    data = random_data()
    result = impute(random_model(), data)
    for m, name in enumerate(DIMS):
        present = data.observed(name)
        assert bool((~present).any())
        assert torch.equal(result.completed[name][present], data[name][present])
        assert torch.equal(result.completed[name][~present], result.mean[name][~present])
        assert torch.equal(result.observed_mask[:, m], present)


def test_single_missing_features_are_imputed_from_the_rest_of_their_row() -> None:
    model, data = random_model("diagonal", random_prior(2)), data_with_single_features_missing()
    result, lg = impute(model, data), model.linear_gaussian().detach()
    row = int((data.feature_mask("image").sum(dim=1) == 3).nonzero()[0])
    seen = torch.cat([data[name][row] for name in DIMS])
    known = ~seen.isnan()
    mean, covariance = lg.joint()
    gain = torch.linalg.solve(covariance[known][:, known], covariance[known][:, ~known]).mT
    expected = mean[~known] + gain @ (seen[known] - mean[known])
    found = torch.cat([result.completed[name][row] for name in DIMS])
    torch.testing.assert_close(found[~known], expected, rtol=1e-9, atol=1e-9)
    assert torch.equal(found[known], seen[known])
    variance = covariance[~known][:, ~known] - gain @ covariance[known][:, ~known]
    spread = torch.cat([result.variance[name][row] for name in DIMS])
    torch.testing.assert_close(spread[~known], variance.diagonal(), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_everything_comes_in_the_type_of_the_data(dtype: torch.dtype) -> None:
    data = random_data().to(dtype)
    result = impute(random_model(), data)
    for part in PARTS:
        for name in DIMS:
            assert getattr(result, part)[name].dtype == dtype
    lower, upper = result.interval()["text"]
    assert (lower.dtype, upper.dtype, result.sample(2)["text"].dtype) == (dtype, dtype, dtype)
    exact = impute(random_model(), random_data())
    torch.testing.assert_close(result.mean["text"].double(), exact.mean["text"], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("level", [0.5, 0.9])
def test_intervals_are_the_normal_quantiles(level: float) -> None:
    result = impute(random_model(), random_data())
    lower, upper = result.interval(level)["audio"]
    normal = stats.norm(result.mean["audio"].numpy(), result.variance["audio"].sqrt().numpy())
    np.testing.assert_allclose(lower.numpy(), normal.ppf((1 - level) / 2), rtol=1e-9)
    np.testing.assert_allclose(upper.numpy(), normal.ppf((1 + level) / 2), rtol=1e-9)


def test_intervals_cover_as_often_as_they_say() -> None:
    lg = random_model("diagonal", random_prior(2)).linear_gaussian().detach()
    num_instances = 4_000
    _, features = lg.sample(num_instances, torch.Generator().manual_seed(0))
    data = MultimodalData({name: features[name] for name in ("image", "text")})
    lower, upper = impute(lg, data).interval(0.9)["audio"]
    covered = ((lower <= features["audio"]) & (features["audio"] <= upper)).double().mean(dim=0)
    assert bool(((covered - 0.9).abs() < 6 * (0.09 / num_instances) ** 0.5).all())


def test_draws_are_joint_over_modalities() -> None:
    lg = random_model("isotropic", random_prior(2)).linear_gaussian().detach()
    data = random_data(3).subset([0]).select(["image"])
    result = impute(lg, data)
    num_draws = 20_000
    draws = result.sample(num_draws, seed=1)
    stacked = torch.cat([draws["text"][:, 0], draws["audio"][:, 0]], dim=1)
    loadings = torch.cat([lg.loadings["text"], lg.loadings["audio"]])
    noise = torch.cat([lg.noise_variance["text"], lg.noise_variance["audio"]])
    expected = loadings @ result.posterior.covariance[0] @ loadings.mT + noise.diag()
    mean = torch.cat([result.mean["text"][0], result.mean["audio"][0]])
    variance = expected.diagonal()
    error = ((torch.outer(variance, variance) + expected.square()) / num_draws).sqrt()
    assert bool(((torch.cov(stacked.mT) - expected).abs() < 6 * error).all())
    assert bool(((stacked.mean(0) - mean).abs() < 6 * (variance / num_draws).sqrt()).all())
    # and the two modalities are so strongly related that independent draws would have failed
    assert bool((expected[:3, 3:].abs() > 12 * error[:3, 3:]).any())


def test_draws_repeat_with_the_seed_and_keep_the_observed_when_asked() -> None:
    data = random_data()
    result = impute(random_model(), data)
    first, again, other = result.sample(3, seed=0), result.sample(3, seed=0), result.sample(3, seed=1)
    kept = result.sample(3, seed=0, keep_observed=True)
    for name in DIMS:
        present = data.observed(name)
        assert first[name].shape == (3, len(data), DIMS[name])
        assert torch.equal(first[name], again[name])
        assert not torch.equal(first[name], other[name])
        assert torch.equal(kept[name][:, ~present], first[name][:, ~present])
        assert torch.equal(kept[name][:, present], data[name][present].expand(3, -1, -1))


def test_names_choose_modalities_and_values_are_computed_once() -> None:
    result = impute(random_model(), random_data(), names=["audio"])
    assert list(result.mean) == ["audio"]
    assert "text" not in result.mean
    assert result.mean["audio"] is result.mean["audio"]
    assert list(result.sample(2)) == ["audio"]
    assert result.observed_mask.shape == (12, 1)
    for error in (KeyError, SchemaError):
        with pytest.raises(error, match=r"^modality 'text': .*\['audio'\]"):
            result.mean["text"]
    assert result.mean.get("text") is None


def test_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = impute(random_model(), random_data()).mean["image"]
    monkeypatch.setattr("calmrl_prob.posteriors.gaussian._CHUNK_BUDGET", 20)
    torch.testing.assert_close(impute(random_model(), random_data()).mean["image"], whole, rtol=1e-14, atol=1e-14)


def test_the_order_of_modalities_in_the_data_does_not_matter() -> None:
    model, data = random_model(), random_data()
    other = data.select(["audio", "image", "text"])
    for part in PARTS:
        for name in DIMS:
            mine, theirs = getattr(impute(model, data), part)[name], getattr(impute(model, other), part)[name]
            torch.testing.assert_close(mine, theirs, rtol=1e-10, atol=1e-10)


def test_bad_input_is_refused() -> None:
    model, data = random_model(), random_data()
    with pytest.raises(SchemaError, match="'image': expected 4 features, got 3"):
        impute(model, MultimodalData({"image": torch.ones(2, 3)}))
    with pytest.raises(ArgumentTypeError, match="data: expected MultimodalData, got dict"):
        impute(model, {"image": torch.ones(2, 4)})
    with pytest.raises(ArgumentTypeError, match="model: expected a SharedLatentModel"):
        impute("model", data)
    with pytest.raises(ArgumentTypeError, match=r"model: .*got the class SharedLatentModel itself"):
        impute(SharedLatentModel, data)


@pytest.mark.parametrize(
    ("names", "error", "message"),
    [
        (["video"], SchemaError, "no modality is called 'video'"),
        ("audio", ArgumentTypeError, r"got 'audio'; use \['audio'\]"),
        (3, ArgumentTypeError, "sequence of modality names, got 3"),
        (["audio", 3], ArgumentTypeError, "got 3 among them"),
        ([], ArgumentError, "expected at least one modality"),
        (["audio", "text", "audio"], ArgumentError, "'audio' stands twice"),
    ],
)
def test_bad_names_are_refused(names: Any, error: type[Exception], message: str) -> None:  # noqa: ANN401
    with pytest.raises(error, match=f"names: .*{message}"):
        impute(random_model(), random_data(), names=names)


@pytest.mark.parametrize(
    ("level", "error"),
    [(90, ArgumentError), (0, ArgumentError), (float("nan"), ArgumentError)]
    + [(level, ArgumentTypeError) for level in ("x", None, [0.5, 0.9])],
)
def test_bad_levels_are_refused(level: Any, error: type[Exception]) -> None:  # noqa: ANN401
    with pytest.raises(error, match=r"level: expected a number.*got"):
        impute(random_model(), random_data()).interval(level)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"num_draws": 0}, ArgumentError, "num_draws: .*got 0"),
        ({"num_draws": "x"}, ArgumentTypeError, "num_draws: .*got 'x'"),
        ({"num_draws": 2, "seed": "x"}, ArgumentTypeError, "seed: .*got 'x'"),
        ({"num_draws": 2, "seed": None}, ArgumentTypeError, "seed: .*got None"),
        ({"num_draws": 2, "seed": 2**63}, ArgumentError, "seed: .*got 9223372036854775808"),
    ],
)
def test_bad_draws_are_refused(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        impute(random_model(), random_data()).sample(**arguments)
    with pytest.raises(error, match=message):
        posterior(random_model(), random_data()).sample(**arguments)


def test_numpy_seeds_count_as_seeds() -> None:
    result = impute(random_model(), random_data())
    assert torch.equal(result.sample(2, np.int64(3))["text"], result.sample(2, 3)["text"])


def test_a_model_that_was_not_fitted_says_so_once() -> None:
    with pytest.warns(UnfittedWarning) as caught:
        impute(SharedLatentModel(DIMS, 2), random_data())
    assert [warning.filename for warning in caught] == [__file__]


def test_a_fit_answers_as_its_model_and_is_asked_for_exactness_as_that_is() -> None:
    data = make_synthetic(60, {"image": 4, "text": 3}, latent_dim=1, seed=0).data
    normal = cal.fit(SharedLatentModel(data.dims, 1), data)
    assert posterior(normal, data).fingerprint == posterior(normal.model, data).fingerprint == fingerprint(normal)
    heavy = cal.fit(SharedLatentModel(data.dims, 1, prior=StudentTPrior(1)), data)
    for model in (heavy, heavy.model):
        with pytest.raises(NotConjugateError):
            posterior(model, data, method="exact")
