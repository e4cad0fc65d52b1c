"""The M-step of the noise where features have different numbers of values."""

from __future__ import annotations

import numpy as np
import torch
from scipy.optimize import minimize_scalar

from calmrl_prob.linear_gaussian import FeatureBlocks, fit_em
from calmrl_prob.linear_gaussian.em.noise_model import NoiseModel
from calmrl_prob.linear_gaussian.em.parameters import Shape

SHAPE = Shape.of({"a": 3, "b": 2}, torch.device("cpu"))


def model(isotropic: bool) -> NoiseModel:
    return NoiseModel(isotropic, torch.zeros(5).double(), 0.0, torch.ones(5).double())


def negative(log: float, weights: np.ndarray, squares: np.ndarray) -> float:
    return float((weights * log + squares / np.exp(log)).sum())


def test_one_variance_weighs_features_by_their_values() -> None:
    squares = torch.tensor([30.0, 2.0, 9.0, 4.0, 1.0], dtype=torch.float64)
    weights = torch.tensor([100.0, 1.0, 10.0, 7.0, 5.0], dtype=torch.float64)
    found = model(True).maximum(SHAPE, squares, weights)
    for part in SHAPE.slices:
        best = minimize_scalar(negative, args=(weights[part].numpy(), squares[part].numpy()), options={"xtol": 1e-10})
        # a minimum is flat: its place is known to the square root of rounding, 1e-8
        np.testing.assert_allclose(found[part], np.exp(best.x), rtol=1e-6)
    assert torch.equal(model(False).maximum(SHAPE, squares, weights), squares / weights)


def test_equal_weights_leave_the_mean_to_the_last_bit() -> None:
    squares, weights = (
        torch.rand(5, generator=torch.Generator().manual_seed(0)).double(),
        torch.full((5,), 7.3).double(),
    )
    mean = [(squares / weights)[part].mean().expand(part.stop - part.start) for part in SHAPE.slices]
    assert torch.equal(model(True).maximum(SHAPE, squares, weights), torch.cat(mean))


def test_isotropic_fits_of_rare_features_rise_to_their_maximum() -> None:
    g = torch.Generator().manual_seed(0)
    z = torch.randn(150, 2, generator=g, dtype=torch.float64)
    x = z @ torch.randn(2, 8, generator=g, dtype=torch.float64)
    x += 0.5 * torch.randn(150, 8, generator=g, dtype=torch.float64)
    mask = torch.ones(150, 8, dtype=torch.bool)
    mask[5:, 0], mask[20:, 1] = False, False
    result = fit_em(FeatureBlocks({"a": 8}, x, mask), 2)
    assert result.converged
    assert result.num_iterations > 3  # it had stopped at the second step, which lost
    assert bool((result.objective.diff() >= 0).all())
