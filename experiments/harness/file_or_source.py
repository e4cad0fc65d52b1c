"""Data of an experiment that are either a file of a folder which the user names, or made by a function."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from calmrl_prob.data import MultimodalData
from calmrl_prob.errors import ArgumentError


@dataclass(frozen=True)
class FileOrSource:
    """One of the two.

    Attributes:
        file: its name in the folder ``data_root``.
        source: makes the data, where they are no file.

    Raises:
        ArgumentError: neither a file nor a source, or both.
    """

    file: str | None = None
    source: Callable[[], MultimodalData] | None = None

    def __post_init__(self) -> None:
        if (self.file is None) == (self.source is None):
            raise ArgumentError(f"file: expected a file or a source, got {self.file!r} and {self.source!r}.")

    def lacking(self, folder: str | Path | None) -> str:
        """Why there are no data, in words; empty if there are."""
        if self.file is None:
            return ""
        if folder is None:
            return f"{self.file} is not part of the repository; give its folder as data_root=/path/to/files"
        return "" if (Path(folder) / self.file).is_file() else f"there is no {self.file} in {folder}"
