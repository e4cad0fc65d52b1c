"""Writing: what is in the files is what the imputation says, in chunks as at once, and no file is left half-written."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path

import mudata
import numpy as np
import pytest
import torch
import xarray as xr

import calmrl_prob as cal
from calmrl_prob.errors import ArgumentError, ArgumentTypeError, DataError, MissingDependencyError
from calmrl_prob.linear_gaussian import LinearGaussian
from calmrl_prob.writing import contents
from tests.cases.files_cases import BATCH, IDS, LABELS, PROTEIN, PROTEINS, RNA, protein_frame, rna_frame

ENDINGS = ["parquet", "npz", "zarr", "h5mu"]
every_format = pytest.mark.parametrize("ending", ENDINGS)


def data() -> cal.MultimodalData:
    labels = np.array([None if n == 3 else f"kind {label}" for n, label in enumerate(LABELS)], dtype=object)
    return cal.MultimodalData(
        {"rna": rna_frame(), "protein": protein_frame()},
        labels=labels,
        covariates={"batch": BATCH, "age": np.arange(7.0)},
        missing="features",
    )


@pytest.fixture(scope="module")
def imputed() -> cal.Imputation:
    generator = torch.Generator().manual_seed(0)
    loadings = {name: torch.randn(width, 2, generator=generator) for name, width in {"rna": 3, "protein": 2}.items()}
    model = LinearGaussian(
        loadings,
        {"rna": torch.zeros(3), "protein": torch.ones(2)},
        {"rna": torch.tensor(0.5), "protein": torch.tensor(0.2)},
    )
    return cal.impute(model, data())


def quantities(path: Path, name: str) -> dict[str, np.ndarray]:
    """What a file holds of one modality, read by other packages where there are some."""
    if path.suffix == ".npz":
        with np.load(path) as file:
            return {q: file[f"{'x' if q == 'completed' else q}_{name}"] for q in contents.QUANTITIES}
    if path.suffix == ".zarr":
        node = xr.open_datatree(path, engine="zarr", consolidated=False)[name]
        return {q: node[q].to_numpy() for q in contents.QUANTITIES}
    if path.suffix == ".h5mu":
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # mudata warns of what it will do in its next version
            assay = mudata.read_h5mu(path)[name]
        return {"completed": np.asarray(assay.X), **{q: np.asarray(assay.layers[q]) for q in contents.QUANTITIES[1:]}}
    import pyarrow.parquet as pq

    table = pq.read_table(path)
    return {
        q: np.array(table.column(name if q == "completed" else f"{name}.{q}").to_pylist()) for q in contents.QUANTITIES
    }


@every_format
@pytest.mark.parametrize("numbers", [2**22, 10])  # all rows at once, and two at a time
def test_files_hold_what_the_imputation_says(
    ending: str, numbers: int, imputed: cal.Imputation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(contents, "_NUMBERS", numbers)
    path = cal.write(imputed, tmp_path / f"out.{ending}", level=0.8)
    assert path == tmp_path / f"out.{ending}"
    for name in ("rna", "protein"):
        found, (lower, upper) = quantities(path, name), imputed.interval(0.8)[name]
        wanted = {
            "completed": imputed.completed[name],
            "mean": imputed.mean[name],
            "sd": imputed.variance[name].sqrt(),
            "lower": lower,
            "upper": upper,
        }
        for key, value in wanted.items():  # single precision, summed in another order
            np.testing.assert_allclose(found[key], value.numpy(), rtol=1e-5, atol=1e-5, err_msg=key)
        assert np.array_equal(found["imputed"], np.isnan({"rna": RNA, "protein": PROTEIN}[name]))
    assert sorted(entry.name for entry in tmp_path.iterdir()) == [path.name]


@every_format
def test_data_come_back(ending: str, tmp_path: Path) -> None:
    before = data()
    after = cal.read(cal.write(before, tmp_path / f"data.{ending}"))
    assert after.names == before.names or ending == "zarr"
    for name in before.names:
        np.testing.assert_array_equal(after[name].numpy(), before[name].numpy())
    assert after.feature_names == before.feature_names
    assert after.dtype == torch.float32
    assert after.ids.tolist() == IDS
    assert after.covariates["batch"].tolist() == BATCH.tolist()
    assert after.covariates["age"].tolist() == before.covariates["age"].tolist()
    missing = "" if ending == "zarr" else None  # zarr's second format has no missing texts
    assert after.labels.tolist() == [missing if label is None else label for label in before.labels]
    assert after.missing == "features"


@every_format
@pytest.mark.parametrize("stream", [False, True])
def test_an_imputation_is_read_alike_whatever_the_format(
    ending: str, stream: bool, imputed: cal.Imputation, tmp_path: Path
) -> None:
    path = cal.write(imputed, tmp_path / f"out.{ending}")

    def read(**settings: object) -> cal.MultimodalData:
        found = cal.read(path, stream=stream, **settings)  # type: ignore[call-overload]
        return next(iter(found)) if stream else found

    whole = read()
    assert sorted(whole.dims.items()) == [("protein", 2), ("rna", 3)]
    assert sorted(whole.covariates) == ["age", "batch"]
    torch.testing.assert_close(whole["protein"], imputed.completed["protein"])
    names = ["rna", *(f"protein.{q}" for q in ("mean", "sd", "lower", "upper", "imputed")), "latent", "latent_sd"]
    asked = read(modalities=names)
    assert asked.names == tuple(names)
    assert asked.feature_names["protein.sd"] == tuple(PROTEINS)
    lower, upper = imputed.interval(0.9)["protein"]
    wanted = {
        "protein.mean": imputed.mean["protein"],
        "protein.sd": imputed.variance["protein"].sqrt(),
        "protein.lower": lower,
        "protein.upper": upper,
        "protein.imputed": torch.from_numpy(np.isnan(PROTEIN)),
        "latent": imputed.posterior.mean,
    }
    for name, value in wanted.items():
        torch.testing.assert_close(asked[name].float(), value.float(), msg=name)
    assert read(modalities={"low": "protein.lower"}).dims == {"low": 2}


def test_npz_keeps_parts_and_kinds_of_entries(tmp_path: Path) -> None:
    before = cal.MultimodalData(
        {"x": torch.eye(3)},
        ids=[("a", 1), ("a", 2), ("b", 1)],
        partition=["train", "", "test"],
        labels=[1.5, None, "x"],
    )
    after = cal.load_npz(cal.save_npz(before, tmp_path / "data.npz"))
    assert after.ids.tolist() == before.ids.tolist()
    assert after.labels.tolist() == before.labels.tolist()
    assert after.partition.tolist() == before.partition.tolist()
    assert after.missing == "modalities"
    named = cal.MultimodalData({"x": torch.eye(2)}, covariates={"x_raw": [1, 2]})
    with pytest.raises(DataError, match=r"covariates\['x_raw'\]: a file has something else"):
        cal.save_npz(named, tmp_path / "data.npz")
    with pytest.raises(ArgumentTypeError, match="data: expected MultimodalData"):
        cal.save_npz({"x": torch.eye(2)}, tmp_path / "data.npz")  # type: ignore[arg-type]


@every_format
def test_a_stream_is_written_as_it_comes(ending: str, tmp_path: Path) -> None:
    cal.write(data(), tmp_path / "data.parquet")
    stream = cal.read(tmp_path / "data.parquet", stream=True)
    after = cal.read(cal.write(stream, tmp_path / f"again.{ending}"))
    np.testing.assert_array_equal(after["protein"].numpy(), PROTEIN)
    unknown = cal.MultimodalStream.from_chunks(lambda: [data(), data().subset([0])])
    if ending != "parquet":
        with pytest.raises(ArgumentError, match="how many rows the stream has is not known"):
            cal.write(unknown, tmp_path / f"again.{ending}")


@every_format
def test_what_fails_leaves_what_was_there(ending: str, tmp_path: Path) -> None:
    path = cal.write(data(), tmp_path / f"data.{ending}")
    calls = 0

    def breaking() -> list[cal.MultimodalData]:
        nonlocal calls
        calls += 1
        if calls > 1:
            raise OSError("no space left on device")
        return [data()]

    stream = cal.MultimodalStream.from_chunks(breaking)
    stream.num_rows = 7
    with pytest.raises(OSError, match="no space left"):
        cal.write(stream, path)
    np.testing.assert_array_equal(cal.read(path)["protein"].numpy(), PROTEIN)
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]
    assert cal.write(data().subset([0, 1]), path) == path
    assert len(cal.read(path)) == 2


def test_parts_of_an_imputation_are_those_of_the_whole(imputed: cal.Imputation) -> None:
    parts = list(imputed.parts(3))
    assert [rows for rows, _ in parts] == [slice(0, 3), slice(3, 6), slice(6, 7)]
    for name in imputed.names:
        whole = imputed.interval(0.9)[name]
        for end in (0, 1):
            joined = torch.cat([part.interval(0.9)[name][end] for _, part in parts])
            torch.testing.assert_close(joined, whole[end])
    latents = torch.cat([part.posterior.covariance for _, part in parts])
    torch.testing.assert_close(latents, imputed.posterior.covariance)


def test_what_cannot_be_written_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(
        ArgumentError, match=r"ends with one of \['\.parquet', '\.npz', '\.zarr', '\.h5mu'\], got 'a\.xlsx'"
    ):
        cal.write(data(), tmp_path / "a.xlsx")
    with pytest.raises(ArgumentTypeError, match="what: expected an imputation"):
        cal.write(RNA, tmp_path / "a.npz")  # type: ignore[arg-type]
    with pytest.raises(ArgumentError, match="level: expected a number between 0 and 1"):
        cal.write(data(), tmp_path / "a.npz", level=1.5)
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        cal.write(data(), tmp_path / "none" / "a.zarr")
    wide = cal.MultimodalData({"x": torch.eye(2)}, covariates={"place": np.ones((2, 2))})
    for ending in ("parquet", "h5mu"):
        with pytest.raises(DataError, match=r"covariates\['place'\]: it has shape \(2, 2\)"):
            cal.write(wide, tmp_path / f"a.{ending}")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(
        MissingDependencyError, match=r"writing parquet needs pyarrow.*pip install 'calmrl-prob\[arrow\]'"
    ):
        cal.write(data(), tmp_path / "a.parquet")


def test_mudata_has_its_names(imputed: cal.Imputation, tmp_path: Path) -> None:
    path = cal.write(imputed, tmp_path / "out.h5mu", level=0.8)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = mudata.read_h5mu(path)
    assert found.obs_names.tolist() == IDS
    assert found["protein"].var_names.tolist() == PROTEINS
    assert found.obs["batch"].tolist() == BATCH.tolist()
    assert found.uns["calmrl_prob"]["level"] == 0.8
    np.testing.assert_allclose(found.obsm["latent"], imputed.posterior.mean.numpy())


@pytest.mark.parametrize("ending", [".parquet", ".zarr", ".h5mu", ".npz"])
@pytest.mark.parametrize("name", ["labels", "site", "latent", "rna.sd", "instance", "a/b", ".", "..", ".hidden", "ids"])
def test_names_come_back_or_are_refused(tmp_path: Path, name: str, ending: str) -> None:
    drawn = cal.datasets.make_synthetic(20, {name: 4, "rna": 3}, latent_dim=2, seed=0).complete
    values = {n: drawn[n] for n in drawn.names}
    data = cal.MultimodalData(values, labels=np.arange(20) % 2, covariates={"site": np.arange(20)}, ids=np.arange(20))
    model = LinearGaussian(
        {n: torch.ones(w, 1) for n, w in data.dims.items()},
        {n: torch.zeros(w) for n, w in data.dims.items()},
        dict.fromkeys(data.dims, torch.tensor(1.0)),
    )
    imputed = cal.impute(model, data.mask({name: np.arange(20) > 3}))
    for number, what in enumerate((data, imputed)):
        path = tmp_path / f"{number}{ending}"
        try:
            cal.write(what, path)
        except ArgumentError as error:
            assert repr(name) in str(error)  # noqa: PT017
            assert not path.exists()
            continue
        found = cal.read(path)
        assert set(found.names) == {name, "rna"}
        torch.testing.assert_close(found["rna"], data["rna"])
        torch.testing.assert_close(found[name][4:], data[name][4:])
        assert found.labels is not None
        assert found.labels.tolist() == data.labels.tolist()
