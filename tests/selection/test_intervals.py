"""Predictives put right by held-out errors: quantiles, levels, and imputations drawn to the mean."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

import calmrl_prob as cal
from calmrl_prob.posteriors.predictive import NormalPredictive
from calmrl_prob.selection.error_predictive import HeldOutPredictive
from calmrl_prob.selection.held_out import OWN_PART, HeldOutSums
from calmrl_prob.selection.hidden import HeldOutRows
from calmrl_prob.selection.intervals import LEVELS, HeldOutIntervals, scales_of_rows, scales_of_sums, slope_to_the_mean

#: The first instance has both modalities, the second "b" alone.
MASK = torch.tensor([[True, True], [False, True]])


def sums(error: float, square: float, product: float) -> HeldOutSums:
    one = torch.ones(1, dtype=torch.float64)
    return HeldOutSums("a", ("b",), 100 * one, error * one, square * one, product * one, one)


def test_slopes_are_those_of_least_squares_where_imputations_lose() -> None:
    assert slope_to_the_mean([sums(50.0, 100.0, 75.0)]) == 1.0
    # sum of squared imputations: error - square + 2 product = 150 - 100 + 2 * 20 = 90
    assert slope_to_the_mean([sums(150.0, 100.0, 20.0)]) == pytest.approx(20 / 90)
    assert slope_to_the_mean([sums(150.0, 100.0, -5.0)]) == 0.0


def errors(number: int, width: int, scale: float) -> HeldOutRows:
    generator = torch.Generator().manual_seed(0)
    truth = scale * torch.randn(number, width, generator=generator, dtype=torch.float64)
    variance, rows = torch.ones(width, dtype=torch.float64), torch.arange(number)
    return HeldOutRows("a", ("b",), truth, torch.zeros_like(truth), variance, rows)


def better(number: int) -> HeldOutSums:
    one = torch.ones(3, dtype=torch.float64)
    return HeldOutSums("a", ("b",), number * one, one, 2 * one, one, one)


@pytest.mark.parametrize(("number", "lists"), [(100, 1), (2000, 3)])
def test_half_widths_of_normal_errors_are_those_of_a_normal(number: int, lists: int) -> None:
    centre = torch.zeros(3, dtype=torch.float64)
    found = scales_of_rows([better(number)], [(errors(number, 3, 2.0), centre)])["a"]
    assert found.keys() == {None, "b"}
    scale = found["b"]
    assert scale.half_widths is not None
    assert len(scale.factor) == len(scale.half_widths) == lists
    normal = 2 * torch.special.ndtri((1 + LEVELS) / 2)
    middle = LEVELS < 0.96  # quantiles of 300 numbers at least; their standard errors are below 5% there
    torch.testing.assert_close(scale.half_widths[:, middle], normal[middle].expand(lists, -1), rtol=0.15, atol=0.06)
    torch.testing.assert_close(scale.factor, torch.full((lists,), 4.0).double(), rtol=0.25, atol=0)


def test_statistics_give_the_factors_that_rows_give() -> None:
    rows, centre = errors(2000, 3, 2.0), torch.zeros(3, dtype=torch.float64)
    total = rows.sums(centre)
    one, other = scales_of_rows([total], [(rows, centre)])["a"]["b"], scales_of_sums([total])["a"]["b"]
    assert one.slope == other.slope == 0.0  # imputations at the mean itself
    assert other.half_widths is None
    torch.testing.assert_close(one.factor, other.factor, rtol=1e-5, atol=0)  # scores are kept in single precision


def predictive(slope: float = 1.0) -> HeldOutPredictive:
    mean = torch.tensor([[0.0, 1.0], [2.0, -1.0]]).double()
    base = NormalPredictive(mean, torch.zeros_like(mean), torch.tensor([1.0, 4.0]).double())
    widths = 3 * torch.special.ndtri((1 + LEVELS) / 2)
    tables = [widths[None], torch.stack([widths, 2 * widths])]
    factor = torch.full_like(mean, 9.0)
    return HeldOutPredictive(
        base,
        factor,
        torch.ones(2).double(),
        torch.tensor([slope, slope]).double(),
        LEVELS,
        tables,
        torch.tensor([0, 1]),
    )


@pytest.mark.parametrize("probability", [0.0001, 0.03, 0.3, 0.5, 0.7, 0.97, 0.9999])
def test_levels_invert_quantiles(probability: float) -> None:
    found = predictive()
    torch.testing.assert_close(found.cdf(found.quantile(probability)), torch.full((2, 2), probability).double())


def test_quantiles_rise_and_are_as_wide_as_the_tables_say() -> None:
    found = predictive()
    quantiles = torch.stack([found.quantile(p) for p in torch.linspace(0.001, 0.999, 60).tolist()])
    assert bool((quantiles.diff(dim=0) > 0).all())
    half = found.quantile(0.95) - found.mean
    torch.testing.assert_close(half, 3 * 1.6449 * torch.tensor([[1.0, 2.0], [1.0, 4.0]]).double(), rtol=1e-4, atol=0)
    assert not found.normal


def test_means_are_drawn_to_the_centre_and_draws_with_them() -> None:
    found = predictive(slope=0.5)
    torch.testing.assert_close(found.mean, torch.tensor([[0.5, 1.0], [1.5, 0.0]]).double())
    torch.testing.assert_close(found.spread(found.base.mean), found.mean)
    values = torch.randn(2, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    torch.testing.assert_close(found.restore(found.spread(values)), values)


def test_errors_from_the_rest_of_a_modality_are_not_pooled_with_those_from_others() -> None:
    others = sums(50.0, 100.0, 75.0)
    own = replace(sums(1.0, 100.0, 99.0), seen=(OWN_PART,))
    found = scales_of_sums([others, own])["a"]
    assert float(found[None].factor) == float(found["b"].factor) == pytest.approx(0.5)
    assert float(found[OWN_PART].factor) == pytest.approx(0.01)
    assert float(scales_of_sums([own])["a"][None].factor) == pytest.approx(0.01)  # nothing else is known


def test_instances_that_have_the_modality_themselves_keep_what_was_learned_of_others_away() -> None:
    data = cal.MultimodalData({"a": torch.ones(2, 1).double(), "b": torch.ones(2, 1).double()}, observed_mask=MASK)
    lost = HeldOutIntervals(("a", "b"), scales_of_sums([sums(150.0, 100.0, -5.0)]), {"a": torch.zeros(1)}, 3)
    base = NormalPredictive(torch.ones(2, 1).double(), torch.zeros(2, 1).double(), torch.ones(1).double())
    found = lost.predictive("a", base, data)
    assert found.mean.flatten().tolist() == [1.0, 0.0]  # the second lacks it, and is drawn to the mean
    assert found.variance[0].item() == 1.0
