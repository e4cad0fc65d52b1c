"""``align``: the two steps of calibrated alignment in turn, until validation recall no longer rises."""

from __future__ import annotations

import logging
import math
import os
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from zipfile import is_zipfile

import lightning
import pandas as pd
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from torch import Tensor, nn
from torch.utils.data import Dataset

from calmrl_prob._support.arguments import whole_number
from calmrl_prob._support.randomness import seeded
from calmrl_prob.alignment.calibration import Calibration
from calmrl_prob.alignment.views import Views
from calmrl_prob.data import MultimodalData
from calmrl_prob.errors import ArgumentError, CalmrlWarning, DataError
from calmrl_prob.evaluation.retrieval.representations import cosine_recall
from calmrl_prob.linear_gaussian import LinearGaussian
from calmrl_prob.training.arguments import (
    checked_calibration,
    checked_em_options,
    checked_encoders,
    checked_objective,
    checked_path,
    from_zero,
    recorded,
)
from calmrl_prob.training.batches import EpochSampler, as_dataset, batches
from calmrl_prob.training.generative_step import GenerativeStep
from calmrl_prob.training.input_imputation import InputImputation
from calmrl_prob.training.module import AlignmentModule
from calmrl_prob.training.rows import TrainingRows
from calmrl_prob.training.watch import RECALL, Watch

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Alignment:
    """What :func:`align` found.

    Attributes:
        module: encoders, objective and generative model, as they were at the best epoch.
        history: one row an epoch: loss, validation R@1 (share), seconds of the whole epoch and of EM.
        best_epoch: of the highest validation R@1, or the last one without validation rows.
        stop_reason: "max_epochs" or "early stopping".
    """

    module: AlignmentModule
    history: pd.DataFrame
    best_epoch: int
    stop_reason: str

    @property
    def encoders(self) -> nn.ModuleDict:
        """For each modality its encoder."""
        return self.module.encoders

    @property
    def generative_model(self) -> LinearGaussian | None:
        """Of the representations; None if the calibration needs none."""
        return self.module.generative

    @torch.no_grad()
    def represent(self, data: MultimodalData | Dataset[Any], batch_size: int = 1024) -> MultimodalData:
        """The representations of data, modality by modality, (N, D) each, missing where the modality is.

        Data may lack modalities altogether, such as queries that are of one; so do their representations.

        Raises:
            SchemaError: a modality has no encoder.
        """
        return _represent(self.module, data, whole_number("batch_size", batch_size, least=1))

    def __repr__(self) -> str:
        names, epochs = ", ".join(self.module.names), len(self.history)
        return f"Alignment({names}; best epoch {self.best_epoch} of {epochs}, stopped by {self.stop_reason})"


def _validation_recall(validation: MultimodalData | Dataset[Any], module: AlignmentModule) -> float:
    """R@1 by cosine over the pairs of modalities that some validation row has."""
    recall = float(cosine_recall(_represent(module, validation))["R@1"].mean())
    if math.isnan(recall):
        raise DataError("validation: no row has two modalities, so nothing can be retrieved; leave it out.")
    return recall


@torch.no_grad()
def _represent(module: AlignmentModule, data: MultimodalData | Dataset[Any], batch_size: int = 1024) -> MultimodalData:
    dataset = as_dataset(data, module.names, may_lack=True)
    training = module.training
    module.eval()
    parts, masks = [], []
    for batch in batches(dataset, module.names, EpochSampler(range(len(dataset)), shuffle=False), batch_size):  # type: ignore[arg-type]
        parts.append(module.encode(batch.to(module.device)).float().cpu())
        masks.append(batch.observed_mask)
    module.train(training)
    values, mask = torch.cat(parts), torch.cat(masks)
    extra: dict[str, Any] = {}
    if isinstance(data, MultimodalData):
        extra = {"ids": data.ids, "labels": data.labels, "partition": data.partition, "covariates": data.covariates}
    there = mask.any(dim=0)
    arrays = {name: values[:, m] for m, name in enumerate(module.names) if there[m]}
    found = MultimodalData(arrays, observed_mask=mask[:, there], **extra)
    return found.conform(dict.fromkeys(module.names, values.shape[2]))


