"""The differentiable evidence under a mixture: against autograd through every instance, and by finite differences."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from calmrl_prob.errors import NumericalError
from calmrl_prob.linear_gaussian import (
    FeatureBlocks,
    LinearGaussian,
    LinearGaussianMixture,
    ObservedBlocks,
    mixture_posterior,
)
from calmrl_prob.linear_gaussian.mixture.evidence import MixtureEvidence
from tests.cases.linear_gaussian_cases import random_mask
from tests.cases.mixture_cases import random_mixture

DIMS = {"a": 4, "b": 3, "c": 2}

Flat = tuple[Tensor, ...]


def flatten(mixture: LinearGaussianMixture) -> Flat:
    """Every tensor of a mixture, as leaves; the prior covariances by their roots, so that steps keep them definite."""
    first = mixture.components[0]
    parts = [*first.loadings.values(), *first.intercepts.values(), *first.noise_variance.values()]
    parts += [mixture.log_weights, mixture.means, torch.linalg.cholesky(mixture.covariances)]
    return tuple(part.detach().clone().requires_grad_() for part in parts)


def unflatten(parts: Flat) -> LinearGaussianMixture:
    """The inverse."""
    likelihood = [dict(zip(DIMS, parts[i : i + 3], strict=True)) for i in (0, 3, 6)]
    return LinearGaussianMixture.from_prior(LinearGaussian(*likelihood), parts[9], parts[10], parts[11] @ parts[11].mT)


def blocks_of(num_instances: int, rate: float = 0.4) -> ObservedBlocks:
    """Draws of one mixture; some instances have nothing."""
    _, features = random_mixture(DIMS, 2, 3, seed=1).sample(num_instances, torch.Generator().manual_seed(0))
    return ObservedBlocks.from_arrays(features, random_mask(num_instances, 3, rate, 0, empty=True))


def single_features(num_instances: int) -> FeatureBlocks:
    """The same with single features missing."""
    rows = torch.cat(list(blocks_of(num_instances, rate=0).values.values()), dim=1)
    return FeatureBlocks(DIMS, rows, torch.rand(rows.shape, generator=torch.Generator().manual_seed(0)) > 0.3)


@pytest.mark.parametrize("blocks", [blocks_of(60), single_features(60)], ids=["modalities", "features"])
@pytest.mark.parametrize("shared", [True, False])
def test_value_and_gradient_are_those_of_autograd(blocks: ObservedBlocks | FeatureBlocks, shared: bool) -> None:
    """1e-9 apart: sums of 60 rows in another order, float64."""
    mixture = random_mixture(DIMS, 2, 3, seed=2, shared=shared)
    parts = [part for lg in mixture.components for part in (*lg.loadings.values(), lg.prior_mean)]
    for part in parts:
        part.requires_grad_()
    value, expected = MixtureEvidence(blocks, 2)(mixture), mixture_posterior(mixture, blocks).log_marginal.sum()
    assert float(value.detach()) == pytest.approx(float(expected.detach()), rel=1e-10)
    for one, other in zip(torch.autograd.grad(value, parts), torch.autograd.grad(expected, parts), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("check", [torch.autograd.gradcheck, torch.autograd.gradgradcheck])
def test_finite_differences_by_every_parameter(check: Callable[..., bool]) -> None:
    """First derivatives in closed form, second ones by autograd."""
    evidence = MixtureEvidence(blocks_of(12), 2)
    mixture = random_mixture(DIMS, 2, 3, seed=3)
    assert check(lambda *parts: evidence(unflatten(parts)), flatten(mixture), fast_mode=True)


def test_a_component_that_is_switched_off_moves_nothing() -> None:
    mixture = random_mixture(DIMS, 2, 3, seed=4)
    off = LinearGaussianMixture.from_prior(
        mixture.components[0], torch.tensor([0.0, -torch.inf, 0.0]).double(), mixture.means, mixture.covariances
    )
    parts = flatten(off)
    evidence = MixtureEvidence(blocks_of(20), 2)
    gradient = torch.autograd.grad(evidence(unflatten(parts)), parts)
    assert all(bool(part.isfinite().all()) for part in gradient)
    assert not gradient[10][1].any()


def test_covariances_that_are_none_are_refused() -> None:
    mixture = random_mixture(DIMS, 2, 2, seed=5)
    broken = LinearGaussianMixture.from_prior(
        mixture.components[0], mixture.log_weights, mixture.means, -mixture.covariances
    )
    with pytest.raises(NumericalError, match="positive-definite"):
        MixtureEvidence(blocks_of(10), 2)(broken)
