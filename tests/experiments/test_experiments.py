from __future__ import annotations

import io
import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import arviz as az
import numpy as np
import pandas as pd
import pytest
import torch
from hydra.errors import ConfigCompositionException
from omegaconf import DictConfig
from rich.console import Console
from sklearn.impute import KNNImputer
from sklearn.linear_model import Ridge

import calmrl_prob as cal
from analysis.gather import gather_runs, unfinished_runs
from calmrl_prob import MultimodalData
from calmrl_prob.datasets import load_synthetic
from calmrl_prob.errors import ArgumentError, CalmrlError
from experiments.compare import run
from experiments.comparison.comparer import Comparer
from experiments.comparison.default_variant import Defaults
from experiments.comparison.fitted_variant import FittedVariant, direct_recall, without
from experiments.comparison.fitting import FittedModel, ModelFitter, Retriever, Setting
from experiments.comparison.imputers import Imputer, Mean, NearestNeighbours, RidgePairs, Zero, has, values
from experiments.comparison.variants import AllRows, Choice, CompleteRows, Imputed, Oracle, Prepared, Task, Variant
from experiments.harness.settings import build, flatten
from tests.cases.experiment_cases import CONF, ROOT, composed

GROUPS = [
    (folder.name, path.stem)
    for folder in sorted(CONF.iterdir())
    if folder.is_dir() and folder.name not in ("experiment", "contender")  # contender: test_small_data.py
    for path in sorted(folder.glob("*.yaml"))
]
TINY = [
    "data=synthetic",
    "data.source.num_instances=120",
    "data.source.dims={a: 6, b: 5, c: 4}",
    "data.source.latent_dim=3",
    "model.latent_dims=[2,3]",
    "model.noise_pseudo_counts=[0,20]",
    "seeds=[0,1]",
    "report.shares=[0.3,0.9]",
    "report.interval_rows=5",
    "report.posterior_rows=10",
    "report.posterior_draws=4",
]


def configured(*overrides: str) -> DictConfig:
    return composed("compare", *overrides)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    run(configured(*TINY), folder, TINY, Console(quiet=True))
    return folder


@pytest.fixture(scope="module")
def incomplete() -> MultimodalData:
    complete = load_synthetic(num_instances=80, dims={"a": 5, "b": 4, "c": 3}, latent_dim=2, seed=1)
    return complete.mask(torch.rand(80, 3, generator=torch.Generator().manual_seed(0)) < torch.tensor([2.0, 0.6, 0.6]))


def task(incomplete: MultimodalData, complete: MultimodalData | None = None) -> Task:
    fit_rows, validation_rows = incomplete.split_indices(0.8, seed=0)
    return Task(incomplete, complete or incomplete, fit_rows, validation_rows, Retriever(), 0)


# ---- configuration -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("group", "option"), GROUPS)
def test_every_option_of_every_group_can_be_built(group: str, option: str, tmp_path: Path) -> None:
    overrides = [f"{group}={option}"]
    if option == "npz":
        np.savez(tmp_path / "own.npz", x_a=np.random.default_rng(0).normal(size=(20, 3)), x_b=np.eye(20))
        overrides.append(f"data.source.path={tmp_path / 'own.npz'}")
        assert build(configured(*overrides), "data").name == "own"  # what titles say
        return
    cfg = configured(*overrides)
    if group == "calibration":
        built = build(cfg, f"calibration.{option}")
        assert isinstance(built, Variant)
        assert built.label
    elif group == "missingness":
        data = load_synthetic(num_instances=40)
        mask = build(cfg, group)(data, seed=0)
        assert mask.dtype == torch.bool
        assert bool(mask.all()) == (option == "none")
    else:
        assert build(cfg, group) is not None
    assert option in flatten(cfg).values() or group in ("calibration", "missingness", "model", "scoring")


def test_preset_fixes_what_the_figure_to_reach_asks_for() -> None:
    cfg = configured("experiment=emoji_k96", "missingness=pairs")
    assert list(cfg.calibration) == ["complete_rows", "calmrl_paper", "calmrl", "oracle"]
    assert list(cfg.model.latent_dims) == [96]
    assert 0 in cfg.model.noise_pseudo_counts  # the paper's own form can win
    assert (cfg.model.noise, cfg.scoring.score, cfg.missingness.complete) == ("isotropic", "likelihood_ratio", 0.15)


