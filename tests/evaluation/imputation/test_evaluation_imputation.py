"""Imputation metrics and calibration against library oracles, quadrature and cell-by-cell loops."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from scipy.integrate import quad
from scipy.stats import kstest, norm
from sklearn.metrics import r2_score

from calmrl_prob.data import MultimodalData
from calmrl_prob.errors import ArgumentError, ArgumentTypeError, DataError, SchemaError
from calmrl_prob.evaluation.imputation.coverage import coverage_curve, pit_values
from calmrl_prob.evaluation.imputation.imputation import (
    IMPUTATION_METRICS,
    INTERVAL_METRICS,
    cosine,
    crps,
    gaussian_nll,
    interval_coverage,
    interval_width,
    r_squared,
    rmse,
    score_imputation,
)


def make_cells(seed: int, shape: tuple[int, int] = (12, 4)) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.normal(size=shape), rng.normal(size=shape), rng.uniform(0.2, 3.0, size=shape)


def test_point_metrics_equal_loops_and_scikit_learn() -> None:
    truth, mean, _ = make_cells(0)
    squares = [(t - m) ** 2 for t, m in zip(truth.ravel(), mean.ravel(), strict=True)]
    assert rmse(truth, mean) == pytest.approx((sum(squares) / len(squares)) ** 0.5)
    cosines = [t @ m / np.linalg.norm(t) / np.linalg.norm(m) for t, m in zip(truth, mean, strict=True)]
    assert cosine(truth, mean) == pytest.approx(np.mean(cosines))
    assert r_squared(truth, mean) == pytest.approx(r2_score(truth, mean, multioutput="variance_weighted"))
    assert r_squared(truth, np.broadcast_to(truth.mean(0), truth.shape)) == pytest.approx(0)


def test_degenerate_cells_give_no_false_figures() -> None:
    constant = np.ones((3, 2))
    assert np.isnan(r_squared(constant, constant + 1))
    assert np.isnan(r_squared(np.array([[1.0, 2.0]]), np.array([[1.0, 2.0]])))  # one row has no spread
    assert cosine(np.zeros((2, 3)), np.ones((2, 3))) == 0


def test_nll_crps_and_intervals_equal_scipy() -> None:
    truth, mean, variance = make_cells(1)
    scale = np.sqrt(variance)
    assert gaussian_nll(truth, mean, variance) == pytest.approx(-norm.logpdf(truth, mean, scale).mean())
    low, high = norm.interval(0.8, mean, scale)
    assert interval_coverage(truth, mean, variance, 0.8) == ((truth >= low) & (truth <= high)).mean()
    assert interval_width(truth, mean, variance, 0.8) == pytest.approx((high - low).mean())


def test_crps_equals_its_integral() -> None:
    def integral(x: float, m: float, s: float) -> float:
        below = quad(lambda t: norm.cdf(t, m, s) ** 2, m - 12 * s, x)[0]
        return below + quad(lambda t: norm.sf(t, m, s) ** 2, x, m + 12 * s)[0]

    truth, mean, variance = make_cells(2, (3, 2))
    cells = zip(truth.ravel(), mean.ravel(), np.sqrt(variance).ravel(), strict=True)
    assert crps(truth, mean, variance) == pytest.approx(np.mean([integral(*cell) for cell in cells]), abs=1e-6)
    assert crps(truth, mean, np.full_like(truth, 1e-16)) == pytest.approx(np.abs(truth - mean).mean(), abs=1e-7)


@pytest.mark.parametrize("name", [*IMPUTATION_METRICS, *INTERVAL_METRICS])
def test_every_metric_is_invariant_to_the_order_of_rows_and_features(name: str) -> None:
    truth, mean, variance = make_cells(3)
    rng = np.random.default_rng(0)
    moved = np.ix_(rng.permutation(12), rng.permutation(4))
    if name in IMPUTATION_METRICS:
        metric = IMPUTATION_METRICS[name]
        assert metric(truth, mean, variance) == pytest.approx(metric(truth[moved], mean[moved], variance[moved]))
        return
    interval = INTERVAL_METRICS[name]
    assert interval(truth, mean, variance, 0.7) == pytest.approx(
        interval(truth[moved], mean[moved], variance[moved], 0.7)
    )


def test_only_metrics_of_the_mean_do_without_variances() -> None:
    truth, mean, _ = make_cells(4)
    without = {name: metric(truth, mean, None) for name, metric in IMPUTATION_METRICS.items()}
    assert [name for name, value in without.items() if np.isnan(value)] == ["nll", "crps"]
    assert all(np.isnan(metric(truth, mean, None, 0.9)) for metric in INTERVAL_METRICS.values())


def make_table_input() -> tuple[MultimodalData, np.ndarray, dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Three modalities, of which cells that the truth has are evaluated; the truth lacks some cells itself."""
    rng = np.random.default_rng(5)
    widths = {"a": 2, "b": 3, "c": 1}
    arrays = {name: rng.normal(size=(40, width)) for name, width in widths.items()}
    present = rng.random((40, 3)) < 0.9
    present[~present.any(1)] = True
    truth = MultimodalData(arrays, observed_mask=present)
    evaluated = (rng.random((40, 3)) < 0.4) & present
    evaluated[evaluated.sum(1) == present.sum(1)] = False  # something is always left to see
    means = {name: rng.normal(size=array.shape) for name, array in arrays.items()}
    variances = {name: rng.uniform(0.5, 2, size=array.shape) for name, array in arrays.items()}
    for m, name in enumerate(widths):  # what is not evaluated must never be read
        means[name][~evaluated[:, m]] = np.nan
        variances[name][~evaluated[:, m]] = np.nan
    return truth, evaluated, means, variances


