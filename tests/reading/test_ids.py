"""Ids of several origins, each under a column name of its own, and what is said where they are not found."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import polars
import pytest
import xarray as xr

import calmrl_prob as cal
from calmrl_prob.errors import ArgumentError, ArgumentTypeError, DataError, SchemaError

PHOTOS = pd.DataFrame({"photo_id": ["p1", "p2", "p3"], "red": [0.1, 0.2, 0.3], "blue": [1.0, 2.0, 3.0]})
TEXTS = pd.DataFrame({"doc": ["p3", "p1", "p9"], "length": [3.0, 1.0, 9.0]})
IDS = {"image": "photo_id", "text": "doc"}


def as_parquet(frame: pd.DataFrame, folder: Path, name: str) -> object:
    frame.to_parquet(folder / f"{name}.parquet", index=False)
    return folder / f"{name}.parquet"


def as_indexed_parquet(frame: pd.DataFrame, folder: Path, name: str) -> object:
    frame.set_index(frame.columns[0]).to_parquet(folder / f"{name}.parquet")
    return folder / f"{name}.parquet"


def as_csv(frame: pd.DataFrame, folder: Path, name: str) -> object:
    frame.to_csv(folder / f"{name}.csv", index=False)
    return str(folder / f"{name}.csv")


def as_npz(frame: pd.DataFrame, folder: Path, name: str) -> object:
    ids, *features = frame.columns
    np.savez(folder / f"{name}.npz", **{f"x_{name}": frame[features].to_numpy(), ids: frame[ids].to_numpy(dtype=str)})
    return folder / f"{name}.npz"


def as_npy(frame: pd.DataFrame, folder: Path, name: str) -> object:
    ids, *features = frame.columns
    (folder / name).mkdir()
    np.save(folder / name / "x.npy", frame[features].to_numpy())
    np.save(folder / name / f"{ids}.npy", frame[ids].to_numpy(dtype=str))
    return folder / name / "x.npy"


def as_dataset(frame: pd.DataFrame, folder: Path, name: str) -> object:
    ids, *features = frame.columns
    return xr.Dataset({name: (("row", "feature"), frame[features].to_numpy()), ids: ("row", frame[ids].to_numpy())})


def as_data(frame: pd.DataFrame, folder: Path, name: str) -> object:
    ids, *features = frame.columns
    return cal.MultimodalData({name: frame[features].to_numpy()}, covariates={ids: frame[ids].to_numpy(dtype=str)})


KINDS: dict[str, Callable[[pd.DataFrame, Path, str], Any]] = {
    "parquet": as_parquet,
    "parquet with an index": as_indexed_parquet,
    "csv": as_csv,
    "frame": lambda frame, folder, name: frame,
    "frame with an index": lambda frame, folder, name: frame.set_index(frame.columns[0]),
    "polars": lambda frame, folder, name: polars.from_pandas(frame),
    "npz": as_npz,
    "xarray": as_dataset,
    "data": as_data,
}


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_each_origin_has_a_column_of_its_own(kind: str, stream: bool, tmp_path: Path) -> None:
    origin = {"image": KINDS[kind](PHOTOS, tmp_path, "image"), "text": KINDS[kind](TEXTS, tmp_path, "text")}
    data = cal.read(origin, ids=IDS, stream=stream)
    if stream:
        data = next(data.chunks(10))
    assert data.ids.tolist() == ["p1", "p2", "p3", "p9"]
    assert data.observed_mask.tolist() == [[True, True], [True, False], [True, True], [False, True]]
    assert data["text"][[0, 2, 3], 0].tolist() == [1.0, 3.0, 9.0]
    assert data.covariates == {}


def test_files_of_ids_may_differ_too(tmp_path: Path) -> None:
    origin = {"image": as_npy(PHOTOS, tmp_path, "image"), "text": as_npy(TEXTS, tmp_path, "text")}
    data = cal.read(origin, ids={"image": "photo_id.npy", "text": Path("doc.npy")})
    assert data.ids.tolist() == ["p1", "p2", "p3", "p9"]


def test_what_a_mapping_leaves_out_has_its_usual_ids() -> None:
    usual = TEXTS.rename(columns={"doc": "id"})
    data = cal.read({"image": PHOTOS, "text": usual}, ids={"image": "photo_id"})
    assert data.ids.tolist() == ["p1", "p2", "p3", "p9"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_column_that_a_mapping_names_has_to_be_there(kind: str, tmp_path: Path) -> None:
    origin = {"image": KINDS[kind](PHOTOS, tmp_path, "image"), "text": KINDS[kind](TEXTS, tmp_path, "text")}
    with pytest.raises(SchemaError, match=r"^ids: .* has no .*'photo_id'.*; .*ids=\{'text': '\w+'\}") as refused:
        cal.read(origin, ids={"image": "photo_id", "text": "photo_id"})
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("kind", ["parquet", "csv", "frame", "polars"])
def test_one_name_for_files_that_have_two_says_how_to_give_both(kind: str, tmp_path: Path) -> None:
    origin = {"image": KINDS[kind](PHOTOS, tmp_path, "image"), "text": KINDS[kind](TEXTS, tmp_path, "text")}
    with pytest.raises(DataError, match=r"has none, other sources have; .* ids=\{'text': 'doc'\}"):
        cal.read(origin, ids="photo_id")


def test_a_column_that_no_origin_has_is_refused() -> None:
    with pytest.raises(SchemaError, match=r"ids: none of the origins has 'foto'; .*ids=\{'image': "):
        cal.read({"image": PHOTOS[["red"]], "text": TEXTS[["length"]]}, ids="foto")


@pytest.mark.parametrize("ids", [["photo_id", "doc"], 3, {"image": 3}, {3: "doc"}, {"image": ["photo_id"]}, b"x", ""])
def test_ids_of_another_type_are_refused(ids: object) -> None:
    with pytest.raises(ArgumentTypeError, match=r"^ids: expected .*ids='id'.*ids=\{'image': "):
        cal.read({"image": PHOTOS, "text": TEXTS}, ids=ids)


def test_names_that_are_no_modality_are_refused() -> None:
    with pytest.raises(SchemaError, match=r"^ids: no modality is called 'txt'; the modalities are \['image', 'text'\]"):
        cal.read({"image": PHOTOS, "text": TEXTS}, ids={"image": "photo_id", "txt": "doc"})


def test_a_mapping_for_one_origin_is_refused() -> None:
    with pytest.raises(ArgumentError, match=r"^ids: .* one origin.*ids='photo_id'"):
        cal.read(PHOTOS, ids={"image": "photo_id"})