def test_unknown_options_are_refused_by_hydra() -> None:
    with pytest.raises(ConfigCompositionException, match="rte"):
        configured("missingness.rte=0.5")
    with pytest.raises(ConfigCompositionException, match="nonsense"):
        configured("missingness=nonsense")


@pytest.mark.parametrize(
    ("override", "option"),
    [
        ("seeds=[0,0]", "seeds"),
        ("seeds=[]", "seeds"),
        ("seeds=three", "seeds"),
        ("validation_share=1.5", "validation_share"),
        ("interval_level=yes", "interval_level"),
        ("calibration=[]", "calibration"),
        ("report.posterior_draws=0", "report.posterior_draws"),
        ("report.shares=[2.0]", "report.shares"),
        ("model.noise=diagnoal", "model.noise"),
        ("model.latent_dims=[0]", "model.latent_dims"),
        ("model.noise_pseudo_counts=[-1]", "model.noise_pseudo_counts"),
        ("model.noise_pseudo_counts=[]", "model.noise_pseudo_counts"),
        ("model.tolerance=0", "model.tolerance"),
        ("model.tolerance=x", "model.tolerance"),
        ("model.max_iterations=1.5", "model.max_iterations"),
        ("scoring.score=cosine", "scoring.score"),
        ("missingness.rate=0.95", "missingness.rate"),
        ("missingness.rate=abc", "missingness.rate"),
        ("data.test_share=0", "data.test_share"),
        ("data.test_share=x", "data.test_share"),
        ("calibration.knn.imputer.neighbours=[]", "calibration.knn.imputer.neighbours"),
        ("calibration.ridge.imputer.penalties=[x]", "calibration.ridge.imputer.penalties"),
    ],
)
def test_values_that_cannot_work_are_refused_by_name(override: str, option: str) -> None:
    with pytest.raises(CalmrlError, match=option.replace(".", r"\.")):
        Comparer(configured(*TINY, override))


# ---- imputers ------------------------------------------------------------------------------------------------------


def test_nearest_neighbours_are_those_of_scikit_learn(incomplete: MultimodalData) -> None:
    imputer = NearestNeighbours([4]).fit(incomplete)
    scaled = np.hstack([values(incomplete, name) / imputer.scale[name] for name in incomplete.names])
    theirs = np.split(KNNImputer(n_neighbors=4).fit_transform(scaled), np.cumsum([5, 4]), axis=1)
    ours = imputer.complete(incomplete)
    for name, expected in zip(incomplete.names, theirs, strict=True):
        np.testing.assert_allclose(values(ours, name), expected * imputer.scale[name], rtol=1e-8)


def test_ridge_from_one_source_is_scikit_learns(incomplete: MultimodalData) -> None:
    imputer = RidgePairs([3.0]).fit(incomplete)
    both = has(incomplete, "a") & has(incomplete, "b")
    inputs = (values(incomplete, "a") - imputer.centre["a"]) / imputer.scale["a"]
    expected = Ridge(alpha=3.0).fit(inputs[both], values(incomplete, "b")[both]).predict(inputs)
    only_a = without(incomplete, "b", "c")
    np.testing.assert_allclose(imputer.predict(only_a, "b"), expected, rtol=1e-8)


@pytest.mark.parametrize("make", [Zero, Mean, NearestNeighbours, RidgePairs])
def test_imputers_never_read_what_they_predict(make: Callable[[], Imputer], incomplete: MultimodalData) -> None:
    fit_rows, validation = (incomplete.subset(rows) for rows in incomplete.split_indices(0.8, seed=0))
    imputer = make().choose(fit_rows, validation)
    seen = incomplete.subset(incomplete.rows_with("a", "b", how="all"))
    np.testing.assert_array_equal(imputer.predict(seen, "b"), imputer.predict(without(seen, "b"), "b"))
    assert all((variance > 0).all() for variance in imputer.residual_variance.values())
    completed = imputer.complete(incomplete)
    assert bool(completed.observed_mask.all())
    for name in incomplete.names:  # what was there stays
        rows = has(incomplete, name)
        np.testing.assert_array_equal(values(completed, name)[rows], values(incomplete, name)[rows])


