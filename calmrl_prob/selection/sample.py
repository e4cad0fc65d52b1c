"""A sample of the rows of a stream: those whose keys are smallest, whatever the order that they come in."""

from __future__ import annotations

import numpy as np

from calmrl_prob.data import MultimodalData
from calmrl_prob.data.row_keys import Keys


class SmallestKeys:
    """The rows with the smallest keys of all that were seen: a random sample of them, the same in any order.

    Args:
        size: rows at most.

    Attributes:
        keys: (n,) theirs, ascending.
        data: them, without ids and whatever else comes with rows; None before the first.

    Source: Cohen & Kaplan, Summarizing data using bottom-k sketches (2007).

    Example:
        >>> import torch
        >>> sample = SmallestKeys(2)
        >>> sample.add(MultimodalData({"x": torch.tensor([[1.0], [2.0], [3.0]])}), np.array([5, 9, 1], np.uint64))
        >>> sample.data["x"].tolist()
        [[3.0], [1.0]]
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self.keys: Keys = np.empty(0, np.uint64)
        self.data: MultimodalData | None = None

    def add(self, data: MultimodalData, keys: Keys) -> None:
        """See more rows, each of which has some modality.

        Args:
            data: N rows.
            keys: (N,) theirs.
        """
        full = len(self.keys) >= self.size
        chosen = np.flatnonzero(keys < self.keys[-1]) if full else np.arange(len(keys))
        chosen = chosen[np.argsort(keys[chosen], kind="stable")[: self.size]]
        if len(chosen) == 0:
            return
        more = data.subset(chosen)
        bare = MultimodalData({name: more[name] for name in more.names})
        both = bare if self.data is None else MultimodalData.concat([self.data, bare])
        joined = np.concatenate([self.keys, keys[chosen]])
        order = np.argsort(joined, kind="stable")[: self.size]
        self.keys, self.data = joined[order], both.subset(order)

    def merge(self, other: SmallestKeys) -> SmallestKeys:
        """The sample of both."""
        both = SmallestKeys(self.size)
        for part in (self, other):
            if part.data is not None:
                both.add(part.data, part.keys)
        return both
