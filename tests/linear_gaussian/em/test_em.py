"""Closed-form EM: the three forms agree, the evidence never falls, and the fit is what other methods find."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.decomposition import PCA, FactorAnalysis
from torch import Tensor

from calmrl_prob.errors import ArgumentError, DataError, NumericalError
from calmrl_prob.linear_gaussian import (
    FeatureBlocks,
    LinearGaussian,
    ObservedBlocks,
    fit_em,
    log_marginal,
)
from calmrl_prob.linear_gaussian.em.cost import choose_form
from calmrl_prob.linear_gaussian.em.maximization import maximize
from calmrl_prob.linear_gaussian.em.noise_model import NoiseModel
from calmrl_prob.linear_gaussian.em.parameters import Parameters
from calmrl_prob.linear_gaussian.em.rowwise import ModalityStep
from calmrl_prob.linear_gaussian.em.spectral import PairwiseCovariance
from tests.cases.ascent import assert_gradient_ascent_finds_no_more
from tests.cases.em_cases import DIMS, all_forms, laws, relative
from tests.cases.linear_gaussian_cases import random_blocks, random_mask, random_model


@laws
@given(
    latent_dim=st.integers(1, 6),
    rate=st.sampled_from([0.0, 0.3, 0.6]),
    num_instances=st.sampled_from([12, 80, 400]),
    prior=st.sampled_from(["standard", "full"]),
    seed=st.integers(0, 1000),
)
def test_all_forms_are_the_same_iteration(
    latent_dim: int, rate: float, num_instances: int, prior: str, seed: int
) -> None:
    """Evidence and next parameters agree to 1e-12, and the evidence is that of the posterior's own route."""
    model = random_model(DIMS, latent_dim, seed, prior=prior)
    blocks = random_blocks(model, num_instances, rate, seed)
    unlimited = NoiseModel(False, torch.zeros(22).double(), 0.0, torch.ones(22).double())
    nexts = []
    for step, shift in all_forms(blocks, latent_dim).values():
        moments = step(Parameters.from_linear_gaussian(model, shift))
        assert moments.log_likelihood == pytest.approx(float(log_marginal(model, blocks).sum()), rel=1e-11)
        following = maximize(step, moments, unlimited, expand=True)
        nexts.append(following.to_linear_gaussian(step.shape, shift, model.prior_mean, model.prior_covariance))
    for other in nexts[1:]:
        for name in DIMS:
            assert relative(other.loadings[name], nexts[0].loadings[name]) < 1e-11
            assert relative(other.intercepts[name], nexts[0].intercepts[name]) < 1e-11
            assert relative(other.noise_variance[name], nexts[0].noise_variance[name]) < 1e-11


@laws
@given(
    noise=st.sampled_from(["isotropic", "diagonal", "full", "low_rank"]),
    expand=st.booleans(),
    memory=st.sampled_from([0, 3, 10]),
    pseudo_count=st.sampled_from([0.0, 5.0]),
    prior=st.sampled_from([None, "normal", "ard"]),
    dtype=st.sampled_from([torch.float64, torch.float32]),
    seed=st.integers(0, 1000),
)
def test_the_evidence_never_falls(
    noise: str, expand: bool, memory: int, pseudo_count: float, prior: str | None, dtype: torch.dtype, seed: int
) -> None:
    blocks = random_blocks(random_model(DIMS, 4, seed), 60, rate=0.4, seed=seed)
    blocks.values = {name: values.to(dtype) for name, values in blocks.values.items()}
    result = fit_em(
        blocks,
        3,
        noise=noise,
        expand=expand,
        anderson_memory=memory,
        noise_pseudo_count=pseudo_count,
        loadings_prior=prior,
        max_iterations=60,
    )
    assert len(result.objective) > 3
    assert bool((result.objective.diff() >= 0).all())
    evidence = float(log_marginal(result.linear_gaussian, blocks).sum())
    assert evidence == pytest.approx(float(result.log_likelihood[-1]), rel=1e-9 if dtype == torch.float64 else 1e-4)