def test_better_imputers_have_smaller_variances() -> None:
    data = load_synthetic(num_instances=200, dims={"a": 5, "b": 4}, latent_dim=2, noise_variance=0.05)
    fit_rows, validation = data.split(0.7, seed=0)
    mean, ridge = (make().choose(fit_rows, validation).residual_variance["b"].mean() for make in (Mean, RidgePairs))
    assert ridge < 0.5 * mean


def test_direct_recall_counts_ties_against_the_imputer() -> None:
    data = load_synthetic(num_instances=30, noise_variance=1e-6, seed=0)
    assert direct_recall(RidgePairs([1e-3]).fit(data), data)["R@1"].min() > 0.95
    assert direct_recall(Mean().fit(data), data)["R@1"].max() == 0.0  # it predicts the same for all


# ---- variants ------------------------------------------------------------------------------------------------------


def test_variants_differ_in_the_rows_they_fit_and_in_nothing_else(incomplete: MultimodalData) -> None:
    complete = load_synthetic(num_instances=80, dims={"a": 5, "b": 4, "c": 3}, latent_dim=2, seed=1)
    given, rows, model = task(incomplete, complete), np.arange(60), ModelFitter(latent_dims=[2])
    everything = AllRows("all", model).prepare(given, rows).data
    assert torch.equal(everything.observed_mask, incomplete.observed_mask[:60])
    only_complete = CompleteRows("complete", model).prepare(given, rows).data
    assert len(only_complete) == int(incomplete.complete_rows()[:60].sum())
    oracle = Oracle("oracle", model).prepare(given, rows).data
    assert torch.equal(oracle["b"], complete["b"][:60])
    filled = Imputed("mean", model, Mean()).prepare(given, rows)
    assert bool(filled.data.observed_mask.all())
    assert filled.imputer is not None


def test_choice_takes_the_smaller_of_equals() -> None:
    weak, strong, large = Setting(4, 0), Setting(4, 100), Setting(8, 0)
    assert Choice.best({large: 0.5, strong: 0.5, weak: 0.5}) == Choice(weak)
    assert Choice.best({large: 0.5, strong: 0.5, weak: 0.4}) == Choice(strong)
    assert Choice.best({weak: float("nan"), large: 0.1}) == Choice(large)
    assert Choice.best({large: float("nan"), weak: float("nan")}) == Choice(weak)
    assert Choice.best({weak: 0.1}, direct=0.2) == Choice(weak, direct=True)
    assert Choice.best({weak: 0.1}, direct=0.1) == Choice(weak)


def test_weight_is_chosen_at_the_middle_k_then_k_at_that_weight(
    incomplete: MultimodalData, monkeypatch: pytest.MonkeyPatch
) -> None:
    scores = {Setting(2, 0): 0.9, Setting(2, 30): 0.4, Setting(3, 0): 0.1, Setting(3, 30): 0.2, Setting(4, 30): 0.3}
    tried, seeds = [], {0: 0.05, 1: -0.05}

    class Scored(AllRows):
        def _fit(self, task: Task, prepared: Prepared, setting: Setting) -> FittedVariant:
            tried.append((setting, task.seed))
            return super()._fit(task, prepared, setting)

    def recall(calibrated: FittedVariant, data: MultimodalData) -> pd.DataFrame:
        setting, seed = tried[-1]
        return pd.DataFrame(
            {"query": ["a"], "candidate": ["b"], "num_queries": [100], "R@1": [scores[setting] + seeds[seed]]}
        )

    monkeypatch.setattr(FittedVariant, "recall", recall)
    variant = Scored("scored", ModelFitter(latent_dims=[2, 3, 4], noise_pseudo_counts=[0, 30]))
    choice = variant.choose([replace(task(incomplete), seed=seed) for seed in seeds])
    assert not choice.warnings  # 0.4 and 0.2 are more than two standard errors apart
    assert choice == Choice(Setting(2, 30))  # the mean over the seeds; (2, 0) is not looked at
    settings = [Setting(3, 0), Setting(3, 30), Setting(2, 30), Setting(4, 30)]
    assert tried == [(setting, seed) for setting in settings for seed in seeds]


