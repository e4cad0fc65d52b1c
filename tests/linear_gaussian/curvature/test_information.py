"""The observed information against second derivatives by autograd, and its laws."""

from __future__ import annotations

from importlib import import_module

import pytest
import torch
from torch import Tensor
from torch.autograd.functional import hessian

from calmrl_prob.linear_gaussian import Evidence, SufficientStatistics
from calmrl_prob.linear_gaussian.curvature.information import Coordinates, observed_information
from calmrl_prob.linear_gaussian.em.parameters import Parameters, Shape
from tests.cases.model_cases import DIMS, random_data

LATENT_DIM = 2


def at_random(isotropic: bool, seed: int = 0) -> tuple[SufficientStatistics, Parameters]:
    """Statistics of a few rows in several patterns, and parameters that fit them badly."""
    statistics = SufficientStatistics.from_blocks(random_data(15, seed).blocks)
    shape = Shape.of(DIMS)
    generator = torch.Generator().manual_seed(seed)

    def normal(*size: int) -> Tensor:
        return torch.randn(*size, generator=generator, dtype=torch.float64)

    noise = normal(len(DIMS))[shape.feature_modality] if isotropic else normal(shape.total)
    return statistics, Parameters(normal(shape.total, LATENT_DIM), normal(shape.total), (0.5 * noise).exp())


@pytest.mark.parametrize("isotropic", [True, False])
@pytest.mark.parametrize("seed", [0, 1])
def test_information_is_minus_the_hessian_of_the_evidence(isotropic: bool, seed: int) -> None:
    statistics, parameters = at_random(isotropic, seed)
    information, where = observed_information(statistics, parameters, isotropic=isotropic)
    shape, evidence = Shape.of(DIMS), Evidence(statistics, LATENT_DIM)

    def value(step: Tensor) -> Tensor:
        return evidence(where.moved(parameters, step).to_linear_gaussian(shape, statistics.shift))

    size = sum(where.sizes)
    expected = -hessian(value, torch.zeros(size, dtype=torch.float64))
    assert size == len(information) == (9 * 3 + (3 if isotropic else 9))
    torch.testing.assert_close(information, expected, rtol=1e-9, atol=1e-9)


def test_its_cost_is_free_of_rows_and_it_adds_over_them() -> None:
    statistics, parameters = at_random(True)
    once, _ = observed_information(statistics, parameters, isotropic=True)
    twice, _ = observed_information(statistics + statistics, parameters, isotropic=True)
    torch.testing.assert_close(twice, 2 * once)


def test_rotations_are_orthonormal_and_turn_the_loadings() -> None:
    parameters = at_random(False)[1]
    shape = Shape.of(DIMS)
    where = Coordinates(shape, LATENT_DIM, False, parameters.noise_variance.sqrt())
    basis = where.rotations(parameters)
    torch.testing.assert_close(basis.mT @ basis, torch.eye(1, dtype=torch.float64))
    tiny = 1e-5
    turned = where.moved(parameters, tiny * basis[:, 0])
    before, after = (p.loadings @ p.loadings.mT for p in (parameters, turned))
    assert float((after - before).abs().max()) < 10 * tiny**2
    assert float((turned.loadings - parameters.loadings).abs().max()) > 0.1 * tiny


def test_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    module = import_module("calmrl_prob.linear_gaussian.curvature.information")
    statistics, parameters = at_random(False)
    whole, _ = observed_information(statistics, parameters, isotropic=False)
    monkeypatch.setattr(module, "_CHUNK_BUDGET", 1)
    torch.testing.assert_close(observed_information(statistics, parameters, isotropic=False)[0], whole)
