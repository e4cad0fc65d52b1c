"""Batches of instances that may lack modalities: of arrays in memory, or of any ``Dataset`` of raw inputs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from calmrl_prob._support.arguments import brief, described
from calmrl_prob.data import MultimodalData
from calmrl_prob.errors import ArgumentTypeError, DataError, SchemaError


@dataclass(frozen=True)
class Batch:
    """Batch of B instances: their inputs, and which modalities they have.

    Attributes:
        inputs: for each modality what is present, (n_m, ...), rows in the batch's order.
        observed_mask: (B, M) bool, True = PRESENT, modalities in the order of ``inputs``.
    """

    inputs: Mapping[str, Tensor]
    observed_mask: Tensor

    def __len__(self) -> int:
        return len(self.observed_mask)

    def to(self, device: torch.device | str) -> Batch:
        """The same on a device."""
        return Batch({name: value.to(device) for name, value in self.inputs.items()}, self.observed_mask.to(device))

    def pin_memory(self) -> Batch:
        """The same in page-locked memory, as a ``DataLoader`` asks for it."""
        return Batch({n: value.pin_memory() for n, value in self.inputs.items()}, self.observed_mask.pin_memory())


class Collate:
    """Puts items together, dicts from modality to tensor that leave out, or hold None for, what the instance lacks.

    Args:
        names: the modalities, in the order of the masks.

    Raises:
        SchemaError: an item has a modality that is not among them, or shapes differ between items.
        DataError: an input is not finite; the message says of which item and modality.

    Example:
        >>> batch = Collate(["image", "text"])([{"image": torch.ones(3, 8, 8)}, {"text": torch.ones(5), "image": None}])
        >>> batch.observed_mask.tolist(), batch.inputs["image"].shape
        ([[True, False], [False, True]], torch.Size([1, 3, 8, 8]))
    """

    def __init__(self, names: Sequence[str]) -> None:
        self.names = tuple(names)

    def __call__(self, items: Batch | Sequence[Mapping[str, Any]]) -> Batch:
        """One batch; what is one already is left as it is."""
        if isinstance(items, Batch):
            return items
        found: dict[str, list[Tensor]] = {name: [] for name in self.names}
        observed_mask = torch.zeros(len(items), len(self.names), dtype=torch.bool)
        for row, item in enumerate(items):
            if not isinstance(item, Mapping):
                raise ArgumentTypeError(
                    f"dataset: expected a dict from modality to tensor for each item, got {brief(item)}; return "
                    f"one such as {{{self.names[0]!r}: tensor}}."
                )
            unknown = [name for name in item if name not in found]
            if unknown:
                raise SchemaError(f"dataset: item has a modality {unknown[0]!r}; they are {list(self.names)}.")
            for m, name in enumerate(self.names):
                value = item.get(name)
                if value is not None:
                    value = _tensor(name, row, value)
                    if value.is_floating_point() and not bool(value.isfinite().all()):
                        raise DataError(
                            f"dataset: modality {name!r} of item {row} of a batch holds NaN or infinity; leave the "
                            "modality out of an item that lacks it."
                        )
                    found[name].append(value)
                    observed_mask[row, m] = True
        return Batch({name: _stacked(name, values) for name, values in found.items()}, observed_mask)


def _tensor(name: str, row: int, value: object) -> Tensor:
    try:
        return torch.as_tensor(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ArgumentTypeError(
            f"dataset: modality {name!r} of item {row} of a batch is no tensor but {brief(value)}; make it one, "
            "such as of numbers for words."
        ) from error


def _stacked(name: str, values: list[Tensor]) -> Tensor:
    shapes = {tuple(value.shape) for value in values}
    if len(shapes) > 1:
        raise SchemaError(f"dataset: modality {name!r} comes in the shapes {sorted(shapes)}; make them one.")
    return torch.stack(values) if values else torch.empty(0)


class InMemory(Dataset[Any]):
    """``MultimodalData`` as a dataset that hands out whole batches.

    Args:
        data: N instances, whole modalities.

    Raises:
        DataError: single features are missing.
    """

    def __init__(self, data: MultimodalData) -> None:
        if data.has_partial_rows:
            raise DataError("data: encoders need whole modalities, and single features are missing; impute them first.")
        self.names = tuple(data.names)
        self._inputs = {name: data.filled(name) for name in data.names}
        self._observed_mask = data.observed_mask

    def __len__(self) -> int:
        return len(self._observed_mask)

    def __getitem__(self, row: int) -> dict[str, Tensor]:
        here = zip(self.names, self._observed_mask[row].tolist(), strict=True)
        return {name: self._inputs[name][row] for name, present in here if present}

    def __getitems__(self, rows: Sequence[int]) -> Batch:
        return self.batch(torch.as_tensor(rows))

    def batch(self, rows: Tensor) -> Batch:
        """Some rows, (B,) int64, in their order."""
        mask = self._observed_mask[rows]
        return Batch({name: self._inputs[name][rows[mask[:, m]]] for m, name in enumerate(self.names)}, mask)

    def subset(self, rows: Tensor) -> InMemory:
        """Some rows alone, copied."""
        return self._with({name: values[rows] for name, values in self._inputs.items()}, self._observed_mask[rows])

    def joined(self, other: InMemory) -> InMemory:
        """These rows, and those of another with the same modalities."""
        inputs = {name: torch.cat([values, other._inputs[name]]) for name, values in self._inputs.items()}
        return self._with(inputs, torch.cat([self._observed_mask, other._observed_mask]))

    def _with(self, inputs: Mapping[str, Tensor], observed_mask: Tensor) -> InMemory:
        new = copy(self)
        new._inputs, new._observed_mask = dict(inputs), observed_mask
        return new


class EpochSampler(Sampler[int]):
    """Rows in an order that depends on seed and epoch alone, so that a run that resumes goes on as it would have.

    Args:
        rows: which ones.
        seed: of the orders.
        epoch: whose order. There is no ``set_epoch``: trainers that call it count otherwise when they resume.
        shuffle: whether they are shuffled at all.
        rank, world_size: of several processes each takes every ``world_size``-th row; with ``even`` the last ones are
            dropped, so that all have as many.
        even: see there.

    Example:
        >>> first, second = (list(EpochSampler(range(6), seed=0, epoch=epoch)) for epoch in (0, 1))
        >>> sorted(first) == sorted(second), first != second
        (True, True)
    """

    def __init__(
        self,
        rows: Sequence[int],
        seed: int = 0,
        *,
        epoch: int = 0,
        shuffle: bool = True,
        rank: int = 0,
        world_size: int = 1,
        even: bool = True,
    ) -> None:
        self.rows = torch.as_tensor(list(rows), dtype=torch.int64)
        self.seed, self.epoch, self.shuffle = seed, epoch, shuffle
        self.rank, self.world_size, self.even = rank, world_size, even

    def __len__(self) -> int:
        whole, rest = divmod(len(self.rows), self.world_size)
        return whole if self.even or self.rank >= rest else whole + 1

    def __iter__(self) -> Iterator[int]:
        rows = self.rows
        if self.shuffle:
            generator = torch.Generator().manual_seed((self.seed * 1_000_003 + self.epoch) % 2**63)
            rows = rows[torch.randperm(len(rows), generator=generator)]
        yield from rows[self.rank :: self.world_size][: len(self)].tolist()


def as_dataset(
    data: MultimodalData | Dataset[Any], names: Sequence[str], *, may_lack: bool = False, argument: str = "data"
) -> Dataset[Any]:
    """The dataset of what a user passed; if it ``may_lack`` modalities altogether, it need not name them.

    Raises:
        ArgumentTypeError: it is neither.
        SchemaError: a modality has no encoder, or the other way round.
    """
    if isinstance(data, MultimodalData):
        if may_lack and set(data.names) < set(names):
            data = data.conform({name: data.dims.get(name, 1) for name in names})
        if set(data.names) != set(names):
            raise SchemaError(f"{argument}: its modalities are {list(data.names)}, the encoders are of {list(names)}.")
        return InMemory(data.select(list(names)))
    if isinstance(data, Mapping):
        raise ArgumentTypeError(f"{argument}: expected MultimodalData, got a dict; make it MultimodalData({argument}).")
    if not (hasattr(data, "__getitem__") and hasattr(data, "__len__")):
        raise ArgumentTypeError(
            f"{argument}: expected MultimodalData, or a dataset with __len__ and __getitem__, got {described(data)}."
        )
    return data


def batch_loader(
    dataset: Dataset[Any], names: Sequence[str], sampler: Sampler[int], batch_size: int, **options: Any
) -> DataLoader[Any]:
    """A loader of :class:`Batch`; further options are those of ``DataLoader``."""
    return DataLoader(dataset, batch_size=batch_size, sampler=sampler, collate_fn=Collate(names), **options)
