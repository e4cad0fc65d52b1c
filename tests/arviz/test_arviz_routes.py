"""``to_arviz`` of every route: groups, priors, model choice, memory, and files of both kinds."""

from __future__ import annotations

import logging
import math
import subprocess
import textwrap
import warnings
from collections.abc import Callable
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

import arviz as az
import numpy as np
import pytest
import torch
import xarray as xr

import calmrl_prob as cal
from calmrl_prob.arviz import adapter as arviz_adapter
from calmrl_prob.errors import ArgumentError, ArgumentTypeError, FileFormatError, ReliabilityWarning
from calmrl_prob.inference import ParameterDraws
from calmrl_prob.priors import MixturePrior
from models.student_t import StudentT
from tests.cases.arviz_cases import python_with_arviz_1
from tests.cases.collapsed_cases import factor_model
from tests.cases.model_cases import DIMS, random_data, random_model
from tests.cases.route_cases import gaussian

N = 12


@cache
def data() -> cal.MultimodalData:
    made = random_data(N)
    return cal.MultimodalData({n: made[n] for n in DIMS}, ids=[f"row {n}" for n in range(N)])


@cache
def point() -> cal.FitResult:
    return cal.fit(cal.SharedLatentModel(DIMS, 1), random_data(60))


def laplace() -> ParameterDraws:
    return cal.parameter_draws(point(), random_data(60), num_draws=12)


def bootstrap() -> ParameterDraws:
    return cal.parameter_draws(point(), random_data(60), "bootstrap", num_draws=12)


@cache
def svi() -> cal.FitResult:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ReliabilityWarning)  # a guide after so few steps
        return cal.fit(factor_model(1), data(), "svi", num_steps=20, num_draws=100)


@cache
def nuts() -> cal.FitResult:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ReliabilityWarning)  # a dozen draws do not agree
        return cal.fit(factor_model(1), data(), "nuts", num_draws=6, num_warmup=4, num_chains=2, max_tree_depth=2)


def mixture() -> cal.FitResult:
    prior = MixturePrior(1, num_components=2)
    return cal.fit(cal.SharedLatentModel(DIMS, 1, prior=prior), random_data(60), max_iterations=200, tolerance=1e-3)


def student_t() -> StudentT:
    return StudentT(DIMS, latent_dim=1)


def program() -> Callable[[cal.MultimodalData], None]:
    return gaussian


ROUTES: dict[str, Callable[[], Any]] = {
    "point": point,
    "laplace": laplace,
    "bootstrap": bootstrap,
    "svi": svi,
    "nuts": nuts,
    "mixture": mixture,
    "student t": student_t,
    "program": program,
}
OF_PARAMETERS = ("laplace", "bootstrap", "svi", "nuts")


@cache
def made(route: str) -> Any:  # noqa: ANN401
    return cal.to_arviz(ROUTES[route](), data(), num_draws=12, num_chains=None if route == "nuts" else 2)


@pytest.mark.parametrize("route", ROUTES)
def test_every_route_has_every_group(route: str) -> None:
    idata = made(route)
    latent_dim = idata["posterior"].sizes["latent"]
    draws = {"chain": 2, "draw": 6, "instance": N}
    assert dict(idata["posterior"]["z"].sizes) == {**draws, "latent": latent_dim}
    for name, width in DIMS.items():
        assert dict(idata["posterior_predictive"][name].sizes) == {**draws, f"feature_{name}": width}
        assert dict(idata["log_likelihood"][name].sizes) == draws
        assert bool(np.isfinite(idata["log_likelihood"][name].values[..., data().observed(name).numpy()]).all())
        assert idata["observed_data"][name].shape == (N, width)
        assert dict(idata["prior_predictive"][name].sizes) == {
            "chain": 1,
            "draw": 20,
            "instance": N,
            f"feature_{name}": width,
        }
        assert bool(np.isfinite(idata["prior_predictive"][name].values).all())
    assert dict(idata["prior"]["z"].sizes) == {"chain": 1, "draw": 20, "instance": N, "latent": latent_dim}
    assert list(idata["prior_predictive"]["instance"].values) == [f"row {n}" for n in range(N)]
    assert idata["constant_data"]["observed_mask"].dtype == bool
    assert ("sample_stats" in idata) == (route in OF_PARAMETERS)


