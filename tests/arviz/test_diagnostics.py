"""What goes to ArviZ, with the release installed here and, in a slow test, with ArviZ 1."""

from __future__ import annotations

import json
import subprocess
import textwrap
from pathlib import Path
from typing import Any

import arviz
import numpy as np
import pytest
import torch
import xarray as xr

from calmrl_prob.arviz import adapter as arviz_adapter
from calmrl_prob.arviz.adapter import Group, to_container
from calmrl_prob.arviz.export import to_arviz
from calmrl_prob.arviz.files import from_arviz
from calmrl_prob.data import MultimodalData
from calmrl_prob.errors import ArgumentError, ArgumentTypeError
from calmrl_prob.imputation import impute
from calmrl_prob.inference import posterior
from calmrl_prob.linear_gaussian import LinearGaussian
from tests.cases.arviz_cases import python_with_arviz_1
from tests.cases.model_cases import DIMS, data_with_single_features_missing, random_data, random_model, random_prior

NUM_INSTANCES, NUM_DRAWS = 6, 2_000


@pytest.fixture(scope="module")
def lg() -> LinearGaussian:
    return random_model("diagonal", random_prior(2)).linear_gaussian().detach()


@pytest.fixture(scope="module")
def data() -> MultimodalData:
    made = random_data(NUM_INSTANCES)
    ids, labels = [f"row {n}" for n in range(NUM_INSTANCES)], ["cat", "dog"] * (NUM_INSTANCES // 2)
    return MultimodalData({n: made[n] for n in DIMS}, ids=ids, labels=labels)


@pytest.fixture(scope="module")
def idata(lg: LinearGaussian, data: MultimodalData) -> Any:  # noqa: ANN401 - the type depends on the ArviZ installed
    return to_arviz(lg, data, num_draws=NUM_DRAWS, seed=3)


def test_groups_variables_and_dimensions(idata: Any) -> None:  # noqa: ANN401
    draws = {"chain": 4, "draw": NUM_DRAWS // 4, "instance": NUM_INSTANCES}
    assert dict(idata["posterior"]["z"].sizes) == {**draws, "latent": 2}
    assert dict(idata["posterior"]["z_distance"].sizes) == draws
    for name, width in DIMS.items():
        feature = {f"feature_{name}": width}
        assert dict(idata["posterior"][f"signal_{name}"].sizes) == {**draws, **feature}
        assert dict(idata["posterior_predictive"][name].sizes) == {**draws, **feature}
        assert dict(idata["log_likelihood"][name].sizes) == draws
        assert dict(idata["observed_data"][name].sizes) == {"instance": NUM_INSTANCES, **feature}
        assert dict(idata["constant_data"][f"communality_{name}"].sizes) == feature
    assert list(idata["posterior"]["instance"].values) == [f"row {n}" for n in range(NUM_INSTANCES)]
    assert list(idata["constant_data"]["modality"].values) == list(DIMS)


def test_data_and_mask_are_those_given(idata: Any, data: MultimodalData, lg: LinearGaussian) -> None:  # noqa: ANN401
    np.testing.assert_array_equal(idata["constant_data"]["observed_mask"].values, data.observed_mask.numpy())
    assert list(idata["constant_data"]["labels"].values) == list(data.labels)
    for name in DIMS:
        np.testing.assert_array_equal(idata["observed_data"][name].values, data[name].numpy())
    exact = posterior(lg, data).log_marginal.numpy()
    np.testing.assert_allclose(idata["constant_data"]["log_marginal"].values, exact, rtol=1e-12)


def test_posterior_draws_have_the_exact_moments(idata: Any, lg: LinearGaussian, data: MultimodalData) -> None:  # noqa: ANN401
    exact = posterior(lg, data)
    z = idata["posterior"]["z"].values.reshape(NUM_DRAWS, NUM_INSTANCES, 2)
    variance = exact.covariance.diagonal(dim1=1, dim2=2).numpy()
    assert (np.abs(z.mean(0) - exact.mean.numpy()) < 6 * np.sqrt(variance / NUM_DRAWS)).all()
    assert (np.abs(z.var(0) - variance) < 6 * variance * np.sqrt(2 / NUM_DRAWS)).all()


def test_predictive_draws_have_the_exact_moments(idata: Any, lg: LinearGaussian, data: MultimodalData) -> None:  # noqa: ANN401
    exact = impute(lg, data)
    for name in DIMS:
        draws = idata["posterior_predictive"][name].values.reshape(NUM_DRAWS, NUM_INSTANCES, -1)
        mean, variance = exact.mean[name].numpy(), exact.variance[name].numpy()
        assert (np.abs(draws.mean(0) - mean) < 6 * np.sqrt(variance / NUM_DRAWS)).all()
        assert (np.abs(draws.var(0) - variance) < 6 * variance * np.sqrt(2 / NUM_DRAWS)).all()


def test_derived_quantities_follow_from_the_draws(idata: Any, lg: LinearGaussian, data: MultimodalData) -> None:  # noqa: ANN401
    z = torch.from_numpy(idata["posterior"]["z"].values)
    centred = z - lg.prior_mean
    distance = (centred @ torch.linalg.inv(lg.prior_covariance) * centred).sum(-1)
    np.testing.assert_allclose(idata["posterior"]["z_distance"].values, distance.numpy(), rtol=1e-9)
    for name in DIMS:
        signal = z @ lg.loadings[name].mT + lg.intercepts[name]
        np.testing.assert_allclose(idata["posterior"][f"signal_{name}"].values, signal.numpy(), rtol=1e-9, atol=1e-12)
        normal = torch.distributions.Normal(signal, lg.noise_variance[name].sqrt())
        expected = normal.log_prob(data[name].nan_to_num()).sum(-1)
        expected[..., ~data.observed(name)] = torch.nan
        np.testing.assert_allclose(idata["log_likelihood"][name].values, expected.numpy(), rtol=1e-9)
        _, covariance = lg.joint([name])
        share = 1 - lg.noise_variance[name] / covariance.diagonal()
        np.testing.assert_allclose(idata["constant_data"][f"communality_{name}"].values, share.numpy(), rtol=1e-9)


def test_log_likelihood_averages_to_the_exact_marginal(lg: LinearGaussian) -> None:
    """Over draws from the prior, the mean of p(x | z) is p(x): here from an instance that says little about z."""
    weak = LinearGaussian(
        {"a": 0.1 * lg.loadings["image"], "b": 0.1 * lg.loadings["text"]},
        {"a": lg.intercepts["image"], "b": lg.intercepts["text"]},
        {"a": torch.tensor(1.0).double(), "b": torch.tensor(1.0).double()},
    )
    x = {"a": torch.ones(1, 4).double(), "b": torch.ones(1, 3).double()}
    draws = to_arviz(weak, MultimodalData(x), num_draws=8_000, names=())["log_likelihood"]["a"].values.ravel()
    # p(x_a | x_b) is the harmonic mean of p(x_a | z) over draws from p(z | x_a, x_b)
    weights = np.exp(-draws)
    without = MultimodalData({"b": x["b"]})
    exact = posterior(weak, MultimodalData(x)).log_marginal - posterior(weak, without).log_marginal
    error = weights.std() / weights.mean() / np.sqrt(len(draws))
    assert abs(-np.log(weights.mean()) - float(exact)) < 6 * error


def test_log_likelihood_counts_only_the_features_that_are_there(lg: LinearGaussian) -> None:
    data = data_with_single_features_missing()
    draws = to_arviz(lg, data, 8, num_chains=1, names=())
    row = int((data.feature_mask("image").sum(dim=1) == 3).nonzero()[0])
    z = torch.from_numpy(draws["posterior"]["z"].values[0, :, row])
    location = z @ lg.loadings["image"].mT + lg.intercepts["image"]
    terms = torch.distributions.Normal(location, lg.noise_variance["image"].sqrt()).log_prob(data.filled("image")[row])
    expected = terms[:, data.feature_mask("image")[row]].sum(dim=1)
    np.testing.assert_allclose(draws["log_likelihood"]["image"].values[0, :, row], expected.numpy(), rtol=1e-9)


def test_attributes_tell_where_it_comes_from(idata: Any) -> None:  # noqa: ANN401
    for group in ("posterior", "observed_data"):
        attributes = idata[group].attrs
        assert attributes["seed"] == 3
        # Without the build label: a CUDA build has it in torch.__version__, and not always in its metadata.
        assert attributes["version_torch"].partition("+")[0] == torch.__version__.partition("+")[0]
        assert attributes["inference_library"] == "calmrl-prob"
        assert json.loads(attributes["configuration"])["dims"] == DIMS


def test_netcdf_round_trip(idata: Any, tmp_path: Path) -> None:  # noqa: ANN401
    idata.to_netcdf(str(tmp_path / "draws.nc"), engine="h5netcdf")
    read = arviz.from_netcdf(str(tmp_path / "draws.nc"))
    for group in ("posterior", "posterior_predictive", "log_likelihood", "observed_data", "constant_data"):
        for name in idata[group].data_vars:
            np.testing.assert_array_equal(read[group][name].values, idata[group][name].values)
    assert read["constant_data"]["observed_mask"].dtype == bool
    assert read["posterior"].attrs["configuration"] == idata["posterior"].attrs["configuration"]


def test_arviz_finds_nothing_wrong_with_independent_draws(idata: Any) -> None:  # noqa: ANN401
    rhat = arviz.rhat(idata["posterior"]["z"].to_dataset(name="z"))["z"]
    assert float(rhat.max()) < 1.02


def test_same_seed_same_draws_and_float32_stays(lg: LinearGaussian, data: MultimodalData) -> None:
    single = data.to(torch.float32)
    first, again, other = (to_arviz(lg, single, 8, seed=seed, num_chains=2) for seed in (0, 0, 1))
    for group, name in (("posterior", "z"), ("posterior_predictive", "text")):
        np.testing.assert_array_equal(first[group][name].values, again[group][name].values)
        assert not np.array_equal(first[group][name].values, other[group][name].values)
    assert first["posterior_predictive"]["text"].dtype == np.float32


def test_names_limit_what_is_drawn(lg: LinearGaussian, data: MultimodalData) -> None:
    one = to_arviz(lg, data, 8, names=["text"])
    assert list(one["posterior_predictive"].data_vars) == ["text"]
    assert set(one["posterior"].data_vars) == {"z", "z_distance", "signal_text"}
    assert set(one["log_likelihood"].data_vars) == set(DIMS)
    assert "posterior_predictive" not in to_arviz(lg, data, 8, names=())


def test_bad_arguments_are_refused(lg: LinearGaussian, data: MultimodalData) -> None:
    with pytest.raises(ArgumentError, match=r"multiple of num_chains, 4.*got 10"):
        to_arviz(lg, data, num_draws=10)
    with pytest.raises(ArgumentError, match=r"num_draws: .*got 0"):
        to_arviz(lg, data, num_draws=0)
    with pytest.raises(ArgumentError, match=r"num_chains: .*got 0"):
        to_arviz(lg, data, num_chains=0)
    with pytest.raises(ArgumentTypeError, match=r"seed: .*got 'x'"):
        to_arviz(lg, data, seed="x")
    with pytest.raises(ArgumentTypeError, match="names"):
        to_arviz(lg, data, 8, names="text")
    with pytest.raises(ArgumentError, match="'text' stands twice"):
        to_arviz(lg, data, 8, names=["text", "text"])


def test_no_dimension_is_called_sample() -> None:
    with pytest.raises(ValueError, match="'sample'"):
        to_container({"posterior": Group({"z": (("chain", "sample"), np.zeros((1, 2)))})})


def test_custom_groups_and_text_objects_are_kept(tmp_path: Path) -> None:
    group = Group({"label": (("instance",), np.array(["a", "bc"], dtype=object))}, attributes={"note": "mine"})
    container = to_container({"extra": group})
    container.to_netcdf(str(tmp_path / "extra.nc"), engine="h5netcdf")
    with xr.open_dataset(tmp_path / "extra.nc", group="extra", engine="h5netcdf") as read:
        assert list(read["label"].values) == ["a", "bc"]
        assert read.attrs["note"] == "mine"


ARVIZ_1_SCRIPT = textwrap.dedent(
    """
    import importlib.util, sys
    import arviz as az, numpy as np, xarray as xr

    spec = importlib.util.spec_from_file_location("arviz_adapter", sys.argv[1])
    adapter = importlib.util.module_from_spec(spec)
    sys.modules["arviz_adapter"] = adapter
    spec.loader.exec_module(adapter)
    assert int(az.__version__.split(".")[0]) >= 1, az.__version__
    assert "torch" not in sys.modules

    rng = np.random.default_rng(0)
    draws = ("chain", "draw", "instance")
    z, density = rng.normal(size=(4, 100, 5, 2)), rng.normal(size=(4, 100, 5))
    observed_mask = np.array([[True, False]] * 5)
    coords = {"instance": np.array(list("abcde"), dtype=object), "modality": np.array(["image", "text"])}
    tree = adapter.to_container(
        {
            "posterior": adapter.Group({"z": ((*draws, "latent"), z)}, coords),
            "log_likelihood": adapter.Group({"image": (draws, density)}, coords),
            "constant_data": adapter.Group({"observed_mask": (("instance", "modality"), observed_mask)}, coords),
        },
        {"seed": 7},
    )
    assert isinstance(tree, xr.DataTree)
    summary = az.summary(tree, var_names=["z"])
    assert len(summary) == 10
    assert np.isfinite(az.loo(tree, var_name="image").elpd)
    tree.to_netcdf(sys.argv[2], engine="h5netcdf")
    read = az.from_netcdf(sys.argv[2], engine="h5netcdf")
    np.testing.assert_array_equal(read["posterior"]["z"].values, z)
    np.testing.assert_array_equal(read["constant_data"]["observed_mask"].values, observed_mask)
    assert read["constant_data"]["observed_mask"].dtype == bool
    assert list(read["posterior"]["instance"].values) == list("abcde")
    assert read["posterior"].attrs["seed"] == 7 and read.attrs["seed"] == 7
    print("arviz", az.__version__)
    """
)


@pytest.mark.slow
def test_adapter_under_arviz_1(tmp_path: Path) -> None:
    python = python_with_arviz_1(tmp_path / "environment")
    command = [python, "-c", ARVIZ_1_SCRIPT, arviz_adapter.__file__, str(tmp_path / "draws.nc")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("arviz 1.")


def test_slashes_in_names_become_what_files_can_hold(tmp_path: Path) -> None:
    data = MultimodalData({"rna/seq": torch.ones(3, 2).double(), "text": torch.ones(3, 1).double()})
    lg = LinearGaussian(
        {"rna/seq": torch.ones(2, 1).double(), "text": torch.ones(1, 1).double()},
        {"rna/seq": torch.zeros(2).double(), "text": torch.zeros(1).double()},
        {"rna/seq": torch.tensor(1.0).double(), "text": torch.tensor(1.0).double()},
    )
    idata = to_arviz(lg, data, num_draws=4)
    idata.to_netcdf(str(tmp_path / "draws.nc"))
    back = from_arviz(tmp_path / "draws.nc")
    assert back["posterior_predictive"]["rna_seq"].dims == ("chain", "draw", "instance", "feature_rna_seq")
    twice = lg.select(["rna/seq"])
    both = LinearGaussian(*({"a/b": part["rna/seq"], "a_b": part["rna/seq"]} for part in parameters(twice)))
    pair = MultimodalData({"a/b": data["rna/seq"], "a_b": data["rna/seq"]})
    with pytest.raises(ArgumentError, match=r"'a/b', 'a_b'.* would both be called 'a_b'.*rename one"):
        to_arviz(both, pair, num_draws=4)


@pytest.mark.parametrize("name", ["instance", "chain"])
def test_modalities_that_are_called_as_coordinates_are_refused(name: str) -> None:
    one, zero = torch.ones(1, 1), torch.zeros(1)
    lg = LinearGaussian({name: one}, {name: zero}, {name: zero + 1})
    with pytest.raises(ArgumentError, match=f"the name '{name}' is that of a coordinate.*rename"):
        to_arviz(lg, MultimodalData({name: torch.ones(3, 1)}), num_draws=4)


def parameters(lg: LinearGaussian) -> tuple[Any, Any, Any]:
    return lg.loadings, lg.intercepts, lg.noise_variance


def test_log_likelihoods_tell_of_instances_that_lack_a_modality() -> None:
    lg = LinearGaussian(
        {name: torch.ones(1, 1).double() for name in "ab"},
        {name: torch.zeros(1).double() for name in "ab"},
        {name: torch.tensor(1.0).double() for name in "ab"},
    )
    once = torch.tensor([[1.0], [torch.nan], [torch.nan]]).double()
    data = MultimodalData({"a": torch.ones(3, 1).double(), "b": once})
    note = to_arviz(lg, data, num_draws=4)["log_likelihood"].attrs["note"]
    assert "b: 1 of 3" in note
    assert "drop these before arviz.loo" in note
    assert "note" not in to_arviz(lg, data.subset([0]), num_draws=4)["log_likelihood"].attrs
