"""``align``: the two steps of calibrated alignment in turn, until validation recall no longer rises."""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import pandas as pd
import torch
from lightning.pytorch.callbacks import EarlyStopping
from torch import Tensor, nn
from torch.utils.data import Dataset

from calmrl_prob._support.arguments import keyword_options, whole_number
from calmrl_prob._support.randomness import seeded
from calmrl_prob.alignment.calibration import Calibration
from calmrl_prob.alignment.views import Views
from calmrl_prob.data import MultimodalData
from calmrl_prob.data.stream import MultimodalStream
from calmrl_prob.errors import ArgumentError, CalmrlWarning, DataError
from calmrl_prob.evaluation.retrieval.representations import cosine_recall
from calmrl_prob.linear_gaussian import LinearGaussian
from calmrl_prob.training.arguments import (
    checked_calibration,
    checked_encoders,
    checked_objective,
    checked_path,
    recorded,
)
from calmrl_prob.training.batches import EpochSampler, as_dataset, batch_loader
from calmrl_prob.training.checkpoints import only_training, read_checkpoint
from calmrl_prob.training.generative_step import GenerativeStep
from calmrl_prob.training.input_imputation import InputImputation
from calmrl_prob.training.module import AlignmentModule
from calmrl_prob.training.options import AlignOptions
from calmrl_prob.training.resuming import require_restorable
from calmrl_prob.training.rows import TrainingRows
from calmrl_prob.training.streamed import RowsOfStream, StreamRows
from calmrl_prob.training.trainer import make_trainer, quiet_lightning
from calmrl_prob.training.watch import RECALL, Watch


