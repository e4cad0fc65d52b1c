"""Singular values, leading vectors and adjugates against what torch.linalg makes of the same matrices."""

from __future__ import annotations

import pytest
import torch
from conftest import random_mask
from torch import Tensor

from calmrl_prob.alignment.objectives.gram import adjugate_and_determinant
from calmrl_prob.alignment.spectrum import spectrum


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize(("modalities", "width"), [(4, 6), (4, 2), (1, 3), (2, 1)])
def test_equals_an_svd(modalities: int, width: int) -> None:
    values = normal(20, modalities, width)
    weights = random_mask(20, modalities, 0.3) * torch.rand(20, modalities, generator=torch.Generator().manual_seed(1))
    weights = weights.double()
    eigenvalues, leading = spectrum(values, weights)
    _, singular, rows = torch.linalg.svd(weights.sqrt()[:, :, None] * values, full_matrices=False)
    count = singular.shape[1]
    torch.testing.assert_close(eigenvalues[:, :count], singular.square())
    torch.testing.assert_close(eigenvalues[:, count:], torch.zeros(20, modalities - count).double())
    torch.testing.assert_close((leading * rows[:, 0]).sum(1).abs(), torch.ones(20).double())
    assert ((leading[:, None, :] * values).sum(2) * weights).sum(1).min() > 0


def test_gradients_equal_those_of_an_svd_where_it_has_some() -> None:
    values, weights = normal(8, 4, 6).requires_grad_(), torch.ones(8, 4).double()
    cotangents = normal(8, 4, seed=1), normal(8, 6, seed=2)
    eigenvalues, leading = spectrum(values, weights)
    _, singular, rows = torch.linalg.svd(values, full_matrices=False)
    sign = (rows[:, 0] * leading).sum(1).sign().detach()
    expected = torch.autograd.grad(
        (cotangents[0] * singular.square()).sum() + (cotangents[1] * sign[:, None] * rows[:, 0]).sum(), values
    )
    found = torch.autograd.grad((cotangents[0] * eigenvalues).sum() + (cotangents[1] * leading).sum(), values)
    torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-10)


def test_finite_where_singular_values_tie_or_vanish() -> None:
    tied, zero, alone = torch.eye(4).double()[:3], torch.zeros(3, 4).double(), torch.zeros(3, 4).double()
    alone[1] = torch.tensor([0.0, 2.0, 0.0, 0.0])
    values = torch.stack([tied, zero, alone]).requires_grad_()
    weights = torch.tensor([[1.0, 1.0, 1.0], [0.0, 0.0, 0.0], [0.0, 1.0, 0.0]]).double()
    eigenvalues, leading = spectrum(values, weights)
    torch.testing.assert_close(eigenvalues[:, 0], torch.tensor([1.0, 0.0, 4.0]).double())
    torch.testing.assert_close(leading[1], torch.zeros(4).double())
    torch.testing.assert_close(leading[2], torch.tensor([0.0, 1.0, 0.0, 0.0]).double())
    (slope,) = torch.autograd.grad(eigenvalues.sum() + leading.sum(), values)
    assert slope.isfinite().all()
    assert (slope[1] == 0).all()


def test_two_views_at_an_obtuse_angle_point_with_the_first() -> None:
    """Their leading vector is orthogonal to their sum; rounding, a rotation or an absent view do not turn it."""
    pair = torch.nn.functional.normalize(torch.tensor([[1.0, 0.2, 0.0], [-1.0, 0.3, 0.1]]).double(), dim=1)
    values = torch.stack([pair[0], normal(3), pair[1]])
    weights = torch.tensor([[1.0, 0.0, 1.0]]).double()
    for seed in range(20):
        turned = values @ torch.linalg.qr(normal(3, 3, seed=seed)).Q
        for dtype in (torch.float64, torch.float32):
            _, leading = spectrum(turned[None].to(dtype), weights.to(dtype))
            assert leading[0].double() @ turned[0] > 0


@pytest.mark.parametrize("size", range(1, 8))
def test_adjugates_and_determinants(size: int) -> None:
    matrices = normal(10, size, size, seed=size)
    adjugate, determinant = adjugate_and_determinant(matrices)
    expected = torch.linalg.det(matrices)
    torch.testing.assert_close(determinant, expected, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(adjugate, expected[:, None, None] * torch.linalg.inv(matrices), rtol=1e-8, atol=1e-8)


def test_adjugate_of_a_singular_matrix() -> None:
    x = normal(3, 2)
    adjugate, determinant = adjugate_and_determinant(x @ x.mT)
    null = torch.linalg.cross(x[:, 0], x[:, 1])  # spans what x x^T sends to 0
    torch.testing.assert_close(determinant, torch.zeros(()).double(), rtol=0, atol=1e-12)
    torch.testing.assert_close(adjugate, null[:, None] * null)
