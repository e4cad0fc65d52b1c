"""Folds: dealt evenly, whole groups together, and the same from rows and from statistics."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import calmrl_prob as cal
from calmrl_prob.errors import ArgumentError, ArgumentTypeError, SchemaError
from calmrl_prob.linear_gaussian import SufficientStatistics, fit_em
from calmrl_prob.selection.folds import FoldedStatistics, RowFold, StatisticsFold, deal, folds_to_fit, make_folds


@pytest.fixture(scope="module")
def data() -> cal.MultimodalData:
    return cal.datasets.make_synthetic(150, {"a": 5, "b": 4}, latent_dim=2, missing_rate=0.3, seed=0).data


def test_rows_are_dealt_evenly_and_by_seed() -> None:
    fold = deal(100, 3, seed=1)
    assert sorted(np.bincount(fold).tolist()) == [33, 33, 34]
    assert (fold == deal(100, 3, seed=1)).all()
    assert (fold != deal(100, 3, seed=2)).any()


def test_rows_of_a_group_share_a_fold() -> None:
    groups = np.repeat([f"subject {n}" for n in range(12)], np.arange(1, 13))
    fold = deal(len(groups), 3, 0, groups)
    assert all(len(set(fold[groups == group].tolist())) == 1 for group in set(groups.tolist()))
    assert np.bincount(fold).max() - np.bincount(fold).min() <= 12  # the largest group


@pytest.mark.parametrize("groups", [["a"] * 9, ["a", "b"] * 5])
def test_groups_that_do_not_serve_are_refused(groups: list[str]) -> None:
    with pytest.raises(ArgumentError, match="groups"):
        deal(10, 3, 0, groups)


def test_a_fold_of_rows_and_one_of_statistics_are_the_same(data: cal.MultimodalData) -> None:
    rows = [RowFold(data.subset(deal(150, 3, 0) != k), data.subset(deal(150, 3, 0) == k)) for k in range(3)]
    statistics = make_folds(FoldedStatistics.of(data, 3, 0), 2, 3, 0)
    for one, other in zip(rows, statistics, strict=True):
        assert isinstance(other, StatisticsFold)
        for name in data.names:
            torch.testing.assert_close(one.centre[name], other.centre[name])
            torch.testing.assert_close(one.spread[name], other.spread[name])
        lg = fit_em(other.train, 2).linear_gaussian
        by_key = {(p.modality, p.seen): p for p in other.sums(lg)}
        for part in one.sums(lg):
            torch.testing.assert_close(part.square_error, by_key[part.modality, part.seen].square_error)


def test_what_is_no_set_of_folds_is_refused(data: cal.MultimodalData) -> None:
    whole = SufficientStatistics.from_blocks(data.blocks)
    other = SufficientStatistics({"a": 5})
    with pytest.raises(ArgumentError, match="2 or more"):
        FoldedStatistics([whole])
    with pytest.raises(SchemaError, match="modalities"):
        FoldedStatistics([whole, other])
    with pytest.raises(ArgumentTypeError, match="SufficientStatistics"):
        FoldedStatistics([whole, data])  # type: ignore[list-item]
    with pytest.raises(ArgumentError, match="single features"):
        FoldedStatistics.of(cal.MultimodalData({"a": np.array([[1.0, np.nan], [2.0, 3.0]])}, missing="features"))


@pytest.mark.parametrize(("rows", "worth"), [(7_499, 5), (7_500, 2), (24_999, 2), (25_000, 1)])
def test_of_folds_that_tell_enough_one_or_two_are_fitted(rows: int, worth: int) -> None:
    assert folds_to_fit(5, rows) == worth


def test_of_many_rows_one_fold_is_enough_and_the_fit_is_that_of_the_settings() -> None:
    """15,000 rows in 3 folds; the fit to all rows is what its settings give when they are given, bit by bit."""
    data = cal.datasets.make_synthetic(15_500, {"a": 5, "b": 4, "c": 3}, latent_dim=3, missing_rate=0.1, seed=0).data
    found = cal.fit(cal.SharedLatentModel(data.dims), data)
    assert found.choice.num_folds == 1
    assert "in 1 fold by" in repr(found.choice)
    assert "+/-" not in repr(found.choice)
    assert found.choice.table["error"].isna().all()
    assert set(found.intervals.slopes) == set(data.names)
    settled = cal.SharedLatentModel(data.dims, found.choice.latent_dim, found.choice.noise)
    again = cal.fit(settled, data, tolerance=found.tolerance, **found.choice.options)
    assert (again.log_likelihood == found.log_likelihood).all()
    fewer = cal.fit(cal.SharedLatentModel(data.dims), data.subset(range(9_000)))
    assert fewer.choice.num_folds == 2
