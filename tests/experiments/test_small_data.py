"""The comparison on few rows, and its parts."""

from __future__ import annotations

import io
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from omegaconf import DictConfig
from rich.console import Console
from scipy.stats import t as student
from sklearn.linear_model import Ridge as ScikitRidge
from sklearn.model_selection import GridSearchCV, PredefinedSplit

from calmrl_prob import MultimodalData
from calmrl_prob.data.missingness import mcar
from calmrl_prob.datasets import load_synthetic
from calmrl_prob.errors import ArgumentError, CalmrlError
from calmrl_prob.linear_gaussian import LinearGaussian
from calmrl_prob.posteriors.rescaled import Rescaled
from experiments.comparison.fitted_variant import without
from experiments.comparison.imputers import RidgePairs, has, values
from experiments.few_rows.contenders import Contender, Folds, Gaussian, Model, Ridge
from experiments.few_rows.mixtures import equal_mixture, scale_mixture
from experiments.few_rows.predictors import FittedModel, FittedRidge, Hidden, hide, measure
from experiments.harness.settings import build
from experiments.harness.split import Split
from experiments.small_data import differences, run, take
from tests.cases.experiment_cases import CONF, ROOT, composed

CONTENDERS = sorted(path.stem for path in (CONF / "contender").glob("*.yaml"))
TINY = [
    "data=synthetic",
    "data.source.num_instances=110",
    "data.source.dims={a: 6, b: 5, c: 4}",
    "data.source.latent_dim=3",
    "rows=60",
    "folds=2",
    "seeds=[0,1]",
]


def configured(*overrides: str, name: str = "small_data") -> DictConfig:
    return composed(name, *overrides)


@pytest.fixture(scope="module")
def incomplete() -> MultimodalData:
    complete = load_synthetic(num_instances=90, dims={"a": 5, "b": 4, "c": 3}, latent_dim=2, seed=1)
    return complete.mask(torch.rand(90, 3, generator=torch.Generator().manual_seed(0)) < torch.tensor([2.0, 0.6, 0.6]))


# ---- ridge ---------------------------------------------------------------------------------------------------------


def test_ridge_chooses_the_penalty_that_scikit_learn_chooses(incomplete: MultimodalData) -> None:
    folds = Folds.of(incomplete, 5, seed=0)
    imputer = RidgePairs([1, 10, 100]).cross_validate(incomplete, folds.parts)
    both = has(incomplete, "a") & has(incomplete, "b")
    fold = np.random.default_rng(0).permutation(90) % 5
    # inputs are centred and scaled by each fold's own training rows here, by all rows there: too little to matter
    inputs = (values(incomplete, "a")[both] - imputer.centre["a"]) / imputer.scale["a"]
    search = GridSearchCV(
        ScikitRidge(), {"alpha": [1, 10, 100]}, scoring="neg_mean_squared_error", cv=PredefinedSplit(fold[both])
    ).fit(inputs, values(incomplete, "b")[both])
    assert imputer.chosen["a", "b"] == search.best_params_["alpha"]
    alone = without(incomplete, "b", "c")
    np.testing.assert_allclose(imputer.predict(alone, "b")[both], search.predict(inputs), rtol=1e-8)


def test_ridge_measures_its_variances_on_rows_that_it_has_not_learned_from(incomplete: MultimodalData) -> None:
    imputer = RidgePairs([1e-6]).cross_validate(incomplete.subset(slice(0, 14)), Folds.of(incomplete, 2, 0).parts)
    fresh = FittedRidge(imputer)
    hidden = hide(fresh, incomplete, "b")
    assert hidden is not None
    in_sample = hide(FittedRidge(RidgePairs([1e-6]).cross_validate(incomplete, Folds.of(incomplete, 2, 0).parts)),
                     incomplete, "b")  # fmt: skip
    assert in_sample is not None
    assert in_sample.square.mean() < in_sample.predictive.variance.numpy().mean()


# ---- models --------------------------------------------------------------------------------------------------------