def test_table_by_modality_reads_the_evaluated_cells_only() -> None:
    truth, evaluated, means, variances = make_table_input()
    table = score_imputation(means, variances, truth, evaluated, level=0.8)
    assert table["modality"].tolist() == ["a", "b", "c"]
    assert list(table.columns) == ["modality", "num_rows", *IMPUTATION_METRICS, *INTERVAL_METRICS]
    for m, row in table.iterrows():
        rows, name = evaluated[:, m], row["modality"]
        true_values = truth[name].numpy()[rows]
        assert row["num_rows"] == rows.sum()
        assert row["rmse"] == pytest.approx(np.sqrt(np.mean((true_values - means[name][rows]) ** 2)))
        assert row["nll"] == pytest.approx(
            -norm.logpdf(true_values, means[name][rows], np.sqrt(variances[name][rows])).mean()
        )
        assert row["coverage"] == interval_coverage(true_values, means[name][rows], variances[name][rows], 0.8)


def test_table_by_pattern_splits_the_rows_by_what_could_be_seen() -> None:
    truth, evaluated, means, variances = make_table_input()
    table = score_imputation(means, variances, truth, evaluated, by=("modality", "pattern"))
    whole = score_imputation(means, variances, truth, evaluated).set_index("modality")
    seen = truth.observed_mask.numpy() & ~evaluated
    for (name, pattern), group in table.groupby(["modality", "pattern"]):
        m = truth.names.index(name)
        expected = np.array([other in pattern.split("+") for other in truth.names])
        rows = evaluated[:, m] & (seen == expected).all(1)
        assert group["num_rows"].item() == rows.sum() > 0
        assert group["rmse"].item() == pytest.approx(
            np.sqrt(np.mean((truth[name].numpy()[rows] - means[name][rows]) ** 2))
        )
    sums = (table["rmse"] ** 2 * table["num_rows"]).groupby(table["modality"]).sum()
    assert table.groupby("modality")["num_rows"].sum().to_dict() == whole["num_rows"].to_dict()
    np.testing.assert_allclose(np.sqrt(sums / whole["num_rows"]), whole["rmse"])


