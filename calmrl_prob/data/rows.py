"""Choosing rows: what a user may pass to ``subset``, and random splits."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from numbers import Integral, Real
from typing import Any

import numpy as np
import torch
from torch import Tensor

from calmrl_prob._support.arguments import brief, real_number, whole_number
from calmrl_prob.data.entries import grouped
from calmrl_prob.errors import ArgumentError, ArgumentTypeError

Rows = slice | Sequence[int] | Sequence[bool] | np.ndarray | Tensor
Sizes = float | int | Sequence[float] | Sequence[int]


def as_rows(rows: Rows, num_instances: int) -> slice | Tensor:
    """A choice of rows as a slice with a positive step, or as (n,) int64 row numbers in 0 .. N-1.

    Raises:
        ArgumentTypeError: not a slice, row numbers or booleans.
        ArgumentError: no row, a row number out of range, or booleans that are not N.

    Example:
        >>> as_rows([True, False, True], 3).tolist(), as_rows([-1], 3).tolist()
        ([0, 2], [2])
    """
    if isinstance(rows, slice):
        numbers = range(num_instances)[rows]
        if len(numbers) == 0:
            raise ArgumentError(f"rows: {rows} chooses none of the {num_instances} instances.")
        return rows if numbers.step > 0 else torch.tensor(numbers)
    array: np.ndarray[Any, Any] = rows.detach().cpu().numpy() if isinstance(rows, Tensor) else np.asarray(rows)
    if array.ndim != 1 or (array.dtype.kind not in "iub" and array.size):
        raise ArgumentTypeError(
            f"rows: expected a slice, row numbers (n,) or booleans (N,), got {array.dtype} of shape {array.shape}."
        )
    if array.dtype == bool:
        if len(array) != num_instances:
            raise ArgumentError(f"rows: expected {num_instances} booleans, one per instance, got {len(array)}.")
        array = np.nonzero(array)[0]
    if array.size == 0:
        raise ArgumentError(f"rows: none of the {num_instances} instances is chosen.")
    numbers_given = array.astype(np.int64)
    outside = (numbers_given < -num_instances) | (numbers_given >= num_instances)
    if outside.any():
        raise ArgumentError(f"rows: row {numbers_given[outside][0]} is out of range for {num_instances} instances.")
    return torch.from_numpy(np.where(numbers_given < 0, numbers_given + num_instances, numbers_given))


def split_rows(
    num_instances: int, sizes: Sizes, seed: int, classes: np.ndarray | None = None
) -> tuple[np.ndarray, ...]:
    """Random disjoint row numbers, ascending within each part.

    With classes, the rows of each class are spread evenly, in random order, over (0, 1), and the parts are cut from
    all rows sorted by that place: part sizes are exact, and class shares as even as they can be.

    Raises:
        ArgumentError: the sizes do not fit N, or leave a part without rows; or the seed is negative.
        ArgumentTypeError: the sizes are not numbers, or the seed is no whole number.

    Example:
        >>> [len(part) for part in split_rows(10, [0.5, 0.3, 0.2], seed=0)]
        [5, 3, 2]
    """
    cuts = _cuts(num_instances, sizes)
    order = np.random.default_rng(whole_number("seed", seed)).permutation(num_instances)
    if classes is not None:
        place = np.empty(num_instances)
        shuffled = classes[order]
        kinds, index = grouped(shuffled)
        for kind in range(len(kinds)):
            members = np.nonzero(index == kind)[0]
            place[members] = (np.arange(len(members)) + 0.5) / len(members)
        order = order[np.argsort(place, kind="stable")]
    return tuple(np.sort(part) for part in np.split(order, cuts))


def _cuts(num_instances: int, sizes: Sizes) -> list[int]:
    """Places at which N shuffled rows are cut."""
    if isinstance(sizes, str) or not isinstance(sizes, Real | Iterable):
        raise ArgumentTypeError(f"sizes: expected a number or a list of numbers, got {brief(sizes)}; use 0.8, say.")
    given: list[Any] = [sizes] if isinstance(sizes, Real) else list(sizes)
    for size in given:
        real_number("sizes", size, 0.8)
    whole = num_instances if isinstance(sizes, Integral) else 1.0
    listed: list[Any] = [sizes, whole - sizes] if isinstance(sizes, Real) else given
    integers = all(isinstance(size, Integral) for size in listed)
    total = num_instances if integers else 1.0
    if not listed or min(listed) <= 0 or abs(sum(listed) - total) > 1e-9:
        expected = f"numbers that sum to N = {num_instances}, or fractions that sum to 1, all above 0"
        raise ArgumentError(f"sizes: expected {expected}, got {sizes}.")
    ends = np.cumsum(listed) if integers else np.rint(np.cumsum(listed) * num_instances)
    cuts = [int(end) for end in ends]
    if min(np.diff([0, *cuts])) <= 0:
        raise ArgumentError(f"sizes: {sizes} leaves a part of the {num_instances} instances empty; make it larger.")
    return cuts[:-1]
