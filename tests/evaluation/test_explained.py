"""Variance explained where a prior shrank the loadings: beside the truth of drawn data, and beside plain fits."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

import calmrl_prob as cal
from calmrl_prob.errors import ArgumentError, ArgumentTypeError, ConvergenceWarning, DataError, ReliabilityWarning
from calmrl_prob.evaluation import factor_weights, latent_spread, variance_explained
from calmrl_prob.evaluation.latent_spread import with_spread_of
from calmrl_prob.linear_gaussian import log_marginal

SIZES = {
    "few rows": (60, {"a": 30, "b": 10, "c": 200}, 3),
    "the page": (150, {"a": 60, "b": 40, "c": 12}, 4),
    "many rows": (600, {"a": 60, "b": 40, "c": 12}, 4),
}


def drawn(size: str) -> tuple[cal.MultimodalData, np.ndarray, int]:
    """Data of which each modality lacks other rows, the true shares that all latents explain, and their number."""
    rows, dims, latent_dim = SIZES[size]
    made = cal.datasets.make_synthetic(rows, dims, latent_dim=latent_dim, seed=0)
    n = np.arange(rows)
    data = made.complete.mask({"a": n < 0.87 * rows, "b": n >= 0.13 * rows, "c": n < 0.53 * rows})
    return data, variance_explained(made.truth).sum(axis=1).to_numpy(), latent_dim


@pytest.mark.parametrize("noise", ["diagonal", "isotropic"])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("prior", ["ard", "normal"])
def test_loadings_that_a_prior_shrank_explain_with_the_data_what_they_do_in_truth(
    size: str, noise: str, prior: str
) -> None:
    data, truth, latent_dim = drawn(size)
    wide = 2 * latent_dim if prior == "ard" else latent_dim
    fit = cal.fit(cal.SharedLatentModel(data.dims, wide, noise=noise), data, loadings_prior=prior)
    for rotate in (False, True):
        found = variance_explained(fit, data=data, rotate=rotate).sum(axis=1).to_numpy()
        np.testing.assert_allclose(found, truth, atol=0.03)
    with pytest.warns(ReliabilityWarning, match=f"loadings_prior='{prior}' shrank the loadings.*pass the rows"):
        shrunk = variance_explained(fit).sum(axis=1).to_numpy()
    assert (np.abs(shrunk - truth) > np.abs(found - truth)).all()


@pytest.mark.parametrize("noise", ["diagonal", "isotropic"])
@pytest.mark.parametrize("size", SIZES)
def test_of_a_plain_fit_the_data_change_nothing(size: str, noise: str) -> None:
    data, truth, latent_dim = drawn(size)
    fit = cal.fit(cal.SharedLatentModel(data.dims, latent_dim, noise=noise), data, tolerance=1e-9)
    plain, with_data = variance_explained(fit), variance_explained(fit, data=data)
    np.testing.assert_allclose(with_data, plain, atol=2e-3)
    np.testing.assert_allclose(plain.sum(axis=1), truth, atol=0.03)


@pytest.mark.parametrize("independent", [False, True])
def test_no_other_spread_is_likelier(independent: bool) -> None:
    """The gradient of the evidence in the spread, by autograd, is zero where EM ends, and was not where it began."""
    data, _, _ = drawn("the page")
    lg = cal.fit(cal.SharedLatentModel(data.dims, 3, noise="diagonal"), data, loadings_prior="normal").linear_gaussian()
    lg, data = lg.detach().to(torch.float64), data.to(torch.float64)
    found = with_spread_of(lg, data, independent=independent)
    slopes = []
    for here in (lg, found):
        root = torch.linalg.cholesky(here.prior_covariance).requires_grad_()
        free = root if not independent else root.diagonal().diag()
        evidence = log_marginal(
            replace(here, prior_mean=found.prior_mean, prior_covariance=free @ free.mT), data.blocks
        )
        (slope,) = torch.autograd.grad(evidence.sum(), root)
        slopes.append(float(slope.tril().abs().max()))
    assert slopes[1] < 0.01 * slopes[0]


def test_the_spread_is_about_the_latents_own_mean() -> None:
    """Latents are seen, as noise is small: at 1 and 5, whose variance about 3 is 4, and about the prior's mean 13."""
    noise = {"x": torch.full((2,), 1e-6, dtype=torch.float64)}
    loadings = {"x": torch.ones(2, 1, dtype=torch.float64)}
    lg = cal.linear_gaussian.LinearGaussian(loadings, {"x": torch.zeros(2, dtype=torch.float64)}, noise)
    data = cal.MultimodalData({"x": torch.tensor([[1.0, 1.0], [5.0, 5.0]], dtype=torch.float64)})
    found = with_spread_of(lg, data, independent=True)
    assert found.prior_mean.item() == pytest.approx(3, abs=1e-3)
    assert found.prior_covariance.item() == pytest.approx(4, abs=1e-3)