def test_folds_are_a_partition_and_no_fold_is_fitted_to_its_own_rows(
    incomplete: MultimodalData, monkeypatch: pytest.MonkeyPatch
) -> None:
    folds = Folds.of(incomplete, 4, seed=3)
    assert sum(len(own) for _, own in folds.parts) == 90
    fitted, hidden = [], []
    contender = Gaussian("g", {"latent_dim": [1, 2]}, {"max_iterations": 5})
    original = Gaussian.fit

    def fit(self: Gaussian, data: MultimodalData, setting: dict[str, object], seed: int) -> LinearGaussian:
        fitted.append(set(map(tuple, values(data, "a"))))
        return original(self, data, setting, seed)  # type: ignore[return-value]

    def predictive(self: FittedModel, data: MultimodalData, name: str) -> object:
        hidden.append((len(fitted) - 1, set(map(tuple, values(data, "a")))))
        return predict(self, data, name)

    predict = FittedModel.predictive
    monkeypatch.setattr(Gaussian, "fit", fit)
    monkeypatch.setattr(FittedModel, "predictive", predictive)
    winner = contender.choose(incomplete, folds, seed=0)
    assert len(fitted) == 2 * 4 + 1
    assert len(fitted[-1]) == 90
    assert hidden
    assert all(not (fitted[which] & rows) for which, rows in hidden)
    assert winner.setting == min(winner.tried, key=winner.tried.__getitem__)


def test_settings_are_varied_one_after_another() -> None:
    scores = {(1, 1): 5.0, (2, 1): 4.0, (3, 1): 6.0, (2, 2): 1.0, (3, 2): 2.0, (1, 2): 3.0}
    tried = []

    class Scored(Model):
        def fit(self, data: MultimodalData, setting: dict[str, object], seed: int) -> LinearGaussian:
            return LinearGaussian({"x": torch.ones(1, 1)}, {"x": torch.zeros(1)}, {"x": torch.ones(1)})

        def _cross_validate(self, folds: Folds, setting: dict[str, int], seed: int) -> tuple[float, None]:
            tried.append((setting["one"], setting["two"]))
            return scores[tried[-1]], None

    data = MultimodalData({"x": np.ones((4, 1))})
    winner = Scored("s", {"one": [1, 2, 3], "two": [1, 2]}).choose(data, Folds.of(data, 2, 0), 0)
    assert winner.setting == "one=2 two=2"
    assert tried == [(2, 2), (1, 2), (3, 2), (2, 1)]


def test_recalibration_makes_variances_right_where_the_model_is_wrong() -> None:
    """One latent too few and no prior: variances come out too small, by factors that folds tell."""
    many = load_synthetic(num_instances=600, dims={"a": 6, "b": 6}, latent_dim=2, noise_variance=0.2, seed=4)
    rows, test = many.split(0.1, seed=0)
    grid, fixed = {"latent_dim": [5]}, {"max_iterations": 100}
    folds = Folds.of(rows, 5, seed=0)
    plain = Gaussian("g", grid, fixed).choose(rows, folds, 0).fitted
    ours = Gaussian("g", grid, fixed, recalibrate=True).choose(rows, folds, 0).fitted
    scale = {"a": 1.0, "b": 1.0}
    before, after = (measure(fitted, test, scale, 0.9) for fitted in (plain, ours))
    assert before["coverage"] < 85 < after["coverage"] < 95
    assert after["NLL"] < before["NLL"]
    assert after["RMSE"] == pytest.approx(before["RMSE"])
    assert after["R@1"] == before["R@1"]


