"""Rows of raw inputs that may lack modalities: clips of moving emoji, and signals of a watch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.data import Dataset

from calmrl_prob.encoders import ConvEncoder, MLPEncoder, VideoEncoder, WaveformEncoder
from calmrl_prob.errors import FileFormatError


@dataclass(frozen=True)
class RawRows(Dataset[Any]):
    """N rows; items are dicts that leave out what the row lacks.

    Attributes:
        inputs: for each modality (N, ...); what is missing holds zeros.
        observed_mask: (N, M) bool, True = PRESENT.
        labels: (N,).
        groups: (N,) what rows share that must not tell of each other.
    """

    inputs: Mapping[str, Tensor]
    observed_mask: Tensor
    labels: NDArray[Any]
    groups: NDArray[Any]

    def __len__(self) -> int:
        return len(self.observed_mask)

    def __getitem__(self, row: int) -> dict[str, Tensor]:
        here = zip(self.inputs.items(), self.observed_mask[row].tolist(), strict=True)
        return {name: values[row] for (name, values), present in here if present}

    def without(self, name: str) -> RawRows:
        """The same rows without a modality; rows that have no other are left out."""
        mask = self.observed_mask.clone()
        mask[:, list(self.inputs).index(name)] = False
        kept = mask.any(1).nonzero().squeeze(1).numpy()
        return replace(self, observed_mask=mask).subset(kept)

    def thinned(self, rate: float, seed: int) -> RawRows:
        """The same rows with that share of the cells gone, one of each row staying."""
        generator = torch.Generator().manual_seed(seed)
        order = torch.rand(self.observed_mask.shape, generator=generator).masked_fill(~self.observed_mask, 2.0)
        stays = order == order.min(1, keepdim=True).values
        gone = torch.rand(self.observed_mask.shape, generator=generator) < rate
        return replace(self, observed_mask=self.observed_mask & (stays | ~gone))

    def subset(self, rows: NDArray[Any]) -> RawRows:
        """Some of the rows."""
        index = torch.as_tensor(rows)
        inputs = {name: values[index] for name, values in self.inputs.items()}
        return RawRows(inputs, self.observed_mask[index], self.labels[rows], self.groups[rows])


class AxesEncoder(nn.Module):
    """Signals of several axes, (n, T, A), to the mean (n, D) of what a WaveformEncoder of each makes of it."""

    def __init__(self, axes: int, out_features: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.axes = nn.ModuleList(
            WaveformEncoder(out_features, channels=(32, 32), window=32, hop=8, dropout=dropout) for _ in range(axes)
        )

    def forward(self, signals: Tensor) -> Tensor:
        """(n, T, A) to (n, D)."""
        mapped: Tensor = torch.stack([one(signals[:, :, axis]) for axis, one in enumerate(self.axes)]).mean(0)
        return mapped


def moving_emoji(folder: Path) -> tuple[RawRows, RawRows, Callable[[int], nn.ModuleDict]]:
    """Still, moving picture, name and tags of 905 emoji; stills have no moving picture.

    Returns:
        Training rows, test rows, and what makes encoders of a width.
    """
    vectors, frames = _read(folder / "fluent_motion.npz"), _read(folder / "fluent_motion_frames.npz")
    videos = torch.as_tensor(frames["frames"]).permute(0, 1, 4, 2, 3).float() / 255
    inputs = {"still": videos[:, 0], "motion": videos}
    inputs |= {name: torch.as_tensor(vectors[f"x_{name}"]).float() for name in ("name", "tags")}
    mask = torch.ones(len(videos), 4, dtype=torch.bool)
    mask[:, 1] = torch.as_tensor(~np.isnan(vectors["x_motion"].astype(np.float32)).any(1))

    def encoders(width: int) -> nn.ModuleDict:
        texts = {name: MLPEncoder(384, width, hidden=(), dropout=0.0) for name in ("name", "tags")}
        return nn.ModuleDict({"still": ConvEncoder(3, width), "motion": VideoEncoder(3, width), **texts})

    rows = RawRows(inputs, mask, vectors["labels"], vectors["family"])
    return rows.subset(vectors["train_idx"]), rows.subset(vectors["test_idx"]), encoders


def watch_signals(folder: Path) -> tuple[RawRows, RawRows, Callable[[int], nn.ModuleDict]]:
    """Accelerometer and gyroscope of windows of 3 s, (150, 3) each, in units of their standard deviations."""
    arrays = _read(folder / "wristwatch.npz")
    signal, train = torch.as_tensor(arrays["signal"]).float(), torch.as_tensor(arrays["train_idx"])
    signal = signal / signal[train].std(dim=(0, 1))
    inputs = {"accelerometer": signal[:, :, :3].contiguous(), "gyroscope": signal[:, :, 3:].contiguous()}
    rows = RawRows(inputs, torch.ones(len(signal), 2, dtype=torch.bool), arrays["labels"], arrays["subject"])

    def encoders(width: int) -> nn.ModuleDict:
        return nn.ModuleDict({name: AxesEncoder(3, width) for name in inputs})

    return rows.subset(arrays["train_idx"]), rows.subset(arrays["test_idx"]), encoders


#: The data sets of ``experiments.video``.
SETS = {"moving_emoji": moving_emoji, "wristwatch": watch_signals}


def _read(path: Path) -> dict[str, NDArray[Any]]:
    """All arrays of a file.

    Raises:
        FileFormatError: there is none.
    """
    if not path.is_file():
        raise FileFormatError(f"data_root: there is no {path.name} in {path.parent}; give the folder that has it.")
    with np.load(path, allow_pickle=False) as arrays:
        return {name: arrays[name] for name in arrays.files}
