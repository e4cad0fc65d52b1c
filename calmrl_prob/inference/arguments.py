"""Checks of arguments that several functions take, each naming the argument, what was expected, what came, a remedy."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from numbers import Integral, Real
from typing import Any

import torch

from calmrl_prob.errors import ArgumentError, ArgumentTypeError, SchemaError

#: What a seed is below: what every generator, and an attribute of a netCDF file, can hold.
_SEED_LIMIT = 2**63


def described(value: object) -> str:
    """A value of the wrong type as messages name it: short values themselves, others by their type.

    Example:
        >>> described("x"), described(None), described(torch.ones(3)), described(int)
        ("'x'", 'None', 'Tensor', 'the class int itself')
    """
    if isinstance(value, type):
        return f"the class {value.__name__} itself"
    if value is None or (isinstance(value, bool | Real | str) and len(repr(value)) < 40):
        return repr(value)
    return type(value).__name__


def whole_number(value: object, argument: str, least: int = 1) -> int:
    """An argument that counts something, if it does.

    Raises:
        ArgumentTypeError: it is not a whole number.
        ArgumentError: it is below ``least``.

    Example:
        >>> whole_number(3, "num_draws")
        3
    """
    if isinstance(value, bool) or not isinstance(value, Real):
        raise ArgumentTypeError(f"{argument}: expected a whole number of at least {least}, got {described(value)}.")
    if not isinstance(value, Integral) or value < least:
        raise ArgumentError(f"{argument}: expected a whole number of at least {least}, got {value!r}.")
    return int(value)


def real_number(value: object, argument: str, expected: str = "a number") -> float:
    """An argument that is a number, if it is one; its range is not looked at.

    Raises:
        ArgumentTypeError: it is not.
    """
    if isinstance(value, bool) or not isinstance(value, Real):
        raise ArgumentTypeError(f"{argument}: expected {expected}, got {described(value)}.")
    return float(value)


def checked_seed(seed: object) -> int:
    """A seed, if it is one.

    Raises:
        ArgumentTypeError: it is not a whole number.
        ArgumentError: it is negative, or 2^63 or more.
    """
    expected = "seed: expected a whole number from 0 to 2^63 - 1"
    if isinstance(seed, bool) or not isinstance(seed, Integral):
        raise ArgumentTypeError(f"{expected}, got {described(seed)}.")
    seed = int(seed)
    if not 0 <= seed < _SEED_LIMIT:
        raise ArgumentError(f"{expected}, got {seed}.")
    return seed


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


def chosen_names(names: object, known: Iterable[str], *, none_allowed: bool = False) -> tuple[str, ...]:
    """The modalities that a caller chose; all if ``names`` is None.

    Raises:
        ArgumentTypeError: not a sequence of names, or one name that stands alone.
        ArgumentError: no names, unless allowed, or one that stands twice.
        SchemaError: a name that the model does not know.

    Example:
        >>> chosen_names(["text"], ("image", "text"))
        ('text',)
    """
    known = tuple(known)
    if names is None:
        return known
    expected = "names: expected a sequence of modality names"
    if isinstance(names, str):
        raise ArgumentTypeError(f"{expected}, got {names!r}; use [{names!r}].")
    if not isinstance(names, Iterable) or isinstance(names, Mapping):
        raise ArgumentTypeError(f"{expected}, got {described(names)}; the model has {list(known)}.")
    chosen: tuple[Any, ...] = tuple(names)
    if not chosen and not none_allowed:
        raise ArgumentError(f"{expected}, got none; leave names out for all of {list(known)}.")
    for place, name in enumerate(chosen):
        if not isinstance(name, str):
            raise ArgumentTypeError(f"{expected}, got {described(name)} at place {place}.")
        if name not in known:
            raise SchemaError(f"names: the model has no modality {name!r}; it has {list(known)}.")
        if name in chosen[:place]:
            raise ArgumentError(f"names: {name!r} stands there twice; name each modality once.")
    return chosen
