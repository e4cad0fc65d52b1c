"""Statistics of a stream by fold, gathered in one pass: all that a fit with its choice needs of any number of rows.

A row's fold is a hash of its id, so that it is the same in every pass, chunk and process. Beside the statistics of each
fold a sample of its rows is kept, by which intervals get the quantiles of errors that statistics cannot tell.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
from torch import Tensor

from calmrl_prob._support.arguments import brief, real_number, whole_number
from calmrl_prob._support.files import file_path
from calmrl_prob.data import MultimodalData
from calmrl_prob.data.row_keys import row_keys
from calmrl_prob.errors import ArgumentError, DataError
from calmrl_prob.linear_gaussian import ObservedBlocks, SufficientStatistics
from calmrl_prob.linear_gaussian.options import Options
from calmrl_prob.selection.folds import FoldedStatistics
from calmrl_prob.selection.sample import SmallestKeys

#: Rows of each fold that are kept as they are.
_SAMPLE = 1000
#: Bytes that the statistics may take.
_MOST_BYTES = 4e9

Groups = str | Callable[[MultimodalData], object] | None


@dataclass(frozen=True, kw_only=True)
class GatherOptions(Options):
    """Options of :func:`calmrl_prob.fit` for a stream, which it takes by keyword.

    Attributes:
        chunk_rows: rows of a chunk, at most; by default as many as make about 8 million numbers.
        state: a file to keep what was gathered in, so that a pass that was killed goes on where it stood and ends in
            the same model to the bit; it is removed when the fit is through. None for none.
        save_seconds: seconds between two writes of that file; 0 for one after each chunk.
        engine: "here", or "dask" for the workers of a Dask cluster.
        client: a ``dask.distributed.Client``; by default one of a cluster on this machine, for the time of the pass.

    Raises:
        ArgumentError: one is out of range, or they exclude each other.
    """

    chunk_rows: int | None = None
    state: Any = None
    save_seconds: float = 30.0
    engine: Literal["here", "dask"] = "here"
    client: Any = None

    def __post_init__(self) -> None:
        """Refuse what is out of range."""
        if self.chunk_rows is not None:
            whole_number("chunk_rows", self.chunk_rows, least=1)
        if not real_number("save_seconds", self.save_seconds, 30.0) >= 0:
            raise ArgumentError(f"save_seconds: expected 0 or more, got {self.save_seconds!r}.")
        if self.engine not in get_args(Literal["here", "dask"]):
            raise ArgumentError(f"engine: expected 'here' or 'dask', got {self.engine!r}.")
        if self.client is not None and self.engine != "dask":
            raise ArgumentError("client: it serves engine='dask'; pass that too.")
        if self.state is not None and self.engine == "dask":
            raise ArgumentError("state: Dask does again what a lost worker had done; leave it out with engine='dask'.")

    def end(self) -> None:
        """Remove the state: the fit that it was gathered for is through."""
        if self.state is not None:
            file_path(self.state).unlink(missing_ok=True)


class Gathered:
    """Statistics of a stream so far.

    Args:
        dims: the number of features D_m of each modality, with their names where they are known.
        num_folds: 1 where nothing is to be held out.
        seed: of dealing rows to folds.
        groups: what rows must share a fold by: the name of a covariate, or a function of a chunk that gives (N,)
            entries; None for their ids.

    Attributes:
        folds: statistics of each.
        samples: rows of each.
        token: of the last chunk; None before the first.
        num_rows: seen so far.
    """

    def __init__(self, dims: Mapping[str, int], num_folds: int, seed: int, groups: Groups = None) -> None:
        self.dims, self.seed, self.groups = dims, seed, groups
        self.folds = [SufficientStatistics(dims) for _ in range(num_folds)]
        self.samples = [SmallestKeys(_SAMPLE) for _ in range(num_folds)]
        self.token: str | None = None
        self.num_rows = 0
        self._about_a_point = False

    def about(self, shift: Mapping[str, Tensor]) -> Gathered:
        """Nothing yet, with rows to be taken about a point near their means."""
        empty = Gathered(self.dims, len(self.folds), self.seed, self.groups)
        empty.folds = [SufficientStatistics(self.dims, shift) for _ in self.folds]
        empty._about_a_point = True
        return empty

    def add(self, token: str, chunk: MultimodalData) -> None:
        """Add the rows of a chunk.

        Raises:
            DataError: rows have no modality, or lack single features.
            ArgumentError: ``groups`` does not serve the chunk, or its patterns are too many.
        """
        chunk = chunk.conform(self.dims)
        self._require_served(token, chunk)
        keys = row_keys(chunk, token, self.seed)
        groups = None if self.groups is None else groups_of(token, chunk, self.groups)
        fold = keys if groups is None else row_keys(chunk, token, self.seed, groups)
        if self.token is None and not self._about_a_point:
            shift = shift_of(chunk)
            self.folds = [SufficientStatistics(self.dims, shift) for _ in self.folds]
        for number, (statistics, sample) in enumerate(zip(self.folds, self.samples, strict=True)):
            rows = np.flatnonzero(fold % np.uint64(len(self.folds)) == number)
            if len(rows):
                part = chunk if len(rows) == len(chunk) else chunk.subset(rows)
                statistics.update(part.blocks)  # type: ignore[arg-type]
                sample.add(part, keys[rows])
        self._require_room(token)
        self.token, self.num_rows = token, self.num_rows + len(chunk)

    def merge(self, other: Gathered) -> Gathered:
        """Statistics of both."""
        both = Gathered(self.dims, len(self.folds), self.seed, self.groups)
        both.folds = [mine.merge(theirs) for mine, theirs in zip(self.folds, other.folds, strict=True)]
        both.samples = [mine.merge(theirs) for mine, theirs in zip(self.samples, other.samples, strict=True)]
        both.token, both.num_rows = other.token, self.num_rows + other.num_rows
        return both

    def statistics(self) -> FoldedStatistics | SufficientStatistics:
        """Those of each fold, with samples of their rows; of all rows where there is one fold.

        Raises:
            DataError: there were no rows.
        """
        if self.num_rows == 0:
            raise DataError("data: the stream has no rows; give at least one chunk.")
        if len(self.folds) == 1:
            return self.folds[0]
        return FoldedStatistics(self.folds, samples=[sample.data for sample in self.samples])

    def _require_served(self, token: str, chunk: MultimodalData) -> None:
        empty = int((~chunk.observed_mask.any(1)).sum())
        if empty:
            raise DataError(f"{token}: {empty} of {len(chunk)} rows have no modality at all; leave them out.")
        if not isinstance(chunk.blocks, ObservedBlocks):
            raise DataError(
                f"{token}: rows lack single features, of which statistics know nothing; fill them in, split such "
                "modalities into those that are there together, or read all rows into memory and fit these."
            )

    def _require_room(self, token: str) -> None:
        scatters = [scatter for fold in self.folds for scatter in fold.scatters.values()]
        taken = sum(scatter.numel() * scatter.element_size() for scatter in scatters)
        if taken > _MOST_BYTES:
            patterns = len({pattern for fold in self.folds for pattern in fold.scatters})
            raise ArgumentError(
                f"data: up to {token} there are {patterns} missing patterns, whose statistics in {len(self.folds)} "
                f"folds take {taken / 1e9:.1f} GB; fit a sample of the rows in memory, or fewer features."
            )


def groups_of(place: str, rows: MultimodalData, groups: object) -> object:
    """Groups (N,) of rows that share a fold: a covariate, by its name, or what a function makes of the rows.

    Args:
        place: where the rows come from, for messages.
        rows: N of them.
        groups: the name or the function.

    Raises:
        ArgumentError: there is no such covariate, or ``groups`` is neither, or does not give an entry for each row.

    Example:
        >>> import torch
        >>> rows = MultimodalData({"x": torch.ones(2, 1)}, covariates={"subject": ["a", "b"]})
        >>> groups_of("data", rows, "subject").tolist()
        ['a', 'b']
    """
    if isinstance(groups, str):
        if groups not in rows.covariates:
            raise ArgumentError(f"groups: {place} has no covariate {groups!r}; it has {list(rows.covariates)}.")
        return rows.covariates[groups]
    if not callable(groups):
        raise ArgumentError(
            "groups: of a stream expected the name of a covariate, or a function of a chunk that gives an entry "
            f"for each of its rows, got {brief(groups)}."
        )
    found = groups(rows)
    count = len(found) if hasattr(found, "__len__") else None
    if count != len(rows):
        raise ArgumentError(f"groups: expected one for each of the {len(rows)} rows of {place}, got {count}.")
    return found


def shift_of(chunk: MultimodalData) -> dict[str, Tensor]:
    """Means (D_m,) of the modalities that a chunk has, about which statistics lose no digits.

    In the digits of the data: sums about any other point would have to be moved to it, chunk by chunk.
    """
    return {
        name: chunk[name][chunk.observed(name)].double().mean(0).to(chunk[name].dtype).double()
        for name in chunk.names
        if bool(chunk.observed(name).any())
    }
