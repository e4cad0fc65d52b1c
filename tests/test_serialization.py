"""Models come back from files bit by bit, and files that are no models are refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

import calmrl_prob as cal
from calmrl_prob._support import archives
from calmrl_prob.datasets import make_synthetic
from calmrl_prob.errors import ArgumentError, ArgumentTypeError, FileFormatError, ModelError
from calmrl_prob.linear_gaussian import LinearGaussian
from calmrl_prob.model import SharedLatentModel
from calmrl_prob.serialization import load, save
from tests.cases.model_cases import DIMS, random_model, random_prior


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "model.safetensors"


def rewrite(path: Path, metadata: dict[str, str] | None = None, drop: str | None = None) -> None:
    """The same file with other metadata, or without one of its tensors; without a checksum, as files once were."""
    with safe_open(path, framework="pt") as archive:
        tensors = {key: archive.get_tensor(key) for key in archive.keys() if key != drop}  # noqa: SIM118
        merged = {key: text for key, text in archive.metadata().items() if key != "sha256"} | (metadata or {})
    save_file(tensors, path, merged)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("noise", ["isotropic", "diagonal"])
def test_model_comes_back_exactly(path: Path, noise: str, dtype: torch.dtype) -> None:
    model = random_model(noise, random_prior(2)).to(dtype)
    save(model, path)
    loaded = load(path)
    assert isinstance(loaded, SharedLatentModel)
    assert (loaded.dims, loaded.latent_dim, loaded.noise, loaded.dtype) == (DIMS, 2, noise, dtype)
    assert list(loaded.dims) == list(DIMS)
    assert loaded.state_dict().keys() == model.state_dict().keys()
    for key, value in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[key], value)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_linear_gaussian_comes_back_exactly(path: Path, dtype: torch.dtype) -> None:
    lg = random_model("isotropic", random_prior(2)).linear_gaussian().to(dtype)  # with expanded noise, and a graph
    save(lg, path)
    loaded = load(path)
    assert isinstance(loaded, LinearGaussian)
    assert (loaded.names, loaded.dtype) == (lg.names, dtype)
    for mine, theirs in zip(loaded.joint(), lg.joint(), strict=True):
        assert torch.equal(mine, theirs)


@pytest.mark.parametrize("noise", ["isotropic", "diagonal", "full"])
def test_modalities_of_one_feature_come_back(path: Path, noise: str) -> None:
    dims = {"wide": 4, "one": 1}
    lg = SharedLatentModel(dims, 2, noise).linear_gaussian()  # isotropic noise is one number, expanded
    save(lg, path)
    loaded = load(path)
    for kind in ("loadings", "intercepts", "noise_variance"):
        for name in dims:
            assert torch.equal(getattr(loaded, kind)[name], getattr(lg, kind)[name])


def test_names_of_any_kind_come_back(path: Path) -> None:
    dims = {"text.title": 2, "Ärger/µ": 1, "a%2Eb": 3}
    save(SharedLatentModel(dims, 1), path)
    assert list(load(path).dims.items()) == list(dims.items())


def test_a_file_is_replaced_only_by_a_whole_one(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(random_model(seed=1), path)
    before = path.read_bytes()

    def half(tensors: object, filename: Path, metadata: object) -> None:
        filename.write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(archives, "save_file", half)
    with pytest.raises(OSError, match="disk full"):
        save(random_model(seed=2), path)
    assert path.read_bytes() == before
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]


def test_permissions_are_those_of_an_ordinary_file(path: Path) -> None:
    save(random_model(), path)
    (path.parent / "plain").write_text("")
    assert path.stat().st_mode == (path.parent / "plain").stat().st_mode


def test_damaged_files_are_refused(path: Path) -> None:
    save(random_model(), path)
    whole = path.read_bytes()
    for damaged in (whole[:-8], whole[: len(whole) // 2], b"", b"PK\x03\x04 something else", b"\x00" * 64):
        path.write_bytes(damaged)
        with pytest.raises(FileFormatError, match=r"model\.safetensors: .*save the model again"):
            load(path)


def test_every_flipped_byte_is_noticed(path: Path) -> None:
    save(random_model(), path)
    whole = path.read_bytes()
    header = 8 + int.from_bytes(whole[:8], "little")
    for at in range(header, len(whole), 7):  # anywhere among the numbers
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        with pytest.raises(FileFormatError, match=r"model\.safetensors: damaged.*sha256"):
            load(path)
    path.write_bytes(whole.replace(b"isotropic", b"isotropiC"))  # the description counts too
    with pytest.raises(FileFormatError):
        load(path)


def test_files_without_a_checksum_are_read(path: Path) -> None:
    model = random_model()
    save(model, path)
    rewrite(path)
    loaded = load(path)
    assert isinstance(loaded, SharedLatentModel)
    assert torch.equal(loaded.state_dict()["loadings/text"], model.state_dict()["loadings/text"])


@pytest.mark.parametrize(
    ("where", "error", "message"),
    [
        ("nodir/model", FileNotFoundError, r"there is no folder .*nodir to write model into; create it.*mkdir"),
        ("", ArgumentError, "path: expected the name of a file, got ''"),
        (".", ArgumentError, "path: expected a file, but .* is a folder"),
        (3, ArgumentTypeError, "path: expected a str or Path, got 3"),
    ],
)
def test_paths_that_cannot_be_written(tmp_path: Path, where: Any, error: type[Exception], message: str) -> None:  # noqa: ANN401
    target = tmp_path / where if where and isinstance(where, str) else where
    with pytest.raises(error, match=message) as caught:
        save(random_model(), target)
    assert ".unfinished" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []
    if error is not FileNotFoundError:
        with pytest.raises(error, match=message):
            load(target)


def test_foreign_files_are_refused(path: Path) -> None:
    save_file({"weight": torch.ones(2)}, path)
    with pytest.raises(FileFormatError, match=r"not a model that calmrl_prob\.save wrote"):
        load(path)
    with pytest.raises(FileNotFoundError, match="no file"):
        load(path.parent / "nothing.safetensors")


@pytest.mark.parametrize("version", ["2", "99", "one", ""])
def test_newer_versions_are_refused(path: Path, version: str) -> None:
    save(random_model(), path)
    rewrite(path, {"format_version": version, "library_version": "9.9"})
    with pytest.raises(FileFormatError, match=r"calmrl-prob 9\.9.*install a newer"):
        load(path)


@pytest.mark.parametrize(
    "change",
    [
        {"config": "{"},
        {"config": "[]"},
        {"config": json.dumps({"kind": "Something"})},
        {"config": json.dumps({"kind": "SharedLatentModel"})},
        {"config": json.dumps({"kind": "LinearGaussian", "names": ["video"]})},
        {
            "config": json.dumps(
                {
                    "kind": "SharedLatentModel",
                    "dims": {"image": 4, "text": 3, "audio": 3},
                    "latent_dim": 2,
                    "noise": "isotropic",
                    "prior": "normal",
                    "dtype": "float64",
                }
            )
        },
    ],
)
def test_headers_that_do_not_fit_are_refused(path: Path, change: dict[str, str]) -> None:
    save(random_model(), path)
    rewrite(path, change)
    with pytest.raises(FileFormatError, match="save the model again"):
        load(path)


def test_missing_or_infinite_tensors_are_refused(path: Path) -> None:
    model = random_model()
    save(model, path)
    rewrite(path, drop="loadings/text")
    with pytest.raises(FileFormatError, match="loadings/text"):
        load(path)
    with torch.no_grad():
        next(model.parameters()).fill_(torch.inf)
    save(model, path)
    with pytest.raises(FileFormatError, match="'loadings/image' holds NaN or infinities"):
        load(path)


def test_other_objects_are_refused(path: Path) -> None:
    with pytest.raises(ArgumentTypeError, match="got Linear"):
        save(torch.nn.Linear(2, 2), path)
    assert not path.exists()


def test_intervals_of_a_choice_go_with_the_model(path: Path) -> None:
    data = make_synthetic(300, {"a": 6, "b": 5}, latent_dim=2, missing_rate=0.2, seed=0).data
    fit = cal.fit(cal.SharedLatentModel(data.dims), data)
    cal.save(fit.model, path)
    model = cal.load(path)
    assert isinstance(model, SharedLatentModel)
    assert repr(model.intervals) == repr(fit.intervals)
    seen = data.subset(data.rows_with("a")).select(["a"])
    for level in (0.5, 0.9):
        expected, found = (cal.impute(given, seen, names=["b"]).interval(level)["b"] for given in (fit, model))
        for one, other in zip(expected, found, strict=True):
            torch.testing.assert_close(one, other, rtol=0, atol=0)
    with torch.no_grad():
        next(model.parameters()).mul_(2.0)
    cal.save(model, path)  # other parameters: the intervals are still not theirs
    loaded = cal.load(path)
    assert not loaded.intervals.fits(loaded)


def test_a_model_that_is_still_open_is_refused(path: Path) -> None:
    with pytest.raises(ModelError, match=r"cal\.fit"):
        cal.save(SharedLatentModel({"a": 3}), path)