@dataclass(frozen=True)
class Alignment:
    """Encoders that :func:`align` trained, the generative model of their output, and the history.

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
    rows = EpochSampler(range(len(dataset)), shuffle=False)  # type: ignore[arg-type]
    for batch in batch_loader(dataset, module.names, rows, batch_size):
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


def _warn_of_warm_up(calibration: Calibration, options: AlignOptions) -> None:
    if calibration.needs_model and options.warmup_epochs >= options.max_epochs:
        warnings.warn(
            f"warmup_epochs: {options.warmup_epochs} of {options.max_epochs} epochs are warm-up, so nothing is "
            f"calibrated by {calibration.name!r} before the end; raise max_epochs, or resume with more of them.",
            CalmrlWarning,
            stacklevel=3,
        )


def _rows(
    data: MultimodalData | Dataset[Any] | MultimodalStream,
    validation: MultimodalData | Dataset[Any] | float | None,
    names: tuple[str, ...],
    options: AlignOptions,
) -> tuple[TrainingRows | StreamRows, dict[str, Any], MultimodalData | Dataset[Any] | None]:
    """The training rows, what a checkpoint knows them by, and the validation rows."""
    if isinstance(data, MultimodalStream):
        share = validation if isinstance(validation, float) else 0.0
        chosen = RowsOfStream(data, names, share, options.seed, options.chunk_rows)
        held_out = chosen.held_out() if isinstance(validation, float) else _checked(validation, names)
        return StreamRows(chosen, options), {"stream": data.fingerprint, "held_out": share}, held_out
    if isinstance(validation, float):
        raise ArgumentError(
            f"validation: a share, {validation}, is of a stream, and these data are in memory; pass rows, as "
            "data.split(0.9) parts them."
        )
    dataset = as_dataset(data, list(names))
    rows = TrainingRows(dataset, names, options.batch_size, options.seed, options.warmup_epochs)
    return rows, {"num_instances": len(dataset)}, _checked(validation, names)  # type: ignore[arg-type]


def _checked(
    validation: MultimodalData | Dataset[Any] | None, names: tuple[str, ...]
) -> MultimodalData | Dataset[Any] | None:
    """Validation rows, if encoders can take them."""
    if validation is not None:
        as_dataset(validation, list(names), may_lack=True, argument="validation")
    return validation


def align(
    data: MultimodalData | Dataset[Any] | MultimodalStream,
    encoders: Mapping[str, nn.Module],
    objective: Callable[[Views], Tensor],
    calibration: Calibration | str = "none",
    *,
    validation: MultimodalData | Dataset[Any] | float | None = None,
    input_imputation: InputImputation | None = None,
    folder: str | os.PathLike[str] | None = None,
    resume: str | os.PathLike[str] | None = None,
    trainer_options: Mapping[str, Any] | None = None,
    options: AlignOptions | None = None,
    **settings: Any,
) -> Alignment:
    """Train encoders so that all modalities of an instance align to one anchor, although some are absent.

    Every epoch the generative model is fitted to the representations of the training rows (step 1), and the encoders
    are trained on the observed ones and its imputations (step 2). The encoders given are trained in place.

    Args:
        data: N instances; ``MultimodalData``, or a dataset whose items are dicts that may lack modalities; or a stream
            of them, of which no more than chunks and ``buffer_rows`` are in memory.
        encoders: for each modality a module from (n, ...) to (n, D), in the order that the masks have.
        objective: a function of ``Views``, such as those of ``calmrl_prob.alignment.objectives``.
        calibration: one of ``CALIBRATIONS`` by name, or an object.
        validation: rows that choose the epoch, by R@1 over the cosine of representations; none to take the last. Of a
            stream also a share of its rows, chosen by a hash of their ids, left out of training and held in memory.
        input_imputation: completes the inputs before they are encoded.
        folder: where logs (CSV, TensorBoard) and ``checkpoints/last.ckpt`` go, in the place of those of an earlier run;
            none are written without. One training at a time has it.
        resume: a checkpoint of an earlier run with the same settings, to go on from. Nothing in it is unpickled.
        trainer_options: of ``lightning.Trainer``: accelerator, devices, strategy, precision ...; one CPU by default.
            Under ``torchrun`` with several processes, their number as ``devices`` and ``strategy="ddp"``; each takes
            its part of the rows, in batches of ``batch_size``.
        options: all other settings, with their defaults: K, epochs, batches, AdamW, early stopping, the seed.
        **settings: single ones of these options, by keyword: ``max_epochs=3``, ``latent_dim=4``.

    Returns:
        The trained encoders at their best epoch, the generative model, and the history.

    Raises:
        ArgumentError: an option is unknown, out of range, or other than the one that the checkpoint was made with; or
            another training writes into ``folder``.
        FileFormatError: the checkpoint is damaged, of another origin or of a newer version.
        OSError: a log or checkpoint cannot be written, as on a full disk; the checkpoint before still stands.
        ArgumentTypeError: an argument is of another type.
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
    options = AlignOptions.of(options, settings, "align", besides=keyword_options(align, settled=()))
    target, path = checked_path("folder", folder), checked_path("resume", resume)
    checkpoint = None if path is None else read_checkpoint(path)
    rows, known, validation = _rows(data, validation, tuple(modules), options)
    _warn_of_warm_up(calibration, options)
    module = AlignmentModule(
        modules,
        objective,
        calibration,
        input_imputation=input_imputation,
        options=options,
        settings={
            "calibration": recorded(calibration),
            "objective": recorded(objective),
            "modalities": list(modules),
            **known,
            **options.recorded(),
        },
    )
    step = GenerativeStep(rows, options.latent_dim, options.generative()) if calibration.needs_model else None
    watch = Watch(None if validation is None else partial(_validation_recall, validation), step)
    stopping = None
    if validation is not None and options.patience is not None:
        stopping = EarlyStopping(RECALL, mode="max", patience=options.patience, check_on_train_epoch_end=True)
    callbacks = [callback for callback in (step, watch, stopping) if callback is not None]
    with seeded(options.seed), quiet_lightning():
        trainer = make_trainer(options, callbacks, target, checkpoint, trainer_options)
        if path is not None and checkpoint is not None:
            require_restorable(path, checkpoint, module, trainer)
        with only_training(target if trainer.is_global_zero else None):
            trainer.fit(module, datamodule=rows, ckpt_path=path)
    watch.restore(module)
    stopped = stopping is not None and bool(stopping.stopped_epoch)
    return Alignment(module, watch.history, watch.best_epoch, "early stopping" if stopped else "max_epochs")
