"""Completions against dense conditioning, and the anchor of the expected scatter against D x D eigenvectors."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from calmrl_prob.alignment.anchors import leading_vector
from calmrl_prob.alignment.completion import Completion
from calmrl_prob.alignment.expected_scatter import ScatterFactor, expected_scatter_anchor
from calmrl_prob.errors import ArgumentError, SchemaError
from calmrl_prob.linear_gaussian import LinearGaussian
from tests.cases.certificate_cases import NAMES, dense_predictive, make_completion
from tests.cases.linear_gaussian_cases import random_mask, random_model


def dense_scatter(completion: Completion, row: int) -> Tensor:
    """E[Z Z^T | observed], D x D."""
    mean, covariance = dense_predictive(completion, row)
    modalities, width = completion.values.shape[1:]
    second = (covariance + mean[:, None] * mean).view(modalities, width, modalities, width)
    return sum(second[m, :, m] for m in range(modalities))  # type: ignore[return-value]


def test_completions_hold_what_is_present_and_predictive_means() -> None:
    completion = make_completion(noise="diagonal")
    for row in range(len(completion.values)):
        mean, _ = dense_predictive(completion, row)
        torch.testing.assert_close(completion.values[row].flatten(), mean, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("noise", ["diagonal", "full"])
def test_draws_have_the_moments_of_dense_conditioning(noise: str) -> None:
    completion = make_completion(width=3, noise=noise, rows=12)
    num_draws = 4000
    draws = torch.stack(list(completion.draws(num_draws, torch.Generator().manual_seed(1)))).flatten(2)
    for row in range(len(completion.values)):
        mean, covariance = dense_predictive(completion, row)
        deviation = draws[:, row] - mean
        error = (covariance.diagonal().clamp(min=0) / num_draws).sqrt()
        assert bool((deviation.mean(0).abs() <= 6 * error + 1e-9).all())
        variance = covariance.diagonal().clamp(min=0)
        spread = ((variance[:, None] * variance + covariance.square()) / num_draws).sqrt()
        assert bool((((deviation.mT @ deviation) / num_draws - covariance).abs() <= 6 * spread + 1e-9).all())


def test_completions_refuse_models_of_other_shapes() -> None:
    model = random_model(dict.fromkeys(NAMES, 4), 2)
    with pytest.raises(SchemaError, match="expected 3 modalities of 5 features"):
        Completion.from_linear_gaussian(model, torch.zeros(2, 3, 5), torch.ones(2, 3, dtype=torch.bool))
    with pytest.raises(ArgumentError, match="observed_mask"):
        Completion.from_linear_gaussian(model, torch.zeros(2, 3, 4), torch.ones(2, 2, dtype=torch.bool))


@pytest.mark.parametrize("noise", ["isotropic", "diagonal", "full", "low_rank"])
@pytest.mark.parametrize(("width", "latents"), [(6, 2), (4, 3), (30, 4), (1, 1)])
def test_expected_scatter_anchor_is_the_leading_direction_of_the_dense_matrix(
    noise: str, width: int, latents: int
) -> None:
    for seed in range(3):
        completion = make_completion(width, latents, noise, seed)
        anchors = expected_scatter_anchor(completion)
        for row in range(len(completion.values)):
            values, vectors = torch.linalg.eigh(dense_scatter(completion, row))
            torch.testing.assert_close(anchors.values[row, 0], values[-1], rtol=1e-10, atol=1e-10)
            gap = (values[-1] - values[-2]) / values[-1] if width > 1 else 1
            if gap > 1e-4:
                expected = vectors[:, -1] * torch.sign(vectors[:, -1] @ completion.values[row].sum(0))
                torch.testing.assert_close(anchors.vector[row], expected, rtol=0, atol=1e-8)


@pytest.mark.parametrize("scale", [1e-12, 1e-3, 1.0])
def test_expected_scatter_anchor_where_predictive_variance_dominates(scale: float) -> None:
    model = random_model(dict.fromkeys(NAMES, 5), 2, seed=4, prior="standard", noise="isotropic")
    model = LinearGaussian(model.loadings, {name: torch.zeros(5).double() for name in NAMES}, model.noise_variance)
    x = scale * torch.randn(20, 3, 5, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    mask = torch.tensor([[True, False, False]]).expand(20, 3).clone()
    mask[:4] = False  # nothing at all, and prior means of zero: the leading direction of the predictive covariance
    completion = Completion.from_linear_gaussian(model, x, mask)
    anchors = expected_scatter_anchor(completion)
    for row in range(20):
        values, vectors = torch.linalg.eigh(dense_scatter(completion, row))
        torch.testing.assert_close(anchors.values[row, 0], values[-1], rtol=1e-8, atol=0)
        assert float((vectors[:, -1] @ anchors.vector[row]).abs()) > 1 - 1e-8


def test_nothing_missing_and_nothing_uncertain_give_the_anchor_itself() -> None:
    completion = make_completion()
    complete = Completion.from_linear_gaussian(
        completion.linear_gaussian, completion.values, torch.ones_like(completion.observed_mask)
    )
    torch.testing.assert_close(expected_scatter_anchor(complete).vector, leading_vector(completion.values).vector)
    zero = torch.zeros(2, 3, 6).double()
    complete = Completion.from_linear_gaussian(completion.linear_gaussian, zero, torch.ones(2, 3, dtype=torch.bool))
    assert not expected_scatter_anchor(complete).vector.any()
    assert not expected_scatter_anchor(complete).values.any()


@pytest.mark.parametrize("noise", ["isotropic", "diagonal"])
def test_gradients_of_the_expected_scatter_anchor_are_those_of_finite_differences(noise: str) -> None:
    model = random_model(dict.fromkeys(NAMES, 4), 2, seed=1, noise=noise)
    mask = torch.tensor([[True, False, True], [False, True, False], [True, True, True]])
    x = torch.randn(3, 3, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64, requires_grad=True)

    def function(x: Tensor) -> tuple[Tensor, Tensor]:
        anchors = expected_scatter_anchor(Completion.from_linear_gaussian(model, x, mask))
        return anchors.vector, anchors.values

    assert torch.autograd.gradcheck(function, x)


def test_absent_entries_and_the_order_of_rows_change_nothing() -> None:
    completion = make_completion()
    lg, mask = completion.linear_gaussian, completion.observed_mask
    filled = torch.where(mask[:, :, None], completion.values, 1e100)
    order = torch.randperm(len(mask), generator=torch.Generator().manual_seed(0))
    other = Completion.from_linear_gaussian(lg, filled[order], mask[order])
    torch.testing.assert_close(expected_scatter_anchor(other).vector, expected_scatter_anchor(completion).vector[order])
    assert expected_scatter_anchor(completion).vector.dtype == torch.float64
    single = Completion.from_linear_gaussian(lg, filled.float().nan_to_num(posinf=0), mask)
    anchors = expected_scatter_anchor(single)
    assert anchors.vector.dtype == torch.float32
    torch.testing.assert_close(anchors.values.double(), expected_scatter_anchor(completion).values, rtol=1e-4, atol=0)


def test_factors_are_made_once_for_each_pattern_and_an_empty_batch_is_one() -> None:
    completion = make_completion()
    factors: dict[tuple[bool, ...], ScatterFactor] = {}
    first = expected_scatter_anchor(completion, factors=factors)
    assert set(factors) == set(map(tuple, completion.patterns.tolist()))
    made = dict(factors)
    again = expected_scatter_anchor(completion, factors=factors)
    assert all(factors[pattern] is factor for pattern, factor in made.items())
    assert torch.equal(first.vector, again.vector)
    for pattern, factor in factors.items():
        absent = [name for name, present in zip(NAMES, pattern, strict=True) if not present]
        trace = factor.spectrum.sum() + factor.shift * completion.values.shape[2]
        assert bool(trace > 0) == bool(absent)
    empty = Completion.from_linear_gaussian(
        completion.linear_gaussian, completion.values[:0], completion.observed_mask[:0]
    )
    assert expected_scatter_anchor(empty).vector.shape == (0, 6)
    assert leading_vector(empty.values, empty.observed_mask).vector.shape == (0, 6)


def test_expected_scatter_anchor_over_many_scales() -> None:
    for seed in range(40):
        generator = torch.Generator().manual_seed(seed)
        width, latents = (int(torch.randint(1, most, (), generator=generator)) for most in (9, 5))
        loading, noise, offset, scale = (10 ** (5 * torch.rand(4, generator=generator).double() - 4)).tolist()
        model = random_model(
            dict.fromkeys(NAMES, width), latents, seed, noise="isotropic" if seed % 2 else "diagonal", prior="standard"
        )
        lg = LinearGaussian(
            {name: loading * value for name, value in model.loadings.items()},
            {name: (seed % 3) * offset * value for name, value in model.intercepts.items()},
            {name: noise * value for name, value in model.noise_variance.items()},
        )
        x = scale * torch.randn(10, 3, width, generator=generator, dtype=torch.float64)
        mask = random_mask(10, 3, 0.5, seed, empty=True)
        completion = Completion.from_linear_gaussian(lg, x, mask)
        # dense, from the completion's own parts: conditioning in another way would lose more digits at these scales
        scatter = completion.values.mT @ completion.values
        for m, name in enumerate(NAMES):
            loadings = lg.loadings[name]
            variance = loadings @ completion.posterior.covariance @ loadings.mT + torch.diag(lg.noise_variance[name])
            scatter = scatter + torch.where(mask[:, m, None, None], 0, variance)
        anchors = expected_scatter_anchor(completion)
        largest = torch.linalg.eigvalsh(scatter)[:, -1]
        quotient = (anchors.vector[:, None] @ scatter @ anchors.vector[:, :, None]).flatten()
        torch.testing.assert_close(quotient, largest, rtol=1e-13, atol=0)
        torch.testing.assert_close(anchors.values[:, 0], largest, rtol=3e-9, atol=0)
