"""Files that say of themselves what is not so are refused at once, in little memory, by the one typed error."""

from __future__ import annotations

import json
import os
import resource
import time
import warnings
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

import calmrl_prob as cal
from calmrl_prob._support import sizes
from calmrl_prob.errors import FileFormatError
from calmrl_prob.priors import PRIORS, FlowPrior, GroupPrior, MixturePrior, NormalPrior, Prior, StudentTPrior
from tests.cases.file_cases import KINDS

#: What refusing a small file may take: seconds, with a hundred times of room on an idle machine, and kilobytes.
MOST_SECONDS, MOST_KILOBYTES = 5.0, 200_000


@contextmanager
def refused(path: Path, match: str = "") -> Iterator[None]:
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(FileFormatError, match=match) as caught:
            yield
    assert str(path) in str(caught.value)
    assert len(str(caught.value)) < 2000
    assert time.perf_counter() - start < MOST_SECONDS
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < MOST_KILOBYTES


MODEL: dict[str, Any] = {
    "kind": "SharedLatentModel",
    "dims": {"image": 3},
    "latent_dim": 2,
    "noise": "isotropic",
    "prior": "normal",
    "prior_config": {},
    "dtype": "float64",
}


def write_model(path: Path, config: object, tensors: dict[str, torch.Tensor] | None = None, **metadata: str) -> None:
    """A file in the format of models, with all tensors that a model of ``MODEL`` has, unless others are given."""
    whole = {
        "loadings/image": torch.zeros(3, 2).double(),
        "intercepts/image": torch.zeros(3).double(),
        "log_noise/image": torch.zeros(()).double(),
        "prior.mean": torch.zeros(2).double(),
        "prior.covariance": torch.eye(2).double(),
    }
    described = config if isinstance(config, str) else json.dumps(config)
    header = {"format": "calmrl-prob model", "format_version": "1", "config": described, **metadata}
    save_file(whole | (tensors or {}), path, header)


def test_the_whole_file_is_read(tmp_path: Path) -> None:
    write_model(tmp_path / "model", MODEL)
    assert repr(cal.load(tmp_path / "model")) == (
        "SharedLatentModel(image: 3; latent_dim=2, noise='isotropic', prior=normal)"
    )


@pytest.mark.parametrize(
    "change",
    [
        {"latent_dim": 9000},
        {"latent_dim": 10**12},
        {"latent_dim": True},
        {"latent_dim": "2"},
        {"latent_dim": 2.0},
        {"latent_dim": -1},
        {"dims": {"image": 10**9}},
        {"dims": {"image": 3, "text": 10**9}},
        {"dims": ["image"]},
        {"dims": {}},
        {"dims": 3},
        {"noise": "full"},
        {"noise": "low_rank", "noise_rank": 10**9},
        {"noise": "low_rank", "noise_rank": {"image": [1]}},
        {"noise": ["isotropic"]},
        {"noise": None},
        {"prior": ["normal"]},
        {"prior": "nobody's"},
        {"prior": "mixture", "prior_config": {"num_components": 10**9}},
        {"prior": "group", "prior_config": {"groups": [str(g) for g in range(20_000)]}},
        {"prior": "flow", "prior_config": {"hidden": [10**5, 10**5]}},
        {"prior": "flow", "prior_config": {"num_transforms": 10**9}},
        {"prior": "flow", "prior_config": {"num_bins": 10**9}},
        {"prior_config": [1]},
        {"prior_config": {"mean": 3}},
        {"dtype": ["float64"]},
        {"dtype": "float8"},
        {"kind": ["SharedLatentModel"]},
        {"kind": {"a": 1}},
        {"kind": "LinearGaussian"},
        {"kind": "LinearGaussian", "names": "image"},
        {"kind": "LinearGaussian", "names": [["image"]]},
        {"kind": "LinearGaussian", "names": ["image", "image"]},
        {"kind": "LinearGaussian", "names": []},
        {"requested": [3, None]},
        {"requested": [None, "full"]},
        {"requested": 2},
        {"attached": 3},
        {"attached": {"dict": [["intervals", {"tuple": [3, True]}]]}},
        {"attached": {"dict": [["intervals", {"object": ["HeldOutIntervals", {"names": ["image"]}]}]]}},
    ],
    ids=str,
)
def test_descriptions_of_other_models_than_the_file_holds(tmp_path: Path, change: dict[str, Any]) -> None:
    path = tmp_path / "model.safetensors"
    write_model(path, MODEL | change)
    with refused(path):
        cal.load(path)