def test_a_rescaled_predictive_is_a_density_with_its_own_quantiles() -> None:
    names = ("x", "y")
    lg = LinearGaussian(
        {name: torch.ones(1, 1).double() for name in names},
        {name: torch.zeros(1).double() for name in names},
        {name: torch.tensor(0.5).double() for name in names},
    )
    data = MultimodalData({name: np.ones((1, 1)) for name in names})
    base = FittedModel(scale_mixture(lg, 5.0)).predictive(data, "x")
    rescaled = Rescaled(base, torch.tensor([2.5]).double())
    torch.testing.assert_close(rescaled.variance, 2.5 * base.variance)
    grid = torch.linspace(-60, 60, 20_001, dtype=torch.float64)
    density = rescaled.log_density(grid[:, None]).exp().flatten()
    mass = torch.cumulative_trapezoid(density, grid)
    assert float(mass[-1]) == pytest.approx(1.0, abs=1e-6)
    at = int((mass < 0.8).sum())
    assert float(rescaled.quantile(0.8)) == pytest.approx(float(grid[at + 1]), abs=1e-2)


def test_a_scale_mixture_is_nearly_student_t() -> None:
    lg = LinearGaussian({"x": torch.zeros(1, 1)}, {"x": torch.zeros(1)}, {"x": torch.ones(1)}).to(torch.float64)
    mixture = scale_mixture(lg, 8.0, count=400, unit_mean=False)
    values_ = torch.tensor([[0.0], [1.0], [2.5]])
    weights = torch.stack([
        torch.distributions.Normal(0, part.noise_variance["x"].sqrt()).log_prob(values_) for part in mixture.components
    ]).logsumexp(0) - np.log(400)  # fmt: skip
    np.testing.assert_allclose(weights.flatten(), student(8).logpdf([0.0, 1.0, 2.5]), atol=0.01)


def test_a_mixture_of_fits_pads_the_smaller_with_latents_that_do_nothing() -> None:
    one, two = (
        LinearGaussian({"x": torch.ones(3, k)}, {"x": torch.zeros(3)}, {"x": torch.tensor(0.5)}) for k in (1, 2)
    )
    mixture = equal_mixture([one, two])
    assert mixture.latent_dim == 2
    for part, model in zip(mixture.components, (one, two), strict=True):
        torch.testing.assert_close(part.joint()[1], model.joint()[1])


# ---- whole runs ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CONTENDERS)
def test_every_contender_learns(name: str) -> None:
    """On data from the model itself, better than knowing nothing; the settings of its own file, cut short."""
    cfg = configured(*TINY, f"contender=[{name}]")
    contender: Contender = build(cfg, f"contender.{name}")
    if isinstance(contender, Model):
        contender.grid = {key: options[:1] for key, options in contender.grid.items()}
        contender.grid |= {key: [dim] for key, dim in (("latent_dim", 4), ("private_dim", 1)) if key in contender.grid}
        contender.fixed |= {"max_iterations": 20} | ({"latent_dim": 4} if "latent_dim" in contender.fixed else {})
    split: Split = build(cfg, "data")
    train = split.train.mask(mcar(split.train, rate=0.2, seed=1))
    winner = contender.choose(train, Folds.of(train, 2, 0), 0)
    scale = {part: float(values(split.train, part).std()) for part in train.names}
    found = measure(winner.fitted, split.test, scale, 0.9)
    assert found["RMSE"] < 0.95
    assert found["NLL"] < 1.42  # of a normal that knows mean and variance
    assert found["R@1"] > 2 * 100 / len(split.test)
    assert np.isnan(found["NLL joint"]) == isinstance(contender, Ridge)


def test_run_writes_and_prints_both_tables(tmp_path: Path) -> None:
    console = Console(file=io.StringIO(), width=40)
    overrides = [*TINY, "contender=[ridge,pseudo_rows]", "contender.pseudo_rows.grid={pseudo_rows: [5, 20]}",
                 "+contender.pseudo_rows.fixed.latent_dim=4"]  # fmt: skip
    results = run(configured(*overrides), tmp_path / "one", console)
    printed = console.file.getvalue()  # type: ignore[attr-defined]  # it is the StringIO
    assert "60 training rows, 50% of their modalities missing, 28 test rows" in printed
    assert "Difference to ridge per pair" in printed
    assert "…" not in printed
    assert len(results) == 4
    assert results["chosen"].str.contains("pseudo_rows=").sum() == 2
    again = run(configured(*overrides), tmp_path / "two", Console(quiet=True))
    pd.testing.assert_frame_equal(results.drop(columns="seconds"), again.drop(columns="seconds"), check_exact=True)
    written = pd.read_csv(tmp_path / "one" / "results.csv")
    np.testing.assert_allclose(written["NLL"], results["NLL"])
    assert (tmp_path / "one" / "config.yaml").exists()


