"""Bounds of the anchor shift on thousands of random instances, near ties, and where they are exact."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from calmrl_prob.alignment.anchors import anchor_shift, leading_vector
from calmrl_prob.alignment.bounds import ShiftBounds, shift_bounds
from calmrl_prob.errors import ArgumentError, NumericalError
from tests.cases.anchor_cases import random_instances, random_views

FAMILIES = ("theorem", "residual", "moment")
#: Of quantities of order 1 in float64.
ROUNDING = 1e-12


def shifts(views: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """The vector and the projector distance between anchor and local anchor."""
    full, local = leading_vector(views).vector, leading_vector(views, mask).vector
    return anchor_shift(full, local), anchor_shift(full, local, "projector")


def bound(bounds: ShiftBounds, family: str, side: str) -> Tensor:
    value: Tensor = getattr(bounds, f"{family}_{side}")
    return value


def test_bounds_hold_for_the_projector_distance_and_not_for_the_vector_distance() -> None:
    violations = dict.fromkeys([(family, side) for family in FAMILIES for side in ("lower", "upper")], 0)
    instances = 0
    for views, mask in random_instances(seed=0):
        bounds = shift_bounds(views, mask)
        vector, projector = shifts(views, mask)
        torch.testing.assert_close(bounds.shift, projector, rtol=0, atol=ROUNDING)
        instances += len(views)
        for family in FAMILIES:
            lower, upper = bound(bounds, family, "lower"), bound(bounds, family, "upper")
            assert bool((lower <= projector + ROUNDING).all()), family
            assert bool((projector <= upper + ROUNDING).all()), family
            violations[family, "lower"] += int((lower > vector + ROUNDING).sum())
            violations[family, "upper"] += int((upper < vector - ROUNDING).sum())
    assert instances == 4000
    # Printed for the vector distance: on this distribution of instances 2,917 of 4,000 break the lower bound.
    assert violations["theorem", "lower"] > instances / 2
    assert violations["theorem", "upper"] >= 1  # where the missing modalities turn the anchor's sign


def test_moment_bounds_are_the_sharpest() -> None:
    medians = []
    for views, mask in random_instances(seed=1):
        bounds = shift_bounds(views, mask)
        assert bool((bounds.moment_lower >= bounds.theorem_lower - ROUNDING).all())
        assert bool((bounds.moment_lower >= bounds.residual_lower - ROUNDING).all())
        assert bool((bounds.moment_upper <= bounds.residual_upper + ROUNDING).all())
        medians.append(torch.stack([bounds.moment_lower, bounds.shift, bounds.moment_upper], dim=1))
    low, middle, high = torch.cat(medians).median(0).values.tolist()
    assert middle - low < 0.02
    assert high - middle < 0.02


def test_moment_bounds_are_exact_for_two_modalities() -> None:
    views = random_views(200, 2, 5, seed=2)
    bounds = shift_bounds(views, torch.tensor([[True, False]]).expand(200, 2))
    torch.testing.assert_close(bounds.moment_lower, bounds.shift, rtol=0, atol=1e-7)
    torch.testing.assert_close(bounds.moment_upper, bounds.shift, rtol=0, atol=1e-7)


def test_theorem_and_corollary_are_those_of_the_paper() -> None:
    for views, mask in random_instances(seed=3, count=3, size=10):
        bounds = shift_bounds(views, mask)
        for row, present in enumerate(mask):
            singular = torch.linalg.svdvals(views[row])
            left, observed, _ = torch.linalg.svd(views[row, present].mT, full_matrices=False)
            eta = (views[row, ~present] @ left[:, 0]).square().sum()
            inner = 1 - (observed[0].square() + eta) / singular[0].square()
            missing = torch.linalg.matrix_norm(views[row, ~present], ord=2)
            gap = singular[0] - singular[1]
            torch.testing.assert_close(bounds.theorem_lower[row], (2 * inner).sqrt())
            torch.testing.assert_close(bounds.theorem_upper[row], 2**0.5 * missing / gap)
            eps = gap / (~present).sum().sqrt() * inner.sqrt()
            torch.testing.assert_close(bounds.corollary_threshold[row], eps)


@pytest.mark.parametrize("exponent", range(0, 18, 2))
def test_bounds_hold_near_ties_and_near_perfect_alignment(exponent: int) -> None:
    small = 10.0**-exponent
    generator = torch.Generator().manual_seed(exponent)
    mask = torch.rand(300, 3, generator=generator) < 0.5
    mask[:, 0] = True
    base = torch.linalg.qr(torch.randn(300, 5, 3, generator=generator, dtype=torch.float64)).Q.mT
    noise = small * torch.randn(300, 3, 5, generator=generator, dtype=torch.float64)
    tied, aligned = base + noise, base[:, :1] + noise
    mixed = base + torch.tensor([[0.0], [1.0], [0.0]]) * base[:, :1] + noise  # a tie of the local anchor alone
    for views in (tied, aligned, mixed, normalize(tied, dim=-1), normalize(aligned, dim=-1)):
        bounds = shift_bounds(views, mask)
        projector = shifts(views, mask)[1]
        for family in FAMILIES:
            assert bool((bound(bounds, family, "lower") <= projector + 1e-13).all()), family
            assert bool((projector <= bound(bounds, family, "upper") * (1 + 1e-9) + 1e-13).all()), family


def test_exact_ties_and_instances_with_nothing_are_bounded_by_what_is_certain() -> None:
    views = torch.stack([torch.eye(3), torch.eye(3)[:1].expand(3, 3), torch.eye(3), torch.zeros(3, 3)]).double()
    mask = torch.tensor([[True, False, False], [True, False, True], [False] * 3, [True, True, False]])
    bounds = shift_bounds(views, mask)
    for family in FAMILIES:
        lower, upper = bound(bounds, family, "lower"), bound(bounds, family, "upper")
        assert not (lower.isnan() | upper.isnan()).any()
        assert bool((lower <= bounds.shift + 1e-13).all())
        assert bool((bounds.shift <= upper + 1e-13).all())
    assert bounds.shift[2] == 1
    assert bounds.corollary_threshold[2] == bounds.certified_threshold[2] == 0
    single = shift_bounds(random_views(2, 1, 3), torch.tensor([[True], [False]]))
    assert float(single.moment_lower[0]) == float(single.shift[0]) == 0
    assert not any(bound(single, family, "lower").isnan().any() for family in FAMILIES)


def imputed_shift(views: Tensor, mask: Tensor, errors: Tensor) -> Tensor:
    """The projector shift once the missing modalities are put in, with errors."""
    imputed = leading_vector(torch.where(mask[:, :, None], views, views + errors)).vector
    return anchor_shift(leading_vector(views).vector, imputed, "projector")


def worst_errors(views: Tensor, mask: Tensor, size: Tensor, steps: int = 25) -> Tensor:
    """Errors of norm ``size`` (B,) for each modality, found by ascent on the shift that they leave."""
    errors = torch.randn(views.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for _ in range(steps):
        errors = (normalize(errors, dim=-1) * size[:, None, None]).requires_grad_()
        (gradient,) = torch.autograd.grad(imputed_shift(views, mask, errors).sum(), errors)
        errors = errors.detach() + size[:, None, None] * normalize(gradient, dim=-1)
    return normalize(errors, dim=-1) * size[:, None, None]


def test_errors_below_the_certified_threshold_always_reduce_the_shift() -> None:
    tried = 0
    for views, mask in random_instances(seed=4, count=12, size=50):
        bounds = shift_bounds(views, mask)
        for errors in (
            worst_errors(views, mask, bounds.certified_threshold * (1 - 1e-9)),
            normalize(torch.randn(views.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64), dim=-1)
            * bounds.certified_threshold[:, None, None],
        ):
            assert bool((imputed_shift(views, mask, errors) <= bounds.shift + ROUNDING).all())
            tried += int((bounds.certified_threshold > 1e-3).sum())
    assert tried > 800


def test_corollary_3_as_printed_can_fail() -> None:
    views = normalize(
        torch.tensor(
            [[100.0, 0, 0, 0], [-35, 94, 0, 0], [37, -92, 10, 0], [-37, 46, -62, 52], [-37, 45, -64, 50]],
            dtype=torch.float64,
        ),
        dim=-1,
    )[None]
    mask = torch.tensor([[True, False, False, False, False]])
    directions = torch.tensor(
        [[0.0, 0, 0, 0], [38, -4, 71, -60], [-42, 16, -69, 57], [41, -85, -23, 23], [41, -85, -23, 24]],
        dtype=torch.float64,
    )
    bounds = shift_bounds(views, mask)
    assert float(bounds.corollary_threshold) > 0.3
    errors = 0.999 * bounds.corollary_threshold[:, None, None] * normalize(directions, dim=-1)[None]
    assert float(imputed_shift(views, mask, errors)) > 1.1 * float(bounds.shift)
    smaller = errors / errors.norm(dim=-1, keepdim=True).clamp(min=1e-30) * bounds.certified_threshold
    assert float(imputed_shift(views, mask, smaller)) < float(bounds.shift)


def test_complete_instances_have_no_shift_and_no_threshold() -> None:
    views = random_views(20, 4, 6)
    bounds = shift_bounds(views, torch.ones(20, 4, dtype=torch.bool))
    assert float(bounds.shift.max()) < 1e-14
    assert float(bounds.moment_lower.max()) < 1e-14
    assert not bounds.theorem_upper.any()
    assert not bounds.corollary_threshold.any()
    assert not bounds.certified_threshold.any()


def test_float32_is_bounded_in_float64_and_wrong_arguments_are_refused() -> None:
    views, mask = random_views(3, 3, 4), torch.tensor([[True, False, True]]).expand(3, 3)
    bounds = shift_bounds(views.float(), mask)
    assert bounds.moment_lower.dtype == torch.float64
    torch.testing.assert_close(bounds.shift, shift_bounds(views, mask).shift, rtol=0, atol=1e-6)
    with pytest.raises(ArgumentError, match="observed_mask"):
        shift_bounds(views, mask[:2])
    views[2, 1, 0] = torch.nan  # missing in the mask, but bounds are of complete instances
    with pytest.raises(NumericalError, match="first row 2"):
        shift_bounds(views, mask)
