"""Anchors against the singular value decomposition, their gradients against finite differences, and their laws."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from calmrl_prob.alignment.anchors import ShiftDistance, anchor_shift, leading_vector, unit
from calmrl_prob.alignment.views import Views
from calmrl_prob.errors import ArgumentError, NumericalError
from tests.cases.anchor_cases import random_instances, random_views

DISTANCES: list[ShiftDistance] = ["vector", "projector"]


def svd_anchor(present: Tensor) -> tuple[Tensor, Tensor]:
    """The anchor from the present modalities (m, D) of an instance, by the textbook, and squared singular values."""
    left, singular, _ = torch.linalg.svd(present.mT, full_matrices=False)
    vector = left[:, 0]
    return vector * torch.sign(vector @ present.sum(0)), singular.square()


def rotation(width: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.linalg.qr(torch.randn(width, width, generator=generator, dtype=torch.float64)).Q


def test_anchors_agree_with_the_singular_value_decomposition() -> None:
    compared = 0
    for views, mask in random_instances(seed=0, count=10, size=20):
        anchors = leading_vector(views, mask)
        for row, present in enumerate(mask):
            vector, values = svd_anchor(views[row, present])
            padded = torch.zeros(len(present), dtype=torch.float64)
            padded[: len(values)] = values
            torch.testing.assert_close(anchors.values[row], padded, rtol=1e-12, atol=1e-12)
            if len(values) == 1 or values[0] - values[1] > 1e-3:  # where the decomposition itself is stable
                ours = anchors.vector[row]
                if abs(float(vector @ views[row, present].sum(0))) < 1e-6:  # orthogonal to the sum: no sign to agree on
                    ours = ours * torch.sign(ours @ vector)
                torch.testing.assert_close(ours, vector, rtol=0, atol=1e-10)
                compared += 1
    assert compared > 150


def test_weights_count_as_square_roots_of_columns_and_views_bring_their_own() -> None:
    views, mask = random_views(6, 4, 5), torch.rand(6, 4, generator=torch.Generator().manual_seed(1)) < 0.7
    mask[:, 0] = True
    weights = torch.rand(6, 4, generator=torch.Generator().manual_seed(2)).double()
    anchors = leading_vector(views, mask, weights)
    scatter = torch.einsum("bm,bmd,bme->bde", weights * mask, views, views)
    values, vectors = torch.linalg.eigh(scatter)
    torch.testing.assert_close((anchors.vector * vectors[:, :, -1]).sum(1).abs(), torch.ones(6).double())
    torch.testing.assert_close(anchors.values[:, 0], values[:, -1])
    assert bool(((anchors.vector[:, None] * views * (weights * mask)[:, :, None]).sum((1, 2)) > 0).all())
    held = leading_vector(Views(torch.where(mask[:, :, None], views, 0), weights * mask, mask))
    torch.testing.assert_close(held.vector, anchors.vector)
    torch.testing.assert_close(held.values, anchors.values)


@given(
    modalities=st.integers(1, 5),
    width=st.integers(2, 8),
    seed=st.integers(0, 10_000),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
@settings(max_examples=60, deadline=None)
def test_laws_of_anchors(modalities: int, width: int, seed: int, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(seed)
    views = random_views(7, modalities, width, seed, together=2.0).to(dtype)
    mask = torch.rand(7, modalities, generator=generator) < 0.6
    anchors = leading_vector(views, mask)
    gap = anchors.values[:, 0] - (anchors.values[:, 1] if modalities > 1 else 0)
    along = (torch.where(mask[:, :, None], views, 0).sum(1) * anchors.vector).sum(1)
    decided = (gap > 1e-2) & (along.abs() > 1e-3)
    assert bool((along > -1e-5).all())
    tolerance = {"rtol": 0.0, "atol": 1e-4 if dtype == torch.float32 else 1e-10}

    torch.testing.assert_close(anchors.vector.norm(dim=1), mask.any(1).to(dtype))
    assert anchors.vector.dtype == anchors.values.dtype == dtype
    assert bool((anchors.values.diff(dim=1) <= 1e-6).all())
    torch.testing.assert_close(anchors.values.sum(1), mask.sum(1).to(dtype))

    order = torch.randperm(modalities, generator=generator)
    permuted = leading_vector(views[:, order], mask[:, order])
    torch.testing.assert_close(permuted.vector[decided], anchors.vector[decided], **tolerance)
    torch.testing.assert_close(permuted.values, anchors.values, **tolerance)

    turn = rotation(width, seed).to(dtype)
    turned = leading_vector(views @ turn, mask)
    torch.testing.assert_close(turned.vector[decided], (anchors.vector @ turn)[decided], **tolerance)

    mirrored = leading_vector(-views, mask)
    torch.testing.assert_close(mirrored.vector[decided], -anchors.vector[decided], **tolerance)


@pytest.mark.parametrize("filler", [math.nan, math.inf, 1e300, 0.0])
def test_absent_entries_change_no_value_and_no_gradient(filler: float) -> None:
    views, mask = random_views(5, 4, 3), torch.tensor([[True, False, True, False]]).expand(5, 4)
    clean = views.clone().requires_grad_()
    dirty = torch.where(mask[:, :, None], views, filler).requires_grad_()
    probe = torch.linspace(1, 2, 15, dtype=torch.float64).view(5, 3)
    for tensor in (clean, dirty):
        anchors = leading_vector(tensor, mask)
        ((anchors.vector * probe).sum() + anchors.values.sum()).backward()
    assert clean.grad is not None
    assert dirty.grad is not None
    torch.testing.assert_close(dirty.grad, clean.grad, rtol=0, atol=0)
    assert not dirty.grad[~mask].any()


def test_nothing_present_gives_zero_and_one_modality_itself() -> None:
    views = random_views(2, 3, 4).requires_grad_()
    anchors = leading_vector(views, torch.tensor([[False, False, False], [False, True, False]]))
    assert not anchors.vector[0].any()
    torch.testing.assert_close(anchors.vector[1], views[1, 1])
    torch.testing.assert_close(anchors.values, torch.tensor([[0.0, 0, 0], [1, 0, 0]]).double())
    (anchors.vector.sum() + anchors.values.sum()).backward()
    assert views.grad is not None
    assert not views.grad[0].any()
    assert bool(views.grad.isfinite().all())


def test_sign_does_not_hang_on_rounding_where_the_sum_cannot_decide() -> None:
    x = torch.tensor([[1.0, 0.0], [-0.6, 0.8]], dtype=torch.float64)  # their sum is orthogonal to the anchor
    turned = torch.stack([x @ rotation(2, seed) for seed in range(20)])
    assert bool(((leading_vector(turned).vector * turned[:, 0]).sum(1) > 0.8).all())


def degenerate_views() -> dict[str, Tensor]:
    eye = torch.eye(3, dtype=torch.float64)
    nearly = torch.tensor([1.0, 1e-9, 0.0], dtype=torch.float64)
    return {
        "all the same": eye[:1].expand(3, 3).contiguous(),
        "all orthogonal": eye.clone(),
        "opposite": torch.stack([eye[0], -eye[0], eye[1]]),
        "tie of two": torch.stack([eye[0], eye[1], eye[1] * 0]),
        "nearly the same": torch.stack([eye[0], nearly, eye[0]]),
        "all zero": torch.zeros(3, 3, dtype=torch.float64),
    }


@pytest.mark.parametrize("name", degenerate_views())
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_values_and_gradients_are_finite_at_ties_and_at_perfect_alignment(name: str, dtype: torch.dtype) -> None:
    views = degenerate_views()[name].to(dtype)[None].requires_grad_()
    weights = torch.tensor([[1.0, 0.5, 0.0]], dtype=dtype, requires_grad=True)
    for given_weights in (None, weights):
        anchors = leading_vector(views, torch.ones(1, 3, dtype=torch.bool), given_weights)
        assert bool(anchors.vector.isfinite().all())
        loss = (anchors.vector * torch.tensor([0.3, -0.7, 1.1], dtype=dtype)).sum() + anchors.values.square().sum()
        loss.backward()
    for tensor in (views, weights):
        assert tensor.grad is not None
        assert bool(tensor.grad.isfinite().all())


@pytest.mark.parametrize("together", [0.3, 1.0, 3.0])
def test_gradients_are_those_of_finite_differences(together: float) -> None:
    generator = torch.Generator().manual_seed(3)
    mask = torch.tensor([[True, True, True], [True, False, True], [False, True, False]])
    views = random_views(3, 3, 4, seed=5, together=together).requires_grad_()
    weights = (0.2 + torch.rand(3, 3, generator=generator)).double().requires_grad_()

    def function(views: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
        anchors = leading_vector(views, mask, weights)
        return anchors.vector, anchors.values

    assert torch.autograd.gradcheck(function, (views, weights))


def test_gradients_are_exact_near_perfect_alignment_and_near_a_tie() -> None:
    close = random_views(1, 3, 4, seed=1)[0, 0] + 1e-3 * random_views(1, 3, 4, seed=2)[0]
    tied = torch.tensor([[1.0, 0, 0, 0], [5e-3, 1.0, 0, 0], [0, 0, 0.1, 0]]).double()  # gap 1% of the leading value
    views = torch.stack([close, tied]).requires_grad_()
    assert torch.autograd.gradcheck(lambda views: leading_vector(views).vector, views, eps=1e-7, atol=1e-4)


def test_the_floor_bounds_gradients_at_a_tie() -> None:
    sizes = []
    for floor in (1e-1, 1e-3):
        views = torch.eye(2, dtype=torch.float64)[None].clone().requires_grad_()
        leading_vector(views, gap_floor=floor).vector.square().mul(torch.tensor([1.0, -1.0]).double()).sum().backward()
        assert views.grad is not None
        sizes.append(float(views.grad.abs().max()))
        assert sizes[-1] <= 4 / floor
    assert sizes[1] <= sizes[0] * 101


def test_half_precision_and_autocast_keep_the_digits() -> None:
    views = random_views(4, 3, 64, together=2.0)
    expected = leading_vector(views).vector
    half = leading_vector(views.bfloat16()).vector
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.double(), expected, rtol=0, atol=1e-2)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(leading_vector(views.float()).vector, expected.float(), rtol=0, atol=1e-6)


@pytest.mark.parametrize("distance", DISTANCES)
def test_shift_is_accurate_at_any_angle(distance: ShiftDistance) -> None:
    for exponent in range(-16, 0):
        angle = 10.0**exponent
        u = torch.tensor([[1.0, 0.0]], dtype=torch.float64)
        v = torch.tensor([[math.cos(angle), math.sin(angle)]], dtype=torch.float64)
        expected = 2 * math.sin(angle / 2) if distance == "vector" else math.sqrt(2) * math.sin(angle)
        assert float(anchor_shift(u, v, distance)) == pytest.approx(expected, rel=1e-7)
    expected = 2.0 if distance == "vector" else 0.0
    assert float(anchor_shift(u, -u, distance)) == pytest.approx(expected)
    assert float(anchor_shift(u, 0 * u, distance)) == 1.0  # an instance that has nothing


@pytest.mark.parametrize("distance", DISTANCES)
def test_shift_is_the_norm_of_the_difference_and_its_gradient_is_safe(distance: ShiftDistance) -> None:
    u, v = (unit(random_views(50, 1, 6, seed=seed)[:, 0]) for seed in (1, 2))
    dense = u - v if distance == "vector" else u[:, :, None] * u[:, None] - v[:, :, None] * v[:, None]
    torch.testing.assert_close(anchor_shift(u, v, distance), dense.flatten(1).norm(dim=1))
    parameters = (u[:2].clone().requires_grad_(), v[:2].clone().requires_grad_())
    assert torch.autograd.gradcheck(lambda u, v: anchor_shift(u, v, distance), parameters)
    same = u.clone().requires_grad_()
    anchor_shift(same, u, distance).sum().backward()
    assert same.grad is not None
    assert not same.grad.any()


def test_wrong_arguments_are_refused() -> None:
    views, mask = random_views(2, 3, 4), torch.ones(2, 3, dtype=torch.bool)
    with pytest.raises(ArgumentError, match="observed_mask: expected bool"):
        leading_vector(views, mask[:, :2])
    with pytest.raises(ArgumentError, match="representations: expected floating-point"):
        leading_vector(views[0], mask)
    with pytest.raises(ArgumentError, match="weights: expected numbers of at least 0"):
        leading_vector(views, mask, -torch.ones(2, 3))
    with pytest.raises(ArgumentError, match="Views bring their own"):
        leading_vector(Views.observed(views, mask), mask)
    with pytest.raises(ArgumentError, match="local: expected the shape of full"):
        anchor_shift(views[0], views[0, :2])
    with pytest.raises(ArgumentError, match="distance: expected one of"):
        anchor_shift(views[0], views[0], "angle")  # type: ignore[arg-type]
    views[1, 2, 0] = math.nan
    with pytest.raises(NumericalError, match="first row 1"):
        leading_vector(views, mask)