@pytest.mark.parametrize(("queries", "warned"), [(20, True), (2000, False)])
def test_a_choice_that_validation_recall_cannot_make_is_told(
    queries: int, warned: bool, incomplete: MultimodalData, monkeypatch: pytest.MonkeyPatch
) -> None:
    def recall(calibrated: FittedVariant, data: MultimodalData) -> pd.DataFrame:
        share = 0.5 if calibrated.setting.noise_pseudo_count else 0.4
        return pd.DataFrame({"query": ["a"], "candidate": ["b"], "num_queries": [queries], "R@1": [share]})

    monkeypatch.setattr(FittedVariant, "recall", recall)
    choice = AllRows("all", ModelFitter(latent_dims=[2], noise_pseudo_counts=[0, 10])).choose([task(incomplete)])
    assert choice == Choice(Setting(2, 10))
    assert any("cannot tell the settings apart" in warning for warning in choice.warnings) == warned


def test_numbers_of_latents_that_cannot_be_tried_are_told(incomplete: MultimodalData) -> None:
    choice = AllRows("all", ModelFitter(latent_dims=[5000])).choose([task(incomplete)])
    assert choice.setting.latent_dim == 11  # of 12 features
    assert any("5000" in warning and "K = 11" in warning for warning in choice.warnings)


def test_validation_rows_are_never_fitted_to(incomplete: MultimodalData, monkeypatch: pytest.MonkeyPatch) -> None:
    fitted = []
    fit = ModelFitter.fit

    def seen(self: ModelFitter, data: MultimodalData, setting: Setting, seed: int) -> FittedModel:
        fitted.append(data["a"])
        return fit(self, data, setting, seed)

    monkeypatch.setattr(ModelFitter, "fit", seen)
    given = task(incomplete)
    AllRows("all", ModelFitter(latent_dims=[2], noise_pseudo_counts=[0, 10])).choose([given])
    expected = incomplete.subset(given.fit_rows)["a"]
    assert len(fitted) == 2
    assert all(torch.equal(rows.nan_to_num(), expected.nan_to_num()) for rows in fitted)


def test_latents_are_never_more_than_the_rows_can_carry() -> None:
    few = load_synthetic(num_instances=6, latent_dim=2)
    assert ModelFitter(latent_dims=[2, 4, 64]).feasible(few) == [2, 4]
    assert ModelFitter(latent_dims=[64]).feasible(few) == [5]
    assert ModelFitter(latent_dims=[2, 4]).feasible(few, few.subset(slice(0, 4))) == [2]
    assert ModelFitter(latent_dims=[64]).fit(few, Setting(5, 0), seed=0).model.latent_dim == 5


def test_no_test_row_and_no_removed_value_can_change_a_fit(incomplete: MultimodalData) -> None:
    poisoned = {name: incomplete[name].nan_to_num(nan=1e6) for name in incomplete.names}
    other = MultimodalData(poisoned, observed_mask=incomplete.observed_mask, labels=incomplete.labels)
    variant, choice = Imputed("knn", ModelFitter(latent_dims=[2]), NearestNeighbours([3])), Choice(Setting(2, 0))
    one, two = (variant.calibrate(task(data), choice) for data in (incomplete, other))
    assert isinstance(one, FittedVariant)
    np.testing.assert_array_equal(one.features(incomplete), two.features(other))


# ---- whole runs ----------------------------------------------------------------------------------------------------


