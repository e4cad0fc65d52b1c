"""Training rows of a stream: each process and each worker of its loader reads chunks of its own, shuffled on the way.

Chunk i of a pass is that of process i mod R, there of worker (i div R) mod W; nobody reads another's. Rows are drawn at
random from a buffer of fixed size, which chunks fill in their order (the shuffle of webdataset and tf.data): rows that
stand farther apart than the buffer is long never meet in a batch, so files in the order of some label are to be
shuffled once before.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import lightning
import numpy as np
import torch
import torch.distributed as distributed
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from calmrl_prob._support.arguments import real_number
from calmrl_prob.data import MultimodalData
from calmrl_prob.data.row_keys import row_keys
from calmrl_prob.data.stream import MultimodalStream
from calmrl_prob.errors import ArgumentError, DataError, SchemaError
from calmrl_prob.training.batches import Batch, InMemory
from calmrl_prob.training.module import is_distributed
from calmrl_prob.training.options import AlignOptions

#: Rows of a batch of the pass for statistics.
_STATISTICS = 1024


@dataclass(frozen=True)
class RowsOfStream:
    """Rows of a stream that serve one purpose, chosen by a hash of their ids, the same in every pass and process.

    Attributes:
        stream: whole modalities, present or missing.
        names: the modalities, in the order of the encoders.
        share: of the rows that are held out for validation.
        seed: of the hash.
        chunk_rows: rows of a chunk, at most; the stream's own size if None.

    Raises:
        ArgumentError: the share is not in [0, 1).
        SchemaError: the stream's modalities are others.
    """

    stream: MultimodalStream
    names: tuple[str, ...]
    share: float = 0.0
    seed: int = 0
    chunk_rows: int | None = None

    def __post_init__(self) -> None:
        """Refuse what cannot be."""
        if not 0 <= real_number("validation", self.share, 0.1) < 1:
            raise ArgumentError(f"validation: expected a share of the rows in [0, 1), got {self.share!r}.")
        if set(self.stream.names) != set(self.names):
            raise SchemaError(
                f"data: its modalities are {list(self.stream.names)}, the encoders are of {list(self.names)}."
            )

    def chunks(self, first: int = 0, step: int = 1, *, held_out: bool = False) -> Iterator[MultimodalData]:
        """The rows of every ``step``-th chunk from ``first`` on, for training or those held out."""
        for number, (token, load) in enumerate(self.stream.parts(self.chunk_rows)):
            if number % step != first:
                continue
            chunk = load().select(list(self.names))
            own = (row_keys(chunk, token, self.seed) < np.uint64(int(self.share * 2**64))) == held_out
            if own.all():
                yield chunk
            elif own.any():
                yield chunk.subset(np.flatnonzero(own))

    def held_out(self) -> MultimodalData:
        """All rows that are held out, in memory: one pass over the stream.

        Raises:
            DataError: there are none.
        """
        parts = list(self.chunks(held_out=True))
        if not parts:
            raise DataError(f"validation: no row of the stream is among the {self.share:.3g} held out; hold out more.")
        return MultimodalData.concat(parts)


class StreamedBatches(IterableDataset[Batch]):
    """The batches of one process from its share of a stream, in the order that seed and epoch say.

    Args:
        rows: those for training.
        batch_size: B.
        buffer_rows: rows that batches are drawn from; 0 for the stream's own order.
        place: seed, epoch, process and number of processes.
        complete: only rows that have every modality.
    """

    def __init__(
        self,
        rows: RowsOfStream,
        batch_size: int,
        buffer_rows: int = 0,
        place: tuple[int, int, int, int] = (0, 0, 0, 1),
        *,
        complete: bool = False,
    ) -> None:
        self.rows, self.batch_size, self.buffer_rows, self.complete = rows, batch_size, buffer_rows, complete
        self.seed, self.epoch, self.rank, self.world_size = place

    def __iter__(self) -> Iterator[Batch]:
        info = get_worker_info()
        worker, workers = (0, 1) if info is None else (info.id, info.num_workers)
        chunks = self.rows.chunks(self.rank + worker * self.world_size, self.world_size * workers)
        if self.complete:
            whole = ((chunk, chunk.complete_rows()) for chunk in chunks)
            chunks = (chunk.subset(rows) for chunk, rows in whole if bool(rows.any()))
        if not self.buffer_rows:
            for chunk in chunks:
                dataset = InMemory(chunk)
                for some in torch.arange(len(chunk)).split(self.batch_size):
                    yield dataset.batch(some)
            return
        seeds = np.random.SeedSequence((self.seed, self.epoch, self.rank, worker))
        generator = torch.Generator().manual_seed(int(seeds.generate_state(1, np.uint64)[0] >> np.uint64(1)))
        yield from self._drawn(chunks, generator)

    def _drawn(self, chunks: Iterable[MultimodalData], generator: torch.Generator) -> Iterator[Batch]:
        """Batches at random from as many rows as the buffer holds, and whatever the last chunk brought."""
        held: InMemory | None = None
        for chunk in chunks:
            held = InMemory(chunk) if held is None else held.joined(InMemory(chunk))
            order = torch.randperm(len(held), generator=generator)
            batches = max(0, len(held) - self.buffer_rows) // self.batch_size
            drawn, rest = order[: batches * self.batch_size], order[batches * self.batch_size :]
            yield from (held.batch(some) for some in drawn.split(self.batch_size) if len(some))
            held = held.subset(rest)
        if held is not None:
            order = torch.randperm(len(held), generator=generator)
            yield from (held.batch(some) for some in order.split(self.batch_size))


class StreamRows(lightning.LightningDataModule):
    """The training rows of a stream, for Lightning and for the statistics of the generative model.

    Args:
        rows: which.
        options: of the training: batches, buffer, workers, warm-up, seed.
    """

    def __init__(self, rows: RowsOfStream, options: AlignOptions) -> None:
        super().__init__()
        self.rows, self.options = rows, options

    def train_dataloader(self) -> Iterable[Batch]:
        """The batches of the epoch that is about to begin."""
        trainer, options = self.trainer, self.options
        assert trainer is not None
        place = (options.seed, trainer.current_epoch, trainer.global_rank, trainer.world_size)
        complete = trainer.current_epoch < options.warmup_epochs
        batches = StreamedBatches(self.rows, options.batch_size, options.buffer_rows, place, complete=complete)
        return InStep(DataLoader(batches, batch_size=None, num_workers=options.num_workers), _device(trainer))

    def __iter__(self) -> Iterator[Batch]:
        """All rows once, each process its share: for statistics, which are added up over processes."""
        trainer = self.trainer
        rank, world_size = (trainer.global_rank, trainer.world_size) if trainer is not None else (0, 1)
        batches = StreamedBatches(self.rows, _STATISTICS, place=(0, 0, rank, world_size))
        yield from DataLoader(batches, batch_size=None, num_workers=self.options.num_workers)


@dataclass(frozen=True)
class InStep:
    """Batches of this process for as long as every process has one.

    Shares of a stream differ in rows, and a process with one batch more would wait forever for the gradients of the
    others. So before each batch all tell whether they have one, and the epoch ends with the first that has none.

    Attributes:
        loader: of this process.
        device: that processes talk by.
    """

    loader: Iterable[Batch]
    device: torch.device

    def __iter__(self) -> Iterator[Batch]:
        own, number = iter(self.loader), 0
        while self._all_have(batch := next(own, None)):
            assert batch is not None
            number += 1
            yield batch
        if not number:
            raise DataError(
                "data: a process has no row to begin the epoch with; give each a chunk, by a smaller chunk_rows or "
                "fewer processes, and with warmup_epochs each some row that has every modality."
            )

    def _all_have(self, batch: Batch | None) -> bool:
        if not is_distributed():
            return batch is not None
        there: Tensor = torch.tensor(int(batch is not None), device=self.device)
        distributed.all_reduce(there, distributed.ReduceOp.MIN)
        return bool(there)


def _device(trainer: lightning.Trainer) -> torch.device:
    device: Any = trainer.strategy.root_device
    return torch.device(device)
