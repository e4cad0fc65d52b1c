"""The predictive of a modality: mixtures of normals against scipy and against draws."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import integrate, stats
from torch import Tensor

from calmrl_prob.inference import MixturePredictive, NormalPredictive


def mixture(between: str = "latent") -> MixturePredictive:
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    weights = torch.softmax(normal(3, 2), dim=0)
    return MixturePredictive(weights.log(), 2 * normal(3, 2, 4), normal(3, 2, 4).exp(), normal(3, 4).exp(), between)


def density(predictive: MixturePredictive, row: int, feature: int, x: float) -> float:
    values = torch.full((2, 4), x, dtype=torch.float64)
    return float(predictive.log_density(values)[row, feature].exp())


@pytest.mark.parametrize("row", [0, 1])
def test_moments_of_a_mixture_are_those_of_its_density(row: int) -> None:
    predictive = mixture()
    powers = [
        integrate.quad(lambda x, p=p: x**p * density(predictive, row, 1, x), -40, 40, limit=200)[0] for p in range(3)
    ]
    assert powers[0] == pytest.approx(1, abs=1e-6)
    assert powers[1] == pytest.approx(float(predictive.mean[row, 1]), abs=1e-6)
    assert powers[2] - powers[1] ** 2 == pytest.approx(float(predictive.variance[row, 1]), abs=1e-5)


@pytest.mark.parametrize("probability", [0.05, 0.5, 0.9])
def test_quantile_of_a_mixture_is_where_its_distribution_function_says(probability: float) -> None:
    predictive = mixture()
    quantile = predictive.quantile(probability)
    scale = (predictive._within + predictive._noise).sqrt().numpy()
    below = stats.norm.cdf(quantile.numpy(), predictive.location.numpy(), scale)
    total = np.einsum("cn,cnd->nd", predictive.log_weight.exp().numpy(), below)
    assert np.abs(total - probability).max() < 1e-12


def test_what_tells_components_apart_decides_which_part_grows() -> None:
    latent, parameter = mixture("latent"), mixture("parameter")
    assert latent.parameter_variance is None
    assert parameter.parameter_variance is not None
    assert torch.allclose(latent.latent_variance, parameter.latent_variance + parameter.parameter_variance)
    assert torch.equal(latent.variance, latent.latent_variance + latent.noise_variance)
    assert torch.allclose(latent.variance, parameter.variance)


def test_one_component_is_a_normal() -> None:
    mean, within, noise = torch.randn(2, 3).double(), torch.rand(2, 3).double(), torch.rand(3).double()
    normal = NormalPredictive(mean, within, noise)
    single = MixturePredictive(torch.zeros(1, 2).double(), mean[None], within[None], noise[None])
    values = torch.randn(2, 3).double()
    assert torch.allclose(normal.log_density(values), single.log_density(values))
    assert torch.allclose(normal.quantile(0.8), single.quantile(0.8))
    assert torch.allclose(normal.variance, single.variance)
