"""Ragged data as the exact engine sees it: for each modality only the rows that have it.

The posterior precision of an instance depends on its missing pattern alone, so patterns are found once, here.
"""

from __future__ import annotations

from collections.abc import Mapping
from copy import copy
from functools import cached_property
from typing import TypeVar

import torch
from torch import Tensor

from calmrl_prob.linear_gaussian.feature_names import FeatureNames
from calmrl_prob.linear_gaussian.grouping import Grouping
from calmrl_prob.linear_gaussian.products import row_chunks


class Patterned:
    """N instances in P missing patterns: what both kinds of data below share."""

    patterns: Tensor
    pattern_index: Tensor
    pattern_counts: Tensor
    dims: Mapping[str, int]

    @cached_property
    def grouping(self) -> Grouping:
        """The features that are always missing together: modalities."""
        return Grouping.of_widths(self.dims, self.device)

    @property
    def group_patterns(self) -> Tensor:
        """Groups that each pattern has, (P, G) bool."""
        return self.patterns

    @property
    def num_instances(self) -> int:
        """Number of instances N."""
        return len(self.pattern_index)

    @property
    def num_patterns(self) -> int:
        """Number of distinct missing patterns P."""
        return len(self.patterns)

    @property
    def device(self) -> torch.device:
        """Device of the data."""
        return self.pattern_index.device


Blocks = TypeVar("Blocks", bound=Patterned)


class ObservedBlocks(Patterned):
    """The rows of each modality that are present, and the pattern of every instance.

    Attributes:
        names: the M modalities.
        observed_mask: (N, M) bool, True = present.
        feature_names: for each modality the names of its features, where data came with some.
        values: for each modality the (n_m, D_m) rows that have it, in row order.
        rows: for each modality their row numbers, (n_m,) int64, ascending.
        patterns: (P, M) bool, the distinct rows of ``observed_mask``.
        pattern_index: (N,) int64, the pattern of each instance.
        pattern_counts: (P,) int64, how many instances have each pattern.

    Example:
        >>> import torch
        >>> blocks = ObservedBlocks.from_arrays(
        ...     {"image": torch.ones(3, 4), "text": torch.ones(3, 2)},
        ...     torch.tensor([[True, True], [True, False], [True, True]]),
        ... )
        >>> blocks.num_instances, blocks.num_patterns, blocks.rows["text"].tolist()
        (3, 2, [0, 2])
    """

    def __init__(self, values: Mapping[str, Tensor], observed_mask: Tensor) -> None:
        self.names = tuple(values)
        self.values = dict(values)
        self.observed_mask = observed_mask
        self.feature_names: FeatureNames = {}
        self.rows = {name: observed_mask[:, m].nonzero().squeeze(1) for m, name in enumerate(self.names)}
        self.patterns, self.pattern_index, self.pattern_counts = find_patterns(observed_mask)

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, Tensor], observed_mask: Tensor) -> ObservedBlocks:
        """Take full arrays apart.

        Args:
            arrays: for each modality (N, D_m); what stands in absent rows is never read into the result.
            observed_mask: (N, M) bool, True = present, columns in the order of ``arrays``.
        """
        complete = observed_mask.all(dim=0).tolist()
        values = {
            name: array if complete[m] else array[observed_mask[:, m]] for m, (name, array) in enumerate(arrays.items())
        }
        return cls(values, observed_mask)

    @property
    def dims(self) -> dict[str, int]:  # type: ignore[override]  # of data by feature it is stored
        """Number of features D_m of each modality."""
        return {name: value.shape[1] for name, value in self.values.items()}

    @property
    def dtype(self) -> torch.dtype:
        """The floating-point type of the values."""
        return next(iter(self.values.values())).dtype

    def centred(self) -> tuple[ObservedBlocks, Tensor]:
        """The data about the mean of each feature, and that mean stacked over modalities, (D,) float64.

        The mean is rounded to the data's type before it is subtracted, so that the subtraction itself loses nothing.
        """
        shift = {name: column_means(values).to(values.dtype) for name, values in self.values.items()}
        centred = copy(self)
        centred.values = {name: values - shift[name] for name, values in self.values.items()}
        return centred, torch.cat(list(shift.values())).double()

    def double(self) -> ObservedBlocks:
        """The same in float64."""
        wide = copy(self)
        wide.values = {name: values.double() for name, values in self.values.items()}
        return wide

    @cached_property
    def pattern_rows(self) -> tuple[Tensor, ...]:
        """For each pattern the row numbers of its instances, ascending."""
        order = torch.argsort(self.pattern_index, stable=True)
        members: tuple[Tensor, ...] = order.split(self.pattern_counts.tolist())
        return members

    def stacked(self, pattern: int, rows: Tensor) -> Tensor:
        """Instances of one pattern with their modalities side by side, shape (len(rows), D_p)."""
        parts = [
            value if len(rows) == len(value) else value.index_select(0, torch.searchsorted(self.rows[name], rows))
            for (name, value), present in zip(self.values.items(), self.patterns[pattern].tolist(), strict=True)
            if present
        ]
        if not parts:
            return next(iter(self.values.values())).new_empty(len(rows), 0)
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)