@pytest.mark.parametrize(
    "described",
    [
        "[" * 200_000,
        '{"a":' * 200_000,
        json.dumps(MODEL).replace("9000", "1").replace("2", "9" * 5000),
        "",
        "null",
        "\0",
    ],
    ids=["brackets", "braces", "digits", "empty", "null", "zero byte"],
)
def test_descriptions_that_are_none(tmp_path: Path, described: str) -> None:
    path = tmp_path / "model.safetensors"
    write_model(path, described)
    with refused(path, "description|kind"):
        cal.load(path)


@pytest.mark.parametrize("version", ["9" * 5000, "-1", "1.0", " 1", "\u0661\u0662"])
def test_versions_that_are_none(tmp_path: Path, version: str) -> None:
    path = tmp_path / "model.safetensors"
    write_model(path, MODEL, format_version=version)
    with refused(path, "install a newer"):
        cal.load(path)


@pytest.mark.parametrize("kind", [torch.int64, torch.bool, torch.float8_e4m3fn, torch.complex64])
def test_tensors_of_other_types(tmp_path: Path, kind: torch.dtype) -> None:
    path = tmp_path / "structure.safetensors"
    tensors = {
        "noise_variance/image": torch.ones(3).to(kind),
        "prior_mean": torch.zeros(2).to(kind),
        "prior_covariance": torch.eye(2).to(kind),
        "loadings/image": torch.zeros(3, 2).to(kind),
        "intercepts/image": torch.zeros(3).to(kind),
    }
    write_model(path, {"kind": "LinearGaussian", "names": ["image"]}, tensors)
    with refused(path):
        cal.load(path)


@pytest.mark.parametrize("content", [b"", b"\x01", b"\xff" * 8, b"\xff" * 7 + b"\0" + b"{" * 100, bytes(1000)])
def test_headers_that_are_none(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    with refused(path):
        cal.load(path)


@pytest.mark.parametrize(
    "prior",
    [NormalPrior(3), MixturePrior(3, num_components=5), StudentTPrior(3), GroupPrior(3, ["a", "b"]), FlowPrior(3),
     FlowPrior(1, num_transforms=2), FlowPrior(4, 2, (16, 8, 4), 5)],
    ids=repr,
)  # fmt: skip
def test_priors_hold_no_less_than_they_say_before_they_are_made(prior: Prior) -> None:
    there = sum(tensor.numel() for tensor in prior.state_dict().values())
    assert type(prior) in PRIORS.values()
    assert there / 3 <= type(prior).least_numbers(prior.latent_dim, **prior.config()) <= there


# --- archives of arrays


def write_member(path: Path, content: bytes, name: str = "x_a.npy", packing: int = zipfile.ZIP_STORED) -> None:
    with zipfile.ZipFile(path, "w", packing) as archive:
        archive.writestr(name, content)


def member(header: str, data: bytes = b"", version: bytes = b"\x01\x00") -> bytes:
    """What a member would be that declares something of itself."""
    length = len(header).to_bytes(2 if version == b"\x01\x00" else 4, "little")
    return b"\x93NUMPY" + version + length + header.encode() + data


def declares(shape: str, dtype: str = "'<f8'") -> str:
    return f"{{'descr': {dtype}, 'fortran_order': False, 'shape': {shape}, }}\n"


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (member(declares("(1000000000000, 3)"), bytes(24)), "declares the shape"),
        (member(declares("(1000000000000000, 0)")), "x_a should hold numbers"),
        (member(declares("(-1, 3)"), bytes(24)), "declares the shape"),
        (member(declares("(1, 3)"), bytes(32)), "declares the shape"),
        (member(declares("(1, 3)"), bytes(16)), "declares the shape"),
        (member(declares("(1" + "0" * 5000 + ", 3)"), bytes(24)), "x_a"),
        (member(declares("(" * 2000 + ")" * 2000), bytes(24)), "x_a"),
        (member(declares("(1, 3)", "'|O'"), bytes(24)), "Python objects"),
        (member(declares("(1000000000000,)", "'<U0'")), "entries are of type"),
        (member(declares("(1000000000000,)", "'|V0'")), "entries are of type"),
        (member(declares("(1,)", "'<U1'"), b"\xff" * 4), "its strings are none"),
        (member(declares("(1, 3)", "[('a', '<f8')]"), bytes(24)), "entries are of type"),
        (member(declares("(1, 3)", "'no type'"), bytes(24)), "x_a"),
        (member("no literal", bytes(24)), "x_a"),
        (member(declares("(1, 3)"), bytes(24), b"\x09\x00"), "x_a"),
        (member(declares("(1, 3)"), bytes(24), b"\x03\x00"), "version"),
        (b"this is no array", "x_a"),
        (b"", "x_a"),
    ],
)
def test_members_that_lie(tmp_path: Path, content: bytes, match: str) -> None:
    path = tmp_path / "data.npz"
    write_member(path, content)
    with refused(path, match):
        cal.load_npz(path)