def test_shifts_of_batches_are_no_spread_of_the_latents() -> None:
    made = cal.datasets.make_synthetic(300, {"a": 30, "b": 20}, latent_dim=2, seed=1)
    batch = np.array(["u", "v"] * 150)
    moved = {name: made.complete[name] + 4.0 * torch.as_tensor(batch == "v")[:, None] for name in made.complete.names}
    data = cal.MultimodalData(moved, covariates={"batch": batch})
    truth = variance_explained(made.truth).sum(axis=1).to_numpy()
    fit = cal.fit(cal.SharedLatentModel(data.dims, 2, "diagonal", batch="batch"), data, tolerance=1e-9)
    found = variance_explained(fit, data=data)
    np.testing.assert_allclose(found.sum(axis=1), truth, atol=0.04)
    np.testing.assert_allclose(found, variance_explained(fit), atol=0.02)
    with pytest.raises(DataError, match="batch"):
        variance_explained(fit, data=cal.MultimodalData(moved))


def test_a_spread_that_was_not_found_is_warned_of(monkeypatch: pytest.MonkeyPatch) -> None:
    data, _, latent_dim = drawn("few rows")
    fit = cal.fit(cal.SharedLatentModel(data.dims, latent_dim), data, loadings_prior="normal")
    monkeypatch.setattr(latent_spread, "_STEPS", 1)
    with pytest.warns(ConvergenceWarning, match="after 1 steps of EM"):
        variance_explained(fit, data=data)


def test_shares_do_not_depend_on_the_scale_that_the_loadings_were_given() -> None:
    data, _, latent_dim = drawn("the page")
    lg = cal.fit(cal.SharedLatentModel(data.dims, latent_dim), data).linear_gaussian()
    loadings = {name: weights * torch.tensor([0.2, 1.0, 0.5, 2.0]) for name, weights in lg.loadings.items()}
    other = cal.linear_gaussian.LinearGaussian(loadings, lg.intercepts, lg.noise_variance)
    for rotate in (False, True):
        expected = variance_explained(lg, data=data, rotate=rotate)
        np.testing.assert_allclose(variance_explained(other, data=data, rotate=rotate), expected, atol=2e-3)


def squares_of(weights: pd.DataFrame) -> pd.Series:
    """What all latents together explain of a feature, averaged over features, by modality."""
    return (
        weights.assign(square=weights["weight"] ** 2)
        .groupby(["modality", "feature"])["square"]
        .sum()
        .groupby("modality")
        .mean()
    )


def test_weights_are_of_the_same_spread_as_shares() -> None:
    rows, dims, _ = SIZES["the page"]
    data, _, latent_dim = drawn("the page")
    truth = squares_of(factor_weights(cal.datasets.make_synthetic(rows, dims, latent_dim=latent_dim, seed=0).truth))
    fit = cal.fit(cal.SharedLatentModel(data.dims, 8), data, loadings_prior="ard")
    np.testing.assert_allclose(squares_of(factor_weights(fit, data=data, rotate=False)), truth, atol=0.03)
    with pytest.warns(ReliabilityWarning, match="pass the rows"):
        shrunk = squares_of(factor_weights(fit, rotate=False))
    assert (shrunk < truth - 0.1).all()


def test_data_of_another_type_or_no_rows_are_refused() -> None:
    lg = cal.datasets.make_synthetic(10, latent_dim=2, seed=0).truth
    with pytest.raises(ArgumentTypeError, match="data"):
        variance_explained(lg, data={"image": 1})  # type: ignore[arg-type]
    data = cal.datasets.make_synthetic(10, latent_dim=2, seed=0).complete
    with pytest.raises(ArgumentError, match="data"):
        variance_explained(lg, data=data.subset(slice(0, 1)))