def test_pattern_can_be_told_when_not_all_hidden_cells_are_evaluated() -> None:
    truth = MultimodalData({name: np.arange(4.0).reshape(2, 2) for name in "abc"})
    evaluated = np.array([[True, False, False], [True, False, False]])
    observed = np.array([[False, True, False], [False, True, True]])
    table = score_imputation(
        {"a": np.ones((2, 2))}, None, truth, evaluated, by=("modality", "pattern"), observed_mask=observed
    )
    assert table["pattern"].tolist() == ["b", "b+c"]
    assert table[["nll", "crps", "coverage", "width"]].isna().all(axis=None)


def test_a_residual_variance_serves_imputers_without_one_and_torch_serves_as_numpy() -> None:
    truth, evaluated, means, _ = make_table_input()
    residual = {"a": np.array([0.5, 2.0]), "c": np.array(1.5)}
    table = score_imputation(means, residual, truth, evaluated).set_index("modality")
    full = {"a": np.tile([0.5, 2.0], (40, 1)), "c": np.full((40, 1), 1.5)}
    again = score_imputation(
        {name: torch.tensor(value) for name, value in means.items()},
        {name: torch.tensor(value) for name, value in full.items()},
        truth,
        torch.tensor(evaluated),
    ).set_index("modality")
    np.testing.assert_array_equal(table.to_numpy(dtype=float), again.to_numpy(dtype=float))
    assert np.isnan(table.loc["b", "nll"])
    assert np.isfinite(table.loc[["a", "c"], "nll"]).all()


def test_truth_that_lacks_single_features_is_refused_not_scored() -> None:
    x = np.ones((4, 2))
    x[2, 1] = np.nan
    truth = MultimodalData({"a": x, "b": np.ones((4, 1))}, missing="features")
    evaluated = np.array([[True, False]] * 4)
    means, variances = {"a": np.zeros((4, 2))}, {"a": np.ones((4, 2))}
    with pytest.raises(DataError, match=r"truth\['a'\]: .*row 2, feature 1; .*feature_mask\('a'\)"):
        score_imputation(means, variances, truth, evaluated)
    evaluated[:, 0] &= truth.feature_mask("a").all(1).numpy()  # the remedy
    table = score_imputation(means, variances, truth, evaluated)
    assert table["num_rows"].tolist() == [3]
    assert table["rmse"].tolist() == [1.0]
    assert np.isfinite(table[["nll", "crps", "coverage", "width"]].to_numpy(dtype=float)).all()


@pytest.mark.parametrize("measure", [coverage_curve, pit_values])
@pytest.mark.parametrize(("argument", "place"), [("truth", [np.nan, 0.0]), ("mean", [0.0, np.inf])])
def test_calibration_refuses_what_is_not_finite(measure: Any, argument: str, place: list[float]) -> None:  # noqa: ANN401
    given: dict[str, Any] = {"truth": 0.0, "mean": 0.0, "variance": 1.0, argument: place}
    with pytest.raises(
        DataError, match=rf"{argument}: expected finite numbers, got (nan at \[0\]|inf at \[1\]) \(1 of 2"
    ):
        measure(**given)


@pytest.mark.parametrize("argument", ["truth", "mean", "variance", "levels"])
def test_calibration_refuses_what_are_no_numbers(argument: str) -> None:
    given: dict[str, Any] = {"truth": 0.0, "mean": 0.0, "variance": 1.0, argument: "x"}
    with pytest.raises(ArgumentTypeError, match=f"{argument}: expected an array of numbers, got 'x'"):
        coverage_curve(**given)


