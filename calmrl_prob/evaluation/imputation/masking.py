"""Schemes of hiding: which modalities of which instances are hidden, to see how well they are imputed.

A scheme hides cells that are there: one cell is one modality of one instance. Each cell hidden is imputed from a set of
the instance's other modalities; the same cell can be hidden several times, with other modalities to be seen.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from calmrl_prob._support.arguments import described, whole_number
from calmrl_prob.data import MultimodalData
from calmrl_prob.errors import ArgumentError, ArgumentTypeError

Mask = NDArray[np.bool_]
#: Instances with more modalities than this have too many patterns to go through all.
_MOST_MODALITIES = 10


@dataclass(frozen=True)
class Hiding:
    """One modality hidden in some instances that are then seen with the same others.

    Attributes:
        modality: the name of what is hidden.
        seen: names of the modalities that it is imputed from, in the order of the data.
        rows: (n,) numbers of the instances; distinct.
    """

    modality: str
    seen: tuple[str, ...]
    rows: NDArray[np.int64]

    @property
    def pattern(self) -> str:
        """The modalities seen, joined by "+"."""
        return "+".join(self.seen)


def each(present: Mask) -> list[tuple[int, Mask]]:
    """Every cell hidden once, alone: (m, (N, M) bool of what is seen, rows without a one taking no part)."""
    return [(m, _without(present, m)) for m in range(present.shape[1])]


def patterns(present: Mask) -> list[tuple[int, Mask]]:
    """Every cell hidden in every way: imputed from each set of the instance's other modalities but the empty one."""
    count = present.shape[1]
    if count > _MOST_MODALITIES:
        raise ArgumentError(
            f"scheme: {count} modalities have {2 ** (count - 1)} patterns each, too many to go through; use 'random'."
        )
    found = []
    for m in range(count):
        others = [k for k in range(count) if k != m]
        for size in range(1, count):
            for chosen in map(list, combinations(others, size)):
                seen = np.zeros_like(present)
                whole = present[:, m] & present[:, chosen].all(axis=1)
                seen[:, chosen] = whole[:, None]
                found.append((m, seen))
    return found


def random(present: Mask, rng: np.random.Generator) -> list[tuple[int, Mask]]:
    """Of every instance a random set of modalities is seen: its size uniform from 1 up, then any of that size alike."""
    available = present.sum(axis=1)
    size = np.where(available > 1, 1 + np.floor(rng.random(len(present)) * (available - 1)), 0)
    order = np.where(present, rng.random(present.shape), 2.0).argsort(axis=1).argsort(axis=1)
    kept = present & (order < size[:, None])
    return _all_hidden(present, kept)


#: Schemes by name.
SCHEMES = ("each", "patterns", "random")


def hidings(
    data: MultimodalData, scheme: str | Callable[..., Tensor], repeats: int, seed: int
) -> tuple[list[Hiding], NDArray[np.int64]]:
    """Cells that a scheme hides, grouped by modality and pattern.

    Args:
        data: N instances, M modalities.
        scheme: "each", "patterns", "random", or a mechanism of :mod:`calmrl_prob.data.missingness`: a function of
            (data, seed=...) that returns what is still to be seen, (N, M) bool.
        repeats: how often a scheme that draws is to draw.
        seed: of what it draws.

    Returns:
        The groups, and how often each cell was hidden, (N, M).

    Raises:
        ArgumentError: an unknown scheme, or one that hides nothing.
        ArgumentTypeError: ``scheme`` is neither a name nor a function.

    Example:
        >>> import torch
        >>> data = MultimodalData({"a": torch.ones(2, 1), "b": torch.ones(2, 1), "c": torch.ones(2, 1)})
        >>> groups, hidden = hidings(data, "patterns", 1, 0)
        >>> [group.pattern for group in groups if group.modality == "a"], hidden[0].tolist()
        (['b', 'b+c', 'c'], [3, 3, 3])
    """
    repeats = whole_number("repeats", repeats, least=1)
    present = np.stack([data.feature_mask(name).all(dim=1).cpu().numpy() for name in data.names], axis=1)
    if scheme == "each":
        rounds = each(present)
    elif scheme == "patterns":
        rounds = patterns(present)
    elif scheme == "random":
        rng = np.random.default_rng(seed)
        rounds = [part for _ in range(repeats) for part in random(present, rng)]
    elif callable(scheme):
        rounds = [part for r in range(repeats) for part in _by_mechanism(data, present, scheme, seed + r)]
    elif isinstance(scheme, str):
        raise ArgumentError(f"scheme: expected one of {list(SCHEMES)} or a function, got {scheme!r}.")
    else:
        raise ArgumentTypeError(
            f"scheme: expected one of {list(SCHEMES)}, or a mechanism (data, seed=...) -> observed_mask, got "
            f"{described(scheme)}."
        )
    hidden = np.zeros(present.shape, dtype=np.int64)
    groups: list[Hiding] = []
    for m, seen in rounds:
        rows = np.flatnonzero(seen.any(axis=1))
        hidden[rows, m] += 1
        kinds, index = np.unique(seen[rows], axis=0, return_inverse=True)
        for k, kind in enumerate(kinds):
            names = tuple(name for name, there in zip(data.names, kind, strict=True) if there)
            groups.append(Hiding(data.names[m], names, rows[index.ravel() == k]))
    if not groups:
        raise ArgumentError(
            "data: no instance has two modalities, so that one could be hidden and imputed from the other; give rows "
            "that do."
        )
    return sorted(groups, key=lambda group: (data.names.index(group.modality), group.pattern)), hidden


def random_folds(folds: int, num_instances: int, seed: int) -> NDArray[np.int64]:
    """The fold of each instance, (N,), from 0; all folds as large as can be.

    Raises:
        ArgumentError: there are fewer than 2 folds, or more than instances.
        ArgumentTypeError: ``folds`` is no whole number.

    Example:
        >>> sorted(random_folds(2, 5, seed=0).tolist())
        [0, 0, 0, 1, 1]
    """
    count = whole_number("folds", folds, least=2)
    if count > num_instances:
        raise ArgumentError(f"folds: expected at most {num_instances}, the instances, got {count}.")
    return np.random.default_rng(seed).permutation(num_instances) % count


def _without(present: Mask, m: int) -> Mask:
    seen = present & present[:, [m]]
    seen[:, m] = False
    return seen


def _all_hidden(present: Mask, kept: Mask) -> list[tuple[int, Mask]]:
    """All that is present and not kept, each imputed from what is kept."""
    return [(m, kept & (present & ~kept)[:, [m]]) for m in range(present.shape[1])]


def _by_mechanism(
    data: MultimodalData, present: Mask, mechanism: Callable[..., Any], seed: int
) -> list[tuple[int, Mask]]:
    kept = mechanism(data, seed=seed)
    if not isinstance(kept, Tensor) or tuple(kept.shape) != present.shape:
        raise ArgumentTypeError(
            f"scheme: expected the function to return (N, M) = {present.shape} bool, got {described(kept)}."
        )
    return _all_hidden(present, present & kept.cpu().numpy().astype(bool))