@pytest.mark.parametrize("route", OF_PARAMETERS)
def test_rotations_are_handled(route: str) -> None:
    """Loadings turned to one reference, with z turned alike: signals are theirs. And what no rotation changes."""
    posterior: Any = made(route)["posterior"]
    z = posterior["z"].values
    for name, width in DIMS.items():
        loadings = posterior[f"aligned_loadings_{name}"]
        assert dict(loadings.sizes) == {"chain": 2, "draw": 6, f"feature_{name}": width, "latent": 1}
        variance = (loadings.values**2).sum(-1)  # with a standard normal prior
        np.testing.assert_allclose(posterior[f"signal_variance_{name}"].values, variance, rtol=1e-9)
        apart = posterior[f"signal_{name}"].values - z @ loadings.values.swapaxes(-1, -2)
        np.testing.assert_allclose(apart, apart[:, :, :1].repeat(N, 2), atol=1e-9)  # the intercepts
        stacked = np.concatenate([posterior[f"aligned_loadings_{n}"].values for n in DIMS], axis=2)[..., 0]
        reference = stacked.mean((0, 1))
        assert ((stacked * reference).sum(-1) > 0).all()


@pytest.mark.parametrize("route", ["laplace", "bootstrap"])
def test_draws_about_a_fit_are_by_feature(route: str) -> None:
    idata = made(route)
    draws = ROUTES[route]()
    kept = draws.values["noise_variance_text"].numpy()
    found = idata["posterior"]["noise_variance_text"].values.reshape(12, 3)
    np.testing.assert_allclose(np.sort(found[:, 0]), np.sort(kept[:, 0]))
    assert idata["posterior"].attrs["route"] == route
    lp = idata["sample_stats"]["lp"].values.ravel()
    np.testing.assert_allclose(np.sort(lp), np.sort(draws.quantities["log_evidence"].numpy()))


def test_evidence_by_instance_is_the_exact_one() -> None:
    idata = made("nuts")
    given = nuts().report.posterior(data(), num_draws=12)
    expected = torch.stack([given.given(s).log_marginal for s in range(12)]).view(2, 6, N)
    np.testing.assert_allclose(idata["log_likelihood"]["log_evidence"].values, expected.numpy())


def test_prior_predictive_has_the_moments_of_the_prior() -> None:
    lg = random_model("diagonal").linear_gaussian().detach()
    count = 400
    for model in (lg, random_model("diagonal")):  # a form, and a program
        idata = cal.to_arviz(model, data(), 4, names=(), num_prior_draws=count)
        mean, covariance = lg.joint(["text"])
        draws = idata["prior_predictive"]["text"].values.reshape(-1, 3)
        variance = covariance.diagonal().numpy()
        assert (np.abs(draws.mean(0) - mean.numpy()) < 6 * np.sqrt(variance / (N * count))).all()
        assert (np.abs(draws.var(0) / variance - 1) < 6 * math.sqrt(2 / (N * count))).all()
        correlation = np.corrcoef(draws.T)  # modalities and features of one draw come from the same latent
        expected = covariance.numpy() / np.sqrt(np.outer(variance, variance))
        assert (np.abs(correlation - expected) < 6 / math.sqrt(N * count)).all()


def test_prior_of_a_program_with_global_latents_draws_them_afresh() -> None:
    for route in ("nuts", "svi"):
        prior = made(route)["prior"]
        assert dict(prior["w_text"].sizes) == {"chain": 1, "draw": 20, "w_text_0": 3, "w_text_1": 1}
        assert abs(float(prior["w_text"].values.std()) - 1) < 6 * math.sqrt(1 / 120)  # they are N(0, 1)
    assert "prior" not in cal.to_arviz(point(), data(), 4, names=(), num_prior_draws=0)


