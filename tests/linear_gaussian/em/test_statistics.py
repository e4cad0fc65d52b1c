"""Sufficient statistics: what they sum, how they merge, and that no digit is lost to a far-away mean."""

from __future__ import annotations

from importlib import import_module

import pytest
import torch
from torch import Tensor

from calmrl_prob.errors import ArgumentError, ArgumentTypeError, IdentifiabilityWarning, SchemaError
from calmrl_prob.inference import fit
from calmrl_prob.linear_gaussian import ObservedBlocks, SufficientStatistics, fit_em
from calmrl_prob.linear_gaussian.em.statistics import FromStatistics
from calmrl_prob.model import SharedLatentModel
from tests.cases.linear_gaussian_cases import random_blocks, random_mask, random_model

DIMS = {"a": 5, "b": 3, "c": 4}


def take(blocks: ObservedBlocks, rows: Tensor) -> ObservedBlocks:
    """Some instances of the data."""
    mask = blocks.observed_mask[rows]
    values = {
        name: blocks.values[name][torch.searchsorted(blocks.rows[name], rows[mask[:, m]])]
        for m, name in enumerate(blocks.names)
    }
    return ObservedBlocks(values, mask)


def assert_same(one: SufficientStatistics, other: SufficientStatistics, tolerance: float = 1e-12) -> None:
    """Equal after a move to the same shift, relative to the size of the scatters."""
    zero = {name: torch.zeros(width).double() for name, width in one.dims.items()}
    left, right = one.shifted(zero).scatters, other.shifted(zero).scatters
    assert left.keys() == right.keys()
    for pattern, scatter in left.items():
        assert float((scatter - right[pattern]).abs().max()) <= tolerance * float(scatter.abs().max())


def test_scatters_are_the_sums_that_they_claim() -> None:
    blocks = random_blocks(random_model(DIMS, 3), 60, rate=0.4)
    statistics = SufficientStatistics(DIMS, {n: torch.zeros(w).double() for n, w in DIMS.items()}).update(blocks)
    assert statistics.num_instances == 60
    for p, members in enumerate(blocks.pattern_rows):
        stacked = blocks.stacked(p, members)
        augmented = torch.cat([stacked, stacked.new_ones(len(stacked), 1)], dim=1)
        scatter = statistics.scatters[tuple(blocks.patterns[p].tolist())]
        torch.testing.assert_close(scatter, augmented.mT @ augmented, rtol=1e-12, atol=1e-12)


def test_merging_parts_equals_the_whole() -> None:
    """Chunks, their order, separate objects with shifts of their own: all the same sums."""
    blocks = random_blocks(random_model(DIMS, 3), 300, rate=0.5)
    whole = SufficientStatistics.from_blocks(blocks)
    parts = [take(blocks, torch.arange(start, min(start + 70, 300))) for start in range(0, 300, 70)]
    streamed = SufficientStatistics(DIMS)
    for part in reversed(parts):
        streamed.update(part)
    merged = sum(
        (SufficientStatistics.from_blocks(part) for part in parts[1:]), SufficientStatistics.from_blocks(parts[0])
    )
    assert_same(streamed, whole)
    assert_same(merged, whole)
    assert merged.num_instances == 300


def test_chunk_size_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    blocks = random_blocks(random_model(DIMS, 3), 500, rate=0.3)
    whole = SufficientStatistics.from_blocks(blocks)
    monkeypatch.setattr(import_module("calmrl_prob.linear_gaussian.em.statistics"), "CHUNK_BUDGET", 1)
    assert_same(SufficientStatistics.from_blocks(blocks), whole)


def test_pairwise_covariance_is_over_the_rows_with_both() -> None:
    blocks = random_blocks(random_model(DIMS, 3), 400, rate=0.5)
    _, covariance = SufficientStatistics.from_blocks(blocks).pairwise_covariance()
    both = blocks.observed_mask[:, 0] & blocks.observed_mask[:, 2]
    rows = torch.arange(400)[both]
    a = blocks.values["a"][torch.searchsorted(blocks.rows["a"], rows)]
    c = blocks.values["c"][torch.searchsorted(blocks.rows["c"], rows)]
    a, c = a - blocks.values["a"].mean(0), c - blocks.values["c"].mean(0)
    torch.testing.assert_close(covariance[:5, 8:], a.mT @ c / len(rows))