def test_complete_data_isotropic_is_probabilistic_pca() -> None:
    """One modality, complete: the maximum is known in closed form (Tipping & Bishop, 1999), as in scikit-learn."""
    blocks = random_blocks(random_model({"x": 10}, 3, prior="standard", noise="isotropic"), 500, rate=0)
    result = fit_em(blocks, 3, tolerance=1e-12)
    rows = blocks.values["x"].numpy()
    pca = PCA(3).fit(rows)
    biased = (len(rows) - 1) / len(rows)  # scikit-learn divides by N - 1
    eigenvalues = torch.linalg.eigvalsh(torch.cov(blocks.values["x"].mT, correction=0)).flip(0)
    assert float(result.linear_gaussian.noise_variance["x"][0]) == pytest.approx(
        float(eigenvalues[3:].mean()), rel=1e-6
    )
    assert pca.noise_variance_ * biased == pytest.approx(float(eigenvalues[3:].mean()), rel=1e-6)
    _, covariance = result.linear_gaussian.joint()
    torch.testing.assert_close(torch.linalg.eigvalsh(covariance).flip(0)[:3], eigenvalues[:3], rtol=1e-5, atol=0)
    torch.testing.assert_close(result.linear_gaussian.intercepts["x"], blocks.values["x"].mean(0), rtol=1e-6, atol=1e-6)


def test_complete_data_diagonal_is_factor_analysis() -> None:
    blocks = random_blocks(random_model({"a": 6, "b": 5}, 2, prior="standard"), 800, rate=0)
    result = fit_em(blocks, 2, noise="diagonal", tolerance=1e-11)
    rows = torch.cat(list(blocks.values.values()), dim=1).numpy()
    oracle = FactorAnalysis(2, tol=1e-10, max_iter=20_000, svd_method="lapack").fit(rows)
    assert float(result.log_likelihood[-1]) / 800 == pytest.approx(oracle.score(rows), rel=1e-7)
    _, covariance = result.linear_gaussian.joint()
    assert relative(covariance, torch.from_numpy(oracle.get_covariance())) < 1e-3


def test_gradient_ascent_finds_no_more() -> None:
    """The third oracle: L-BFGS on the exact evidence, from EM's answer and from random starts."""
    blocks = random_blocks(random_model(DIMS, 2, prior="standard"), 150, rate=0.4)
    result = fit_em(blocks, 2, noise="diagonal", tolerance=1e-12, noise_floor=1e-8)
    fitted = result.linear_gaussian
    loadings = {n: v.clone().requires_grad_() for n, v in fitted.loadings.items()}
    intercepts = {n: v.clone().requires_grad_() for n, v in fitted.intercepts.items()}
    logs = {n: v.log().requires_grad_() for n, v in fitted.noise_variance.items()}
    variables = [*loadings.values(), *intercepts.values(), *logs.values()]

    def loss() -> Tensor:
        model = LinearGaussian(loadings, intercepts, {n: v.exp() for n, v in logs.items()})
        return -log_marginal(model, blocks).sum()

    assert_gradient_ascent_finds_no_more(loss, variables, float(result.log_likelihood[-1]))


def test_a_converged_fit_is_within_its_tolerance() -> None:
    """The tolerance is the gain that is still to come, per observed value: checked by going on to 1e-13."""
    shrinking = torch.logspace(0.5, -0.7, 6).double()
    model = random_model({"a": 30, "b": 20, "c": 25}, 6, prior="standard")
    model = LinearGaussian(
        {n: v * shrinking for n, v in model.loadings.items()}, model.intercepts, model.noise_variance
    )
    blocks = random_blocks(model, 500, rate=0.4)
    num_values = sum(values.numel() for values in blocks.values.values())
    best = fit_em(blocks, 6, tolerance=1e-13)
    for tolerance in (1e-4, 1e-5, 1e-6):
        for memory in (0, 10):
            result = fit_em(blocks, 6, tolerance=tolerance, anderson_memory=memory)
            assert result.converged
            assert result.criterion <= tolerance
            assert float(best.log_likelihood[-1] - result.log_likelihood[-1]) / num_values < 3 * tolerance


def test_recovers_the_model_that_made_the_data() -> None:
    truth = random_model(DIMS, 2, prior="standard", noise="isotropic")
    result = fit_em(random_blocks(truth, 20_000, rate=0.4), 2)
    (mean, covariance), (true_mean, true_covariance) = result.linear_gaussian.joint(), truth.joint()
    assert relative(covariance, true_covariance) < 0.05
    assert float((mean - true_mean).abs().max() / true_covariance.diagonal().sqrt().max()) < 0.03


