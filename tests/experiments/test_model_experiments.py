"""Models from files in the experiments: the convention, the units, the table of models."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig
from rich.console import Console

import calmrl_prob as cal
from calmrl_prob.datasets import load_synthetic
from calmrl_prob.errors import ArgumentError, CalmrlError, FileFormatError
from experiments.compare import run as run_comparison
from experiments.comparison.fitted_variant import FittedVariant
from experiments.comparison.fitting import ModelFitter, Retriever, Setting
from experiments.comparison.measures import impute_all, measure_imputations, modality_scale
from experiments.comparison.model_files import build_model, find_builder
from experiments.comparison.standardisation import Imputed, Standardisation
from experiments.harness.settings import build
from experiments.model_zoo.table import ModelTable
from experiments.models import run as run_models

ROOT = Path(__file__).resolve().parents[2]
CONF = ROOT / "experiments" / "conf"
DIMS = {"a": 6, "b": 5, "c": 4}
#: counts.py takes counts, which the data of these experiments are not: experiments.medicine compares it.
MODELS = sorted(path.stem for path in (ROOT / "models").glob("*.py") if path.stem not in ("__init__", "counts"))

#: A model of the user's own, written as a plain function of the data.
OWN = """
import pyro
import pyro.distributions as dist
import torch


def build(dims, latent_dim, spread=1.0):
    start = {name: torch.randn(width, latent_dim, generator=torch.Generator().manual_seed(0)) for name, width in
             dims.items()}

    def model(data):
        sigma = pyro.param("sigma", torch.tensor(0.7), constraint=dist.constraints.positive)
        loadings = {name: pyro.param(f"w_{name}", value) for name, value in start.items()}
        with pyro.plate("instances", len(data)):
            z = pyro.sample("z", dist.Normal(torch.zeros(latent_dim), spread).to_event(1))
            for name in data.names:
                x = dist.Normal(z @ loadings[name].T, sigma).to_event(1)
                pyro.sample(name, x.mask(data.observed(name)), obs=data.filled(name))

    return model
