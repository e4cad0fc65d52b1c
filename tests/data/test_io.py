from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from calmrl_prob._support.files import write_atomically, write_folder_atomically
from calmrl_prob.errors import ArgumentError, ArgumentTypeError, DataError, FileFormatError
from calmrl_prob.io import load_npz


def write(path: Path, **changes: object) -> Path:
    """A small well-formed file, with arrays replaced, added, or (None) left out."""
    text = np.arange(12.0, dtype=np.float32).reshape(4, 3)
    text[2] = np.nan
    arrays: dict[str, object] = {
        "x_image": np.ones((4, 2), np.float16),
        "x_text": text,
        "labels": np.array([0, 1, 0, 1]),
        "ids": np.array(["a", "b", "c", "d"]),
        "train_idx": np.array([3, 0]),
        "test_idx": np.array([1]),
        "caption": np.array(["one", "two", "three", "four"]),
        **changes,
    }
    np.savez(path, **{key: array for key, array in arrays.items() if array is not None})  # type: ignore[arg-type]
    return path


def write_half(path: Path) -> None:
    with write_atomically(path) as temporary:
        temporary.write_text("half")
        raise OSError("disk full")


class TestLoadNpz:
    def test_everything_in_it(self, tmp_path: Path) -> None:
        data = load_npz(write(tmp_path / "small.npz"))
        assert data.dims == {"image": 2, "text": 3}
        assert data.dtype == torch.float32
        assert data.observed_mask.tolist() == [[True, True], [True, True], [True, False], [True, True]]
        assert data.ids is not None
        assert data.labels is not None
        assert data.partition is not None
        assert data.ids.tolist() == ["a", "b", "c", "d"]
        assert data.labels.tolist() == [0, 1, 0, 1]
        assert data.partition.tolist() == ["train", "test", "", "train"]
        assert data.train["text"].tolist() == [[0.0, 1.0, 2.0], [9.0, 10.0, 11.0]]
        assert data.covariates["caption"].tolist() == ["one", "two", "three", "four"]
        assert data.attributes == {"name": "small"}

    def test_choices(self, tmp_path: Path) -> None:
        path = write(tmp_path / "small.npz", train_idx=None, test_idx=None)
        data = load_npz(path, ["image"], dtype=torch.float64, ids="caption")
        assert data.names == ("image",)
        assert data.dtype == torch.float64
        assert data.ids is not None
        assert data.ids.tolist() == ["one", "two", "three", "four"]
        assert data.covariates["ids"].tolist() == ["a", "b", "c", "d"]
        assert data.partition is None
        with pytest.raises(ArgumentError, match=r"small\.npz has no modality 'audio'; it has \['image', 'text'\]"):
            load_npz(path, ["image", "audio"])
        with pytest.raises(ArgumentTypeError, match="expected a sequence"):
            load_npz(path, "image")

    def test_a_wrong_name_for_the_identifiers_lists_the_arrays(self, tmp_path: Path) -> None:
        path = write(tmp_path / "small.npz", ids=None)
        assert load_npz(path).ids is None
        for wrong in ("imgae", "x_image", "train_idx"):
            with pytest.raises(ArgumentError, match=rf"ids: .*no array '{wrong}'.*\['caption', 'labels'\]"):
                load_npz(path, ids=wrong)
        with pytest.raises(ArgumentTypeError, match="ids: expected the name"):
            load_npz(path, ids=None)  # type: ignore[arg-type]
        for wrong_names in ([], ["text", "text"]):
            with pytest.raises(ArgumentError, match="names: expected one or more distinct modalities, got"):
                load_npz(path, wrong_names)
        with pytest.raises(ArgumentTypeError, match="names: expected a sequence"):
            load_npz(path, 3)  # type: ignore[arg-type]

    def test_modalities_left_out_are_not_read(self, tmp_path: Path) -> None:
        path = write(tmp_path / "small.npz", x_text=np.array([[{}]], dtype=object))
        assert load_npz(path, ["image"]).dims == {"image": 2}

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"x_image": None, "x_text": None}, r"no modality in it, only \['caption'.*x_<name>"),
            ({"x_text": np.array([None] * 4)}, "array 'x_text' cannot be read.*savez"),
            ({"labels": np.array([None] * 4)}, "array 'labels' cannot be read"),
            ({"x_text": np.array([["a"]] * 4)}, "x_text should hold numbers"),
            ({"x_text": np.ones(4)}, r"x_text should hold numbers of shape \(N, D\), but is float64 \(4,\)"),
            ({"labels": np.array([1, 2])}, r"'labels' has shape \(2,\), but there are 4 instances"),
            ({"caption": np.array("one")}, r"'caption' has shape \(\)"),
            ({"train_idx": np.array([0, 4])}, r"train_idx should hold row numbers in 0 \.\. 3"),
            ({"train_idx": np.array([0, 0])}, "train_idx should hold distinct"),
            ({"train_idx": np.array([0.5])}, "train_idx should hold distinct row numbers, but is float64"),
            ({"test_idx": np.array([1, 3])}, "test_idx and train_idx share row 3|train_idx and test_idx share row 3"),
        ],
    )
    def test_broken_rules_name_file_and_array(self, tmp_path: Path, changes: dict[str, object], message: str) -> None:
        with pytest.raises(FileFormatError, match=message) as caught:
            load_npz(write(tmp_path / "odd.npz", **changes))
        assert "odd.npz" in str(caught.value)

    def test_bad_values_are_data_errors(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match=r"modality 'image'.*row 0"):
            load_npz(write(tmp_path / "odd.npz", x_image=np.full((4, 2), np.inf)))

    def test_not_an_archive(self, tmp_path: Path) -> None:
        with pytest.raises(FileNotFoundError, match=r"path: there is no file .*none\.npz"):
            load_npz(tmp_path / "none.npz")
        with pytest.raises(ArgumentError, match=r"path: expected a file, but .* is a folder"):
            load_npz(tmp_path)
        (tmp_path / "text.npz").write_text("hello")
        (tmp_path / "empty.npz").write_bytes(b"")
        (tmp_path / "cut.npz").write_bytes(b"PK\x03\x04")
        np.save(tmp_path / "single.npy", np.ones(3))
        save_file({"x": torch.ones(2)}, tmp_path / "model.npz")
        problems = {
            "text.npz": "got something else",
            "empty.npz": "got an empty file",
            "cut.npz": "damaged",
            "single.npy": "got a single array",
            "model.npz": "got something else.*read models with calmrl_prob.load",
        }
        for name, problem in problems.items():
            with pytest.raises(FileFormatError, match=f"{name}.*{problem}") as caught:
                load_npz(tmp_path / name)
            assert "pickle" not in str(caught.value)
            assert "objects" not in str(caught.value)

    def test_objects_are_refused_without_advice_to_unpickle(self, tmp_path: Path) -> None:
        with pytest.raises(
            FileFormatError, match=r"'labels' cannot be read \(it holds Python objects.*numbers"
        ) as caught:
            load_npz(write(tmp_path / "odd.npz", labels=np.array([None] * 4)))
        assert "allow_pickle" not in str(caught.value)

    @pytest.mark.parametrize("keep", [0.3, 0.7, 0.99])
    def test_truncated(self, tmp_path: Path, keep: float) -> None:
        whole = write(tmp_path / "whole.npz").read_bytes()
        (tmp_path / "cut.npz").write_bytes(whole[: int(keep * len(whole))])
        with pytest.raises(FileFormatError, match=r"cut\.npz"):
            load_npz(tmp_path / "cut.npz")

    def test_flipped_bits(self, tmp_path: Path) -> None:
        content = bytearray(write(tmp_path / "flipped.npz").read_bytes())
        at = content.index(np.float32(11.0).tobytes())
        content[at] ^= 0xFF
        (tmp_path / "flipped.npz").write_bytes(bytes(content))
        with pytest.raises(FileFormatError, match="array 'x_text' cannot be read"):
            load_npz(tmp_path / "flipped.npz")