@pytest.mark.parametrize("noise", ["isotropic", "diagonal"])
def test_a_constant_of_a_million_spreads_moves_intercepts_alone(noise: str) -> None:
    """Shifting a modality by 10^6 spreads: its intercept moves by that and nothing else by more than 1e-7."""
    blocks = random_blocks(random_model(DIMS, 2, prior="standard"), 200, rate=0.4)
    spread = float(blocks.values["b"].std())
    moved = random_blocks(random_model(DIMS, 2, prior="standard"), 200, rate=0.4)
    moved.values["b"] = moved.values["b"] + 1e6 * spread
    one, other = (fit_em(data, 2, noise=noise, max_iterations=30, tolerance=0) for data in (blocks, moved))
    assert relative(other.linear_gaussian.intercepts["b"] - 1e6 * spread, one.linear_gaussian.intercepts["b"]) < 1e-7
    for name in DIMS:
        assert relative(other.linear_gaussian.loadings[name], one.linear_gaussian.loadings[name]) < 1e-7
        assert relative(other.linear_gaussian.noise_variance[name], one.linear_gaussian.noise_variance[name]) < 1e-7


def test_a_constant_of_a_million_spreads_in_float32() -> None:
    """float32 data so far from zero are stored to a sixteenth of a spread: the fit is that of the stored numbers."""
    moved = random_blocks(random_model(DIMS, 2, prior="standard"), 2000, rate=0.4)
    moved.values = {name: (values + 1e6).float() for name, values in moved.values.items()}
    stored = random_blocks(random_model(DIMS, 2, prior="standard"), 2000, rate=0.4)
    stored.values = {name: values.double() - 1e6 for name, values in moved.values.items()}
    one, other = (fit_em(data, 2, max_iterations=30, tolerance=0) for data in (stored, moved))
    # EM ends where float32 hides what a step gains, eps = 1.2e-7 of the evidence: short of the top by its root, 3.5e-4,
    # times a factor that depends on the order of sums (up to 1.9e-4 came over six seeds and three processors).
    for name in DIMS:
        assert relative(other.linear_gaussian.noise_variance[name], one.linear_gaussian.noise_variance[name]) < 6e-4
    (_, covariance), (_, expected) = other.linear_gaussian.joint(), one.linear_gaussian.joint()
    assert relative(covariance, expected) < 6e-4


@pytest.mark.parametrize(
    ("num_instances", "dims", "latent_dim", "rate"),
    [
        (40, {"wide": 4096}, 3, 0.0),  # N far below D, one modality, complete
        (300, {"x": 1}, 1, 0.0),  # a single feature
        (60, {"a": 300, "b": 250}, 512, 0.3),  # more latents than rows
        (400, {f"m{i}": 3 for i in range(30)}, 2, 0.5),  # 30 modalities, as many patterns as rows
    ],
)
def test_extreme_shapes(num_instances: int, dims: dict[str, int], latent_dim: int, rate: float) -> None:
    blocks = random_blocks(random_model(dims, min(latent_dim, 3), prior="standard"), num_instances, rate)
    result = fit_em(blocks, latent_dim, max_iterations=12)
    assert bool(result.log_likelihood.isfinite().all())
    assert bool((result.objective.diff() >= 0).all())


def test_single_missing_features() -> None:
    """With single features missing, EM maximises the evidence of exactly what is there."""
    model = random_model({"a": 5, "b": 4}, 2, prior="standard")
    _, features = model.sample(300, torch.Generator().manual_seed(0))
    present = random_mask(300, 9, rate=0.3)
    blocks = FeatureBlocks(model.dims, torch.cat(list(features.values()), dim=1), present)
    result = fit_em(blocks, 2, noise="diagonal", tolerance=1e-10)
    assert result.form == "features"
    assert bool((result.objective.diff() >= 0).all())
    evidence = float(log_marginal(result.linear_gaussian, blocks).sum())
    assert evidence == pytest.approx(float(result.log_likelihood[-1]), rel=1e-10)
    assert evidence > float(log_marginal(model, blocks).sum())


def test_the_noise_floor_and_prior_hold() -> None:
    """Data of rank 2 would take the noise to zero: the floor stops it, the prior keeps it well above."""
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(100, 2, generator=generator).double() @ torch.randn(2, 6, generator=generator).double()
    blocks = ObservedBlocks.from_arrays({"x": rows}, torch.ones(100, 1, dtype=torch.bool))
    variance = rows.var(0, correction=0).mean()
    floored = fit_em(blocks, 2, noise_floor=1e-3).linear_gaussian.noise_variance["x"][0]
    assert float(floored) == pytest.approx(1e-3 * float(variance), rel=1e-6)
    weak = fit_em(blocks, 2, noise_floor=1e-6, noise_pseudo_count=10).linear_gaussian.noise_variance["x"][0]
    least = 0.5 * float(variance) * 10 / 110  # what the pseudo-observations alone would give
    assert least < float(weak) < 2 * least