def test_bad_tables_are_named() -> None:
    truth, evaluated, means, variances = make_table_input()
    with pytest.raises(ArgumentError, match="level"):
        score_imputation(means, variances, truth, evaluated, level=90)
    with pytest.raises(ArgumentTypeError, match="level: expected a number, got 'x'"):
        score_imputation(means, variances, truth, evaluated, level="x")  # type: ignore[arg-type]
    with pytest.raises(ArgumentTypeError, match="truth: expected MultimodalData, got dict"):
        score_imputation(means, variances, {}, evaluated)  # type: ignore[arg-type]
    with pytest.raises(ArgumentError, match="by: expected"):
        score_imputation(means, variances, truth, evaluated, by=("pattern",))
    with pytest.raises(ArgumentError, match=r"evaluated_mask: expected shape \(N, M\) = \(40, 3\), got \(40, 2\)"):
        score_imputation(means, variances, truth, evaluated[:, :2])
    with pytest.raises(ArgumentTypeError, match="evaluated_mask: expected booleans"):
        score_imputation(means, variances, truth, evaluated.astype(int))
    with pytest.raises(DataError, match="evaluated_mask: the truth lacks modality"):
        score_imputation(means, variances, truth, np.ones_like(evaluated))
    with pytest.raises(SchemaError, match="means: modality 'a' is to be evaluated but has no imputation"):
        score_imputation({}, variances, truth, evaluated)
    with pytest.raises(SchemaError, match=r"means\['a'\]: expected shape \(40, 2\), got \(40, 5\)"):
        score_imputation({**means, "a": np.ones((40, 5))}, variances, truth, evaluated)
    with pytest.raises(SchemaError, match=r"variances\['a'\]: expected a shape that broadcasts to \(40, 2\)"):
        score_imputation(means, {**variances, "a": np.ones(5)}, truth, evaluated)
    row = int(np.flatnonzero(evaluated[:, 1])[2])
    broken = {name: value.copy() for name, value in variances.items()}
    broken["b"][row, 1] = 0.0
    with pytest.raises(DataError, match=rf"variances\['b'\]: expected a positive number .* row {row}, feature 1"):
        score_imputation(means, broken, truth, evaluated)
    holed = {name: value.copy() for name, value in means.items()}
    holed["b"][row, 2] = np.nan
    with pytest.raises(DataError, match=rf"means\['b'\]: expected a finite number .* row {row}, feature 2"):
        score_imputation(holed, variances, truth, evaluated)


def test_calibrated_predictions_have_uniform_pit_and_cover_as_they_say() -> None:
    rng = np.random.default_rng(6)
    mean, variance = rng.normal(size=(4000, 3)), rng.uniform(0.1, 4, size=(4000, 3))
    truth = mean + np.sqrt(variance) * rng.normal(size=mean.shape)
    pit = pit_values(truth, mean, variance)
    assert pit.shape == (4000, 3)
    assert kstest(pit.ravel(), "uniform").pvalue > 1e-6
    curve = coverage_curve(truth, mean, variance)
    standard_error = np.sqrt(curve["level"] * (1 - curve["level"]) / truth.size)
    assert (np.abs(curve["coverage"] - curve["level"]) < 6 * standard_error).all()
    overconfident = coverage_curve(truth, mean, variance / 4)
    assert (overconfident["coverage"] < overconfident["level"] - 6 * standard_error)[:-1].all()


def test_coverage_curve_equals_the_interval_metrics() -> None:
    truth, mean, variance = make_cells(7)
    levels = [0.95, 0.2, 0.5]  # in any order
    curve = coverage_curve(truth, mean, variance, levels)
    assert curve["level"].tolist() == levels
    for level, covered, width in curve.itertuples(index=False):
        assert covered == interval_coverage(truth, mean, variance, level)
        assert width == pytest.approx(interval_width(truth, mean, variance, level))


def test_calibration_broadcasts_a_variance_per_feature_with_equal_weights() -> None:
    truth, mean, _ = make_cells(8)
    shared = np.array([0.5, 1.0, 2.0, 4.0])
    full = np.broadcast_to(shared, truth.shape)
    np.testing.assert_array_equal(coverage_curve(truth, mean, shared), coverage_curve(truth, mean, full))
    np.testing.assert_allclose(pit_values(truth, mean, shared), norm.cdf(truth, mean, np.sqrt(full)))


def test_bad_calibration_arguments_are_named() -> None:
    truth, mean, variance = make_cells(9)
    with pytest.raises(ArgumentError, match="levels: expected numbers between 0 and 1"):
        coverage_curve(truth, mean, variance, [0.5, 1.0])
    with pytest.raises(ArgumentError, match="variance: expected positive values"):
        pit_values(truth, mean, np.zeros_like(truth))
    with pytest.raises(ArgumentError, match="expected shapes that broadcast"):
        pit_values(truth, mean[:3], variance)
