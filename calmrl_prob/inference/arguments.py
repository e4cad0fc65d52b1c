"""Checks of seeds, types and models: what the functions that take a model ask of their arguments."""

from __future__ import annotations

import torch

from calmrl_prob._arguments import short, whole_number
from calmrl_prob.errors import ArgumentError, ArgumentTypeError

#: What a seed is below: what every generator, and an attribute of a netCDF file, can hold.
_SEED_LIMIT = 2**63


def described(value: object) -> str:
    """What came instead of an object, as messages name it: a class where one of its kind was meant, is one.

    Example:
        >>> described("x"), described(None), described(torch.ones(3)), described(int)
        ("'x'", 'None', 'Tensor', 'the class int itself')
    """
    return f"the class {value.__name__} itself" if isinstance(value, type) else short(value)


def checked_seed(seed: object) -> int:
    """A seed, if it is one.

    Raises:
        ArgumentTypeError: it is not a whole number.
        ArgumentError: it is negative, or 2^63 or more.
    """
    number = whole_number("seed", seed)
    if number >= _SEED_LIMIT:
        raise ArgumentError(f"seed: expected a whole number below 2^63, got {number}.")
    return number


def checked_dtype(dtype: object) -> torch.dtype:
    """A type of parameters, if they can be of it: K-dimensional algebra is done in single or double precision.

    Raises:
        ArgumentTypeError: it is not a ``torch.dtype``.
        ArgumentError: it is another one than float32 and float64.
    """
    expected = "dtype: expected torch.float32 or torch.float64"
    if not isinstance(dtype, torch.dtype):
        raise ArgumentTypeError(f"{expected}, got {described(dtype)}.")
    if dtype not in (torch.float32, torch.float64):
        raise ArgumentError(f"{expected}, got {dtype}.")
    return dtype