def test_constant_features() -> None:
    blocks = random_blocks(random_model(DIMS, 2), 100, rate=0.3)
    blocks.values["a"][:, 0] = 7.0
    blocks.values["b"][:] = -3.0
    for noise in ("isotropic", "diagonal"):
        result = fit_em(blocks, 2, noise=noise, max_iterations=50)
        assert bool(result.log_likelihood.isfinite().all())
        assert float(result.linear_gaussian.intercepts["a"][0]) == pytest.approx(7.0, abs=1e-6)


def test_the_prior_of_the_latent_is_kept_and_changes_no_evidence() -> None:
    """Any Gaussian prior spans the same models as the standard one, so the best evidence is the same."""
    blocks = random_blocks(random_model(DIMS, 2), 300, rate=0.3)
    other = random_model(DIMS, 2, seed=5)
    standard = fit_em(blocks, 2, tolerance=1e-11)
    full = fit_em(blocks, 2, tolerance=1e-11, prior_mean=other.prior_mean, prior_covariance=other.prior_covariance)
    torch.testing.assert_close(full.linear_gaussian.prior_covariance, other.prior_covariance)
    evidence = float(log_marginal(full.linear_gaussian, blocks).sum())
    assert evidence == pytest.approx(float(standard.log_likelihood[-1]), rel=1e-9)


def test_a_fit_can_be_carried_on() -> None:
    blocks = random_blocks(random_model(DIMS, 3), 200, rate=0.3)
    short = fit_em(blocks, 3, max_iterations=5)
    assert not short.converged
    assert short.stop_reason == "max_iterations"
    seen: list[float] = []
    longer = fit_em(blocks, 3, start=short.linear_gaussian, callback=lambda _, evidence: seen.append(evidence))
    assert float(longer.log_likelihood[0]) == pytest.approx(float(short.log_likelihood[-1]), rel=1e-12)
    assert seen == longer.log_likelihood[1:].tolist()


def test_the_same_seed_gives_the_same_fit() -> None:
    blocks = random_blocks(random_model(DIMS, 3), 200, rate=0.3)
    one, other = fit_em(blocks, 3, seed=4), fit_em(blocks, 3, seed=4)
    assert torch.equal(one.linear_gaussian.loadings["a"], other.linear_gaussian.loadings["a"])


def test_the_cost_model_chooses_by_shape() -> None:
    """Many rows and few patterns: statistics. Many patterns of few rows: by modality. Wide data: by pattern."""
    few = random_blocks(random_model({"a": 64, "b": 64}, 2), 20_000, rate=0.3)
    many = random_blocks(random_model({f"m{i}": 20 for i in range(8)}, 2), 500, rate=0.4)
    wide = random_blocks(random_model({"a": 3000}, 2), 40, rate=0.0)
    assert choose_form(few, 16) == "statistics"
    assert choose_form(many, 2) == "modality"
    assert choose_form(wide, 2) in ("modality", "pattern")


def test_devices(device: str) -> None:
    blocks = random_blocks(random_model(DIMS, 3), 400, rate=0.4)
    there = ObservedBlocks(
        {name: values.to(device) for name, values in blocks.values.items()}, blocks.observed_mask.to(device)
    )
    for form in ("modality", "pattern", "statistics"):
        here = fit_em(blocks, 3, form=form, max_iterations=20, tolerance=0)
        moved = fit_em(there, 3, form=form, max_iterations=20, tolerance=0)
        assert moved.linear_gaussian.device.type == device
        assert float(moved.log_likelihood[-1]) == pytest.approx(float(here.log_likelihood[-1]), rel=1e-9)


def test_errors() -> None:
    blocks = random_blocks(random_model(DIMS, 2), 50, rate=0.3)
    with pytest.raises(ArgumentError, match="latent_dim: expected 1 to 22"):
        fit_em(blocks, 23)
    with pytest.raises(ArgumentError, match=r"noise: expected one of .*'low_rank'"):
        fit_em(blocks, 2, noise="dense")
    with pytest.raises(ArgumentError, match="form: expected one of"):
        fit_em(blocks, 2, form="rows")
    with pytest.raises(ArgumentError, match="tolerance: expected at least 0"):
        fit_em(blocks, 2, tolerance=-1.0)
    with pytest.raises(ArgumentError, match="start: expected modalities"):
        fit_em(blocks, 2, start=random_model(DIMS, 3))
    nobody = ObservedBlocks.from_arrays(
        {"a": torch.ones(4, 2), "b": torch.ones(4, 2)}, torch.tensor([[True, False]] * 4)
    )
    with pytest.raises(DataError, match="'b' is observed in any row"):
        fit_em(nobody, 1)
    blocks.values["a"][0, 0] = torch.inf
    with pytest.raises(NumericalError, match="modality 'a' holds values that are not finite"):
        fit_em(blocks, 2)


