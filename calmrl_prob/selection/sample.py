"""A sample of the rows of a stream: those whose keys are smallest, whatever the order that they come in."""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray

from calmrl_prob.data import MultimodalData
from calmrl_prob.data.entries import entries

Keys = NDArray[np.uint64]


def row_keys(data: MultimodalData, token: str, seed: int, groups: object = None) -> Keys:
    """A number for each row that looks drawn at random, and depends on what the row is, not on where it stands.

    Args:
        data: a chunk of N rows.
        token: its name in the stream, which with its place in the chunk names a row that has no id.
        seed: other seeds give other keys.
        groups: (N,) what rows are known by in place of their ids; None for the ids.

    Returns:
        (N,) uint64.

    Example:
        >>> import torch
        >>> chunk = MultimodalData({"x": torch.zeros(3, 1)}, ids=["a", "b", "c"])
        >>> bool((row_keys(chunk, "first", 0)[1:] == row_keys(chunk.subset([1, 2]), "second", 0)).all())
        True
    """
    import pandas as pd  # takes longer to load than most fits to rows in memory

    salt = hashlib.sha256(f"rows, seed {seed}".encode()).hexdigest()[:16]
    known = data.ids if groups is None else groups
    texts = range(len(data)) if known is None else entries(known).tolist()
    prefix = f"{token}, row " if known is None else ""
    named = np.array([f"{prefix}{text}" for text in texts], dtype=object)
    return np.asarray(pd.util.hash_array(named, hash_key=salt, categorize=False), dtype=np.uint64)


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
