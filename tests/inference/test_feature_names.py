"""Names of features decide at every call that brings a model and data together, and are given back by results."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyro
import pyro.distributions as dist
import pytest
import torch

import calmrl_prob as cal
from calmrl_prob.data.features import NamedDims, names_of
from calmrl_prob.errors import ArgumentError, SchemaError
from calmrl_prob.evaluation import score_imputation
from calmrl_prob.guide import ConjugateGuide
from calmrl_prob.inference.feature_names import named_dims
from calmrl_prob.linear_gaussian import SufficientStatistics

#: Names are what is tested here; where a fit ends is not.
pytestmark = pytest.mark.filterwarnings("ignore::calmrl_prob.errors.ConvergenceWarning")

GENERATOR = np.random.default_rng(0)
Z = GENERATOR.normal(size=(60, 2))
COLUMNS = list("abcd")
A = pd.DataFrame(Z @ GENERATOR.normal(size=(2, 4)) + 0.3 * GENERATOR.normal(size=(60, 4)), columns=COLUMNS)
B = pd.DataFrame(Z @ GENERATOR.normal(size=(2, 3)) + 0.3 * GENERATOR.normal(size=(60, 3)), columns=["p", "q", "r"])
DATA = cal.MultimodalData({"A": A, "B": B})
TURNED = cal.MultimodalData({"A": A[["d", "b", "a", "c"]], "B": B[["r", "p", "q"]]})
OTHER = cal.MultimodalData({"A": A.rename(columns={"c": "x"}), "B": B})
#: Of sums in another order: float64 rounding is 1e-16 of values of order 1, over some hundred operations.
CLOSE = 1e-10


def pyro_model(data: cal.MultimodalData) -> None:
    generator = torch.Generator().manual_seed(1)
    parts = {
        name: pyro.param(f"w_{name}", torch.randn(2, width, generator=generator).double())
        for name, width in (("A", 4), ("B", 3))
    }
    with pyro.plate("instances", len(data)):
        z = pyro.sample("z", dist.Normal(torch.zeros(2).double(), 1.0).to_event(1))
        for name, loadings in parts.items():
            site = dist.Normal(z @ loadings, 0.5).to_event(1).mask(data.observed(name))
            pyro.sample(name, site, obs=data.filled(name))


def shared() -> Any:  # noqa: ANN401
    model = cal.SharedLatentModel(dict(DATA.dims), latent_dim=2)
    cal.fit(model, DATA)
    return model


MODELS: dict[str, Callable[[], Any]] = {
    "the model": shared,
    "the result of its fit": lambda: cal.fit(cal.SharedLatentModel(dict(DATA.dims), latent_dim=2), DATA),
    "chosen": lambda: cal.fit(cal.SharedLatentModel(dict(DATA.dims)), DATA, folds=2).model,
    "a mixture": lambda: cal.fit(
        cal.SharedLatentModel(dict(DATA.dims), 2, prior=cal.priors.MixturePrior(2, num_components=2)),
        DATA,
        max_iterations=3,
        tolerance=1e9,
    ),
    "a pyro model": lambda: cal.fit(pyro_model, DATA, max_iterations=20, tolerance=1e-2),
    "draws of parameters": lambda: cal.parameter_draws(shared(), DATA, num_draws=3),
    "its parameters": lambda: shared().linear_gaussian(),
    "their copy in another type": lambda: shared().linear_gaussian().detach().to(torch.float64),
    "their pickle": lambda: pickle.loads(pickle.dumps(shared().linear_gaussian())),
    "the structure of a mixture": lambda: MODELS["a mixture"]().model.structure(),
    "a copy": lambda: copy.deepcopy(shared()),
    "a pickle": lambda: pickle.loads(pickle.dumps(shared())),
}


@pytest.fixture(scope="module", params=list(MODELS))
def fitted(request: pytest.FixtureRequest) -> Any:  # noqa: ANN401
    return MODELS[request.param]()


@pytest.fixture(scope="module")
def model() -> Any:  # noqa: ANN401
    return shared()


class TestAnyModel:
    def test_another_order_is_put_right(self, fitted: Any) -> None:  # noqa: ANN401
        for names in (["A", "B"], ["A"], ["B"]):
            right, turned = DATA.select(names), TURNED.select(names)
            expected = cal.posterior(fitted, right)
            found = cal.posterior(fitted, turned)
            assert torch.allclose(found.mean, expected.mean, atol=CLOSE)
            assert torch.allclose(found.log_marginal, expected.log_marginal, atol=CLOSE)
            means, same = cal.impute(fitted, turned), cal.impute(fitted, right)
            assert torch.allclose(means.mean["B"], same.mean["B"], atol=CLOSE)
            assert torch.allclose(means.completed["A"], same.completed["A"], atol=CLOSE)
            assert torch.allclose(cal.impute(found, turned).completed["B"], same.completed["B"], atol=CLOSE)

    def test_others_are_refused(self, fitted: Any) -> None:  # noqa: ANN401
        for call in (cal.posterior, cal.impute, cal.masked_validation, cal.to_arviz):
            with pytest.raises(SchemaError, match=r"modality 'A'.*'c'.*'x'"):
                call(fitted, OTHER)

    def test_arrays_go_by_position(self, fitted: Any) -> None:  # noqa: ANN401
        plain = cal.MultimodalData({"A": A.to_numpy()})
        imputed = cal.impute(fitted, plain)
        assert torch.equal(imputed.mean["B"], cal.impute(fitted, DATA.select(["A"])).mean["B"])
        assert imputed.frame("B").columns.tolist() == ["p", "q", "r"]


@pytest.mark.filterwarnings("ignore:.*among those that the model was fitted to")  # columns matter here, not which rows
class TestCalls:
    def test_fit(self, model: Any) -> None:  # noqa: ANN401
        again = copy.deepcopy(model)
        cal.fit(again, TURNED)
        loadings = model.linear_gaussian().loadings["A"]
        # two fits of the same data by EM, columns in another order: both are within the tolerance of the optimum
        assert torch.allclose(again.linear_gaussian().loadings["A"].abs(), loadings.abs(), atol=1e-3)
        assert names_of(again.dims)["A"] == tuple(COLUMNS)
        with pytest.raises(SchemaError, match="modality 'A'"):
            cal.fit(again, OTHER)

    def test_a_model_of_named_widths_knows_them_before_a_fit(self) -> None:
        with pytest.raises(SchemaError, match="modality 'A'"):
            cal.fit(cal.SharedLatentModel(DATA.dims), OTHER)

    def test_masked_validation_and_scores(self, model: Any) -> None:  # noqa: ANN401
        right, found = (cal.masked_validation(model, data, num_draws=0).summary() for data in (DATA, TURNED))
        pd.testing.assert_frame_equal(right, found, rtol=1e-8)
        hidden = np.array([[False, True]] * 60)
        tables = [
            score_imputation(imputed.mean, imputed.variance, data, hidden)
            for data in (DATA, TURNED)
            for imputed in [cal.impute(model, data.select(["A"]))]
        ]
        pd.testing.assert_frame_equal(*tables, rtol=1e-8)
        densities = cal.impute(model, TURNED.select(["A"])).log_density(TURNED)["B"]
        assert torch.allclose(densities, cal.impute(model, DATA.select(["A"])).log_density(DATA)["B"], atol=CLOSE)

    @pytest.mark.parametrize("method", ["scale", "cv+"])
    def test_recalibration(self, model: Any, method: str) -> None:  # noqa: ANN401
        by = [cal.recalibrate(model, data, method) for data in (DATA, TURNED)]
        ends = [cal.impute(model, DATA.select(["A"]), recalibrated=found).interval()["B"][0] for found in by]
        # "cv+" fits anew by EM, each within its tolerance of the optimum
        assert torch.allclose(*ends, atol=1e-8 if method == "scale" else 1e-2)

    def test_retrieval(self, model: Any) -> None:  # noqa: ANN401
        a, b, turned = DATA.select(["A"]), DATA.select(["B"]), TURNED.select(["B"])
        for who in (model, model.linear_gaussian()):  # the latter knows no names: candidates go by those of the queries
            ranks = [cal.retrieve(who, a, other.select(["A"])).ranks for other in (DATA, TURNED)]
            assert np.array_equal(*ranks)
        assert np.array_equal(cal.retrieve(model, a, b).ranks, cal.retrieve(model, a, turned).ranks)
        with pytest.raises(SchemaError, match="modality 'A'"):
            cal.retrieve(model, OTHER.select(["A"]), b)

    def test_value_of_information(self, model: Any) -> None:  # noqa: ANN401
        right, found = (cal.value_of_information(model, data.select(["A"])).gain for data in (DATA, TURNED))
        assert np.allclose(right, found, atol=CLOSE, equal_nan=True)

    def test_elbo_of_the_generative_model(self, model: Any) -> None:  # noqa: ANN401
        guide = ConjugateGuide(model)
        losses = []
        for data in (DATA, TURNED):
            pyro.set_rng_seed(0)
            losses.append(pyro.infer.Trace_ELBO().loss(model, guide, data))
        assert losses[0] == pytest.approx(losses[1], rel=1e-10)


class TestStatistics:
    def test_of_the_same_columns_are_added_and_remembered(self) -> None:
        parts = [DATA.subset(slice(0, 30)), DATA.subset(slice(30, 60))]
        statistics = SufficientStatistics(DATA.dims)
        for part in parts:
            statistics.update(part.blocks)
        merged = SufficientStatistics(dict(DATA.dims)).update(parts[0].blocks)
        merged = merged + SufficientStatistics(dict(DATA.dims)).update(parts[1].blocks)
        assert statistics.feature_names == merged.feature_names == DATA.feature_names
        model = cal.fit(cal.SharedLatentModel(dict(DATA.dims), latent_dim=2), merged).model
        assert names_of(model.dims) == DATA.feature_names

    @pytest.mark.parametrize("other", [TURNED, OTHER])
    def test_of_others_are_refused(self, other: cal.MultimodalData, model: Any) -> None:  # noqa: ANN401
        statistics = SufficientStatistics(dict(DATA.dims)).update(DATA.blocks)
        apart = SufficientStatistics(dict(other.dims)).update(other.blocks)
        with pytest.raises(SchemaError, match=r"blocks: modality 'A'.*in_order_of"):
            statistics.update(other.blocks)
        with pytest.raises(SchemaError, match="other: modality 'A'"):
            statistics + apart
        with pytest.raises(SchemaError, match="data: modality 'A'"):
            cal.fit(copy.deepcopy(model), apart)


class TestFiles:
    def test_names_are_saved_and_loaded(self, model: Any, tmp_path: Path) -> None:  # noqa: ANN401
        cal.save(model, tmp_path / "model.safetensors")
        loaded = cal.load(tmp_path / "model.safetensors")
        assert names_of(loaded.dims) == names_of(model.dims)
        found = cal.impute(loaded, TURNED.select(["A"])).mean["B"]
        assert torch.allclose(found, cal.impute(model, DATA.select(["A"])).mean["B"], atol=CLOSE)
        with pytest.raises(SchemaError, match="modality 'A'"):
            cal.posterior(loaded, OTHER)

    def test_parameters_keep_them_too(self, model: Any, tmp_path: Path) -> None:  # noqa: ANN401
        cal.save(model.linear_gaussian(), tmp_path / "parameters.safetensors")
        loaded = cal.load(tmp_path / "parameters.safetensors")
        assert named_dims(loaded).feature_names == model.dims.feature_names
        found = cal.impute(loaded.select(["B", "A"]), TURNED.select(["A"])).mean["B"]
        assert torch.allclose(found, cal.impute(model, DATA.select(["A"])).mean["B"], atol=CLOSE)

    @pytest.mark.parametrize("columns", [[("u", 1), ("u", 2)], [3, 1], pd.date_range("2020", periods=2), ["u", None]])
    def test_names_of_any_kind(self, columns: Any, tmp_path: Path) -> None:  # noqa: ANN401
        data = cal.MultimodalData({"x": pd.DataFrame(A.to_numpy()[:, :2], columns=columns), "y": B.to_numpy()})
        model = cal.fit(cal.SharedLatentModel(data.dims, latent_dim=1), data).model
        cal.save(model, tmp_path / "model.safetensors")
        assert names_of(cal.load(tmp_path / "model.safetensors").dims) == data.feature_names

    def test_models_of_arrays_are_saved_as_ever(self, tmp_path: Path) -> None:
        model = cal.SharedLatentModel({"x": 2}, latent_dim=1)
        cal.save(model, tmp_path / "model.safetensors")
        assert type(cal.load(tmp_path / "model.safetensors").dims) is dict


class TestGivenBack:
    def test_arviz_has_them_as_coordinates(self, model: Any) -> None:  # noqa: ANN401
        data = TURNED.subset(slice(0, 5)).select(["A"])
        idata = cal.to_arviz(model, data, num_draws=8)
        for group in ("posterior_predictive", "observed_data", "prior_predictive"):
            assert idata[group]["A"].coords["feature_A"].values.tolist() == COLUMNS
            assert idata[group]["B"].coords["feature_B"].values.tolist() == ["p", "q", "r"]
        observed = idata["observed_data"]["A"].sel(feature_A="d").values
        assert np.allclose(observed, A["d"][:5])
        missing = cal.to_arviz(model, data, num_draws=8, cells="missing")["posterior_predictive"]["imputed"]
        assert missing.coords["feature"].values.tolist() == ["p", "q", "r"] * 5

    def test_arviz_takes_rows_of_any_kind(self, model: Any, tmp_path: Path) -> None:  # noqa: ANN401
        for index in (
            pd.MultiIndex.from_product([["u", "v"], range(2)]),
            ["a", 1, 2.5, ("b", 1)],
            pd.period_range("2020", periods=4, freq="M"),
        ):
            data = cal.MultimodalData({"A": A[:4].set_axis(index)}, labels=["x", None, 1, "x"])
            idata = cal.to_arviz(model, data, num_draws=4)
            assert idata["constant_data"]["labels"].values.tolist() == ["x", "", "1", "x"]
            idata.to_netcdf(str(tmp_path / "draws.nc"), engine="h5netcdf")
            names = cal.from_arviz(tmp_path / "draws.nc")["posterior"].coords["instance"].values
            assert len(set(names.tolist())) == 4

    def test_a_table_of_a_modality(self, model: Any) -> None:  # noqa: ANN401
        index = pd.Index([f"s{i}" for i in range(60)])
        imputed = cal.impute(model, cal.MultimodalData({"A": A.set_axis(index)[COLUMNS[::-1]]}))
        table = imputed.frame("B")
        assert table.index.equals(index)
        assert table.columns.tolist() == ["p", "q", "r"]
        assert np.array_equal(table.to_numpy(), imputed.mean["B"].numpy())
        assert np.allclose(imputed.frame("A", "completed")[COLUMNS], A.to_numpy())
        ends = imputed.frame("B", level=0.5)
        assert np.array_equal(ends["q", "lower"], imputed.interval(0.5)["B"][0][:, 1].numpy())
        with pytest.raises(ArgumentError, match="of: expected"):
            imputed.frame("B", "median")  # type: ignore[arg-type]
        with pytest.raises(SchemaError, match="modality 'C'"):
            imputed.frame("C")
        levels = pd.MultiIndex.from_product([["u", "v"], range(2)])
        turned = cal.impute(model, cal.MultimodalData({"A": A[:4].set_axis(levels)})).frame("B").index
        assert turned.equals(levels)

    def test_without_names_a_table_is_numbered(self) -> None:
        lg = cal.LinearGaussian({"x": torch.ones(2, 1)}, {"x": torch.zeros(2)}, {"x": torch.tensor(1.0)})
        lg = lg.to(dtype=torch.float64)
        table = cal.impute(lg, cal.MultimodalData({"x": np.ones((3, 2))})).frame("x")
        assert table.index.tolist() == [0, 1, 2]
        assert table.columns.tolist() == [0, 1]


class TestMemory:
    def test_what_is_in_order_is_not_copied(self) -> None:
        named = NamedDims(DATA.dims, names_of(DATA.dims))
        assert DATA.in_order_of(named) is DATA
        plain = cal.MultimodalData({"A": A.to_numpy(), "B": B.to_numpy()})
        blocks = plain.blocks
        adopted = plain.in_order_of(named)
        assert adopted.blocks is blocks
        assert adopted["A"].data_ptr() == plain["A"].data_ptr()

    def test_models_of_arrays_remember_nothing(self) -> None:
        plain = cal.MultimodalData({"A": A.to_numpy(), "B": B.to_numpy()})
        result = cal.fit(cal.SharedLatentModel(plain.dims, latent_dim=1), plain)
        assert named_dims(result) is None
        assert type(result.model.dims) is dict