def test_run_leaves_every_file_whole(finished: Path) -> None:
    files = {str(path.relative_to(finished)) for path in finished.rglob("*") if path.is_file()}
    tables = {f"tables/{name}.csv" for name in ("coverage", "evidence", "pairs", "intervals", "shares", "modalities")}
    assert files == tables | {
        "results.csv", "results.parquet", "config.yaml", "run.json", "idata.nc", "report.html",
    }  # fmt: skip
    results = pd.read_parquet(finished / "results.parquet")
    assert len(results) == 10 * 2
    validated = results[results["variant"] != "calmrl_default"]
    assert (
        validated.groupby("variant")[["K", "noise_pseudo_count"]].nunique().eq(1).all(axis=None)
    )  # one choice for all
    assert set(validated["noise_pseudo_count"]) <= {0, 20}
    metrics = results[["R@1", "R@10", "RMSE", "NLL", "coverage", "probe", "seconds"]]
    assert np.isfinite(metrics.to_numpy()).all()
    assert results["missingness.rate"].eq(0.5).all()
    assert results["data.name"].eq("synthetic").all()
    trace = pd.read_csv(finished / "tables" / "evidence.csv").groupby(["variant", "seed"])["objective"]
    assert (trace.diff().dropna() >= -1e-12).all()  # EM never falls
    shares = pd.read_csv(finished / "tables" / "shares.csv")
    assert set(shares["share"]) == {0.3}  # 0.9 would leave rows with nothing
    idata = az.from_netcdf(finished / "idata.nc")
    assert idata.posterior["z"].sizes["instance"] == 10


def test_intervals_of_the_focus_are_recalibrated_and_the_report_says_so(tmp_path: Path) -> None:
    more = [*TINY, "data.source.num_instances=500", "calibration=[calmrl,mean]", "report.shares=[]"]
    run(configured(*more), tmp_path, more, Console(quiet=True))
    modalities = pd.read_csv(tmp_path / "tables" / "modalities.csv")
    of_focus = modalities["variant"] == "calmrl"
    assert modalities.loc[of_focus, "recalibrated"].between(0.7, 1.0).all()
    assert modalities.loc[~of_focus, "recalibrated"].isna().all()
    report = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert report.count("; recalibrated they cover ") == 3
    assert "errors set the widths (split conformal" in report


def test_intervals_of_a_rule_are_not_recalibrated_by_the_model(tmp_path: Path) -> None:
    more = [*TINY, "data.source.num_instances=500", "calibration=[mean]", "report.shares=[]", "report.focus=mean"]
    run(configured(*more), tmp_path, more, Console(quiet=True))
    assert "recalibrated" not in pd.read_csv(tmp_path / "tables" / "modalities.csv")
    assert "recalibrated" not in (tmp_path / "report.html").read_text(encoding="utf-8").replace("cal.recalibrate", "")


def test_knowing_more_helps(finished: Path) -> None:
    mean = pd.read_parquet(finished / "results.parquet").groupby("variant").mean(numeric_only=True)
    assert mean.loc["calmrl", "NLL"] < mean.loc["mean", "NLL"]
    assert mean.loc["calmrl", "RMSE"] < mean.loc["mean", "RMSE"] < mean.loc["zero", "RMSE"]
    assert mean.loc["oracle", "RMSE"] <= mean.loc["complete_rows", "RMSE"]
    assert 75 < mean.loc["oracle", "coverage"] < 97


def test_same_seed_same_table(finished: Path, tmp_path: Path) -> None:
    run(configured(*TINY), tmp_path, TINY, Console(quiet=True))
    first, second = (pd.read_parquet(folder / "results.parquet") for folder in (finished, tmp_path))
    pd.testing.assert_frame_equal(first.drop(columns="seconds"), second.drop(columns="seconds"), check_exact=True)
    for name in ("coverage", "evidence", "pairs", "intervals", "shares"):
        path = Path("tables", f"{name}.csv")
        assert (finished / path).read_bytes() == (tmp_path / path).read_bytes(), name


def test_default_is_what_a_user_gets_who_chooses_nothing(incomplete: MultimodalData) -> None:
    variant, given = Defaults("default", ModelFitter(latent_dims=[2])), task(incomplete)
    choice = variant.choose([given])
    fitted = variant.calibrate(given, choice)
    own = cal.SharedLatentModel(incomplete.dims)
    fit = cal.fit(own, incomplete, seed=given.seed)
    assert fitted.setting.latent_dim == fit.choice.latent_dim == own.latent_dim
    imputed = cal.impute(fit, without(incomplete.subset(incomplete.complete_rows()), "b"), names=["b"])
    found = fitted.impute(incomplete.subset(incomplete.complete_rows()), "b", 0.8)
    np.testing.assert_array_equal(found.mean, imputed.mean["b"])
    for ours, theirs in zip((found.lower, found.upper), imputed.interval(0.8)["b"], strict=True):
        np.testing.assert_array_equal(ours, theirs)  # with the intervals that the choice learned


