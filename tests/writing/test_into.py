"""Imputations in a MuData that was there: what it had stays as it was, and what was imputed is found by its names."""

from __future__ import annotations

import warnings
from pathlib import Path

import anndata
import h5py
import mudata
import numpy as np
import pandas as pd
import pytest
import torch

import calmrl_prob as cal
from calmrl_prob.errors import ArgumentError, ArgumentTypeError, DataError, FileFormatError, SchemaError
from calmrl_prob.writing import contents

IDS = [f"cell-{n:02}" for n in range(40)]
DRAWN = cal.datasets.make_synthetic(40, {"rna": 6, "protein": 4}, latent_dim=2, seed=0).complete
#: Cells without proteins; with rows of their own they are NaN, else the assay does not have them.
LACKING = np.arange(40) % 4 == 1


def muon(whole: bool) -> mudata.MuData:
    """Cells in an order of their own in each assay."""
    order = np.random.default_rng(0).permutation(40)
    protein = DRAWN["protein"].numpy().copy()
    protein[LACKING] = np.nan
    rows = order if whole else order[~LACKING[order]]

    def assay(values: np.ndarray, rows: np.ndarray, name: str) -> anndata.AnnData:
        obs = pd.DataFrame(index=pd.Index(np.array(IDS, dtype=object)[rows]))
        names = [f"{name}-{k}" for k in range(values.shape[1])]
        found = anndata.AnnData(values[rows], obs=obs, var=pd.DataFrame(index=pd.Index(names, dtype=object)))
        found.layers["counts"] = values[rows].round()
        return found

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # mudata warns of what it will do in its next version
        return mudata.MuData(
            {"rna": assay(DRAWN["rna"].numpy(), np.arange(40), "gene"), "protein": assay(protein, rows, "antibody")}
        )


def read_back(path: Path) -> mudata.MuData:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return mudata.read_h5mu(path)


def saved(value: mudata.MuData, path: Path) -> Path:
    """A file by mudata itself, whose anndata refuses the texts of the newest pandas."""
    for part in (value, *value.mod.values()):
        for frame in (part.obs, part.var):
            frame.index = pd.Index(frame.index.to_numpy(dtype=object), dtype=object)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        value.write_h5mu(path)
    return path


def imputed_of(origin: object) -> cal.Imputation:
    data = cal.read(origin)
    return cal.impute(cal.fit(cal.SharedLatentModel(data.dims, 2), data), data, recalibrated=False)


