"""The trainer that Lightning gives to :func:`align`: its loggers, its checkpoints and its silence."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger

from calmrl_prob.errors import ArgumentError
from calmrl_prob.training.checkpoints import CheckpointFiles, LastCheckpoint
from calmrl_prob.training.options import AlignOptions


def make_trainer(
    options: AlignOptions,
    callbacks: Sequence[lightning.Callback],
    folder: Path | None,
    checkpoint: dict[str, Any] | None,
    trainer_options: Mapping[str, Any] | None,
) -> lightning.Trainer:
    """A trainer on one CPU, unless ``trainer_options`` say otherwise; with logs and checkpoints if there is a folder.

    Args:
        options: of the training.
        callbacks: besides that which writes checkpoints.
        folder: of the training.
        checkpoint: what was read of the one to go on from.
        trainer_options: of ``lightning.Trainer``.

    Raises:
        ArgumentError: Lightning refuses ``trainer_options``.
    """
    own, loggers = list(callbacks), []
    if folder is not None:
        own.append(LastCheckpoint(folder))
        loggers = [CSVLogger(folder, name="", version="csv"), TensorBoardLogger(folder, name="", version="tensorboard")]
    device_options: dict[str, Any] = {"accelerator": "cpu", "devices": 1, **(trainer_options or {})}
    device_options["plugins"] = [CheckpointFiles(checkpoint), *_as_list(device_options.get("plugins"))]
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


def _as_list(plugins: object) -> list[object]:
    return [] if plugins is None else list(plugins) if isinstance(plugins, list | tuple) else [plugins]


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
