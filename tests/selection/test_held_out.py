"""Sums over held-out imputations: from rows, from statistics, and by dense conditioning."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import calmrl_prob as cal
from calmrl_prob.linear_gaussian import LinearGaussian, SufficientStatistics
from calmrl_prob.selection.held_out import HeldOutSums, added, sums_of_statistics
from calmrl_prob.selection.hidden import imputed_rows

DIMS = {"a": 4, "b": 3, "c": 2}


def model(seed: int = 0, *, correlated: bool = False) -> LinearGaussian:
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    loadings = {name: normal(width, 3) for name, width in DIMS.items()}
    intercepts = {name: 5 * normal(width) for name, width in DIMS.items()}
    noise = {name: normal(width).square() + 0.1 for name, width in DIMS.items()}
    if not correlated:
        return LinearGaussian(loadings, intercepts, noise)
    factor = {name: normal(width, 2) for name, width in DIMS.items()}
    total = {name: noise[name] + factor[name].square().sum(1) for name in DIMS}
    return LinearGaussian(loadings, intercepts, total, noise_factor=factor)


def rows(number: int = 60) -> cal.MultimodalData:
    """Instances of all patterns of at least one modality, drawn from another model than is asked."""
    drawn = model(7).sample(number, torch.Generator().manual_seed(1)).features
    patterns = [p for p in np.ndindex(2, 2, 2) if any(p)]
    mask = np.array([patterns[n % len(patterns)] for n in range(number)], dtype=bool)
    return cal.MultimodalData({name: drawn[name] for name in DIMS}, observed_mask=mask)


def dense(lg: LinearGaussian, data: cal.MultimodalData, centre: dict[str, torch.Tensor]) -> dict:
    """Sums by conditioning the joint normal of all features, instance by instance."""
    mean, covariance = lg.joint()
    place = {n: torch.arange(s, s + w) for (n, w), s in zip(DIMS.items(), np.cumsum([0, *DIMS.values()]), strict=False)}
    found: dict = {}
    for n in range(len(data)):
        have = [name for name in DIMS if bool(data.observed(name)[n])]
        for name in have:
            seen = [other for other in have if other != name]
            if not seen:
                continue
            i = torch.cat([place[o] for o in seen])
            gain = torch.linalg.solve(covariance[i][:, i], covariance[i][:, place[name]]).mT
            imputed = mean[place[name]] + gain @ (torch.cat([data[o][n] for o in seen]) - mean[i])
            variance = (covariance[place[name]][:, place[name]] - gain @ covariance[i][:, place[name]]).diagonal()
            truth = data[name][n]
            here, there = truth - centre[name], imputed - centre[name]
            parts = torch.stack([(truth - imputed).square(), here.square(), here * there])
            total, count, _ = found.get((name, tuple(seen)), (0, 0, None))
            found[name, tuple(seen)] = (total + parts, count + 1, variance)
    return found


def close(sums: HeldOutSums, expected: tuple) -> None:
    total, count, variance = expected
    assert sums.count.tolist() == [count] * len(variance)
    # sums of about 60 terms of size 100: 1e-9 leaves four digits over rounding
    torch.testing.assert_close(torch.stack([sums.square_error, sums.square, sums.product]), total, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(sums.variance, variance, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("correlated", [False, True])
def test_rows_and_statistics_agree_with_dense_conditioning(correlated: bool) -> None:
    lg, data = model(correlated=correlated), rows()
    centre = {name: torch.full((width,), 0.5, dtype=torch.float64) for name, width in DIMS.items()}
    expected = dense(lg, data, centre)
    by_rows = {(p.modality, p.seen): p.sums(centre[p.modality]) for p in imputed_rows(lg, data)}
    statistics = SufficientStatistics.from_blocks(data.blocks)
    by_sums = {(p.modality, p.seen): p for p in sums_of_statistics(lg, statistics, centre)}
    assert by_rows.keys() == by_sums.keys() == expected.keys()
    for key, value in expected.items():
        close(by_rows[key], value)
        close(by_sums[key], value)


def test_the_shift_of_statistics_changes_nothing() -> None:
    lg, data = model(), rows()
    centre = {name: torch.zeros(width, dtype=torch.float64) for name, width in DIMS.items()}
    near = SufficientStatistics.from_blocks(data.blocks)
    far = near.shifted({name: torch.full((width,), 30.0, dtype=torch.float64) for name, width in DIMS.items()})
    for one, other in zip(sums_of_statistics(lg, near, centre), sums_of_statistics(lg, far, centre), strict=True):
        torch.testing.assert_close(one.square_error, other.square_error, rtol=1e-8, atol=1e-8)  # 900 times the spread


def test_sums_of_parts_are_the_sum_of_the_whole() -> None:
    lg, data = model(), rows()
    centre = {name: torch.zeros(width, dtype=torch.float64) for name, width in DIMS.items()}
    parts = [
        p.sums(centre[p.modality])
        for half in (slice(0, 25), slice(25, 60))
        for p in imputed_rows(lg, data.subset(half))
    ]
    whole = {(p.modality, p.seen): p.sums(centre[p.modality]) for p in imputed_rows(lg, data)}
    for key, found in added(parts).items():
        torch.testing.assert_close(found.square_error, whole[key].square_error)
        torch.testing.assert_close(found.variance, whole[key].variance)
        torch.testing.assert_close(found.imputed_square, whole[key].imputed_square)


def test_single_features_missing_are_left_out_of_the_sums() -> None:
    lg, data = model(), rows()
    values = {name: data[name].clone() for name in DIMS}
    values["a"][0, 1] = torch.nan
    row = next(n for n in range(len(data)) if bool(data.observed("a")[n] & data.observed("b")[n]))
    values["a"][row, 2] = torch.nan
    holed = cal.MultimodalData(values, missing="features")
    centre = torch.zeros(4, dtype=torch.float64)
    counts = sum(p.sums(centre).count for p in imputed_rows(lg, holed) if p.modality == "a")
    full = sum(p.sums(centre).count for p in imputed_rows(lg, data) if p.modality == "a")
    assert float((full - counts)[2]) == pytest.approx(1.0)
    assert all(bool(p.sums(centre).square_error.isfinite().all()) for p in imputed_rows(lg, holed) if p.modality == "a")


def test_the_mean_variance_of_rows_is_that_of_their_variances() -> None:
    lg, data = model(), rows()
    values = {name: data[name].clone() for name in DIMS}
    values["a"][::4, 1], values["b"][1::5, 0] = torch.nan, torch.nan
    holed = cal.MultimodalData(values, missing="features")
    centre = torch.zeros(4, dtype=torch.float64)
    for by_row, mean in zip(imputed_rows(lg, holed), imputed_rows(lg, holed, by_row=False), strict=True):
        assert mean.variance.ndim == 1
        assert torch.equal(mean.imputed, by_row.imputed)
        own = by_row.variance.expand_as(by_row.truth).mean(0)
        torch.testing.assert_close(mean.variance, own, rtol=1e-10, atol=0)  # of K 3: a few hundred roundings at most
        if by_row.modality == "a":
            torch.testing.assert_close(mean.sums(centre).variance, by_row.sums(centre).variance)
