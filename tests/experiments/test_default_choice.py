"""Parts of ``experiments.defaults``: data sets, missingness, ridge regression, measures, the hand grid."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.linear_model import Ridge as ScikitRidge
from sklearn.model_selection import GridSearchCV, PredefinedSplit

import calmrl_prob as cal
from calmrl_prob.data import MultimodalData
from calmrl_prob.data.missingness import mcar
from calmrl_prob.datasets import load_synthetic, make_synthetic
from calmrl_prob.errors import ArgumentError, FileFormatError
from experiments.comparison.imputers import has, values
from experiments.default_choice.default_fit import CRITERIA, fit_again, fit_default
from experiments.default_choice.made import omics, private_structure
from experiments.default_choice.measures import LEVELS, explained_share, score_model
from experiments.default_choice.oracle import Grid, Oracle, best_of
from experiments.default_choice.references import measure_default, measure_mean, measure_plain, measure_ridge
from experiments.default_choice.removal import Task, make_task, remove
from experiments.default_choice.ridge import PENALTIES, RidgeOfPairs, RidgePath, first_by_cosine
from experiments.default_choice.sources import DataSet
from experiments.harness.split import Split

DIMS = {"a": 6, "b": 5, "c": 4}


@pytest.fixture(scope="module")
def split() -> Split:
    data = load_synthetic(num_instances=260, dims=DIMS, latent_dim=2, noise_variance=0.3, seed=1)
    return Split("tiny", *data.split(0.7, seed=0))


@pytest.fixture(scope="module")
def task(split: Split) -> Task:
    return make_task(split, "mcar", 0)


# ---- data sets -----------------------------------------------------------------------------------------------------


def write_npz(folder: Path) -> None:
    rng = np.random.default_rng(0)
    x_b = rng.normal(size=(20, 3))
    x_b[[2, 15]] = np.nan
    base = np.arange(20) % 5 != 0
    x_a, features = rng.normal(size=(20, 4)).astype("float16"), np.array(["not", "of", "rows"])
    parts = {"train_idx": np.arange(12), "test_idx": np.arange(12, 20)}
    np.savez(folder / "own.npz", x_a=x_a, x_b=x_b, is_base=base, features=features, **parts)


def test_files_are_read_with_their_split_and_test_rows_lack_nothing(tmp_path: Path) -> None:
    write_npz(tmp_path)
    dataset = DataSet(file="own.npz")
    found = dataset.split("own", dataset.read(tmp_path), seed=0)
    assert (len(found.train), len(found.test)) == (12, 7)
    assert not bool(found.train.observed("b")[2])
    assert bool(found.test.complete_rows().all())
    based = DataSet(file="own.npz", rows="is_base")
    assert len(based.read(tmp_path)) == 16
    assert len(DataSet(file="own.npz", rows="complete").read(tmp_path)) == 18
    assert DataSet(file="own.npz", modalities=["b", "a"]).read(tmp_path).names == ("b", "a")


def test_rows_are_parted_anew_by_each_seed_where_a_share_is_asked_for(tmp_path: Path) -> None:
    write_npz(tmp_path)
    dataset = DataSet(file="own.npz", test_share=0.25)
    data = dataset.read(tmp_path)
    one, other = (dataset.split("own", data, seed) for seed in (0, 1))
    assert len(one.train) + len(one.test) == 18
    assert not np.array_equal(values(one.test, "a"), values(other.test, "a"))


def test_a_file_that_is_not_there_is_said_to_be(tmp_path: Path) -> None:
    dataset = DataSet(file="own.npz")
    assert "data_root" in dataset.lacking(None)
    assert str(tmp_path) in dataset.lacking(tmp_path)
    write_npz(tmp_path)
    assert dataset.lacking(tmp_path) == ""
    with pytest.raises(FileFormatError, match="x_d"):
        DataSet(file="own.npz", modalities=["d"]).read(tmp_path)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({}, "file"),
        ({"file": "a.npz", "source": load_synthetic}, "file"),
        ({"file": "a.npz", "scale": "rows"}, "scale"),
        ({"file": "a.npz", "components": 0}, "components"),
    ],
)
def test_entries_that_cannot_work_are_refused(options: dict[str, object], named: str) -> None:
    with pytest.raises(ArgumentError, match=named):
        DataSet(**options)  # type: ignore[arg-type]  # wrong on purpose


def test_assays_are_shares_and_lack_single_values_in_training_only() -> None:
    data = omics(40, 10, seed=1)
    methylation = values(data, "methylation")
    assert 0 < methylation.min() < methylation.max() < 1
    lost = np.isnan(values(data.train, "protein")).mean()
    # 6,000 values: the standard error of the share is 0.0022
    assert 0.02 < lost < 0.04
    assert not np.isnan(values(data.test, "protein")).any()
    np.testing.assert_array_equal(values(omics(40, 10, seed=1), "mrna"), values(data, "mrna"))


def test_modalities_with_private_structure_have_twice_the_rank_that_they_share() -> None:
    data = private_structure(3000, 10)
    a, b = (values(data, name)[:3000] for name in ("a", "b"))
    own = np.linalg.eigvalsh(np.cov(a.T))
    # noise has variance 1/2, and its largest eigenvalue over 3,000 rows of 100 features is about 0.7
    assert int((own > 1.5).sum()) == 16
    cross = np.linalg.svd(np.cov(a.T, b.T)[:100, 100:], compute_uv=False)
    assert cross[7] > 2 * cross[8]


# ---- missingness and units -----------------------------------------------------------------------------------------


def test_45_percent_of_all_cells_are_missing_what_the_data_lack_included(split: Split) -> None:
    removed = remove(split.train, "mcar", 0)
    assert 1 - removed.observed_mask.double().mean().item() == pytest.approx(
        0.45, abs=1 / removed.observed_mask.numel()
    )
    assert bool(removed.observed_mask.any(dim=1).all())
    again = remove(split.train.mask(mcar(split.train, rate=0.2, seed=5)), "mcar", 0)
    assert 1 - again.observed_mask.double().mean().item() == pytest.approx(0.45, abs=2 / again.observed_mask.numel())
    more = split.train.mask(mcar(split.train, rate=0.6, seed=5))
    assert torch.equal(remove(more, "mcar", 0).observed_mask, more.observed_mask)


def test_pairs_keep_two_of_three_and_both_of_two(split: Split) -> None:
    assert remove(split.train, "pairs", 0).observed_mask.sum(dim=1).unique().tolist() == [2]
    assert bool(remove(split.train.select(["a", "b"]), "pairs", 0).observed_mask.all())
    assert remove(split.train, "own", 0) is split.train
    with pytest.raises(ArgumentError, match="missing"):
        remove(split.train, "mnar", 0)


@pytest.mark.parametrize("scale", ["feature", "modality"])
def test_units_are_those_of_the_training_rows_that_are_left(split: Split, scale: str) -> None:
    factors = torch.tensor([1.0, 100.0, 3.0, 7.0, 0.1, 5.0])
    grown = [
        MultimodalData({n: part[n] * factors if n == "a" else part[n] for n in DIMS})
        for part in (split.train, split.test)
    ]
    found = make_task(Split("grown", *grown), "mcar", 0, scale)
    seen = values(found.train, "a")[has(found.train, "a")]
    variances = (seen**2).mean(axis=0)
    # in float32
    np.testing.assert_allclose(variances if scale == "feature" else variances.mean(), 1, rtol=1e-5)
    np.testing.assert_allclose(seen.mean(axis=0), 0, atol=1e-5)
    # what was removed is not there any more, so that no method can read it
    assert np.isnan(values(found.train, "a")[~has(found.train, "a")]).all()
    one, other = (values(part, "a")[:, 1] for part in (grown[1], found.test))
    assert np.corrcoef(one, other)[0, 1] == pytest.approx(1, abs=1e-5)


def test_components_are_those_of_the_training_rows_that_are_left(split: Split) -> None:
    found = make_task(split, "mcar", 0, "modality", components=3)
    assert dict(found.train.dims) == dict.fromkeys(DIMS, 3)
    assert found.test.dims == found.train.dims
    covariance = np.cov(values(found.train, "a")[has(found.train, "a")].T)
    # principal components do not correlate; entries are in float32, of variance about 1
    np.testing.assert_allclose(covariance, np.diag(np.diag(covariance)), atol=1e-4)


# ---- ridge ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [4, 40])  # fewer features than rows, and more
def test_one_decomposition_gives_the_ridge_of_every_penalty(width: int) -> None:
    rng = np.random.default_rng(0)
    inputs, fresh = rng.normal(size=(20, width)) + 3, rng.normal(size=(9, width)) + 3
    targets, truth = rng.normal(size=(20, 7)), rng.normal(size=(9, 7))
    path, penalties = RidgePath.of(inputs, targets), np.array([0.1, 1.0, 50.0])
    errors = path.squared_errors(fresh, truth, penalties)
    for penalty, error in zip(penalties, errors, strict=True):
        expected = ScikitRidge(alpha=penalty).fit(inputs, targets).predict(fresh)
        np.testing.assert_allclose(path.predict(fresh, penalty), expected, rtol=1e-7, atol=1e-9)
        assert error == pytest.approx(float(np.sum((truth - expected) ** 2)), rel=1e-7)


def test_ridge_of_pairs_chooses_the_penalty_that_scikit_learn_chooses(task: Task) -> None:
    ridge = RidgeOfPairs.fit(task.train, seed=0)
    both = has(task.train, "a") & has(task.train, "b")
    inputs, targets = values(task.train, "a")[both], values(task.train, "b")[both]
    fold = np.random.default_rng(0).permutation(both.sum()) % 5
    unit = float(np.sum((inputs - inputs.mean(axis=0)) ** 2)) / inputs.shape[1]
    search = GridSearchCV(
        ScikitRidge(), {"alpha": unit * PENALTIES}, scoring="neg_mean_squared_error", cv=PredefinedSplit(fold)
    ).fit(inputs, targets)
    assert ridge.penalties["a", "b"] == pytest.approx(search.best_params_["alpha"])
    np.testing.assert_allclose(
        ridge.predict(task.test, ["a"], "b"), search.predict(values(task.test, "a")), rtol=1e-6, atol=1e-8
    )


def test_pairs_that_never_meet_are_imputed_by_the_mean(split: Split) -> None:
    apart = torch.arange(len(split.train)) % 2 == 0
    train = split.train.mask(torch.stack([apart, ~apart, torch.ones_like(apart)], dim=1))
    ridge = RidgeOfPairs.fit(train)
    assert ("a", "b") not in ridge.paths
    assert ("a", "c") in ridge.paths
    np.testing.assert_array_equal(
        ridge.predict(split.test, ["a"], "b"), np.tile(ridge.centre["b"], (len(split.test), 1))
    )


def test_ties_are_no_hits() -> None:
    same = np.ones((3, 2))
    assert not first_by_cosine(same, same).any()
    assert first_by_cosine(np.eye(3), np.eye(3)).all()
    assert not first_by_cosine(np.zeros((3, 3)), np.eye(3)).any()


# ---- measures ------------------------------------------------------------------------------------------------------


def test_the_mean_explains_nothing_and_the_truth_all() -> None:
    rng = np.random.default_rng(0)
    truth, centre = rng.normal(size=(10, 3)), np.array([1.0, 2.0, 3.0])
    assert explained_share(truth, np.tile(centre, (10, 1)), centre) == 0
    assert explained_share(truth, truth, centre) == 1
    assert explained_share(truth, 2 * truth - centre, centre) == pytest.approx(0)  # as far off on the other side


def test_the_true_model_covers_what_it_says_and_explains_what_theory_says() -> None:
    synthetic = make_synthetic(6000, DIMS, 2, noise_variance=0.3, seed=3)
    truth, data = synthetic.truth, synthetic.data
    centre = {name: mean.numpy() for name, mean in truth.intercepts.items()}
    found = score_model(truth, data, centre)
    for level in LEVELS:
        for share in found.coverage[level].values():
            # at most 6,000 independent rows: a standard error of 0.65 points at 50%; four of them
            assert share == pytest.approx(100 * level, abs=2.6)
    mean, covariance = (part.numpy() for part in truth.joint())
    del mean
    b, c = slice(6, 11), slice(11, 15)
    gain = np.trace(covariance[c, b] @ np.linalg.solve(covariance[b, b], covariance[b, c]))
    a = slice(0, 6)
    gain_a = np.trace(covariance[c, a] @ np.linalg.solve(covariance[a, a], covariance[a, c]))
    expected = (gain + gain_a) / 2 / np.trace(covariance[c, c])
    # R^2 over 6,000 rows varies by about 0.01
    assert found.by_pair["c"] == pytest.approx(expected, abs=0.03)
    assert found.explained["c"] > found.by_pair["c"]
    assert found.row["R2"] == pytest.approx(np.mean(list(found.explained.values())))
    assert found.row["lowest 90%"] == min(found.coverage[0.9].values())
    assert [row["modality"] for row in found.modality_rows] == list(DIMS)


def test_all_methods_are_measured_alike(task: Task) -> None:
    default, plain, ridge, mean = (
        measure_default(task, CRITERIA[0]), measure_plain(task), measure_ridge(task), measure_mean(task)
    )  # fmt: skip
    assert mean.row["R2"] == 0
    # two latents explain most of each modality, and 182 rows find them
    for found in (default, plain, ridge):
        assert found.row["R2"] > 0.2
        assert found.row["R@1"] > 100 / len(task.test)
        assert found.seconds > 0
    assert default.plain_seconds is not None
    assert "coverage 90%" not in ridge.row


@pytest.mark.parametrize("criterion", CRITERIA)
def test_the_default_can_be_fitted_again_with_its_settings(task: Task, criterion: str) -> None:
    found = fit_default(task.train, criterion)
    assert str(found.latent_dim) in found.setting
    fit_again(found, task.train)
    assert cal.impute(found.model, task.test, ["a"]).mean["a"].shape == task.test["a"].shape


# ---- the hand grid -------------------------------------------------------------------------------------------------


def test_the_grid_has_every_combination_once_and_ard() -> None:
    grid = Grid([16, 64, 256], [0, 30, 100], [0, 1], ["isotropic", "diagonal"])
    settings = list(grid.settings())
    assert len(settings) == 2 * (1 + 3 * (1 + 2 * 2))
    assert len({tuple(sorted(setting.items(), key=str)) for setting in settings}) == len(settings)
    assert sum("loadings_prior" in setting for setting in settings) == 2


def test_the_best_is_never_below_a_setting_that_was_tried(task: Task) -> None:
    oracle = Oracle(Grid([2, 400], [0, 50], [1], ["isotropic"], max_iterations=40))
    named = {"dataset": "tiny", "missing": "mcar", "seed": 0}
    tried = oracle.tried(task, named)
    assert [row["setting"].partition(" ")[0] for row in tried] == ["latent_dim=14", "latent_dim=2", "latent_dim=2",
                                                                  "latent_dim=14", "latent_dim=14"]  # fmt: skip
    best = best_of(tried)
    for name in ("R2", "R2 by pair", "R@1"):
        assert best[name] == max(row[name] for row in tried)
    # rows of an earlier run stand for fits, and only those of the same task
    earlier = pd.DataFrame(tried).assign(R2=0.9)
    again = Oracle(oracle.grid, earlier)
    assert {row["R2"] for row in again.tried(task, named)} == {0.9}
    assert best_of([{"setting": "a", "note": "no"}])["note"] == "no setting could be fitted"