def test_each_seed_takes_other_rows_and_none_of_the_test_rows(incomplete: MultimodalData) -> None:
    split = Split("s", incomplete, incomplete.subset(slice(0, 5)))
    first, second, again = (take(split, 20, None, seed) for seed in (0, 1, 0))
    assert torch.equal(first[0]["a"], again[0]["a"])
    assert not torch.equal(first[0]["a"], second[0]["a"])
    assert first[1] is split.test
    train, test = take(split, None, 0.3, seed=0)
    assert len(train) + len(test) == int(incomplete.complete_rows().sum())
    assert not set(map(tuple, values(train, "a"))) & set(map(tuple, values(test, "a")))
    with pytest.raises(ArgumentError, match="rows: expected at most 90"):
        take(split, 91, None, seed=0)


def test_differences_are_taken_seed_by_seed() -> None:
    results = pd.DataFrame(
        {"variant": ["a", "b"] * 2, "label": ["A", "B"] * 2, "seed": [0, 0, 1, 1], "RMSE": [1.0, 0.8, 3.0, 2.8]}
    )
    assert differences(results, "a").values.tolist() == [["B", "-0.200±0.000"]]


@pytest.mark.parametrize(
    ("override", "option"),
    [
        ("rows=1", "rows"),
        ("rows=x", "rows"),
        ("rows=10000", "rows"),
        ("folds=1", "folds"),
        ("test_share=1.5", "test_share"),
        ("interval_level=0", "interval_level"),
        ("seeds=[]", "seeds"),
        ("contender=[]", "contender"),
        ("contender.pseudo_rows.grid.pseudo_rows=[]", "contender.pseudo_rows"),
        ("missingness.rate=0.99", "rate"),
    ],
)
def test_values_that_cannot_work_are_refused_by_name(override: str, option: str, tmp_path: Path) -> None:
    with pytest.raises(CalmrlError, match=option.replace(".", r"\.")):
        run(configured(*TINY, override), tmp_path, Console(quiet=True))


@pytest.mark.slow
def test_command_line_refuses_in_a_line(tmp_path: Path) -> None:
    command = [
        sys.executable, "-m", "experiments.small_data", "--config-name", "non_gaussian", "folds=1",
        f"hydra.run.dir={tmp_path}",
    ]  # fmt: skip
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("error: folds")


def test_hidden_never_reads_what_it_predicts(incomplete: MultimodalData) -> None:
    model = FittedModel(Gaussian("g", {"latent_dim": [2]}).fit(incomplete, {"latent_dim": 2}, 0))
    seen = incomplete.subset(incomplete.rows_with("a", "b", how="all"))
    torch.testing.assert_close(model.predictive(seen, "b").mean, model.predictive(without(seen, "b"), "b").mean)
    hidden = hide(model, incomplete, "b")
    assert isinstance(hidden, Hidden)
    assert hide(model, incomplete.subset(~incomplete.observed("b")), "b") is None
    joint = model.joint_log_density(seen, "b")
    mean, covariance = model.model.joint(["a", "b"])  # type: ignore[union-attr]
    marginal = model.model.joint(["a"])  # type: ignore[union-attr]
    only = seen.select(["a", "b"])
    both = torch.distributions.MultivariateNormal(mean, covariance).log_prob(torch.cat([only["a"], only["b"]], 1))
    rest = torch.distributions.MultivariateNormal(*marginal).log_prob(only["a"].double())
    np.testing.assert_allclose(model.joint_log_density(only, "b"), (both - rest).numpy(), rtol=1e-6)
    assert len(joint) == len(seen)
