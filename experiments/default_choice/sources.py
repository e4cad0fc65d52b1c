"""Data sets of ``experiments.defaults``: files of a folder, what is bundled, and what is drawn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from calmrl_prob.data import MultimodalData
from calmrl_prob.errors import ArgumentError, FileFormatError
from experiments.harness.file_or_source import FileOrSource
from experiments.harness.split import Split


@dataclass(frozen=True)
class DataSet(FileOrSource):
    """One data set, not read yet: an entry of ``datasets`` in the configuration.

    Attributes:
        file: of a folder, with arrays x_<modality>, and ``train_idx`` and ``test_idx`` where it has a split.
        source: makes the data, where they are no file.
        modalities: which to use; all if None.
        rows: "all", "complete", or the name of a boolean array of the file.
        scale: "feature" or "modality": what inputs are brought to unit variance by, for all methods alike.
        components: principal components of each modality to keep, of the training rows; all features if None.
        test_share: of the complete rows, parted anew by each seed; where None, the data's own split is used.
        assays: whether it is of the kind that mofapy2 is made for, and compared on.

    Raises:
        ArgumentError: neither a file nor a source, or both; or an option is none of those above.
    """

    modalities: Sequence[str] | None = None
    rows: str = "all"
    scale: str = "modality"
    components: int | None = None
    test_share: float | None = None
    assays: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.scale not in ("feature", "modality"):
            raise ArgumentError(f"scale: expected 'feature' or 'modality', got {self.scale!r}.")
        if self.components is not None and self.components < 1:
            raise ArgumentError(f"components: expected a number from 1 up, or null for all, got {self.components}.")

    def read(self, folder: str | Path | None) -> MultimodalData:
        """All rows that are to be used, with a partition if the data have one.

        Raises:
            FileFormatError: the file lacks an array, or cannot be read.
        """
        if self.source is not None:
            found = self.source()
            return found if self.modalities is None else found.select(list(self.modalities))
        if self.file is None or folder is None:
            raise FileFormatError(f"data_root: expected the folder of {self.file}, got {folder!r}.")
        return _read(Path(folder) / self.file, self.modalities, self.rows)

    def split(self, name: str, data: MultimodalData, seed: int) -> Split:
        """Training rows, and those test rows that lack nothing.

        Args:
            name: of the data.
            data: what ``read`` returned.
            seed: parts the rows, where the data have no split to use.
        """
        if self.test_share is None:
            test = data.test
            return Split(name, data.train, test.subset(test.complete_rows()))
        return Split(name, *data.subset(data.complete_rows()).split(1.0 - self.test_share, seed=seed))


def _read(path: Path, modalities: Sequence[str] | None, rows: str) -> MultimodalData:
    """Arrays of a file; what else is in it stays there."""
    with np.load(path, allow_pickle=False) as arrays:
        names = [key[2:] for key in arrays.files if key.startswith("x_")] if modalities is None else list(modalities)
        needed = [f"x_{name}" for name in names] + ([] if rows in ("all", "complete") else [rows])
        absent = [key for key in needed if key not in arrays.files]
        if absent or not names:
            raise FileFormatError(f"{path}: expected arrays {needed or 'x_<modality>'}; it has {arrays.files}.")
        values = {name: arrays[f"x_{name}"].astype(np.float32) for name in names}
        number = len(next(iter(values.values())))
        part = np.full(number, "none", dtype="<U5")
        for key in ("train", "test"):
            if f"{key}_idx" in arrays.files:
                part[arrays[f"{key}_idx"]] = key
        chosen = np.ones(number, dtype=bool) if rows in ("all", "complete") else arrays[rows].astype(bool)
    data = MultimodalData(values, partition=part, empty="refuse").subset(chosen)
    return data.subset(data.complete_rows()) if rows == "complete" else data