def test_guesses_respect_the_noise_floor() -> None:
    """Exact copies pull the noise to its floor: no accelerated step may pass below it and be taken for progress."""
    rows = torch.randn(100, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    blocks = ObservedBlocks.from_arrays({"a": rows, "b": rows.clone()}, torch.ones(100, 2, dtype=torch.bool))
    plain, accelerated = (fit_em(blocks, 3, anderson_memory=memory) for memory in (0, 10))
    assert accelerated.converged
    assert float(accelerated.log_likelihood[-1]) == pytest.approx(float(plain.log_likelihood[-1]), rel=1e-6)
    floor = 1e-4 * float(rows.var(0, correction=0).mean())
    assert float(accelerated.linear_gaussian.noise_variance["a"][0]) == pytest.approx(floor, rel=1e-6)


def test_expansion_leaves_the_model_as_it_is() -> None:
    """Absorbing the latent's free mean and covariance into loadings and intercepts changes no density."""
    model = random_model(DIMS, 3, prior="standard")
    blocks = random_blocks(random_model(DIMS, 3, seed=1), 80, rate=0.4)
    centred, shift = blocks.centred()
    step = ModalityStep(centred, 3)
    moments = step(Parameters.from_linear_gaussian(model, shift))
    unlimited = NoiseModel(False, torch.zeros(22).double(), 0.0, torch.ones(22).double())
    plain, expanded = (
        maximize(step, moments, unlimited, expand=expand).to_linear_gaussian(step.shape, shift)
        for expand in (False, True)
    )
    every = moments.latent[-1] / moments.latent[-1, -1, -1]
    mean = every[-1, :-1]
    free = LinearGaussian(
        plain.loadings, plain.intercepts, plain.noise_variance, mean, every[:-1, :-1] - torch.outer(mean, mean)
    )
    assert float(mean.abs().max()) > 0.01
    torch.testing.assert_close(log_marginal(expanded, blocks), log_marginal(free, blocks), rtol=1e-10, atol=1e-10)


def test_the_covariance_of_the_start_without_forming_it() -> None:
    """C Y from rows is C Y with C formed: X_i^T X_j N / (n_i n_j) off the diagonal blocks, X_i^T X_i / n_i on them."""
    blocks, _ = random_blocks(random_model(DIMS, 3), 120, rate=0.4).centred()
    zero = torch.zeros(22, dtype=torch.float64)
    y = torch.randn(22, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    filled = {name: torch.zeros(120, width, dtype=torch.float64) for name, width in DIMS.items()}
    for name, values in blocks.values.items():
        filled[name][blocks.rows[name]] = values
    counts = {name: len(values) for name, values in blocks.values.items()}
    rows = [
        torch.cat(
            [filled[a].mT @ filled[b] * (1 / counts[a] if a == b else 120 / (counts[a] * counts[b])) for b in DIMS],
            dim=1,
        )
        for a in DIMS
    ]
    got = PairwiseCovariance.from_blocks(blocks, zero, zero).times(y)
    torch.testing.assert_close(got, torch.cat(rows) @ y, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("options", [{}, {"pseudo_rows": 30.0, "pseudo_row_pooling": 0.0}, {"loadings_prior": "ard"}])
def test_a_feature_in_other_units_leaves_the_fit_of_all_others(options: dict[str, Any]) -> None:
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(300, 2, generator=generator, dtype=torch.float64)
    x = z @ torch.randn(2, 6, generator=generator, dtype=torch.float64)
    x = x + 0.5 * torch.randn(300, 6, generator=generator, dtype=torch.float64)
    units = torch.ones(6, dtype=torch.float64)
    units[2] = 1e6
    seen = torch.ones(300, 1, dtype=torch.bool)
    one, other = (
        fit_em(ObservedBlocks.from_arrays({"x": values}, seen), 2, noise="diagonal", **options).linear_gaussian
        for values in (x, x * units)
    )
    # converged to 1e-6 nats a value; floors, 1e-4 of each feature's own variance, are the same for both
    torch.testing.assert_close(one.noise_variance["x"] * units.square(), other.noise_variance["x"], rtol=0.01, atol=0.0)
