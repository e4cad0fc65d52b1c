"""Keys of rows: a hash of what a row is, by which passes and processes agree on its fold without talking."""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray

from calmrl_prob.data.entries import entries
from calmrl_prob.data.multimodal import MultimodalData

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
