"""The trainer that Lightning gives to :func:`align`: its loggers, its silence, and its refusals."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from zipfile import is_zipfile

import lightning
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger

from calmrl_prob.errors import ArgumentError
from calmrl_prob.training.options import AlignOptions


def make_trainer(
    options: AlignOptions,
    callbacks: Sequence[lightning.Callback],
    folder: Path | None,
    trainer_options: Mapping[str, Any] | None,
) -> lightning.Trainer:
    """A trainer on one CPU, unless ``trainer_options`` say otherwise; with logs and checkpoints if there is a folder.

    Raises:
        ArgumentError: Lightning refuses ``trainer_options``.
    """
    own, loggers = list(callbacks), []
    if folder is not None:
        own.append(ModelCheckpoint(folder / "checkpoints", filename="{epoch}", save_last=True, save_top_k=0))
        loggers = [CSVLogger(folder, name="", version="csv"), TensorBoardLogger(folder, name="", version="tensorboard")]
    device_options: dict[str, Any] = {"accelerator": "cpu", "devices": 1, **(trainer_options or {})}
    if device_options.get("strategy") == "ddp":  # a batch may lack a modality, and its encoder then has no gradient
        device_options["strategy"] = "ddp_find_unused_parameters_true"
    try:
        return lightning.Trainer(
            max_epochs=options.max_epochs,
            callbacks=own,
            logger=loggers or False,
            enable_checkpointing=folder is not None,
            enable_progress_bar=options.progress,
            enable_model_summary=False,
            reload_dataloaders_every_n_epochs=1,
            use_distributed_sampler=False,
            num_sanity_val_steps=0,
            log_every_n_steps=1,
            **device_options,
        )
    except (TypeError, ValueError, MisconfigurationException) as error:
        raise ArgumentError(f"trainer_options: lightning.Trainer refuses {trainer_options!r}: {error}") from error


@contextmanager
def checkpoint_refusals(resume: Path | None) -> Iterator[None]:
    """Errors of torch and Lightning about a checkpoint that does not fit, in this package's words.

    Raises:
        ArgumentError: there is no such checkpoint, it is none, or it is of another run.
    """
    if resume is not None and not resume.is_file():
        raise ArgumentError(f"resume: {str(resume)!r} does not exist; checkpoints are in folder/checkpoints.")
    if resume is not None and not is_zipfile(resume):  # as torch writes them
        raise ArgumentError(f"resume: {str(resume)!r} is no checkpoint; pass one that align wrote.")
    try:
        yield
    except MisconfigurationException as error:
        if resume is None:
            raise
        raise ArgumentError(
            f"resume: Lightning cannot go on from {str(resume)!r} ({error}); pass more max_epochs than that has."
        ) from error
    except RuntimeError as error:
        if resume is not None and "loading state_dict" in str(error):
            raise ArgumentError(
                f"resume: {str(resume)!r} is of other encoders or another objective; go on with those it was made of."
            ) from error
        raise


@contextmanager
def quiet_lightning() -> Iterator[None]:
    """Lightning reports devices and the like on standard error; and one of its modules uses what torch is retiring."""
    reporters = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric")]
    levels = [reporter.level for reporter in reporters]
    for reporter in reporters:
        reporter.setLevel(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=r"lightning\.")
            yield
    finally:
        for reporter, level in zip(reporters, levels, strict=True):
            reporter.setLevel(level)
