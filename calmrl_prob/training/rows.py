"""Rows of an epoch: those that have every modality while it warms up, then all."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import lightning
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from calmrl_prob.errors import DataError
from calmrl_prob.training.batches import Batch, EpochSampler, batch_loader


class TrainingRows(lightning.LightningDataModule):
    """The training rows, in an order that depends on seed and epoch alone.

    Args:
        dataset: N items.
        names: the modalities.
        batch_size: B.
        seed: of the orders.
        warmup_epochs: first ones, on complete rows alone.

    Raises:
        DataError: there are fewer than 2 rows, or none is complete and there is a warm-up.
    """

    def __init__(
        self, dataset: Dataset[Any], names: Sequence[str], batch_size: int, seed: int, warmup_epochs: int = 0
    ) -> None:
        super().__init__()
        self.dataset, self.modalities, self.batch_size, self.seed = dataset, tuple(names), batch_size, seed
        self.warmup_epochs = warmup_epochs
        self.everything: Sequence[int] = range(len(dataset))  # type: ignore[arg-type]
        if len(self.everything) < 2:
            raise DataError(f"data: expected at least 2 instances, got {len(self.everything)}.")
        self.complete: list[int] = []
        if warmup_epochs:
            self.complete = self.observed_mask().all(dim=1).nonzero().flatten().tolist()
            if len(self.complete) < 2:
                raise DataError(
                    f"warmup_epochs: only {len(self.complete)} instances have every modality; set warmup_epochs=0."
                )

    def observed_mask(self) -> Tensor:
        """(N, M) bool, True = PRESENT; of a dataset that does not say, by a look at each item."""
        known = getattr(self.dataset, "observed_mask", None)
        if known is not None:
            return torch.as_tensor(known)
        rows = [[self.dataset[row].get(name) is not None for name in self.modalities] for row in self.everything]
        return torch.tensor(rows, dtype=torch.bool)

    def train_dataloader(self) -> DataLoader[Any]:
        """The batches of the epoch that is about to begin."""
        trainer = self.trainer
        assert trainer is not None
        rows = self.complete if trainer.current_epoch < self.warmup_epochs else self.everything
        sampler = EpochSampler(
            rows, self.seed, epoch=trainer.current_epoch, rank=trainer.global_rank, world_size=trainer.world_size
        )
        return batch_loader(self.dataset, self.modalities, sampler, self.batch_size)

    def __iter__(self) -> Iterator[Batch]:
        """All rows once, each process its part: for statistics."""
        trainer = self.trainer
        rank, world_size = (trainer.global_rank, trainer.world_size) if trainer is not None else (0, 1)
        sampler = EpochSampler(self.everything, shuffle=False, rank=rank, world_size=world_size, even=False)
        yield from batch_loader(self.dataset, self.modalities, sampler, max(self.batch_size, 1024))