class FeatureBlocks(Patterned):
    """Data in which single features may be missing.

    Exact like ``ObservedBlocks``, and slower: nearly every row has a pattern of its own. Features of a modality that
    the same rows have are one group (``grouping``), as all of a modality are that lacks no single feature.

    Attributes:
        dims: number of features of each modality.
        values: (N, D) stacked over modalities, zero where missing.
        feature_mask: (N, D) bool, True = present.
        patterns: (P, D) bool; pattern_index: (N,) int64; pattern_counts: (P,) int64, as in ``ObservedBlocks``.
    """

    def __init__(self, dims: Mapping[str, int], values: Tensor, feature_mask: Tensor) -> None:
        self.dims = dict(dims)
        self.names = tuple(self.dims)
        self.feature_mask = feature_mask
        self.values = torch.where(feature_mask, values, 0)
        self.patterns, self.pattern_index, self.pattern_counts = find_patterns(feature_mask)

    @cached_property
    def grouping(self) -> Grouping:
        """The features of each modality that are always missing together."""
        return Grouping.of_columns(self.dims, self.feature_mask)

    @property
    def group_patterns(self) -> Tensor:
        """Groups that each pattern has, (P, G) bool."""
        return self.patterns[:, self.grouping.first]

    @property
    def dtype(self) -> torch.dtype:
        """The floating-point type of the values."""
        return self.values.dtype

    def centred(self) -> tuple[FeatureBlocks, Tensor]:
        """The data about the mean of each feature, and that mean, as in ``ObservedBlocks.centred``."""
        counts = self.feature_mask.sum(0).clamp(min=1)
        origin = self.values.sum(0, dtype=torch.float64) / counts
        shift = origin.to(self.dtype)
        centred = copy(self)
        centred.values = torch.where(self.feature_mask, self.values - shift, 0)
        return centred, shift.double()

    def double(self) -> FeatureBlocks:
        """The same in float64."""
        wide = copy(self)
        wide.values = self.values.double()
        return wide


def column_means(values: Tensor) -> Tensor:
    """Mean of each column in float64, accumulated chunk by chunk."""
    total = torch.zeros(values.shape[1], dtype=torch.float64, device=values.device)
    for chunk in row_chunks(len(values), values.shape[1]):
        total += values[chunk].sum(0, dtype=torch.float64)
    return total / max(len(values), 1)


def find_patterns(observed_mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The distinct rows of an observed mask.

    Args:
        observed_mask: (N, M) bool.

    Returns:
        The patterns (P, M) bool, the pattern of each row (N,) int64, and the number of rows with each (P,) int64.
    """
    num_columns = observed_mask.shape[1]
    if num_columns <= 62:  # a row packs into one integer, and sorting integers is much faster than sorting rows
        bits = torch.arange(num_columns, device=observed_mask.device)
        codes = (observed_mask.long() << bits).sum(dim=1)
        distinct, index, counts = torch.unique(codes, return_inverse=True, return_counts=True)
        return ((distinct[:, None] >> bits) & 1).bool(), index, counts
    distinct, index, counts = torch.unique(observed_mask, dim=0, return_inverse=True, return_counts=True)
    return distinct, index, counts


def split_patterns(blocks: Blocks, groups: Tensor) -> tuple[Blocks, Tensor]:
    """The same data with patterns told apart by groups of instances too, as where each group has a prior of its own.

    Args:
        blocks: N instances.
        groups: (N,) int64, the group of each.

    Returns:
        The data, and the group of each of their patterns, (P,) int64; patterns may now be equal.
    """
    span = int(groups.max()) + 1 if len(groups) else 1
    codes = blocks.pattern_index * span + groups
    distinct, index, counts = torch.unique(codes, return_inverse=True, return_counts=True)
    split = copy(blocks)
    split.__dict__.pop("pattern_rows", None)
    split.patterns, split.pattern_index, split.pattern_counts = blocks.patterns[distinct // span], index, counts
    return split, distinct % span


def linked_groups(names: tuple[str, ...], patterns: Tensor) -> list[tuple[str, ...]]:
    """Groups of modalities that are linked by instances which have two of them.

    Modalities are vertices; two are joined where some pattern has both; the groups are the connected components.

    Args:
        names: the M modalities.
        patterns: (P, M) bool.
    """
    together = (patterns[:, :, None] & patterns[:, None, :]).any(dim=0)
    group = list(range(len(names)))
    for i, j in together.nonzero().tolist():
        group = [group[i] if g == group[j] else g for g in group]
    return [tuple(n for n, g in zip(names, group, strict=True) if g == k) for k in dict.fromkeys(group)]
