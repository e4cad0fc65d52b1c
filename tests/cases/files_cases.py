"""The same two modalities in every format that is read: what files and objects the tests of reading compare."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anndata
import h5py
import mudata
import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import xarray as xr
import zarr
from anndata.io import write_elem

IDS = [f"cell-{n}" for n in range(7)]
GENES, PROTEINS = ["GATA1", "TAL1", "KLF1"], ["CD3", "CD4"]
#: Cell 2 lacks the proteins as a whole, cell 4 one of them.
RNA = np.arange(21, dtype=np.float32).reshape(7, 3) / 4
PROTEIN = np.array([[0, 1], [2, 3], [np.nan, np.nan], [6, 7], [8, np.nan], [10, 11], [12, 13]], dtype=np.float32)
BATCH = np.array(["one", "two", "one", "two", "one", "two", "one"])
LABELS = np.array([0, 1, 0, 1, 0, 1, 0])


def rna_frame() -> pd.DataFrame:
    return pd.DataFrame(RNA, index=IDS, columns=GENES)


def protein_frame() -> pd.DataFrame:
    return pd.DataFrame(PROTEIN, index=IDS, columns=PROTEINS)


def wide_frame() -> pd.DataFrame:
    """Both side by side, with prefixes, labels and a covariate."""
    wide = pd.concat([rna_frame().add_prefix("rna:"), protein_frame().add_prefix("protein:")], axis=1)
    return wide.assign(labels=LABELS, batch=BATCH)


def list_table() -> pa.Table:
    """Both as columns of lists, null where there is nothing."""
    protein = [None if np.isnan(row).all() else row.tolist() for row in PROTEIN]
    return pa.table(
        {
            "id": IDS,
            "rna": pa.array(RNA.tolist(), pa.list_(pa.float32())),
            "protein": pa.array(protein, pa.list_(pa.float32(), 2)),
            "labels": LABELS,
            "batch": BATCH.tolist(),
        }
    )


def assay(values: np.ndarray, names: list[str], rows: list[int] | None = None) -> anndata.AnnData:
    rows = list(range(7)) if rows is None else rows
    obs = pd.DataFrame(
        {"labels": LABELS[rows], "batch": BATCH[rows]}, index=pd.Index(np.array(IDS, dtype=object)[rows])
    )
    return anndata.AnnData(values[rows], obs=obs, var=pd.DataFrame(index=pd.Index(names, dtype=object)))


def muon() -> mudata.MuData:
    """Both as MuData; cell 2 is no row of the proteins."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # mudata warns of what it will do in its next version
        return mudata.MuData({"rna": assay(RNA, GENES), "protein": assay(PROTEIN, PROTEINS, [0, 1, 3, 4, 5, 6])})


def write_h5ad(path: Path, value: anndata.AnnData, group: h5py.Group | None = None) -> Path:
    """An .h5ad as anndata lays it out; anndata itself refuses the texts of the newest pandas."""
    if group is None:
        with h5py.File(path, "w") as file:
            return write_h5ad(path, value, file)
    group.attrs.update({"encoding-type": "anndata", "encoding-version": "0.1.0"})
    for key in ("obs", "var"):
        write_elem(group, key, as_objects(getattr(value, key)))
    write_elem(group, "X", value.X)
    for key in ("layers", "obsm"):
        write_elem(group, key, dict(getattr(value, key)))
    return path


def as_objects(frame: pd.DataFrame) -> pd.DataFrame:
    out = pd.DataFrame(index=pd.Index(frame.index.to_numpy(dtype=object), dtype=object))
    for name in frame:
        text = frame[name].dtype.kind not in "biuf"
        kinds = pd.Index(sorted(set(frame[name])), dtype=object) if text else None
        out[name] = pd.Categorical(frame[name].astype(object), categories=kinds) if text else frame[name].to_numpy()
    return out


def write_h5mu(path: Path) -> Path:
    value = muon()
    with h5py.File(path, "w") as file:
        file.attrs.update({"encoding-type": "MuData", "encoding-version": "0.1.0"})
        file.create_group("mod").attrs["mod-order"] = ["rna", "protein"]
        for name in value.mod:
            write_h5ad(path, value.mod[name], file["mod"].create_group(name))
        write_elem(file, "obs", pd.DataFrame(index=pd.Index(value.obs_names.to_numpy(dtype=object), dtype=object)))
    return path


def dataset() -> xr.Dataset:
    coords = {"cell": IDS, "gene": GENES, "antibody": PROTEINS}
    arrays = {"rna": (("cell", "gene"), RNA), "protein": (("cell", "antibody"), PROTEIN)}
    return xr.Dataset({**arrays, "labels": ("cell", LABELS), "batch": ("cell", BATCH)}, coords=coords)


