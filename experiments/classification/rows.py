"""Rows of one data set and seed: training rows that lack modalities, test rows that lack nothing, in common units."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from calmrl_prob.data import MultimodalData
from calmrl_prob.errors import ArgumentError
from experiments.comparison.imputers import Array, has, values
from experiments.harness.file_or_source import FileOrSource

Mechanism = Callable[..., Any]


@dataclass(frozen=True)
class LabelledSet(FileOrSource):
    """One data set, not read yet: an entry of ``datasets`` in the configuration.

    Attributes:
        file: of a folder, with arrays x_<modality>, ``labels``, ``train_idx`` and ``test_idx``.
        source: makes the data, where they are no file.
        modalities: which to use; all if None.
        scale: "feature" or "modality": what inputs are brought to unit variance by, for all methods alike.
        groups: the covariate whose rows must not tell of each other, such as the subject; None if there is none.
        own: whether training rows lack modalities by themselves, so that none are removed.

    Raises:
        ArgumentError: neither a file nor a source, or both; or no such scale.
    """

    modalities: Sequence[str] | None = None
    scale: str = "modality"
    groups: str | None = None
    own: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.scale not in ("feature", "modality"):
            raise ArgumentError(f"scale: expected 'feature' or 'modality', got {self.scale!r}.")

    def read(self, folder: str | Path | None) -> MultimodalData:
        """All rows, with labels and a partition."""
        if self.source is not None:
            data = self.source()
            return data if self.modalities is None else data.select(list(self.modalities))
        with np.load(Path(str(folder)) / str(self.file), allow_pickle=False) as arrays:
            names = [key[2:] for key in arrays.files if key.startswith("x_")]
            part = np.full(len(arrays["labels"]), "none", dtype="<U5")
            for key in ("train", "test"):
                part[arrays[f"{key}_idx"]] = key
            return MultimodalData(
                {name: arrays[f"x_{name}"].astype(np.float32) for name in self.modalities or names},
                labels=arrays["labels"],
                partition=part,
                covariates={} if self.groups is None else {self.groups: arrays[self.groups]},
            )


@dataclass(frozen=True)
class ClassTask:
    """Rows of one data set and seed, in the units that all methods see: centred and scaled by training rows.

    Attributes:
        train: training rows, which lack modalities; ``train.labels`` has None where a label is not shown.
        test: test rows, which lack nothing, with labels.
        groups: of the training rows, or None.
        zero: for each modality what a zero of the data's own units is in these, (D_m,).
    """

    train: MultimodalData
    test: MultimodalData
    groups: NDArray[Any] | None
    zero: Mapping[str, Array]


def make_class_task(
    dataset: LabelledSet,
    data: MultimodalData,
    mechanism: Mechanism,
    seed: int,
    rows: int | None = None,
    labelled: float = 1.0,
) -> ClassTask:
    """Remove modalities and labels from training rows, and bring all rows to common units.

    Args:
        dataset: what the data are.
        data: all of its rows.
        mechanism: of missingness.
        seed: of what is removed.
        rows: how many training rows to keep; all if None.
        labelled: share of the training rows whose label is shown.
    """
    generator = np.random.default_rng(seed)
    train, test = data.train, data.test
    test = test.subset(test.complete_rows())
    if rows is not None and rows < len(train):
        train = train.subset(np.sort(generator.choice(len(train), rows, replace=False)))
    if not dataset.own:
        train = train.mask(mechanism(train, seed=seed))
    labels = train.labels.astype(object)
    labels[generator.random(len(labels)) >= labelled] = None
    seen, shown, zero = {}, {}, {}
    for name in train.names:
        known, other, here = values(train, name), values(test, name), has(train, name)
        centre = known[here].mean(axis=0)
        spread = np.sqrt(((known[here] - centre) ** 2).mean(axis=0 if dataset.scale == "feature" else None))
        divisor = np.where(spread > 0, spread, 1.0)
        seen[name], shown[name] = (known - centre) / divisor, (other - centre) / divisor
        seen[name][~here] = np.nan
        zero[name] = -centre / divisor
    return ClassTask(
        MultimodalData({n: a.astype(np.float32) for n, a in seen.items()}, labels=labels),
        MultimodalData({n: a.astype(np.float32) for n, a in shown.items()}, labels=test.labels),
        None if dataset.groups is None else train.covariates[dataset.groups],
        zero,
    )