class TestWriteAtomically:
    def test_replaces_only_when_whole(self, tmp_path: Path) -> None:
        path = tmp_path / "result.txt"
        path.write_text("old")
        with pytest.raises(OSError, match="disk full"):
            write_half(path)
        assert path.read_text() == "old"
        with write_atomically(path) as temporary:
            assert temporary.name == path.name  # writers that look at the suffix see the right one
            temporary.write_text("new")
        assert path.read_text() == "new"
        assert [entry.name for entry in tmp_path.iterdir()] == ["result.txt"]

    def test_nothing_written_is_an_error(self, tmp_path: Path) -> None:
        with pytest.raises(FileNotFoundError), write_atomically(tmp_path / "result.txt"):
            pass
        assert list(tmp_path.iterdir()) == []

    def test_permissions_are_those_of_an_ordinary_file(self, tmp_path: Path) -> None:
        (tmp_path / "plain").write_text("")
        with write_atomically(tmp_path / "atomic") as temporary:
            temporary.write_text("")
        assert (tmp_path / "atomic").stat().st_mode == (tmp_path / "plain").stat().st_mode

    def test_a_link_is_followed_and_a_device_refused(self, tmp_path: Path) -> None:
        (tmp_path / "link").symlink_to(tmp_path / "there")
        with write_atomically(tmp_path / "link") as temporary:
            temporary.write_text("new")
        assert (tmp_path / "link").is_symlink()
        assert (tmp_path / "there").read_text() == "new"
        os.mkfifo(tmp_path / "pipe")
        with pytest.raises(ArgumentError, match="is a pipe, socket or device"), write_atomically(tmp_path / "pipe"):
            pass

    def test_what_was_left_over_is_removed(self, tmp_path: Path) -> None:
        for name, inside in ((".calmrl-unfinished-a", [".lock", "model"]), (".calmrl-unfinished-b", [])):
            (tmp_path / name).mkdir()
            for each in inside:
                (tmp_path / name / each).write_text("")
        with write_atomically(tmp_path / "one") as first:
            first.write_text("1")
            with write_atomically(tmp_path / "two") as second:
                second.write_text("2")
        assert sorted(entry.name for entry in tmp_path.iterdir()) == ["one", "two"]

    def test_the_last_of_a_folder_is_no_leftover(self, tmp_path: Path) -> None:
        """A writer killed between moving the old folder away and the new one into its place."""
        (tmp_path / ".calmrl-unfinished-a/.before").mkdir(parents=True)
        (tmp_path / ".calmrl-unfinished-a/.lock").write_text("")
        with write_folder_atomically(tmp_path / "new.zarr", ".zarr") as temporary:
            temporary.mkdir()
        assert (tmp_path / ".calmrl-unfinished-a/.before").exists()
        assert sorted(entry.name for entry in tmp_path.iterdir()) == [".calmrl-unfinished-a", "new.zarr"]
