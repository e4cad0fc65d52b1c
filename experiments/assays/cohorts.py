"""Cohorts of ``experiments.medicine``: assays of samples or cells, with classes and, where they have them, batches."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from calmrl_prob.data import MultimodalData
from calmrl_prob.errors import ArgumentError, FileFormatError
from experiments.default_choice.removal import Task, make_task
from experiments.harness.file_or_source import FileOrSource
from experiments.harness.split import Split

#: Ways in which training rows lose assays: "own" not at all, "mcar" as ``removal.remove`` does, "batch": one batch of
#: those that have all assays loses one of them wholly.
MISSING = ("own", "mcar", "batch")


@dataclass(frozen=True)
class Cohort(FileOrSource):
    """One cohort, not read yet: an entry of ``cohorts`` in the configuration.

    Attributes:
        file: of a folder, with arrays x_<assay> and ``labels``.
        source: makes the data, with labels, where they are no file.
        batch: the array, or covariate, that tells batches apart; None without.
        missing: how training rows lose assays, some of :data:`MISSING`.
        test_share: of the rows.
        most_seeds: of contenders that take long here, seeds that they are run for at most, 0 to leave them out.

    Raises:
        ArgumentError: neither a file nor a source, or both; or an unknown way to lose assays.
    """

    batch: str | None = None
    missing: tuple[str, ...] = ("own",)
    test_share: float = 0.25
    most_seeds: Mapping[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not set(self.missing) <= set(MISSING):
            raise ArgumentError(f"missing: expected some of {list(MISSING)}, got {list(self.missing)}.")

    def read(self, folder: str | Path | None) -> MultimodalData:
        """All rows, with classes, names of features and batches.

        Raises:
            FileFormatError: the file lacks an array.
        """
        if self.source is not None:
            return self.source()
        with np.load(Path(str(folder)) / str(self.file), allow_pickle=False) as arrays:
            names = [key[2:] for key in arrays.files if key.startswith("x_")]
            needed = ["labels", *([self.batch] if self.batch else [])]
            if not names or any(key not in arrays.files for key in needed):
                raise FileFormatError(f"{self.file}: expected arrays x_<assay> and {needed}; it has {arrays.files}.")
            import pandas as pd

            features = {n: arrays[f"features_{n}"] if f"features_{n}" in arrays.files else None for n in names}
            values = {n: pd.DataFrame(arrays[f"x_{n}"].astype(np.float32), columns=features[n]) for n in names}
            beside = {self.batch: arrays[self.batch]} if self.batch else {}
            counts = {key: arrays[key] for key in arrays.files if key.startswith("counts_")}
            return MultimodalData(values, labels=arrays["labels"], covariates={**beside, **counts}, empty="refuse")


@dataclass(frozen=True)
class Hidden:
    """Training rows that lack assays, and test rows of which truth is known.

    Attributes:
        task: both, in units that all methods see: each feature centred and of unit variance.
        batch: the covariate that tells batches apart; None without.
        tested: for each assay the test rows that it is hidden of, imputed from the others.
    """

    task: Task
    batch: str | None
    tested: dict[str, MultimodalData]


def hide(name: str, cohort: Cohort, data: MultimodalData, how: str, seed: int) -> Hidden:
    """Part the rows, classes evenly, and hide assays of the training rows.

    Args:
        name: of the cohort.
        cohort: says what tells batches apart.
        data: what it read.
        how: one of :data:`MISSING`.
        seed: of both.
    """
    train, test = data.split(1.0 - cohort.test_share, seed=seed, stratify=True)
    test = test.subset(test.complete_rows())
    tested: dict[str, Any] = dict.fromkeys(data.names, slice(None))
    if how == "batch":
        train, tested = _one_batch(train, test, str(cohort.batch), seed)
    found = make_task(Split(name, train, test), "mcar" if how == "mcar" else "own", seed, "feature")
    task = Task(
        _known(found.train, train), _known(found.test, _of_known_batches(test, train, cohort.batch)), found.centre
    )
    return Hidden(task, cohort.batch, {assay: task.test.subset(rows) for assay, rows in tested.items()})


def _of_known_batches(test: MultimodalData, train: MultimodalData, column: str | None) -> MultimodalData:
    """Test rows, without a batch where no training row is of theirs: of a batch of one cell."""
    if column is not None:
        own = test.covariates[column]
        if not bool((known := np.isin(own, train.covariates[column])).all()):
            test.covariates[column] = np.where(known, own.astype(object), None)
    return test


def _known(prepared: MultimodalData, like: MultimodalData) -> MultimodalData:
    """The rows in new units, with what else was known of them."""
    import pandas as pd

    def frame(name: str) -> pd.DataFrame:
        names = like.feature_names[name]
        return pd.DataFrame(prepared[name].numpy(), columns=None if names is None else list(names))

    values = {name: frame(name) for name in prepared.names}
    covariates = {key: value for key, value in like.covariates.items() if not key.startswith("counts_")}
    return MultimodalData(values, labels=like.labels, covariates=covariates)


def _one_batch(
    train: MultimodalData, test: MultimodalData, column: str, seed: int
) -> tuple[MultimodalData, dict[str, np.ndarray]]:
    """Training rows of which a whole batch lost an assay, the seed decides which, and the test rows of this batch."""
    batches = train.covariates[column]
    complete = train.observed_mask.all(1).numpy()
    whole = [b for b in np.unique(batches).tolist() if bool(complete[batches == b].all())]
    if len(whole) < 2:
        raise ArgumentError(f"missing: 'batch' needs two batches with all assays, so that one is left; got {whole}.")
    m, chosen = seed % len(train.names), whole[seed // len(train.names) % len(whole)]
    mask = train.observed_mask.clone()
    mask[np.flatnonzero(batches == chosen), m] = False
    return train.mask(mask), {train.names[m]: np.flatnonzero(test.covariates[column] == chosen)}
