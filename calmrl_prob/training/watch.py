"""Record of a training: the history of its epochs, and the weights of the best one."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from typing import Any

import lightning
import pandas as pd
import torch

from calmrl_prob.errors import FileFormatError
from calmrl_prob.linear_gaussian import LinearGaussian
from calmrl_prob.training.batches import Batch
from calmrl_prob.training.generative_step import GenerativeStep
from calmrl_prob.training.module import AlignmentModule, as_tensors

#: What early stopping looks at.
RECALL = "validation_recall"


def checked_rows(rows: object) -> None:
    """Refuse a history out of a file that is none.

    Raises:
        FileFormatError: it is no list of numbers by name.

    Example:
        >>> checked_rows([{"epoch": 0, "loss": 2.5}])
    """
    good = isinstance(rows, list) and all(
        isinstance(row, dict)
        and all(isinstance(name, str) and isinstance(number, int | float) for name, number in row.items())
        for row in rows
    )
    if not good:
        raise FileFormatError("expected a history of numbers by name, one row an epoch")


class Watch(lightning.Callback):
    """Keeps a row an epoch, and the module as it was when validation recall was highest.

    Args:
        recall: of a module on the validation rows, a share; None if there are none.
        step: whose seconds are told apart.
    """

    def __init__(self, recall: Callable[[AlignmentModule], float] | None, step: GenerativeStep | None = None) -> None:
        self.recall, self.step = recall, step
        self.rows: list[dict[str, float]] = []
        self.best_epoch, self._best = -1, -1.0
        self._weights: dict[str, torch.Tensor] = {}
        self._generative: LinearGaussian | None = None
        self._started = self._em_before = 0.0

    @property
    def history(self) -> pd.DataFrame:
        """One row an epoch."""
        return pd.DataFrame(self.rows)

    def setup(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, stage: str) -> None:
        """The clock of the first epoch."""
        self._started = time.perf_counter()

    def on_train_batch_start(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, batch: Batch, batch_idx: int
    ) -> None:
        """Random numbers that depend on the place in training alone: loaders draw some too, when they are made."""
        assert isinstance(pl_module, AlignmentModule)
        stream = pl_module.stream(batch_idx)
        torch.default_generator.manual_seed(stream)
        if pl_module.device.type == "cuda":
            torch.cuda.manual_seed_all(stream)

    def on_train_epoch_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Validation recall, the history, and the best weights."""
        assert isinstance(pl_module, AlignmentModule)
        em_seconds = self.step.seconds if self.step is not None else 0.0
        row = {
            "epoch": trainer.current_epoch,
            "loss": float(trainer.callback_metrics.get("loss", float("nan"))),
            "seconds": time.perf_counter() - self._started,
            "em_seconds": em_seconds - self._em_before,
        }
        if self.recall is not None:
            row[RECALL] = self.recall(pl_module)
            pl_module.log(RECALL, row[RECALL], sync_dist=False)
        self.rows.append(row)
        if self.recall is None or row[RECALL] > self._best:
            self.best_epoch, self._best = trainer.current_epoch, row.get(RECALL, -1.0)
            self._generative = pl_module.generative
            self._weights = copy.deepcopy(pl_module.state_dict())
        self._started, self._em_before = time.perf_counter(), em_seconds

    def restore(self, module: AlignmentModule) -> None:
        """Put the best epoch's weights back."""
        if self._weights:
            module.load_state_dict(self._weights)
            module.generative = self._generative

    def state_dict(self) -> dict[str, Any]:
        """For checkpoints."""
        kept = self._generative
        return {
            "rows": self.rows,
            "best_epoch": self.best_epoch,
            "best": self._best,
            "weights": self._weights,
            "generative": None if kept is None else as_tensors(kept),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """From a checkpoint."""
        self.rows, self.best_epoch, self._best = state_dict["rows"], state_dict["best_epoch"], state_dict["best"]
        checked_rows(self.rows)
        if not isinstance(self.best_epoch, int) or not isinstance(self._best, float):
            raise FileFormatError("expected a number as the best epoch, and as its recall")
        self._weights, kept = state_dict["weights"], state_dict["generative"]
        self._generative = None if kept is None else LinearGaussian(**kept)