"""

TINY = [
    "data=synthetic", "data.source.num_instances=90", "data.source.dims={a: 6, b: 5, c: 4}", "data.source.latent_dim=2",
    "seeds=[0]", "report.shares=[]", "report.posterior_rows=6", "report.posterior_draws=4",
]  # fmt: skip


def configured(name: str, *overrides: str) -> DictConfig:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose(name, overrides=list(overrides))


def data(num_instances: int = 80) -> cal.MultimodalData:
    return load_synthetic(num_instances=num_instances, dims=DIMS, latent_dim=2, seed=1)


# ---- the convention ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MODELS)
def test_every_model_file_fits_the_convention_and_has_a_configuration(name: str) -> None:
    model = build_model(f"models/{name}.py", DIMS, 2, {}, seed=0)
    assert callable(model)
    fitter = build(configured("compare", f"model={name}"), "model")
    assert fitter.file == f"models/{name}.py"
    assert fitter.for_baselines().file is None
    assert fitter.for_baselines().latent_dims == [32, 64, 96, 128, 192]


def test_every_model_file_is_a_row_of_the_table() -> None:
    files = [
        model.model.file for model in ModelTable(configured("models", "only_data=[emoji]", "seeds=[0]")).models.values()
    ]
    assert {Path(file).stem for file in files if file} == set(MODELS)


def test_a_file_of_the_users_own_is_found_by_build(tmp_path: Path) -> None:
    path = tmp_path / "own.py"
    path.write_text(OWN)
    assert find_builder(str(path)).__name__ == "build"
    model = build_model(str(path), DIMS, 2, {"spread": 2.0}, seed=0)
    assert float(cal.discover(model, data()).linear_gaussian().prior_covariance[0, 0]) == 4.0
    with pytest.raises(ArgumentError, match=r"no argument 'width'; it takes \['dims', 'latent_dim', 'spread'\]"):
        build_model(str(path), DIMS, 2, {"width": 2.0}, seed=0)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("x = 1", "such classes: none"),
        ("import torch.nn as nn\nclass A(nn.Module): pass\nclass B(nn.Module): pass", "such classes: A, B"),
        ("def build(): ...", r"its build takes \(\)"),
        ("import torch.nn as nn\nclass A(nn.Module):\n    def __init__(self, dims): ...", r"its A takes \(dims\)"),
        ("import no_such_module", "cannot be run: ModuleNotFoundError"),
        ("def build(dims, latent_dim):\n    raise RuntimeError('oh')", "fails to build: RuntimeError: oh"),
    ],
)
def test_files_that_do_not_fit_are_told_why(text: str, told: str, tmp_path: Path) -> None:
    path = tmp_path / "own.py"
    path.write_text(text)
    with pytest.raises(CalmrlError, match=told) as caught:
        build_model(str(path), DIMS, 2, {}, seed=0)
    assert str(path) in str(caught.value)


def test_a_file_that_is_not_there_is_named() -> None:
    with pytest.raises(FileFormatError, match=r"there is no file no/such\.py"):
        find_builder("no/such.py")
    with pytest.raises(ArgumentError, match=r"give model\.file too"):
        ModelFitter(method="svi")


# ---- units ---------------------------------------------------------------------------------------------------------


def test_units_are_undone() -> None:
    complete = data()
    incomplete = complete.mask(
        torch.rand(80, 3, generator=torch.Generator().manual_seed(0)) < torch.tensor([2, 0.6, 0.6])
    )
    scaled = cal.MultimodalData(
        {name: incomplete[name] * (10.0**m) + 5 for m, name in enumerate(incomplete.names)},
        observed_mask=incomplete.observed_mask,
    )
    units = Standardisation.of(scaled)
    seen = units.apply(scaled)
    assert torch.equal(seen.observed_mask, scaled.observed_mask)
    for name in seen.names:
        values = seen[name][seen.observed(name)]
        assert float(values.mean(0).abs().max()) < 1e-5
        assert float(values.square().mean()) == pytest.approx(1, abs=1e-5)
    normal = torch.distributions.Normal(0.3, 1.5)
    found = Imputed(
        np.full((1, 6), 0.3), np.full((1, 6), 1.5**2), normal.log_prob(torch.zeros(1, 6)).numpy().astype(float)
    )
    back = units.undo("a", found)
    truth = torch.as_tensor(units.centre["a"])  # zero in these units
    expected = torch.distributions.Normal(torch.as_tensor(back.mean), torch.as_tensor(back.variance).sqrt()).log_prob(
        truth
    )
    np.testing.assert_allclose(back.log_density, expected, rtol=1e-5)
    absent = scaled.subset(~scaled.observed("b"))
    assert not bool(units.apply(absent).observed("b").any())


def test_the_papers_model_is_the_same_from_its_file() -> None:
    train, test = data(120).split(0.7, seed=0)
    incomplete = train.mask(
        torch.rand(len(train), 3, generator=torch.Generator().manual_seed(1)) < torch.tensor([2, 0.6, 0.6])
    )
    found = {}
    for file in (None, "models/calmrl.py"):
        fitter = ModelFitter(file=file, latent_dims=[2], tolerance=1e-7, noise_pseudo_counts=[5])
        assert fitter.weights(DIMS) == [5]
        fitted = fitter.fit(incomplete, Setting(2, 5), seed=0)
        calibrated = FittedVariant(fitted, Setting(2, 5), 0.0, Retriever())
        measured = measure_imputations(impute_all(calibrated, test), test, modality_scale(train), 0.9)
        found[file] = [*measured.values(), calibrated.recall(test)["R@10"].mean(), fitted.trace["objective"].iloc[-1]]
    np.testing.assert_allclose(found["models/calmrl.py"][:-1], found[None][:-1], rtol=2e-3)
    likelihood = [values[-1] for values in found.values()]
    assert abs(likelihood[0] - likelihood[1]) < 0.5  # the log prior of the noise is in other units


# ---- whole runs ----------------------------------------------------------------------------------------------------


def test_a_users_own_file_is_compared_beside_the_others(tmp_path: Path) -> None:
    path = tmp_path / "own_model.py"
    path.write_text(OWN)
    overrides = [
        *TINY, f"model.file={path}", "model.latent_dims=[2,3]", "model.noise_pseudo_counts=[0,20]",
        "model.max_iterations=40", "model.tolerance=1e-3", "calibration=[mean,calmrl,model]",
    ]  # fmt: skip
    console = Console(file=io.StringIO(), width=150)
    focus = run_comparison(configured("compare", *overrides), tmp_path / "run", overrides, console)
    results = pd.read_parquet(tmp_path / "run" / "results.parquet").set_index("variant")
    assert list(results.index) == ["mean", "calmrl", "model"]
    assert results.loc["model", ["label", "method", "noise_pseudo_count"]].tolist() == ["own model", "gradient", 0]
    assert focus == pytest.approx(results.loc["model", "R@1"])
    assert results.loc["model", "NLL"] < results.loc["mean", "NLL"]
    assert np.isfinite(results[["R@1", "RMSE", "NLL", "coverage", "probe"]].to_numpy(dtype=float)).all()
    assert (tmp_path / "run" / "idata.nc").exists()
    assert "own model" in console.file.getvalue()  # type: ignore[attr-defined]  # it is the StringIO


def table_of(tmp_path: Path, *overrides: str) -> tuple[pd.DataFrame, str]:
    cfg = configured(
        "models", "+data@datasets.synthetic=synthetic", "only_data=[synthetic]",
        "datasets.synthetic.source.num_instances=90",
        "datasets.synthetic.source.dims={a: 6, b: 5, c: 4}", "datasets.synthetic.source.latent_dim=2", *overrides,
    )  # fmt: skip
    results = run_models(cfg, tmp_path, Console(quiet=True))
    return results, (tmp_path / "table.md").read_text(encoding="utf-8")


def test_the_table_measures_models_and_says_why_one_is_left_out(tmp_path: Path) -> None:
    broken = tmp_path / "broken.py"
    broken.write_text("def build(dims, latent_dim):\n    raise RuntimeError('no luck')")
    results, text = table_of(
        tmp_path, "seeds=[0,1]", "only_models=[calmrl_paper,mixture,student_t,broken]",
        "+model@models.broken=isotropic",
        f"models.broken.file={broken}", "models.calmrl_paper.latent_dims=[2]", "models.mixture.latent_dims=[1,2]",
        "models.mixture.arguments.num_components=2", "models.mixture.noise_pseudo_counts=[10]",
        "models.student_t.latent_dims=[2]", "models.student_t.noise_pseudo_counts=[10]",
    )  # fmt: skip
    assert len(results) == 4 * 2
    fitted = results[results["variant"] != "broken"]
    assert np.isfinite(fitted[["NLL", "NLL joint", "RMSE", "R@1", "coverage", "seconds"]].to_numpy()).all()
    routes = fitted.groupby("variant")["route"].first().to_dict()
    assert routes == {"calmrl_paper": "exact", "mixture": "exact mixture", "student_t": "exact student-t"}
    assert results.loc[results["variant"] == "broken", "note"].str.contains("no luck").all()
    assert "2 of 2 failed: ArgumentError" in text
    assert "CalMRL (paper)" in text
    pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / "results.parquet"), results, check_dtype=False)


def test_joint_density_is_the_dense_conditional(tmp_path: Path) -> None:
    results, _ = table_of(
        tmp_path, "seeds=[0]", "only_models=[calmrl_paper]", "models.calmrl_paper.latent_dims=[2]", "missingness=none"
    )
    table = ModelTable(
        configured(
            "models", "+data@datasets.synthetic=synthetic", "only_data=[synthetic]", "seeds=[0]", "missingness=none",
            "only_models=[calmrl_paper]", "datasets.synthetic.source.num_instances=90",
            "datasets.synthetic.source.dims={a: 6, b: 5, c: 4}", "datasets.synthetic.source.latent_dim=2",
            "models.calmrl_paper.latent_dims=[2]",
        )
    )  # fmt: skip
    split = table.splits["synthetic"]
    fitter = table.models["calmrl_paper"].model
    fitted = fitter.fit(split.train, Setting(2, 0.0), seed=0)
    units, lg = fitted.units, cal.discover(fitted.model.model, fitted.units.apply(split.train)).linear_gaussian()  # type: ignore[union-attr]
    mean, covariance = (part.detach().double() for part in lg.joint())
    stacked = torch.cat([units.apply(split.test)[name].double() for name in lg.names], dim=1)
    start, expected = 0, []
    for name, width in lg.dims.items():
        rest = torch.ones(len(mean), dtype=torch.bool)
        rest[start : start + width] = False
        both = torch.distributions.MultivariateNormal(mean, covariance).log_prob(stacked)
        alone = torch.distributions.MultivariateNormal(mean[rest], covariance[rest][:, rest]).log_prob(stacked[:, rest])
        scale = modality_scale(split.train)[name]
        expected.append(-float((both - alone).mean()) / width + np.log(units.scale[name]) - np.log(scale))
        start += width
    assert results["NLL joint"].iloc[0] == pytest.approx(np.mean(expected), rel=1e-4)


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("only_models=[nope]", r"only_models: expected some of .*, got \['nope'\]"),
        ("only_data=emoji", "only_data: expected a list"),
        ("select_by=AUC", "select_by"),
        ("validation_share=2", "validation_share"),
    ],
)
def test_options_of_the_table_are_checked(override: str, told: str) -> None:
    with pytest.raises(ArgumentError, match=told):
        ModelTable(configured("models", override))