def test_archives_that_unpack_to_far_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "bomb.npz"
    np.savez_compressed(path, x_a=np.zeros((300, 1000)))
    assert cal.load_npz(path).num_instances == 300  # small ones may be as uniform as they like
    monkeypatch.setattr(sizes, "ALWAYS_ALLOWED", 1000)
    with refused(path, "declares arrays of 2,400"):
        cal.load_npz(path)


@pytest.mark.parametrize("packing", [zipfile.ZIP_LZMA, zipfile.ZIP_BZIP2])
def test_packings_that_numpy_does_not_write(tmp_path: Path, packing: int) -> None:
    path = tmp_path / "data.npz"
    write_member(path, member(declares("(1, 3)"), bytes(24)), packing=packing)
    with refused(path, "packed in a way"):
        cal.load_npz(path)


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_names_of_members(tmp_path: Path) -> None:
    content, path = member(declares("(1, 3)"), bytes(24)), tmp_path / "data.npz"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x_a.npy", content)
        archive.writestr("x_a.npy", content)
    with refused(path, "same name"):
        cal.load_npz(path)
    write_member(path, content, "x_" + "a" * 60_000 + ".npy")
    with refused(path, "characters"):
        cal.load_npz(path)


def test_what_is_no_array_by_its_name_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "data.npz"
    np.savez(path, x_a=np.ones((2, 3)), x_b_idx=np.ones((2, 1)))
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("README.txt", "notes")
        archive.writestr("folder/", "")
    assert cal.load_npz(path).dims == {"a": 3, "b_idx": 1}


# --- draws


def test_draws_that_declare_more_than_there_is(tmp_path: Path) -> None:
    path = tmp_path / "draws.nc"
    with h5py.File(path, "w") as file:
        group = file.create_group("posterior")
        group.attrs["inference_library"] = "calmrl-prob"
        group.create_dataset("z", (10**6, 10**6), dtype="f8", chunks=(10, 10), fillvalue=0.0)
    with refused(path):
        cal.from_arviz(path)


@pytest.mark.parametrize("version", ["one", "9" * 5000, np.array([1, 2]), np.inf])
def test_layouts_that_are_no_numbers(tmp_path: Path, version: object) -> None:
    path = tmp_path / "draws.nc"
    KINDS["draws"].write(path)
    with h5py.File(path, "a") as file:
        for group in file.values():
            group.attrs["schema_version"] = version
    with refused(path, "layout"):
        cal.from_arviz(path)


@pytest.mark.parametrize(
    "metadata",
    ['{"filters": [{"id": "pickle"}]}', '{"codecs": [{"name": "numcodecs.pickle"}]}', '{"a": [{"id": "\\u0070ickle"}]}',
     "{", "[" * 100_000],
)  # fmt: skip
def test_stores_that_would_be_unpickled(tmp_path: Path, metadata: str) -> None:
    store = tmp_path / "draws.zarr"
    (store / "posterior").mkdir(parents=True)
    for name in (".zarray", "zarr.json"):
        (store / "posterior" / name).write_text(metadata)
    with refused(store, "unpickled|damaged"):
        cal.from_arviz(store)


# --- what is no file


@pytest.mark.parametrize("load", [cal.load, cal.load_npz, cal.from_arviz])
def test_pipes_and_devices_are_refused_and_not_waited_for(tmp_path: Path, load: Callable[[Path], Any]) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", Path("/dev/zero")):
        with refused(path, "expected a regular file"):
            load(path)
    (tmp_path / "store").mkdir()
    os.mkfifo(tmp_path / "store" / "zarr.json")
    if load is cal.from_arviz:
        with refused(tmp_path / "store", "expected a regular file"):
            load(tmp_path / "store")


@pytest.mark.parametrize("name", KINDS)
def test_links_are_followed(tmp_path: Path, name: str) -> None:
    there, link = tmp_path / KINDS[name].name, tmp_path / f"link-{KINDS[name].name}"
    KINDS[name].write(there)
    link.symlink_to(there)
    assert type(KINDS[name].load(link)) is type(KINDS[name].load(there))


def test_a_flip_in_the_header_alone_is_seen(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    KINDS["model"].write(path)
    with safe_open(path, framework="pt") as archive:
        assert "sha256" in archive.metadata()
    whole = path.read_bytes()
    path.write_bytes(whole.replace(b'num_components\\": 2', b'num_components\\": 3'))
    assert path.read_bytes() != whole
    with refused(path):
        cal.load(path)