@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize("numbers", [2**22, 40])  # all rows at once, and four at a time
def test_a_file_keeps_what_it_had_and_gets_what_was_imputed(
    whole: bool, numbers: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(contents, "_NUMBERS", numbers)
    before, source = muon(whole), saved(muon(whole), tmp_path / "omics.h5mu")
    held = source.read_bytes()
    imputed = imputed_of(source)
    path = cal.write(imputed, tmp_path / "imputed.h5mu", into=source, level=0.8)
    assert path == tmp_path / "imputed.h5mu"
    assert source.read_bytes() == held
    after = read_back(path)
    for name in ("rna", "protein"):
        np.testing.assert_array_equal(after[name].X, before[name].X)
        np.testing.assert_array_equal(after[name].layers["counts"], before[name].layers["counts"])
    assert after.uns["calmrl_prob"]["level"] == 0.8
    ids = imputed.data.ids.tolist()
    rows = [ids.index(name) for name in (after["protein"].obs_names if whole else after.obs_names)]
    lower, _ = imputed.interval(0.8)["protein"]
    values = {
        "completed": imputed.completed["protein"],
        "sd": imputed.variance["protein"].sqrt(),
        "lower": lower,
        "imputed": ~imputed.data.feature_mask("protein"),
    }
    for key, value in values.items():
        found = after["protein"].layers[key] if whole else after.obsm[f"protein.{key}"]
        np.testing.assert_allclose(found, value[rows].numpy(), rtol=1e-6, atol=1e-6)
    assert after["rna"].layers["sd"].shape == (40, 6)
    rows = [ids.index(name) for name in after.obs_names]
    np.testing.assert_allclose(after.obsm["latent"], imputed.posterior.mean[rows].numpy(), rtol=1e-6, atol=1e-6)
    back = cal.read(path, modalities=["protein.completed", "protein.sd", "latent"])
    order = [back.ids.tolist().index(name) for name in ids]
    torch.testing.assert_close(back["protein.completed"][order], imputed.completed["protein"])
    torch.testing.assert_close(back["latent"][order], imputed.posterior.mean)
    assert len(list(tmp_path.iterdir())) == 2


def test_a_file_may_take_it_itself(tmp_path: Path) -> None:
    source = saved(muon(True), tmp_path / "omics.h5mu")
    cal.write(imputed_of(source), source, into=source)
    assert "sd" in read_back(source)["protein"].layers
    before = source.read_bytes()
    with pytest.raises(ArgumentError, match="the layers of 'rna' have 'completed' already"):
        cal.write(imputed_of(source), source, into=source)
    assert source.read_bytes() == before
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("whole", [True, False])
def test_a_mudata_in_memory_is_added_to(whole: bool) -> None:
    value = muon(whole)
    imputed = imputed_of(value)
    assert cal.write(imputed, value) is value
    back = cal.read(value, modalities=["protein.mean", "protein.upper", "latent_sd"])
    order = [back.ids.tolist().index(name) for name in imputed.data.ids.tolist()]
    torch.testing.assert_close(back["protein.mean"][order], imputed.mean["protein"])
    assert back["latent_sd"].shape == (40, 2)


def test_features_and_cells_that_were_left_out_are_nothing(tmp_path: Path) -> None:
    value = muon(True)
    data = cal.read(value)
    few = cal.MultimodalData(
        {
            "rna": pd.DataFrame(data["rna"].numpy(), columns=data.feature_names["rna"], index=data.ids).iloc[
                :30, [4, 1]
            ],
            "protein": pd.DataFrame(
                data["protein"].numpy(), columns=data.feature_names["protein"], index=data.ids
            ).iloc[:30],
        }
    )
    imputed = cal.impute(cal.fit(cal.SharedLatentModel(few.dims, 2), few), few)
    cal.write(imputed, value)
    layer = pd.DataFrame(value["rna"].layers["completed"], value["rna"].obs_names, value["rna"].var_names)
    assert layer.notna().sum().sum() == 60
    np.testing.assert_allclose(
        layer.loc[few.ids.astype(object), ["gene-4", "gene-1"]], imputed.completed["rna"], rtol=1e-6
    )
    assert not value["rna"].layers["imputed"].any()


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    source = saved(muon(True), tmp_path / "omics.h5mu")
    data = cal.read(source)
    imputed = imputed_of(source)
    fit = cal.fit(cal.SharedLatentModel(data.dims, 2), data)
    bare = {name: data[name] for name in data.names}
    with pytest.raises(DataError, match="no ids"):
        cal.write(cal.impute(fit, cal.MultimodalData(bare)), source, into=source)
    with pytest.raises(DataError, match="the MuData has no 'stranger 0'"):
        cal.write(cal.impute(fit, cal.MultimodalData(bare, ids=[f"stranger {n}" for n in range(40)])), muon(True))
    few = cal.MultimodalData({"rna": bare["rna"][:, :3], "protein": bare["protein"]}, ids=data.ids)
    with pytest.raises(SchemaError, match="assay 'rna' has 6 features, the imputation 3"):
        cal.write(cal.impute(cal.fit(cal.SharedLatentModel(few.dims, 2), few), few), muon(True))
    with pytest.raises(ArgumentTypeError, match="expected an imputation"):
        cal.write(data, muon(True))
    with pytest.raises(ArgumentError, match=r"expected a local \.h5mu file"):
        cal.write(imputed, tmp_path / "x.npz", into=source)
    (tmp_path / "text.h5mu").write_text("no file of HDF5")
    with pytest.raises(FileFormatError, match=r"text\.h5mu is no \.h5mu"):
        cal.write(imputed, tmp_path / "x.h5mu", into=tmp_path / "text.h5mu")
    with h5py.File(tmp_path / "other.h5mu", "w") as other:
        other["x"] = [1]
    with pytest.raises(FileFormatError, match="no MuData, or a damaged one"):
        cal.write(imputed, tmp_path / "x.h5mu", into=tmp_path / "other.h5mu")
    with pytest.raises(FileNotFoundError):
        cal.write(imputed, tmp_path / "x.h5mu", into=tmp_path / "none.h5mu")
    assert not (tmp_path / "x.h5mu").exists()


@pytest.mark.parametrize("axis", ["obs", "var"])
def test_names_that_stand_twice_are_told(tmp_path: Path, axis: str) -> None:
    source = saved(muon(True), tmp_path / "omics.h5mu")
    imputed = imputed_of(source)
    twice = muon(True)
    part = twice.mod["rna"]
    frame = getattr(part, axis)
    frame.index = pd.Index([frame.index[0], *frame.index[:-1]], dtype=object)
    error = DataError if axis == "obs" else SchemaError
    with pytest.raises(error, match=rf"into: assay 'rna' has .* {axis}_names_make_unique"):
        cal.write(imputed, twice)
    assert "mean" not in twice.mod["protein"].layers
