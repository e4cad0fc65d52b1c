"""Checkpoints of a training: files that are read whole or refused, and one training at a time that writes them."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.plugins.io import CheckpointIO
from torch import Tensor

from calmrl_prob._support.archives import Format, read_archive, separate, write_archive
from calmrl_prob._support.locks import held
from calmrl_prob._support.trees import put_together, taken_apart
from calmrl_prob.errors import ArgumentError, FileFormatError

#: What to do about a checkpoint that is none.
AGAIN = "go on from another one, or start anew without resume"
_KIND = "Checkpoint"
_FORMAT = Format(
    "calmrl-prob checkpoint",
    written_by="a checkpoint that align wrote",
    otherwise="pass checkpoints/last.ckpt of a training; models are read by calmrl_prob.load",
    again=AGAIN,
)


class CheckpointFiles(CheckpointIO):
    """Lightning's checkpoints in files of tensors and JSON, written in one step and never pickled.

    Args:
        given: what was read already of the one checkpoint that a run goes on from.
    """

    def __init__(self, given: dict[str, Any] | None = None) -> None:
        self.given = given

    def save_checkpoint(
        self,
        checkpoint: dict[str, Any],
        path: str | os.PathLike[str],
        storage_options: Any = None,  # noqa: ANN401 - what Lightning passes
    ) -> None:
        """Write one.

        Raises:
            ArgumentTypeError: a module's state is something else than tensors and numbers.
            OSError: it cannot be written; the one before still stands.
        """
        content, tensors = taken_apart(checkpoint)
        write_archive(path, {"kind": _KIND, "content": content}, separate(tensors), _FORMAT)

    def load_checkpoint(self, path: str | os.PathLike[str], *_: object, **__: object) -> dict[str, Any]:
        """The one that is gone on from; Lightning's further arguments are about unpickling."""
        return read_checkpoint(Path(path)) if self.given is None else self.given

    def remove_checkpoint(self, path: str | os.PathLike[str]) -> None:
        """Remove one."""
        Path(path).unlink(missing_ok=True)


class LastCheckpoint(Checkpoint):
    """Writes ``checkpoints/last.ckpt`` anew after each epoch.

    Args:
        folder: of the training.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / "checkpoints" / "last.ckpt"

    def on_train_epoch_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """The epoch is over, and validated."""
        trainer.save_checkpoint(self.path, weights_only=False)


@contextmanager
def only_training(folder: Path | None) -> Iterator[None]:
    """Make the folder of a training, if there is to be one, and let no other training write into it meanwhile.

    Raises:
        ArgumentError: another one does, or there is a file in its place.
        OSError: it cannot be made.
    """
    if folder is None:
        yield
        return
    try:
        (folder / "checkpoints").mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise ArgumentError(f"folder: there is a file in the place of {folder} or in it; pass another one.") from error
    with held(folder / ".training") as mine:
        if not mine:
            raise ArgumentError(
                f"folder: another training is writing into {folder}; wait until it ends, or pass another folder."
            )
        yield


def read_checkpoint(path: Path) -> dict[str, Any]:
    """A checkpoint that :func:`align` wrote, whole.

    Raises:
        ArgumentError: there is none.
        FileFormatError: it is damaged, of another origin or of a newer version.
    """
    if not path.exists():
        raise ArgumentError(f"resume: {str(path)!r} does not exist; checkpoints are in folder/checkpoints.")
    if path.is_dir():
        raise FileFormatError(f"{path}: expected a checkpoint, got a folder; pass checkpoints/last.ckpt in it.")
    return read_archive(path, {_KIND: (lambda config, shapes: None, _checked)}, _FORMAT)


def _checked(config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """A checkpoint with all that Lightning needs to look at it at all."""
    checkpoint = put_together(config["content"], tensors)
    for key, kind in (("state_dict", dict), ("callbacks", dict), ("loops", dict), ("optimizer_states", list)):
        if not isinstance(checkpoint[key], kind):
            raise FileFormatError(f"{key!r}: expected a {kind.__name__}")
    if checkpoint["lr_schedulers"] != []:
        raise FileFormatError("'lr_schedulers': there are none")
    version = checkpoint["pytorch-lightning_version"]  # those before 2 would be migrated by rules for pickles
    if not re.fullmatch(r"[2-9][0-9]{0,2}(\.[0-9]{1,9}){1,2}((\.?(post|dev)|a|b|rc)[0-9]{1,9})*", version):
        raise FileFormatError(f"expected a version of Lightning, got {version!r:.50}")
    return dict(checkpoint)