def align(
    data: MultimodalData | Dataset[Any],
    encoders: Mapping[str, nn.Module],
    objective: Callable[[Views], Tensor],
    calibration: Calibration | str = "none",
    *,
    validation: MultimodalData | Dataset[Any] | None = None,
    input_imputation: InputImputation | None = None,
    latent_dim: int = 32,
    max_epochs: int = 50,
    warmup_epochs: int = 0,
    em_period: int = 1,
    em_options: Mapping[str, Any] | None = None,
    batch_size: int = 256,
    learning_rate: float = 1e-3,
    weight_decay: float = 1e-2,
    unit_norm: bool = True,
    reconstruction_weight: float = 0.0,
    patience: int | None = 10,
    seed: int = 0,
    progress: bool = False,
    folder: str | os.PathLike[str] | None = None,
    resume: str | os.PathLike[str] | None = None,
    trainer_options: Mapping[str, Any] | None = None,
) -> Alignment:
    """Train encoders so that all modalities of an instance align to one anchor, although some are absent.

    Every epoch the generative model is fitted to the representations of the training rows (step 1), and the encoders
    are trained on the observed ones and its imputations (step 2). The encoders given are trained in place.

    Args:
        data: N instances; ``MultimodalData``, or a dataset whose items are dicts that may lack modalities.
        encoders: for each modality a module from (n, ...) to (n, D), in the order that the masks have.
        objective: a function of ``Views``, such as those of ``calmrl_prob.alignment.objectives``.
        calibration: one of ``CALIBRATIONS`` by name, or an object.
        validation: rows that choose the epoch, by R@1 over the cosine of representations; none to take the last.
        input_imputation: completes the inputs before they are encoded.
        latent_dim: K of the generative model of the representations.
        max_epochs: at most.
        warmup_epochs: first ones, on the rows alone that have every modality (the paper's protocol).
        em_period: epochs from one step 1 to the next.
        em_options: of :class:`GenerativeStep`.
        batch_size: B.
        learning_rate: of AdamW.
        weight_decay: of AdamW, of the encoders' parameters.
        unit_norm: whether representations are scaled to length 1.
        reconstruction_weight: of the squared error of encoders that have a ``decode``.
        patience: epochs without a better validation R@1 after which it stops; None for never.
        seed: of batches and draws; the same seed gives the same weights.
        progress: show a progress bar.
        folder: where logs (CSV, TensorBoard) and ``checkpoints/last.ckpt`` go; none are written without.
        resume: a checkpoint of an earlier run with the same settings, to go on from.
        trainer_options: of ``lightning.Trainer``: accelerator, devices, strategy, precision ...; one CPU by default.
            Under ``torchrun`` with several processes, their number as ``devices`` and ``strategy="ddp"``; each takes
            its part of the rows, in batches of ``batch_size``.

    Returns:
        The trained encoders at their best epoch, the generative model, and the history.

    Raises:
        ArgumentError: an option is out of range, or other than the one that the checkpoint was made with.
        SchemaError: modalities and encoders do not go together, or outputs differ in width.
        DataError: too few rows, none with every modality for the warm-up, or a modality that no row has.
        NumericalError: an output or the loss is not finite; names the modality and the step.

    Example:
        >>> from calmrl_prob.alignment.objectives import OBJECTIVES
        >>> from calmrl_prob.encoders import build_encoders
        >>> generator = torch.Generator().manual_seed(0)
        >>> z = torch.randn(200, 4, generator=generator)
        >>> x = {name: z @ torch.randn(4, 12, generator=generator) for name in ("image", "text")}
        >>> x["text"][:80] = torch.nan
        >>> data = MultimodalData(x)
        >>> found = align(
        ...     data, build_encoders("linear", data.dims, 8), OBJECTIVES["pairwise"](), "imputed_draw", latent_dim=4,
        ...     max_epochs=3)
        >>> found.represent(data).dims, len(found.history)
        ({'image': 8, 'text': 8}, 3)
    """
    calibration, objective, modules = (
        checked_calibration(calibration),
        checked_objective(objective),
        checked_encoders(encoders),
    )
    em_options = checked_em_options(em_options)
    target, checkpoint = checked_path("folder", folder), checked_path("resume", resume)
    dataset = as_dataset(data, list(modules))
    if validation is not None:
        as_dataset(validation, list(modules), may_lack=True, argument="validation")
    learning_rate, weight_decay, reconstruction_weight = (
        from_zero(argument, value, example)
        for argument, value, example in (
            ("learning_rate", learning_rate, 1e-3),
            ("weight_decay", weight_decay, 1e-2),
            ("reconstruction_weight", reconstruction_weight, 1.0),
        )
    )
    em_period = whole_number("em_period", em_period, least=1)
    patience = None if patience is None else whole_number("patience", patience)
    max_epochs, batch_size = (
        whole_number(argument, value, least=1)
        for argument, value in (("max_epochs", max_epochs), ("batch_size", batch_size))
    )
    warmup_epochs = whole_number("warmup_epochs", warmup_epochs)
    if calibration.needs_model and warmup_epochs >= max_epochs:
        warnings.warn(
            f"warmup_epochs: {warmup_epochs} of {max_epochs} epochs are warm-up, so nothing is calibrated by "
            f"{calibration.name!r} before the end; raise max_epochs, or resume with more of them.",
            CalmrlWarning,
            stacklevel=2,
        )
    module = AlignmentModule(
        modules,
        objective,
        calibration,
        input_imputation=input_imputation,
        unit_norm=unit_norm,
        reconstruction_weight=reconstruction_weight,
        learning_rate=learning_rate,
        weight_decay=weight_decay,
        seed=seed,
        settings={
            "calibration": recorded(calibration),
            "objective": recorded(objective),
            "modalities": list(modules),
            "num_instances": len(dataset),  # type: ignore[arg-type]
            "latent_dim": latent_dim,
            "warmup_epochs": warmup_epochs,
            "em_period": em_period,
            "em_options": em_options,
            "batch_size": batch_size,
            "learning_rate": learning_rate,
            "weight_decay": weight_decay,
            "unit_norm": unit_norm,
            "reconstruction_weight": reconstruction_weight,
            "seed": seed,
        },
    )
    rows = TrainingRows(dataset, module.names, batch_size, seed, warmup_epochs)
    step = None
    if calibration.needs_model:
        options = {"first_epoch": warmup_epochs, "period": em_period, "seed": seed, **em_options}
        step = GenerativeStep(rows, latent_dim, **options)
    watch = Watch(None if validation is None else partial(_validation_recall, validation), step)
    callbacks: list[lightning.Callback] = [*([step] if step else []), watch]
    stopping = None
    if validation is not None and patience is not None:
        stopping = EarlyStopping(RECALL, mode="max", patience=patience, check_on_train_epoch_end=True)
        callbacks.append(stopping)
    loggers: list[Any] = []
    if target is not None:
        callbacks.append(ModelCheckpoint(target / "checkpoints", filename="{epoch}", save_last=True, save_top_k=0))
        loggers = [CSVLogger(target, name="", version="csv"), TensorBoardLogger(target, name="", version="tensorboard")]
    device_options: dict[str, Any] = {"accelerator": "cpu", "devices": 1, **(trainer_options or {})}
    if device_options.get("strategy") == "ddp":  # a batch may lack a modality, and its encoder then has no gradient
        device_options["strategy"] = "ddp_find_unused_parameters_true"
    with seeded(seed), _quiet():
        try:
            trainer = lightning.Trainer(
                max_epochs=max_epochs,
                callbacks=callbacks,
                logger=loggers or False,
                enable_checkpointing=target is not None,
                enable_progress_bar=progress,
                enable_model_summary=False,
                reload_dataloaders_every_n_epochs=1,
                use_distributed_sampler=False,
                num_sanity_val_steps=0,
                log_every_n_steps=1,
                **device_options,
            )
        except (TypeError, ValueError, MisconfigurationException) as error:
            raise ArgumentError(f"trainer_options: lightning.Trainer refuses {trainer_options!r}: {error}") from error
        with _refusing(checkpoint):
            trainer.fit(module, datamodule=rows, ckpt_path=checkpoint)
    watch.restore(module)
    stopped = stopping is not None and bool(stopping.stopped_epoch)
    return Alignment(module, watch.history, watch.best_epoch, "early stopping" if stopped else "max_epochs")


@contextmanager
def _refusing(resume: Path | None) -> Iterator[None]:
    """What torch says of a checkpoint that does not fit, in this package's words."""
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
def _quiet() -> Iterator[None]:
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