def test_pairwise_covariance_sees_what_was_added_after_it_was_asked_for() -> None:
    first, second = (random_blocks(random_model(DIMS, 3), 40, rate=0.5, seed=seed) for seed in (1, 2))
    statistics = SufficientStatistics.from_blocks(first)
    before = statistics.pairwise_covariance()[1]
    after = statistics.update(second).pairwise_covariance()[1]
    assert not torch.equal(before, after)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_a_far_away_mean_loses_nothing(dtype: torch.dtype) -> None:
    """Mean 10^4 spreads away: the scatter about the mean is that of the data as they are stored."""
    spread = torch.randn(5000, 12, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    stored = (spread + 1e4).to(dtype)
    blocks = ObservedBlocks.from_arrays({"x": stored}, torch.ones(5000, 1, dtype=torch.bool))
    _, covariance = SufficientStatistics.from_blocks(blocks).pairwise_covariance()
    expected = torch.cov(stored.double().mT, correction=0)
    tolerance = 1e-11 if dtype == torch.float64 else 2e-6
    assert float((covariance - expected).abs().max()) < tolerance


def test_a_given_shift_need_not_be_a_float32_number() -> None:
    stored = torch.randn(200, 3, generator=torch.Generator().manual_seed(0)) + 100
    blocks = ObservedBlocks.from_arrays({"x": stored}, torch.ones(200, 1, dtype=torch.bool))
    shift = torch.full((3,), 100.1, dtype=torch.float64)  # float32 rounds it by 1.5e-6
    scatter = SufficientStatistics({"x": 3}, {"x": shift}).update(blocks).scatters[(True,)]
    exact = stored.double() - shift
    assert float((scatter[:-1, -1] - exact.sum(0)).abs().max()) < 5e-5  # the rounding alone would come to 3e-4
    assert float((scatter[:-1, :-1] - exact.mT @ exact).abs().max()) < 2e-4


def test_statistics_fit_as_the_rows_do() -> None:
    blocks = random_blocks(random_model(DIMS, 2, prior="standard"), 800, rate=0.3)
    from_rows = fit_em(blocks, 2, form="modality", tolerance=1e-12)
    from_sums = fit_em(SufficientStatistics.from_blocks(blocks), 2, tolerance=1e-12)
    assert from_sums.form == "statistics"
    assert float(from_sums.log_likelihood[-1]) == pytest.approx(float(from_rows.log_likelihood[-1]), rel=1e-9)


def test_groups_that_never_meet_are_told_apart() -> None:
    mask = torch.tensor([[True, True, False], [False, False, True]] * 5)
    _, features = random_model(DIMS, 2).sample(10, torch.Generator().manual_seed(0))
    statistics = SufficientStatistics.from_blocks(ObservedBlocks.from_arrays(features, mask))
    assert statistics.modality_groups() == [("a", "b"), ("c",)]
    model = SharedLatentModel(DIMS, 2)
    with pytest.warns(IdentifiabilityWarning, match="no instance links"):
        fit(model, statistics, tolerance=1e-3)


def test_errors() -> None:
    statistics = SufficientStatistics(DIMS)
    with pytest.raises(ArgumentTypeError, match="expected ObservedBlocks"):
        statistics.update({"a": torch.ones(2, 5)})  # type: ignore[arg-type]  # on purpose
    with pytest.raises(SchemaError, match="expected modalities"):
        statistics.update(random_blocks(random_model({"a": 5}, 1), 10, rate=0))
    with pytest.raises(SchemaError, match="expected modalities"):
        statistics.merge(SufficientStatistics({"a": 5}))
    with pytest.raises(ArgumentError, match="at least one instance"):
        FromStatistics(statistics)


def blocks_of(features: dict[str, Tensor], mask: Tensor, rows: slice, device: str) -> ObservedBlocks:
    return ObservedBlocks.from_arrays({n: x[rows].to(device) for n, x in features.items()}, mask[rows].to(device))


def test_devices(device: str) -> None:
    blocks = random_blocks(random_model(DIMS, 3), 200, rate=0.4)
    mask = random_mask(200, 3, rate=0.4)
    _, features = random_model(DIMS, 3).sample(200, torch.Generator().manual_seed(0))
    there = ObservedBlocks.from_arrays({n: x.to(device) for n, x in features.items()}, mask.to(device))
    here = SufficientStatistics.from_blocks(ObservedBlocks.from_arrays(features, mask))
    moved = SufficientStatistics.from_blocks(there)
    mixed = SufficientStatistics(DIMS).update(blocks_of(features, mask, slice(0, 80), device))
    mixed.update(blocks_of(features, mask, slice(80, 200), "cpu"))  # a chunk from elsewhere is added where the sums are
    merged = mixed.scaled(0.5).merge(here.scaled(0.5))
    for found in (moved, mixed, merged):
        assert found.device is not None
        assert found.device.type == device
        about = found.shifted({name: torch.zeros(width, device=device) for name, width in DIMS.items()})
        expected = here.shifted({name: torch.zeros(width) for name, width in DIMS.items()})
        for pattern, scatter in expected.scatters.items():
            torch.testing.assert_close(about.scatters[pattern].cpu(), scatter, rtol=1e-11, atol=1e-9)
    assert moved.to("cpu").device == torch.device("cpu")
    assert blocks.num_instances == moved.num_instances
