"""Features with few values: intervals as wide as what is not known of them, warnings by name, folds that keep them."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats

import calmrl_prob as cal
from calmrl_prob.errors import DataError, NumericalError, ReliabilityWarning
from calmrl_prob.selection.few_values import Widening
from calmrl_prob.selection.folds import make_folds
from calmrl_prob.selection.held_out import HeldOutSums
from calmrl_prob.selection.hidden import HeldOutRows
from calmrl_prob.selection.intervals import LEVELS, scales_of_rows, scales_of_sums
from calmrl_prob.selection.search import Search
from calmrl_prob.selection.settings import Setting

NINETY = torch.tensor([0.9], dtype=torch.float64)


@pytest.mark.parametrize("number", [1, 2, 5, 10, 20])
def test_a_new_value_lies_within_the_widened_interval_about_the_mean_of_few(number: int) -> None:
    """Features of spreads that differ as a chi-squared of 4 has it, the prior; errors are those from the mean."""
    g = np.random.default_rng(number)
    features = 20_000
    spread = np.sqrt(4 / g.chisquare(4, size=(features, 1)))
    values = spread * g.normal(size=(features, number + 1))
    mean = values[:, :number].mean(1)
    squares = np.square(values[:, :number] - mean[:, None]).sum(1) * number / max(number - 1, 1) * (number > 1)
    counts = np.full(features, number if number > 1 else 0)
    found = Widening.of(torch.full((features,), number), torch.from_numpy(squares), torch.from_numpy(counts))
    half = stats.norm.ppf(0.95) * found.stretch(NINETY)[:, 0].numpy()
    covered = float((np.abs(values[:, number] - mean) < half).mean())
    assert 0.88 < covered < 0.94  # exact for n = 1; squares and the prior are not quite of one scale beyond


def test_many_values_widen_nothing_and_single_ones_by_the_closed_form() -> None:
    found = Widening.of(torch.tensor([1, 60, 10**6]), torch.zeros(3), torch.zeros(3))
    expected = [2**0.5 * stats.t.ppf(0.95, 4) / stats.norm.ppf(0.95), 1, 1]
    np.testing.assert_allclose(found.stretch(NINETY)[:, 0], expected, rtol=1e-12)
    np.testing.assert_allclose(found.inflation, [2 * 4 / 2, 1, 1])  # a Student-t of 4 has twice its squared scale


def test_few_held_out_values_neither_set_their_quantiles_nor_those_of_others() -> None:
    g = torch.Generator().manual_seed(0)
    truth = torch.randn(400, 3, generator=g, dtype=torch.float64)
    truth[2:, 0] = torch.nan
    truth[:2, 0] = 30.0  # far out, by chance
    zero, one = torch.zeros(3, dtype=torch.float64), torch.ones(3, dtype=torch.float64)
    rows = HeldOutRows("a", ("b",), truth, torch.zeros_like(truth), one, torch.arange(400))
    values = {"a": torch.tensor([2, 400, 400])}
    found = scales_of_rows([rows.sums(zero)], [(rows, zero)], values)["a"]["b"]
    assert found.half_widths is not None
    ninety = found.half_widths[:, int((LEVELS - 0.9).abs().argmin())]
    # 800 values of a standard normal: its quantile of 1.64 within five standard errors of 0.07
    torch.testing.assert_close(ninety[1:], torch.full((2,), 1.64).double(), rtol=0, atol=0.35)
    assert float(ninety[0]) > 20  # f_n = (4 * 1.5 + 2 * 900) / 6


def test_statistics_widen_modalities_of_few_rows() -> None:
    one = torch.ones(3, dtype=torch.float64)
    sums = HeldOutSums("a", ("b",), 9 * one, 9 * one, 18 * one, 10 * one, one)
    found = scales_of_sums([sums], {"a": torch.full((3,), 9)})["a"][None].factor
    shrunk = (4 * (1 + 1 / 9) + 9) / 13  # squared errors are as stated
    expected = shrunk * (stats.t.ppf(0.95, 12) / stats.norm.ppf(0.95)) ** 2
    torch.testing.assert_close(found, expected * one)
    assert scales_of_sums([sums], {"a": torch.full((3,), 99)})["a"][None].factor.tolist() == [1.0] * 3


def rare(seed: int = 0, counts: tuple[int, ...] = (1, 1, 2, 5)) -> cal.MultimodalData:
    g = np.random.default_rng(seed)
    z = g.normal(size=(150, 2))
    x = {name: z @ g.normal(size=(2, 8)) + 0.5 * g.normal(size=(150, 8)) for name in "ab"}
    for feature, count in enumerate(counts):
        x["a"][count:, feature] = np.nan
    return cal.MultimodalData({n: pd.DataFrame(v, columns=list("stuvwxyz")) for n, v in x.items()}, missing="features")


def test_the_default_fit_chooses_and_names_features_that_few_rows_have() -> None:
    data = rare()
    with pytest.warns(ReliabilityWarning, match=r"'a': features 's' \(1 row\), 't' \(1 row\), 'u' \(2 rows\)\. "):
        fit = cal.fit(cal.SharedLatentModel(data.dims), data)
    assert not fit.choice.fallback
    g = np.random.default_rng(0)
    new = cal.MultimodalData({"b": pd.DataFrame(g.normal(size=(5, 8)), columns=list("stuvwxyz"))})
    lower, upper = cal.impute(fit, new, names=["a"]).interval(0.9)["a"]
    base, top = cal.impute(fit, new, names=["a"], recalibrated=False).interval(0.9)["a"]
    ratio = ((upper - lower) / (top - base))[0]
    assert bool((ratio[:4] > ratio[4:].max()).all())  # wider than those of features that all rows have


def test_plain_fits_name_them_too() -> None:
    data = rare(counts=(2, 5))
    with pytest.warns(ReliabilityWarning, match=r"'a': features 's' \(2 rows\), 't' \(5 rows\) has \(K \+ 1\) / rows"):
        cal.fit(cal.SharedLatentModel(data.dims, 2), data)


def test_rows_without_which_a_fold_lacks_a_feature_are_in_all_fits() -> None:
    folds = make_folds(rare(), 2, 3, 0)
    assert not any(fold.lacking for fold in folds)
    held = np.concatenate([fold.rows for fold in folds])
    assert len(set(held.tolist())) == len(held) < 150
    whole = cal.datasets.make_synthetic(90, seed=0).data
    assert sum(len(fold.rows) for fold in make_folds(whole, 2, 3, 0)) == 90  # type: ignore[arg-type]


def test_what_failed_in_a_later_fold_is_no_start_of_others() -> None:
    data = cal.datasets.make_synthetic(60, {"a": 4, "b": 3}, latent_dim=2, seed=0).data
    folds = make_folds(data, 2, 3, 0)
    search = Search(folds, 0)
    first = search.try_(Setting(2), "first")

    def fails_late(k: int) -> object:
        if k:
            raise NumericalError("no more")
        return first.fits[0]

    failed = search.scored(Setting(2, pseudo_rows=5.0), "fails", fails_late, lambda fold, lg: fold.sums(lg))
    assert "no more" in failed.reason
    assert np.isfinite(search.value(search.try_(Setting(2, pseudo_rows=9.0), "next", near=failed)))


def test_a_feature_that_no_row_has_is_named_within_its_modality() -> None:
    g = np.random.default_rng(0)
    x = {name: g.normal(size=(20, 3)) for name in "ab"}
    x["b"][:, 2] = np.nan
    data = cal.MultimodalData(x, missing="features")
    with pytest.raises(DataError, match="nothing of feature 2 of modality 'b' is observed"):
        cal.fit(cal.SharedLatentModel(data.dims, 1), data)


def test_a_feature_of_one_row_is_not_called_constant() -> None:
    data = rare(counts=(1,))
    with pytest.raises(DataError, match=r"'a': feature 0 is seen in 1 row alone.* noise='isotropic'"):
        cal.fit(cal.SharedLatentModel(data.dims, 2, "diagonal"), data)