def test_default_keeps_its_choice_where_other_shares_are_missing(incomplete: MultimodalData) -> None:
    variant, given = Defaults("default", ModelFitter(latent_dims=[2])), task(incomplete)
    first = variant.calibrate(given, variant.choose([given]))
    again = variant.calibrate_again(given, variant.choose([given]), first)
    assert again.model.model.choice is None
    assert again.setting.latent_dim == first.setting.latent_dim
    # the same fit to the same rows, but for where EM starts, and for stopping at 1e-5 nats a value and not at 1e-6
    np.testing.assert_allclose(again.impute(incomplete, "b").mean, first.impute(incomplete, "b").mean, atol=5e-3)


@pytest.mark.parametrize("variants", ["calmrl_default,mean", "calmrl,mean"])
def test_table_and_page_say_how_the_default_chose_where_it_is_shown(variants: str, tmp_path: Path) -> None:
    overrides = [*TINY, f"calibration=[{variants}]", "seeds=[0]", "report.shares=[]", "report.focus=mean"]
    console = Console(file=io.StringIO(), width=200)
    run(configured(*overrides), tmp_path, overrides, console)
    printed = " ".join(console.file.getvalue().split())  # type: ignore[attr-defined]  # it is the StringIO
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    shown = "calmrl_default" in variants
    assert ("by CalMRL (default), within its seconds, on all training rows" in printed) == shown
    assert ("CalMRL (default) chooses for itself" in page) == shown
    assert ("of CalMRL (default) all of cal.fit" in page) == shown


def test_default_takes_options_of_fit(incomplete: MultimodalData) -> None:
    variant = build(
        configured(*TINY, "+calibration.calmrl_default.options.criterion=retrieval"), "calibration.calmrl_default"
    )
    fitted = variant.calibrate(task(incomplete), Choice(Setting(0, 0)))
    assert fitted.model.model.choice.criterion == "retrieval"


def test_printed_table_is_whole_on_a_narrow_terminal(tmp_path: Path) -> None:
    overrides = [*TINY, "calibration=[mean,calmrl_paper]", "seeds=[0,1]", "report.shares=[]"]
    console = Console(file=io.StringIO(), width=40)
    run(configured(*overrides), tmp_path, overrides, console)
    printed = console.file.getvalue()  # type: ignore[attr-defined]  # it is the StringIO
    assert "…" not in printed
    assert "CalMRL isotropic (paper)" in printed


def test_without_a_complete_row_the_others_are_still_compared(tmp_path: Path) -> None:
    overrides = [*TINY, "missingness=hub", "calibration=[complete_rows,calmrl]", "seeds=[0]", "report.shares=[]"]
    run(configured(*overrides), tmp_path, overrides, Console(quiet=True))
    results = pd.read_parquet(tmp_path / "results.parquet").set_index("variant")
    assert np.isnan(results.loc["complete_rows", "R@1"])
    assert "complete rows only" in results.loc["complete_rows", "note"]
    assert results.loc["calmrl", "R@1"] > 0
    assert "left out" in (tmp_path / "report.html").read_text(encoding="utf-8")