def tree() -> xr.DataTree:
    both = dataset()
    children = {name: both[[name]].rename({name: "values"}) for name in ("rna", "protein")}
    return xr.DataTree.from_dict({"/": both[["labels", "batch"]], **children})


def _parquet_lists(folder: Path) -> dict[str, Any]:
    table = list_table()
    pq.write_table(table.slice(0, 4), folder / "part-0.parquet", row_group_size=3)
    pq.write_table(table.slice(4), folder / "part-1.parquet", row_group_size=2)
    (folder / "_SUCCESS").write_text("")
    return {"origin": folder}


def _parquet_columns(folder: Path) -> dict[str, Any]:
    wide_frame().iloc[:3].to_parquet(folder / "a.parquet")
    wide_frame().iloc[3:].to_parquet(folder / "b.parquet")
    return {"origin": str(folder / "*.parquet"), "sep": ":"}


def _npz(folder: Path) -> dict[str, Any]:
    arrays = {"x_rna": RNA, "x_protein": PROTEIN, "ids": np.array(IDS), "labels": LABELS, "batch": BATCH}
    names = {"features_rna": np.array(GENES), "features_protein": np.array(PROTEINS)}
    np.savez(folder / "cells.npz", **arrays, **names, missing=np.array("features"))
    return {"origin": folder / "cells.npz"}


def _npy(folder: Path) -> dict[str, Any]:
    for name, values in {"rna": RNA, "protein": PROTEIN, "labels": LABELS, "batch": BATCH}.items():
        np.save(folder / f"{name}.npy", values)
    (folder / "ids.txt").write_text("\n".join(IDS))
    return {"origin": folder}


def _csv(folder: Path) -> dict[str, Any]:
    wide_frame().to_csv(folder / "cells.csv")
    return {"origin": folder / "cells.csv", "sep": ":"}


def _tsv(folder: Path) -> dict[str, Any]:
    wide_frame().rename_axis("id").to_csv(folder / "cells.tsv", sep="\t")
    return {"origin": folder / "cells.tsv", "modalities": {"rna": _starts("rna:"), "protein": _starts("protein:")}}


def _starts(prefix: str) -> Callable[[object], bool]:
    return lambda column: str(column).startswith(prefix)


def _levels(folder: Path) -> dict[str, Any]:
    del folder
    frame = pd.concat({"rna": rna_frame(), "protein": protein_frame()}, axis=1)
    return {"origin": {"both": frame}}


def _zarr(folder: Path) -> dict[str, Any]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # zarr warns that its third format has no texts of fixed width yet
        dataset().to_zarr(folder / "cells.zarr", zarr_format=2)
    return {"origin": folder / "cells.zarr"}


def _zarr_of_anndata(folder: Path) -> dict[str, Any]:
    found = {"rna": assay(RNA, GENES), "protein": assay(PROTEIN, PROTEINS, [0, 1, 3, 4, 5, 6])}
    for name, value in found.items():
        write_h5ad(folder, value, zarr.open_group(str(folder / f"{name}.zarr"), mode="w", zarr_format=2))
    return {"origin": {name: folder / f"{name}.zarr" for name in found}}


def _h5ads(folder: Path) -> dict[str, Any]:
    write_h5ad(folder / "a.h5ad", assay(RNA, GENES))
    return {"origin": {"rna": folder / "a.h5ad", "protein": assay(PROTEIN, PROTEINS, [0, 1, 3, 4, 5, 6])}}


#: What is handed to ``cal.read`` for each format, from a folder to write into.
CASES: dict[str, Callable[[Path], dict[str, Any]]] = {
    "parquet of lists": _parquet_lists,
    "parquet of columns": _parquet_columns,
    "npz": _npz,
    "npy": _npy,
    "csv": _csv,
    "tsv": _tsv,
    "zarr": _zarr,
    "zarr of anndata": _zarr_of_anndata,
    "h5mu": lambda folder: {"origin": write_h5mu(folder / "cells.h5mu")},
    "h5ad": _h5ads,
    "MuData": lambda folder: {"origin": muon()},
    "pandas": lambda folder: {"origin": wide_frame(), "sep": ":"},
    "polars": lambda folder: {"origin": pl.from_arrow(list_table())},
    "lazy polars": lambda folder: {
        "origin": pl.from_pandas(wide_frame().rename_axis("id").reset_index()).lazy(),
        "sep": ":",
    },
    "xarray": lambda folder: {"origin": dataset()},
    "xarray tree": lambda folder: {"origin": tree()},
    "dict of frames": lambda folder: {
        "origin": {"rna": rna_frame().assign(labels=LABELS, batch=BATCH), "protein": protein_frame()}
    },
}
#: Formats without names of features, and those whose modalities are called otherwise.
WITHOUT_FEATURES = ("parquet of lists", "npy", "polars")
