"""Checkpoints on disk: written each epoch in one step, by one training at a time, and refused as one error."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import calmrl_prob as cal
from calmrl_prob.alignment.objectives import OBJECTIVES
from calmrl_prob.alignment.views import Views
from calmrl_prob.errors import ArgumentError, ArgumentTypeError, FileFormatError
from calmrl_prob.training import Alignment, align
from calmrl_prob.training.checkpoints import only_training, read_checkpoint
from tests.cases.file_cases import KINDS
from tests.cases.training_cases import data, encoders, environment, run, weights


class StoppedError(Exception):
    """What stops a training in the middle."""


class Stopping(nn.Module):
    """The objective of pairs, until it was asked so often."""

    def __init__(self, after: int) -> None:
        super().__init__()
        self.pairs, self.left = OBJECTIVES["pairwise"](), after

    def forward(self, views: Views) -> Tensor:
        self.left -= 1
        if self.left < 0:
            raise StoppedError
        loss: Tensor = self.pairs(views)
        return loss


def train(after: int = 10**6, **options: Any) -> Alignment:
    settings = {"latent_dim": 4, "max_epochs": 5, "batch_size": 32, "validation": data(40, seed=1), **options}
    return align(data(), encoders(dropout=0.1), Stopping(after), "imputed_draw", **settings)


@pytest.mark.parametrize("em_options", [None, {"decay": 0.5}])
def test_a_training_that_was_stopped_within_an_epoch_goes_on_to_the_same_bits(
    tmp_path: Path, em_options: dict[str, Any] | None
) -> None:
    whole = train(em_options=em_options)
    with pytest.raises(StoppedError):
        train(after=17, em_options=em_options, folder=tmp_path)  # five batches an epoch: three epochs are whole
    checkpoint = tmp_path / "checkpoints/last.ckpt"
    assert len(read_checkpoint(checkpoint)["callbacks"]["Watch"]["rows"]) == 3
    resumed = train(em_options=em_options, folder=tmp_path, resume=checkpoint)
    assert torch.equal(weights(whole), weights(resumed))
    assert whole.best_epoch == resumed.best_epoch
    assert whole.history["loss"].tolist() == resumed.history["loss"].tolist()
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["checkpoints", "csv", "tensorboard"]
    assert [entry.name for entry in checkpoint.parent.iterdir()] == ["last.ckpt"]


@contextmanager
def full_disk(most: int) -> Iterator[None]:
    """Files end at so many bytes; the error is another than that of a full disk, and comes at the same places."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_is_told_as_it_is_and_leaves_the_checkpoint_before(tmp_path: Path) -> None:
    train(max_epochs=1, folder=tmp_path)
    checkpoint = tmp_path / "checkpoints/last.ckpt"
    before = checkpoint.read_bytes()
    with full_disk(len(before) // 2), pytest.raises(OSError, match="File too large") as caught:
        train(max_epochs=2, folder=tmp_path, resume=checkpoint)
    assert caught.value.filename == str(checkpoint)
    assert checkpoint.read_bytes() == before
    assert [entry.name for entry in checkpoint.parent.iterdir()] == ["last.ckpt"]
    assert len(train(max_epochs=2, folder=tmp_path, resume=checkpoint).history) == 2


def test_models_on_a_full_disk(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    model = cal.SharedLatentModel({"image": 200}, 3)
    with full_disk(1000), pytest.raises(OSError, match="File too large"):
        cal.save(model, path)
    assert list(tmp_path.iterdir()) == []


def test_a_link_is_followed_and_stays(tmp_path: Path) -> None:
    (tmp_path / "run/checkpoints").mkdir(parents=True)
    (tmp_path / "elsewhere").mkdir()
    link = tmp_path / "run/checkpoints/last.ckpt"
    link.symlink_to(tmp_path / "elsewhere/kept.ckpt")
    train(max_epochs=1, folder=tmp_path / "run")
    assert link.is_symlink()
    assert [entry.name for entry in (tmp_path / "elsewhere").iterdir()] == ["kept.ckpt"]
    assert len(train(max_epochs=2, resume=link).history) == 2


def test_two_trainings_do_not_share_a_folder(tmp_path: Path) -> None:
    with only_training(tmp_path):
        with pytest.raises(ArgumentError, match=r"folder: another training is writing into .*; wait until it ends, or"):
            train(max_epochs=1, folder=tmp_path)
        assert not (tmp_path / "csv").exists()
    train(max_epochs=1, folder=tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(ArgumentError, match="folder: there is a file in the place of"):
        train(max_epochs=1, folder=tmp_path / "file")


_WRITER = """
import sys, time
from pathlib import Path
from calmrl_prob._support.files import write_atomically
from calmrl_prob._support.locks import held
with held(Path(sys.argv[1]) / ".training"), write_atomically(Path(sys.argv[1]) / "checkpoints/last.ckpt") as temporary:
    temporary.write_text("half")
    print("writing", flush=True)
    time.sleep(600)
"""


def test_what_a_killed_writer_leaves_is_cleared_away_and_what_a_living_one_has_is_not(tmp_path: Path) -> None:
    command = [sys.executable, "-c", _WRITER, str(tmp_path)]
    inside = tmp_path / "checkpoints"
    inside.mkdir()
    with subprocess.Popen(command, env=environment(), stdout=subprocess.PIPE) as writer:
        assert writer.stdout is not None
        assert writer.stdout.readline() == b"writing\n"
        (half,) = inside.iterdir()
        with pytest.raises(ArgumentError, match="folder: another training"):
            train(max_epochs=1, folder=tmp_path)
        cal.save(cal.SharedLatentModel({"a": 2}, 1), inside / "model.safetensors")
        assert half.exists()
        writer.send_signal(signal.SIGKILL)
    assert half.exists()
    train(max_epochs=1, folder=tmp_path)
    assert sorted(entry.name for entry in inside.iterdir()) == ["last.ckpt", "model.safetensors"]


class Payload:
    """What runs when it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.abort, ()


@pytest.mark.parametrize("what", ["pipe", "folder", "empty", "half", "pickle", "model", "version"])
def test_what_is_no_checkpoint_is_refused_by_one_error(tmp_path: Path, what: str) -> None:
    path, good = tmp_path / "last.ckpt", tmp_path / "good.ckpt"
    KINDS["checkpoint"].write(good)
    if what == "pipe":
        os.mkfifo(path)
    elif what == "folder":
        path.mkdir()
    elif what == "pickle":
        torch.save({"state_dict": Payload()}, path)
    elif what == "model":
        KINDS["model"].write(path)
    else:
        whole = good.read_bytes()
        newer = whole.replace(b'"format_version":"1"', b'"format_version":"7"')
        path.write_bytes({"empty": b"", "half": whole[: len(whole) // 2], "version": newer}[what])
    with pytest.raises(FileFormatError, match=r"last\.ckpt: "):
        train(resume=path)


def test_no_single_byte_may_be_another(tmp_path: Path) -> None:
    path = tmp_path / "last.ckpt"
    KINDS["checkpoint"].write(path)
    whole = path.read_bytes()
    header = 8 + int.from_bytes(whole[:8], "little")
    for at in range(header, len(whole), 41):  # of the header see tests/test_files_fuzzed.py
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        with pytest.raises(FileFormatError, match="damaged"):
            read_checkpoint(path)


class Remembering(nn.Linear):
    """A module with a state that no file takes."""

    def get_extra_state(self) -> object:
        return {1, 2}

    def set_extra_state(self, state: object) -> None:
        pass


def test_states_that_no_file_takes_are_named(tmp_path: Path) -> None:
    own = nn.ModuleDict({**encoders(), "text": Remembering(10, 6)})
    with pytest.raises(ArgumentTypeError, match=r"state_dict/encoders.text._extra_state: expected tensors, .*got set"):
        align(data(), own, OBJECTIVES["pairwise"](), max_epochs=1, folder=tmp_path)


def test_a_checkpoint_of_the_same_settings_in_another_order_of_calls(tmp_path: Path) -> None:
    """What is read of a checkpoint is taken over once: a second run from the same file ends as the first."""
    run(max_epochs=1, folder=tmp_path)
    checkpoint = tmp_path / "checkpoints/last.ckpt"
    first, again = (run(max_epochs=2, resume=checkpoint) for _ in range(2))
    assert torch.equal(weights(first), weights(again))
