"""Certificates against brute force with dense draws, against what comes true, and against each other."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.stats import chi2

from calmrl_prob.alignment.anchors import anchor_shift, leading_vector, unit
from calmrl_prob.alignment.certificate import certify, probability_of_gain, probability_within
from calmrl_prob.alignment.completion import Completion
from calmrl_prob.alignment.expected_scatter import expected_scatter_anchor
from calmrl_prob.errors import ArgumentError, ArgumentTypeError
from calmrl_prob.linear_gaussian import LinearGaussian
from tests.cases.certificate_cases import (
    NAMES,
    close_model,
    complete_and_completed,
    dense_predictive,
    make_completion,
    svd_anchors,
)


@pytest.mark.parametrize("distance", ["vector", "projector"])
@pytest.mark.parametrize("unit_draws", [False, True])
def test_probability_of_gain_is_that_of_dense_draws(distance: str, unit_draws: bool) -> None:
    _, completion = complete_and_completed(close_model(width=3, noise=0.3), rows=8, seed=3)
    num_draws, oracle_draws = 2000, 4000
    found = certify(completion, "mean", distance, num_draws=num_draws, unit_draws=unit_draws)  # type: ignore[arg-type]
    rng = np.random.default_rng(0)
    compared = 0
    for row, present in enumerate(completion.observed_mask.numpy()):
        if present.all():
            assert found.probability_of_gain[row] == found.expected_gain[row] == 0
            continue
        mean, covariance = (part.numpy() for part in dense_predictive(completion, row))
        values = completion.values[row].numpy()
        local, calibrated = svd_anchors(values[None, present]), svd_anchors(values[None])
        drawn = rng.multivariate_normal(mean, covariance, size=oracle_draws, method="eigh").reshape(-1, 3, 3)
        if unit_draws:
            drawn = drawn / np.linalg.norm(drawn, axis=2, keepdims=True)
        full = svd_anchors(np.where(present[:, None], values, drawn))
        cosines = np.stack([full @ local[0], full @ calibrated[0]])
        shifts = np.sqrt(2 * (1 - np.minimum(cosines**2 if distance == "projector" else cosines, 1)))
        gains = shifts[0] - shifts[1]
        share = (gains > 0).mean()
        error = math.sqrt(max(share * (1 - share), 0.25 / oracle_draws) * (1 / num_draws + 1 / oracle_draws))
        assert abs(share - float(found.probability_of_gain[row])) <= 6 * error
        error = gains.std() * math.sqrt(1 / num_draws + 1 / oracle_draws)
        assert abs(gains.mean() - float(found.expected_gain[row])) <= 6 * error
        compared += 1
    assert compared >= 5


@pytest.mark.parametrize("calibrated", ["mean", "expected_scatter"])
def test_what_is_promised_comes_true(calibrated: str) -> None:
    truth, completion = complete_and_completed(close_model(noise=0.4), rows=1500)
    promised = probability_of_gain(completion, calibrated, num_draws=40)  # type: ignore[arg-type]
    full = leading_vector(truth).vector
    local = leading_vector(completion.values, completion.observed_mask).vector
    anchor = leading_vector(completion.values).vector
    if calibrated == "expected_scatter":
        anchor = expected_scatter_anchor(completion).vector
    came_true = (anchor_shift(full, anchor) < anchor_shift(full, local)).double()
    incomplete = ~completion.observed_mask.all(1)
    low, high = promised[incomplete].quantile(torch.tensor([0.25, 0.75]).double())
    for chosen in (incomplete, incomplete & (promised > high), incomplete & (promised < low)):
        difference = (came_true - promised)[chosen]
        assert int(chosen.sum()) > 50
        assert abs(float(difference.mean())) <= 6 * float(difference.std()) / math.sqrt(int(chosen.sum()))
    assert float(came_true[incomplete & (promised > high)].mean()) > float(came_true[incomplete].mean()) + 0.1


def test_what_is_certified_is_gained() -> None:
    _, completion = complete_and_completed(close_model(noise=1e-4), rows=300)
    for unit_means in (False, True):
        found = certify(completion, "mean", "projector", num_draws=20, unit_means=unit_means)
        assert bool((found.probability_certified <= found.probability_of_gain).all())
        assert float(found.probability_of_corollary.max()) > 0.9
        if not unit_means:
            assert float(found.probability_certified.max()) > 0.9


def test_better_anchors_are_worth_more_and_any_anchor_can_be_judged() -> None:
    _, completion = complete_and_completed(close_model(noise=0.1), rows=200)
    local = leading_vector(completion.values, completion.observed_mask).vector
    incomplete = ~completion.observed_mask.all(1)
    assert not probability_of_gain(completion, local, num_draws=40).any()  # the local anchor gains nothing over itself
    means = probability_of_gain(completion, leading_vector(completion.values).vector, num_draws=40)
    torch.testing.assert_close(means, probability_of_gain(completion, "mean", num_draws=40))
    assert float(means[incomplete].mean()) > 0.55
    worse = unit(torch.randn(local.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64))
    assert float(probability_of_gain(completion, worse, num_draws=40)[incomplete].mean()) < 0.2


def test_errors_within_a_threshold_have_the_chances_of_chi_squared_where_latents_are_out_of_it() -> None:
    width, noise, num_draws = 7, 0.5, 4000
    lg = LinearGaussian(
        {name: torch.zeros(width, 2).double() for name in NAMES},
        {name: torch.ones(width).double() for name in NAMES},
        {name: torch.tensor(noise).double() for name in NAMES},
    )
    mask = torch.tensor([[True, True, True], [True, True, False], [True, False, False], [False, False, False]])
    mask = mask.repeat(3, 1)
    completion = Completion.from_linear_gaussian(lg, torch.zeros(12, 3, width).double(), mask)
    eps = torch.linspace(1.0, 3.0, 12, dtype=torch.float64)
    found = probability_within(completion, eps, num_draws=num_draws)
    single = torch.from_numpy(chi2.cdf(eps.square() / noise, width))
    expected = single ** (~mask).sum(1)
    error = (expected * (1 - expected)).clamp(min=1 / num_draws) / num_draws
    assert bool(((found - expected).abs() <= 6 * error.sqrt()).all())


def test_errors_within_a_threshold_have_the_chances_of_dense_draws() -> None:
    completion = make_completion(width=4, latents=3, noise="diagonal", rows=12)
    eps, num_draws = 4.0, 3000
    found = probability_within(completion, eps, num_draws=num_draws)
    rng = np.random.default_rng(1)
    assert float(found.min()) > 0.01
    for row, present in enumerate(completion.observed_mask.numpy()):
        _, covariance = dense_predictive(completion, row)
        draws = rng.multivariate_normal(np.zeros(12), covariance.numpy(), size=num_draws, method="eigh")
        norms = np.linalg.norm(draws.reshape(-1, 3, 4), axis=2)[:, ~present]
        share = float((norms < eps).all(1).mean())
        error = math.sqrt(2 * max(share * (1 - share), 1 / num_draws) / num_draws)
        assert abs(share - float(found[row])) <= 6 * error
    assert not probability_within(completion, 0.0).any()
    assert bool((probability_within(completion, 1e6) == 1).all())


def test_draws_follow_the_seed_and_leave_the_global_stream_alone() -> None:
    _, completion = complete_and_completed(close_model(), rows=50)
    state = torch.get_rng_state()
    first, again, other = (certify(completion, num_draws=5, seed=seed) for seed in (1, 1, 2))
    within = probability_within(completion, 0.5, num_draws=5, seed=1)
    assert torch.equal(state, torch.get_rng_state())
    assert torch.equal(first.expected_gain, again.expected_gain)
    assert not torch.equal(first.expected_gain, other.expected_gain)
    assert torch.equal(within, probability_within(completion, 0.5, num_draws=5, seed=1))


def test_float32_with_gradients_and_with_nothing_present() -> None:
    lg = close_model().to(torch.float32)
    x = torch.zeros(2, 3, 5, requires_grad=True)
    completion = Completion.from_linear_gaussian(lg, x, torch.tensor([[False] * 3, [True, False, False]]))
    found = certify(completion, "expected_scatter", num_draws=10, unit_draws=True)
    assert not found.probability_of_gain.requires_grad
    assert bool(torch.stack(list(vars(found).values())).isfinite().all())


def test_wrong_arguments_are_refused() -> None:
    _, completion = complete_and_completed(close_model(), rows=4)
    with pytest.raises(ArgumentError, match="num_draws"):
        certify(completion, num_draws=0)
    with pytest.raises(ArgumentTypeError, match="seed"):
        certify(completion, seed=0.5)  # type: ignore[arg-type]
    with pytest.raises(ArgumentError, match="calibrated: expected 'mean'"):
        certify(completion, "median")  # type: ignore[arg-type]
    with pytest.raises(ArgumentError, match="calibrated: expected anchors"):
        certify(completion, torch.zeros(4, 2))
    with pytest.raises(ArgumentError, match="distance"):
        certify(completion, distance="angle")  # type: ignore[arg-type]
    with pytest.raises(ArgumentError, match="threshold"):
        probability_within(completion, torch.ones(3))
