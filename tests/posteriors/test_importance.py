"""Importance weights: ArviZ's Pareto smoothing and integrals done by hand as oracles."""

from __future__ import annotations

import math

import arviz as az
import numpy as np
import pytest
import torch
from torch import Tensor

from calmrl_prob.errors import ArgumentError
from calmrl_prob.posteriors.importance import (
    fit_generalized_pareto,
    importance_weights,
    pareto_smooth,
    resample,
    weighted_moments,
)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def log_ratios(kind: str, num_draws: int, num_instances: int) -> Tensor:
    normal = torch.randn(num_draws, num_instances, generator=generator(3), dtype=torch.float64)
    return {"narrow": 0.2 * normal, "wide": 3 * normal, "shifted": 1.5 * normal - 4000, "heavy": 0.4 * normal**3}[kind]


@pytest.mark.skipif(int(az.__version__.split(".")[0]) >= 1, reason="psislw is an accessor's method since ArviZ 1.0")
@pytest.mark.parametrize("num_draws", [100, 1000])
@pytest.mark.parametrize("kind", ["narrow", "wide", "shifted", "heavy"])
def test_smoothed_weights_and_k_hat_are_arvizs(kind: str, num_draws: int) -> None:
    ratio = log_ratios(kind, num_draws, 6)
    ours, k_hat = pareto_smooth(ratio)
    theirs, their_k_hat = az.psislw(ratio.mT.numpy())
    np.testing.assert_allclose(k_hat.numpy(), np.asarray(their_k_hat), rtol=1e-6)
    np.testing.assert_allclose(ours.mT.numpy(), np.asarray(theirs), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("shape", [-0.4, 0.0, 0.3, 0.9])
def test_the_shape_and_scale_of_a_pareto_tail_are_found(shape: float) -> None:
    uniform = torch.rand(4000, 3, generator=generator(1), dtype=torch.float64)
    excess = 2.0 * (-uniform.log() if shape == 0 else (uniform**-shape - 1) / shape)
    k, scale = fit_generalized_pareto(excess.sort(dim=0).values)
    error = (1 + abs(shape)) / math.sqrt(4000)  # the asymptotic standard error, with the least Fisher information
    assert bool(((k - shape).abs() < 6 * error).all())
    assert bool(((scale / 2 - 1).abs() < 6 * math.sqrt(2 * (1 + shape)) / math.sqrt(4000)).all())


def test_evidence_moments_and_draws_of_a_posterior_known_in_closed_form() -> None:
    """p(x, z) = N(z; 0, 1) N(2; z, 1/2) has evidence N(2; 0, 3/2) and posterior N(4/3, 1/3); q is wider and off."""
    num_draws = 20000
    noise = torch.randn(num_draws, 2, 1, generator=generator(5), dtype=torch.float64)
    z = 1.0 + 1.2 * noise
    normal = torch.distributions.Normal
    ratio = normal(0, 1).log_prob(z) + normal(z, math.sqrt(0.5)).log_prob(torch.tensor(2.0).double())
    ratio = (ratio - normal(1.0, 1.2).log_prob(z)).sum(-1)
    found = importance_weights(ratio)
    truth = float(normal(0, math.sqrt(1.5)).log_prob(torch.tensor(2.0)))
    assert bool((found.k_hat < 0.5).all())
    assert bool(((found.log_evidence - truth).abs() < 6 * found.standard_error).all())
    assert not found.problems("use another guide")
    mean, covariance = weighted_moments(z, found.log_weights)
    size = found.effective_draws[:, None]
    assert bool((size > num_draws / 10).all())
    assert bool(((mean - 4 / 3).abs() < 6 * (1 / 3 / size).sqrt()).all())
    assert bool(((covariance.squeeze(-1) - 1 / 3).abs() < 6 / 3 * (2 / size).sqrt()).all())
    draws = resample(z, found.log_weights, 5000, generator(6))
    assert draws.shape == (5000, 2, 1)
    assert bool(((draws.mean(0) - 4 / 3).abs() < 6 * (1 / 3 * (1 / size + 1 / 5000)).sqrt()).all())
    # in random order: neighbours have nothing to do with each other
    lagged = torch.corrcoef(torch.stack([draws[1:, 0, 0], draws[:-1, 0, 0]]))[0, 1]
    assert abs(float(lagged)) < 6 / math.sqrt(5000)


def test_the_bound_rises_to_the_evidence_with_the_number_of_draws() -> None:
    """log 1/S sum w in the mean over many instances, for w with E[w] = 1: below 0, and nearer to it with larger S."""
    ratio = torch.randn(1000, 4000, generator=generator(8), dtype=torch.float64) - 0.5
    bounds = [float((torch.logsumexp(ratio[:s], 0) - math.log(s)).mean()) for s in (1, 10, 100)]
    assert bounds[0] < bounds[1] < bounds[2] < 0.01
    assert bounds[2] > -0.02


def test_weights_that_are_all_equal_are_perfect() -> None:
    found = importance_weights(torch.full((100, 2), -7.0, dtype=torch.float64))
    assert found.k_hat.tolist() == [-math.inf, -math.inf]
    assert torch.equal(found.standard_error, torch.zeros(2, dtype=torch.float64))
    torch.testing.assert_close(found.log_evidence, torch.full((2,), -7.0, dtype=torch.float64))
    torch.testing.assert_close(found.effective_draws, torch.full((2,), 100.0, dtype=torch.float64))
    assert not found.problems("use another guide")


def test_rounding_is_no_tail() -> None:
    """Weights of the exact posterior are equal but for the last digits, which may be distributed in any way."""
    for dtype in (torch.float32, torch.float64):
        ratio = torch.full((100, 3), -900.0, dtype=dtype)
        ratio[:3] = torch.nextafter(ratio[:3], torch.zeros((), dtype=dtype))
        assert importance_weights(ratio).k_hat.tolist() == [-math.inf] * 3


def test_a_guide_that_misses_the_posterior_is_reported() -> None:
    """One draw carries all the weight: k-hat is infinite, and the message counts the instances."""
    ratio = 0.1 * torch.randn(200, 3, generator=generator(2), dtype=torch.float64)
    ratio[:, 1] *= 1e5
    found = importance_weights(ratio)
    assert float(found.k_hat[1]) == math.inf
    assert float(found.effective_draws[1]) < 1.01
    assert "1 of 3 instances" in found.problems("use another guide")[0]
    assert bool(found.log_weights.isfinite().any(dim=0).all())


def test_instances_do_not_touch_each_other() -> None:
    ratio = log_ratios("wide", 200, 5)
    together, alone = importance_weights(ratio), importance_weights(ratio[:, 2:3])
    torch.testing.assert_close(together.k_hat[2:3], alone.k_hat)
    torch.testing.assert_close(together.log_weights[:, 2:3], alone.log_weights)


def test_too_few_draws_are_refused() -> None:
    with pytest.raises(ArgumentError, match="at least 100"):
        importance_weights(torch.zeros(99, 1))


def test_resampling_takes_draws_in_proportion_to_their_weights() -> None:
    draws = torch.arange(4.0, dtype=torch.float64)[:, None, None].expand(4, 3, 1)
    weights = torch.tensor([0.5, 0.0, 0.25, 0.25], dtype=torch.float64)[:, None].expand(4, 3)
    chosen = resample(draws, weights.log(), 8, generator())
    counts = torch.stack([(chosen == value).sum(dim=0).squeeze(1) for value in range(4)])
    assert counts.tolist() == [[4] * 3, [0] * 3, [2] * 3, [2] * 3]