def elpd(found: Any) -> float:  # noqa: ANN401 - what az.loo gives, which calls it otherwise since ArviZ 1
    return float(found.elpd_loo if hasattr(found, "elpd_loo") else found.elpd)


@pytest.mark.parametrize("route", ["laplace", "bootstrap", "nuts"])
def test_loo_gives_pareto_k_for_each_instance(route: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # few draws; ArviZ 1 fits no tail to less than five of them
        if route == "nuts":
            drawn = cal.fit(factor_model(1), data(), "nuts", num_draws=20, num_warmup=4, num_chains=2, max_tree_depth=2)
        else:
            drawn = cal.parameter_draws(point(), random_data(60), route, num_draws=40)
        idata = cal.to_arviz(drawn, data(), num_draws=40, names=(), num_prior_draws=0)
        found = az.loo(idata, var_name="log_evidence", pointwise=True)
    assert found.pareto_k.shape == (N,)
    assert np.isfinite(elpd(found))


@cache
def of_one_and_two_latents() -> dict[str, Any]:
    """Laplace draws for data with two latents, of which one is too few."""
    train = cal.datasets.make_synthetic(150, DIMS, latent_dim=2, seed=3).complete
    idata = {}
    for latent_dim in (1, 2):
        fit = cal.fit(cal.SharedLatentModel(DIMS, latent_dim), train)
        draws = cal.parameter_draws(fit, train, num_draws=200)
        idata[f"K {latent_dim}"] = cal.to_arviz(draws, train, num_draws=200, names=(), num_prior_draws=0)
    return idata


def test_compare_prefers_the_right_number_of_latents() -> None:
    idata = of_one_and_two_latents()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # ArviZ 0.23 of pandas 3, and of Pareto k
        table = az.compare(idata, var_name="log_evidence")
        k = az.loo(idata["K 2"], var_name="log_evidence", pointwise=True).pareto_k
    assert list(table.index) == ["K 2", "K 1"]
    assert float((k < 0.7).mean()) > 0.9


def test_missing_cells_alone_with_their_coordinates() -> None:
    idata = cal.to_arviz(point(), data(), num_draws=2_000, cells="missing", seed=1)
    imputed = idata["posterior_predictive"]["imputed"]
    expected = sum(int((~data().feature_mask(n)).sum()) for n in DIMS)
    assert dict(imputed.sizes) == {"chain": 4, "draw": 500, "cell": expected}
    exact = cal.impute(point(), data())
    values = imputed.values.reshape(2_000, expected)
    for c in range(expected):
        name, feature = str(imputed["modality"].values[c]), int(imputed["feature"].values[c])
        row = list(data().ids).index(imputed["instance"].values[c])
        assert not bool(data().feature_mask(name)[row, feature])
        mean, variance = float(exact.mean[name][row, feature]), float(exact.variance[name][row, feature])
        assert abs(values[:, c].mean() - mean) < 6 * math.sqrt(variance / 2_000)
    complete = cal.MultimodalData({n: torch.ones(3, w).double() for n, w in DIMS.items()})
    assert "posterior_predictive" not in cal.to_arviz(point(), complete, 8, cells="missing")


@pytest.mark.parametrize("cells", ["all", "missing"])
def test_wide_arrays_stay_within_their_budget_and_it_says_so(cells: Any, caplog: pytest.LogCaptureFixture) -> None:  # noqa: ANN401
    numbers = N * 9 if cells == "all" else sum(int((~data().feature_mask(n)).sum()) for n in DIMS)
    budget = 4 * 5 * numbers * 8  # five draws of each of four chains
    with caplog.at_level(logging.WARNING, "calmrl_prob"):
        idata = cal.to_arviz(point(), data(), num_draws=400, cells=cells, max_bytes=budget)
    note = idata["posterior"].attrs["thinned"]
    assert note in caplog.text
    assert "20 of 400 draws, evenly spaced" in note
    assert "max_bytes" in note
    predictive = idata["posterior_predictive"]
    assert dict(predictive.sizes)["draw"] == 5
    assert predictive["draw"].values.tolist() == [0, 25, 50, 74, 99]
    assert sum(values.nbytes for values in predictive.data_vars.values()) <= budget
    assert idata["posterior"]["z"].shape == (4, 100, N, 1)  # all of them
    assert not any(name.startswith("signal_") for name in idata["posterior"].data_vars)
    assert idata["prior_predictive"].sizes["draw"] < 20
    roomy = cal.to_arviz(point(), data(), num_draws=400, cells=cells)
    assert "thinned" not in roomy["posterior"].attrs


def test_thinned_predictions_are_of_the_draws_that_they_name() -> None:
    """Under the same seed, z of all draws is the same; each prediction lies about the signal of its own z."""
    lg = point().linear_gaussian()
    quiet = cal.LinearGaussian(lg.loadings, lg.intercepts, {n: torch.tensor(1e-12).double() for n in DIMS})
    idata = cal.to_arviz(quiet, data(), num_draws=40, max_bytes=4 * 3 * N * 9 * 8)
    predictive = idata["posterior_predictive"]
    z = idata["posterior"]["z"].sel(draw=predictive["draw"].values).values
    expected = z @ lg.loadings["text"].numpy().T + lg.intercepts["text"].numpy()
    np.testing.assert_allclose(predictive["text"].values, expected, atol=1e-4)


def written(route: str, kind: str, folder: Path) -> Path:
    idata, path = made(route), folder / f"draws.{kind}"
    if kind == "nc":
        idata.to_netcdf(str(path), engine="h5netcdf")
    else:
        pytest.importorskip("zarr")
        tree = idata if isinstance(idata, xr.DataTree) else idata.to_datatree()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # zarr says that fixed-width text is no part of its third format yet
            tree.to_zarr(path)
    return path


@pytest.mark.parametrize("kind", ["nc", "zarr"])
@pytest.mark.parametrize("route", ["point", "laplace", "nuts"])
def test_round_trips(route: str, kind: str, tmp_path: Path) -> None:
    idata, path = made(route), written(route, kind, tmp_path)
    read = cal.from_arviz(path)
    assert type(read) is type(idata)
    for group in idata.groups() if callable(idata.groups) else idata.children:
        for name in idata[group].data_vars:
            np.testing.assert_array_equal(read[group][name].values, idata[group][name].values)
        assert read[group].attrs["configuration"] == idata[group].attrs["configuration"]
    assert read["constant_data"]["observed_mask"].dtype == bool
    assert list(read["posterior"]["instance"].values) == [f"row {n}" for n in range(N)]


@pytest.mark.parametrize("kind", ["nc", "zarr"])
def test_files_of_a_newer_version_are_refused(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = written("point", kind, tmp_path)
    monkeypatch.setattr(import_module("calmrl_prob.arviz.files"), "SCHEMA_VERSION", 0)
    with pytest.raises(FileFormatError, match=r"in layout 1, but this library reads layouts up to 0; install a newer"):
        cal.from_arviz(path)


def test_other_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="there is no such"):
        cal.from_arviz(tmp_path / "nothing.nc")
    with pytest.raises(ArgumentTypeError, match="path: expected a path"):
        cal.from_arviz(3)
    (tmp_path / "text.nc").write_text("no netCDF at all")
    with pytest.raises(FileFormatError, match="not a netCDF file, or a damaged one"):
        cal.from_arviz(tmp_path / "text.nc")
    xr.DataTree.from_dict({"/posterior": xr.Dataset({"z": ("draw", np.zeros(3))})}).to_netcdf(
        tmp_path / "other.nc", engine="h5netcdf"
    )
    with pytest.raises(FileFormatError, match=r"\['posterior'\], were not written by calmrl_prob.to_arviz"):
        cal.from_arviz(tmp_path / "other.nc")


def test_bad_arguments_are_refused() -> None:
    with pytest.raises(ArgumentError, match="cells: expected 'all' or 'missing', got 'some'"):
        cal.to_arviz(point(), data(), 8, cells="some")
    with pytest.raises(ArgumentError, match="max_bytes"):
        cal.to_arviz(point(), data(), 8, max_bytes=0)
    with pytest.raises(ArgumentTypeError, match="num_prior_draws"):
        cal.to_arviz(point(), data(), 8, num_prior_draws="many")
    with pytest.raises(ArgumentError, match="the 12 instances of the posterior, got 5"):
        cal.to_arviz(cal.posterior(point(), data()), data().subset(slice(0, 5)), 8)
    lg = point().linear_gaussian()
    other = cal.fit(cal.SharedLatentModel(DIMS, 2), random_data(60)).linear_gaussian()
    with pytest.raises(ArgumentError, match=r"draws\[1\]: it is of another model.*arviz.compare"):
        ParameterDraws.about(lg, [lg, other], "mine")


ARVIZ_1_SCRIPT = textwrap.dedent(
    """
    import importlib.util, sys, warnings
    from pathlib import Path
    import arviz as az, numpy as np, xarray as xr

    spec = importlib.util.spec_from_file_location("arviz_adapter", sys.argv[1])
    adapter = importlib.util.module_from_spec(spec)
    sys.modules["arviz_adapter"] = adapter
    spec.loader.exec_module(adapter)
    assert int(az.__version__.split(".")[0]) >= 1 and "torch" not in sys.modules
    folder = Path(sys.argv[2])

    def read(path):
        groups = adapter.read_groups(path)
        return adapter.container(groups, groups["posterior"].attrs)

    one, two = (read(folder / f"{k}.nc") for k in (1, 2))
    assert isinstance(two, xr.DataTree)
    assert two.attrs["schema_version"] == adapter.SCHEMA_VERSION == 1
    assert set(two.children) >= {"posterior", "sample_stats", "log_likelihood", "observed_data", "constant_data"}
    loo = az.loo(two, var_name="log_evidence", pointwise=True)
    assert loo.pareto_k.shape == (150,) and np.isfinite(loo.elpd)
    table = az.compare({"K 1": one, "K 2": two}, var_name="log_evidence")
    assert list(table.index) == ["K 2", "K 1"], table
    assert len(az.summary(two, var_names=["noise_variance_text"])) == 3
    rhat = az.rhat(two, var_names=["log_evidence"])
    tree = rhat["posterior"] if "posterior" in getattr(rhat, "children", {}) else rhat
    assert float(tree["log_evidence"]) < 1.1
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        two.to_zarr(folder / "again.zarr")
    again = read(folder / "again.zarr")
    for group in two.children:
        for name in two[group].data_vars:
            np.testing.assert_array_equal(again[group][name].values, two[group][name].values)
    print("arviz", az.__version__, f"elpd {loo.elpd:.4f}")
    """
)


@pytest.mark.slow
def test_files_serve_arviz_1_without_torch(tmp_path: Path) -> None:
    """Written here, with torch and whatever ArviZ is installed; read, compared and written again by ArviZ 1."""
    python = python_with_arviz_1(tmp_path / "environment")
    idata = of_one_and_two_latents()
    for latent_dim in (1, 2):
        idata[f"K {latent_dim}"].to_netcdf(str(tmp_path / f"{latent_dim}.nc"), engine="h5netcdf")
    command = [python, "-c", ARVIZ_1_SCRIPT, arviz_adapter.__file__, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ours = az.loo(idata["K 2"], var_name="log_evidence")
    assert done.stdout.startswith("arviz 1.")
    assert float(done.stdout.split("elpd")[1]) == pytest.approx(elpd(ours), abs=0.05)


@pytest.mark.slow
def test_a_thousand_draws_of_two_thousand_instances_stay_under_1500_megabytes() -> None:
    from benchmarks.tables import in_own_process

    row = in_own_process("benchmarks.arviz_memory", "point")
    assert row["draws"] == 1_000
    assert float(str(row["peak_mb"])) < 1_500
