"""Calibration: every variant against dense conditioning or its definition, and the contract that all keep to."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from calmrl_prob.alignment.calibration import CALIBRATIONS, AnchorTarget, Calibration, ImputedDraw, predicted_share
from calmrl_prob.alignment.views import Views
from calmrl_prob.errors import ArgumentError
from calmrl_prob.linear_gaussian import LinearGaussian, ObservedBlocks, posterior

NAMES, WIDTH, LATENT = ("a", "b", "c"), 5, 2


def problem(seed: int = 0) -> tuple[LinearGaussian, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    lg = LinearGaussian(
        {name: normal(WIDTH, LATENT) for name in NAMES},
        {name: normal(WIDTH) for name in NAMES},
        {name: (0.3 * normal(WIDTH)).exp() for name in NAMES},
    )
    mask = torch.tensor([[1, 1, 1], [1, 0, 0], [0, 1, 1], [0, 0, 1], [1, 1, 0], [0, 0, 0]]).bool()
    return lg, normal(len(mask), len(NAMES), WIDTH), mask


def dense(lg: LinearGaussian, x: Tensor, present: Tensor) -> tuple[Tensor, Tensor]:
    """Mean (M, D) and covariance (M D, M D) of all modalities of one instance, by conditioning their joint normal."""
    loadings = torch.cat([lg.loadings[name] for name in NAMES])
    noise = torch.cat([lg.noise_variance[name] for name in NAMES])
    mean = torch.cat([lg.intercepts[name] for name in NAMES])
    joint = loadings @ loadings.mT
    seen = present.repeat_interleave(WIDTH)
    gain = joint[:, seen] @ torch.linalg.inv(joint[seen][:, seen] + noise[seen].diag())
    given = mean + gain @ (x.flatten() - mean)[seen]
    return given.view(len(NAMES), WIDTH), joint - gain @ joint[seen] + noise.diag()


@pytest.mark.parametrize("name", CALIBRATIONS)
def test_observed_views_stay_and_absent_entries_never_matter(name: str) -> None:
    lg, x, mask = problem()
    calibration = CALIBRATIONS[name]()
    spoilt = torch.where(mask[:, :, None], x, torch.nan).requires_grad_()
    plain, other = (calibration(values, mask, lg, torch.Generator().manual_seed(1)) for values in (x, spoilt))
    for one, two in zip(plain, other, strict=True):
        assert torch.equal(one.values, two.values)
        assert torch.equal(one.weights, two.weights)
        assert torch.equal(one.values[mask], x[mask])
        assert bool((one.weights[mask] == 1).all())
        assert bool(one.values.isfinite().all())
        assert bool(((one.weights >= 0) & (one.weights <= 1)).all())
        assert bool((one.values[one.weights == 0] == 0).all())
        assert bool((one.weights[-1] == 0).all())  # an instance that has nothing says nothing
        two.values.square().sum().backward(retain_graph=True)
        assert bool((spoilt.grad[~mask] == 0).all())  # type: ignore[index]
        assert bool(spoilt.grad.isfinite().all())  # type: ignore[union-attr]


@pytest.mark.parametrize("name", CALIBRATIONS)
def test_before_there_is_a_model_only_what_was_observed_is_seen(name: str) -> None:
    _, x, mask = problem()
    (views,) = CALIBRATIONS[name]()(x, mask, None)
    assert torch.equal(views.weights, mask.to(x.dtype))
    assert views.anchors is None


def test_imputed_means_are_the_conditional_means() -> None:
    lg, x, mask = problem()
    (views,) = CALIBRATIONS["imputed_mean"]()(x, mask, lg)
    for row in range(len(mask) - 1):
        mean, _ = dense(lg, x[row], mask[row])
        assert torch.allclose(views.values[row][~mask[row]], mean[~mask[row]], atol=1e-10)


def test_draws_have_the_conditional_moments_jointly() -> None:
    lg, x, mask = problem()
    count = 20_000
    views = ImputedDraw(num_draws=count)(x[3:4], mask[3:4], lg, torch.Generator().manual_seed(0))
    absent = ~mask[3]
    draws = torch.stack([view.values[0][absent].flatten() for view in views])
    mean, covariance = dense(lg, x[3], mask[3])
    index = absent.repeat_interleave(WIDTH)
    expected = covariance[index][:, index]
    error = (expected.diagonal() / count).sqrt()
    assert bool(((draws.mean(0) - mean[absent].flatten()).abs() < 6 * error).all())
    spread = (expected.diagonal()[:, None] * expected.diagonal() + expected.square()) / count
    assert bool(((draws.mT.cov() - expected).abs() < 6 * spread.sqrt()).all())


def test_weights_are_the_shares_of_variance_that_are_predicted() -> None:
    lg, x, mask = problem()
    given = posterior(lg, ObservedBlocks.from_arrays({name: x[:, m] for m, name in enumerate(NAMES)}, mask))
    share = predicted_share(lg, given)
    for row in range(len(mask) - 1):
        _, after = dense(lg, x[row], mask[row])
        _, before = dense(lg, x[row], torch.zeros(3).bool())
        for m in range(len(NAMES)):
            part = slice(m * WIDTH, (m + 1) * WIDTH)
            expected = 1 - float(after[part, part].trace() / before[part, part].trace())
            if not mask[row, m]:
                assert float(share[row, m]) == pytest.approx(expected, abs=1e-10)


def test_confident_means_count_where_enough_is_predicted() -> None:
    lg, x, mask = problem()
    all_of_them, none_of_them = (CALIBRATIONS["confident_mean"](least=least)(x, mask, lg)[0] for least in (0.0, 1.0))  # type: ignore[call-arg]
    assert bool((all_of_them.weights[:-1] == 1).all())
    assert torch.equal(none_of_them.weights, mask.to(x.dtype))


def test_anchor_targets_point_with_the_sum_of_observed_and_imputed() -> None:
    lg, x, mask = problem()
    (views,) = AnchorTarget()(x, mask, lg)
    assert isinstance(views, Views)
    assert torch.equal(views.weights, mask.to(x.dtype))
    for row in range(len(mask) - 1):
        mean, _ = dense(lg, x[row], mask[row])
        total = torch.where(mask[row][:, None], x[row], mean).sum(0)
        assert views.anchors is not None
        assert torch.allclose(views.anchors[row], total / total.norm(), atol=1e-10)


def test_scatter_anchors_are_those_of_the_expected_scatter() -> None:
    lg, x, mask = problem()
    (views,) = AnchorTarget(kind="scatter")(x, mask, lg)
    assert views.anchors is not None
    for row in range(len(mask) - 1):
        mean, covariance = dense(lg, x[row], mask[row])
        scatter = torch.zeros(WIDTH, WIDTH, dtype=torch.float64)
        for m in range(len(NAMES)):
            part = slice(m * WIDTH, (m + 1) * WIDTH)
            value = x[row, m] if mask[row, m] else mean[m]
            scatter += torch.outer(value, value) + (0 if mask[row, m] else 1) * covariance[part, part]
        leading = torch.linalg.eigh(scatter).eigenvectors[:, -1]
        assert float((leading @ views.anchors[row]).abs()) == pytest.approx(1, abs=1e-8)


def test_certified_means_count_for_whole_instances_that_gain() -> None:
    lg, x, mask = problem()
    every, none = (
        CALIBRATIONS["certified_mean"](least=least)(x, mask, lg, torch.Generator().manual_seed(0))[0]  # type: ignore[call-arg]
        for least in (0.0, 1.0)
    )
    assert bool((every.weights[:-1] == 1).all())
    some = none.weights[(~mask).any(1) & mask.any(1)]
    assert bool(((some == 1).all(1) | (some < 1).any(1)).all())
    assert float(none.weights.sum()) <= float(every.weights.sum())


def test_unit_norm_scales_what_is_imputed_alone() -> None:
    lg, x, mask = problem()
    (views,) = CALIBRATIONS["imputed_mean"](unit_norm=True)(x, mask, lg)
    imputed = (views.weights > 0) & ~mask
    assert torch.allclose(views.values[imputed].norm(dim=1), torch.ones(int(imputed.sum())).double())
    assert torch.equal(views.values[mask], x[mask])


def test_what_cannot_work_is_refused_by_name() -> None:
    lg, x, mask = problem()
    with pytest.raises(ArgumentError, match="weight"):
        CALIBRATIONS["imputed_mean"](weight=1.5)
    with pytest.raises(ArgumentError, match="kind: expected 'sum' or 'scatter'"):
        AnchorTarget(kind="mean")  # type: ignore[arg-type]
    with pytest.raises(ArgumentError, match="num_draws"):
        ImputedDraw(num_draws=0)
    with pytest.raises(ArgumentError, match=r"representations: expected .* stack"):
        CALIBRATIONS["none"]()(x[:, 0], mask, lg)
    with pytest.raises(ArgumentError, match="observed_mask: expected bool"):
        CALIBRATIONS["none"]()(x, mask.float(), lg)


def test_every_variant_is_a_calibration_with_a_name_of_its_own() -> None:
    assert all(issubclass(kind, Calibration) and kind.name == name for name, kind in CALIBRATIONS.items())