@pytest.mark.parametrize("variants", ["calmrl,ridge", "mean"])
def test_test_rows_that_all_lack_a_modality_leave_a_blank(variants: str, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    z = rng.normal(size=(90, 2))
    dims = {"x_a": 4, "x_b": 3, "x_c": 5}
    arrays = {name: z @ rng.normal(size=(2, d)) + 0.3 * rng.normal(size=(90, d)) for name, d in dims.items()}
    arrays["x_c"][60:] = np.nan
    np.savez(tmp_path / "own.npz", **arrays, train_idx=np.arange(60), test_idx=np.arange(60, 90))
    overrides = [
        *TINY[4:], "data=npz", f"data.source.path={tmp_path / 'own.npz'}", "missingness=none",
        f"calibration=[{variants}]", f"report.focus={variants.split(',')[-1]}", "report.shares=[]", "seeds=[0]",
    ]  # fmt: skip
    console = Console(file=io.StringIO(), width=120)
    run(configured(*overrides), tmp_path / "run", overrides, console)
    assert "own, 0% of training" in console.file.getvalue()  # type: ignore[attr-defined]  # it is the StringIO
    pairs = pd.read_csv(tmp_path / "run" / "tables" / "pairs.csv")
    lacking = (pairs["query"] == "c") | (pairs["candidate"] == "c")
    assert len(pairs) == 6 * len(variants.split(","))
    assert pairs.loc[lacking, "R@1"].isna().all()
    assert pairs.loc[~lacking, "R@1"].notna().all()
    results = pd.read_parquet(tmp_path / "run" / "results.parquet")
    assert np.isfinite(results[["R@1", "RMSE", "NLL", "coverage"]].to_numpy()).all()
    page = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    assert "Recall by pair of modalities" in page
    assert "<h1>own:" in page
    assert ("ridge may" in page) == ("ridge" in variants)


def test_a_focus_that_is_not_compared_is_told(tmp_path: Path) -> None:
    overrides = [*TINY, "calibration=[mean]", "seeds=[0]", "report.shares=[]", "report.focus=nope"]
    console = Console(file=io.StringIO(), width=200)
    assert np.isnan(run(configured(*overrides), tmp_path, overrides, console))
    assert "'nope' is not among the variants" in console.file.getvalue()  # type: ignore[attr-defined]
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "is not among the variants" in page
    assert "oracle" not in page.partition("<details ")[0]


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (["data=npz"], "data.source.path: must be given"),
        ([*TINY, "missingness.rate=0.9"], "missingness.rate: expected a share"),
    ],
)
def test_command_line_refuses_in_a_line(overrides: list[str], told: str, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "experiments.compare", *overrides, f"hydra.run.dir={tmp_path / 'refused'}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.startswith("error: ")
    assert told in done.stderr
    assert len(done.stderr.splitlines()) <= 3
    assert unfinished_runs(tmp_path) == ["refused"]
    assert told in (tmp_path / "refused" / "compare.log").read_text(encoding="utf-8")


def test_a_finished_command_leaves_a_page_that_knows_it(tmp_path: Path) -> None:
    small = [*TINY, "calibration=[mean,calmrl_paper]", "report.shares=[]", "seeds=[0]"]
    command = [sys.executable, "-m", "experiments.compare", *small, f"hydra.run.dir={tmp_path}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "warning" not in done.stderr.lower()  # Hydra makes one of whatever breaks at the end of a run
    assert json.loads((tmp_path / "job.json").read_text(encoding="utf-8"))["state"] == "finished"
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "CalMRL isotropic (paper)" in page
    assert "has not ended" not in page
    assert "interrupted" not in page


def test_modalities_must_be_at_least_two() -> None:
    with pytest.raises(ArgumentError, match="at least two"):
        Comparer(configured("data.modalities=[name]"))


def test_command_line_sweeps_and_runs_are_gathered(tmp_path: Path) -> None:
    command = [
        sys.executable, "-m", "experiments.compare", "--multirun", *TINY, "calibration=[mean,calmrl_paper]",
        "report.shares=[]", "seeds=[0]", "missingness.rate=0.2,0.5", f"hydra.sweep.dir={tmp_path}",
    ]  # fmt: skip
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("Report: ") == 2
    assert "CalMRL isotropic (paper)" in done.stdout
    assert not any("It has not ended" in page.read_text(encoding="utf-8") for page in tmp_path.rglob("report.html"))
    gathered = gather_runs(tmp_path)
    assert gathered["run"].unique().tolist() == ["0", "1"]
    assert gathered.groupby("run")["missingness.rate"].first().tolist() == [0.2, 0.5]


@pytest.mark.slow
@pytest.mark.parametrize("missingness", ["mcar", "pairs"])
def test_the_figure_to_reach_on_emoji(missingness: str, tmp_path: Path) -> None:
    overrides = ["experiment=emoji_k96", f"missingness={missingness}"]
    assert run(configured(*overrides), tmp_path, overrides, Console(quiet=True)) >= 17.5
