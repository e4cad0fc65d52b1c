"""Checks that many functions make of their arguments, so that a wrong one is refused by its own name."""

from __future__ import annotations

import inspect
import operator
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import fields
from difflib import get_close_matches
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from calmrl_prob.errors import ArgumentError, ArgumentTypeError, SchemaError

T = TypeVar("T")

#: What a seed is below: what every generator, and an attribute of a netCDF file, can hold.
_SEED_LIMIT = 2**63


def whole_number(argument: str, value: object, least: int = 0) -> int:
    """A whole number that is not below ``least``.

    Raises:
        ArgumentTypeError: it is no whole number.
        ArgumentError: it is too small.

    Example:
        >>> whole_number("seed", 3)
        3
    """
    try:
        number = operator.index(value)  # type: ignore[arg-type]
    except TypeError as error:
        raise ArgumentTypeError(
            f"{argument}: expected a whole number of at least {least}, got {value!r}; pass an int such as {least}."
        ) from error
    if number < least:
        raise ArgumentError(f"{argument}: expected a whole number of at least {least}, got {number}.")
    return number


def real_number(argument: str, value: object, example: float) -> float:
    """A single real number.

    Raises:
        ArgumentTypeError: it is none.

    Example:
        >>> real_number("rate", 0.5, 0.3)
        0.5
    """
    try:
        if isinstance(value, str | bytes):  # float() would read "0.5"
            raise TypeError
        return float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, RuntimeError) as error:
        raise ArgumentTypeError(
            f"{argument}: expected a number, got {brief(value)}; pass one such as {example}."
        ) from error


def require_kind(argument: str, value: object, kind: Any, expected: str) -> None:  # noqa: ANN401 - as isinstance
    """Refuse an argument of another type than it is to be of.

    Args:
        argument: its name, for messages.
        value: what was given.
        kind: a class, or several, as ``isinstance`` takes them.
        expected: what is expected in words, and where it comes from.

    Raises:
        ArgumentTypeError: it is of another type.

    Example:
        >>> require_kind("recall", {}, dict, "a table")
    """
    if not isinstance(value, kind):
        raise ArgumentTypeError(f"{argument}: expected {expected}, got {described(value)}.")


def required_array(argument: str, values: object, dtype: type | None = None, *, scalar: bool = False) -> NDArray[Any]:
    """An array, of whatever holds numbers or other entries one by one; with ``scalar`` a single number too.

    Raises:
        ArgumentTypeError: it does not, or they cannot be of ``dtype``.

    Example:
        >>> required_array("labels", ["a", "b"]).shape, required_array("shares", torch.ones(2), float).dtype
        ((2,), dtype('float64'))
    """
    if isinstance(values, Tensor):
        array: NDArray[Any] = values.detach().cpu().numpy()
        return array if dtype is None else array.astype(dtype)
    try:
        array = np.asarray(values, dtype=dtype)
    except (TypeError, ValueError) as error:
        raise ArgumentTypeError(f"{argument}: expected an array, got {described(values)}; a list will do.") from error
    if not array.ndim and not (scalar and array.dtype.kind in "fiu"):
        raise ArgumentTypeError(f"{argument}: expected an array, got {described(values)}; a list will do.")
    return array


def keyword_options(
    function: Callable[..., object], settled: Collection[str], options: type | None = None
) -> tuple[str, ...]:
    """The options of a function but those that its caller settles itself.

    Args:
        function: whose keyword-only parameters are options.
        settled: names of some that are not.
        options: a dataclass whose fields the function takes as keywords too.

    Example:
        >>> keyword_options(sorted, settled=["key"])
        ('reverse',)
    """
    parameters = inspect.signature(function).parameters.values()
    names = [p.name for p in parameters if p.kind is inspect.Parameter.KEYWORD_ONLY]
    names += [] if options is None else [field.name for field in fields(options)]
    return tuple(name for name in names if name not in settled)


#: What is looked for among options of fits, and is an argument of the model.
_OF_THE_MODEL = ("latent_dim", "noise", "noise_rank", "prior", "batch")


def require_known_options(options: Iterable[str], known: Sequence[str], owner: str) -> None:
    """Refuse options that ``owner`` does not have.

    Raises:
        ArgumentError: there is one; names it, and those that there are.

    Example:
        >>> require_known_options({"tolerence": 1e-6}, ["seed", "tolerance"], "method 'em'")
        Traceback (most recent call last):
        calmrl_prob.errors.ArgumentError: options: method 'em' has no option 'tolerence'; ... did you mean 'tolerance'?
    """
    unknown = sorted(set(options) - set(known))
    if unknown:
        near = get_close_matches(unknown[0], known, n=1)
        belongs = f"it belongs to the model, as SharedLatentModel(data.dims, {unknown[0]}=...)."
        guess = f"did you mean {near[0]!r}?" if near else "take one of these."
        remedy = belongs if unknown[0] in _OF_THE_MODEL else guess
        raise ArgumentError(f"options: {owner} has no option {unknown[0]!r}; it has {list(known)}; {remedy}")


def constructed(kind: Callable[..., T], name: str, *arguments: object, **settings: object) -> T:
    """An object of a class, from settings that a user wrote.

    Raises:
        ArgumentError: it does not take them, or lacks some; names those that it has.

    Example:
        >>> from fractions import Fraction
        >>> constructed(Fraction, "fraction", 1, denominator=2)
        Fraction(1, 2)
    """
    signature = inspect.signature(kind)
    try:
        signature.bind(*arguments, **settings)
    except TypeError as error:
        known = list(signature.parameters)[len(arguments) :]
        raise ArgumentError(f"settings: {name!r} does not take them, {error}; it has {known}.") from error
    return kind(*arguments, **settings)


def chosen_names(names: Iterable[str], known: Sequence[str], argument: str = "names", least: int = 1) -> list[str]:
    """Distinct modalities out of the known ones, ``least`` of them or more, in the order chosen.

    Raises:
        ArgumentTypeError: not a sequence of strings.
        ArgumentError: too few, or one that stands twice.
        SchemaError: one is unknown.

    Example:
        >>> chosen_names(("text",), ["image", "text"])
        ['text']
    """
    if isinstance(names, str) or not isinstance(names, Iterable):
        remedy = f"use [{names!r}]" if isinstance(names, str) else f"use one such as {list(known)}"
        raise ArgumentTypeError(f"{argument}: expected a sequence of modality names, got {brief(names)}; {remedy}.")
    chosen = list(names)
    for name in chosen:
        if not isinstance(name, str):
            raise ArgumentTypeError(f"{argument}: expected names of modalities, got {brief(name)} among them.")
        if name not in known:
            raise SchemaError(f"{argument}: no modality is called {name!r}; the modalities are {list(known)}.")
        if chosen.count(name) > 1:
            raise ArgumentError(f"{argument}: modality {name!r} stands twice in {chosen}; name each once.")
    if len(chosen) < least:
        count = "one modality" if least == 1 else f"{least} modalities"
        raise ArgumentError(f"{argument}: expected at least {count} of {list(known)}, got {chosen}.")
    return chosen


def usable_device(device: torch.device | str | int | None) -> torch.device | str | int | None:
    """A device that torch can put a tensor on, here and now.

    Raises:
        ArgumentError: it cannot.

    Example:
        >>> usable_device("cpu")
        'cpu'
    """
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError, TypeError, ValueError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
        raise ArgumentError(
            f"device: torch cannot use {device!r} on this machine ({reason}); pass 'cpu', or a GPU that it has."
        ) from error
    return device


def brief(value: object) -> str:
    """A value as messages show it: itself if that is short, else its type."""
    shown = repr(value) if isinstance(value, str | bytes | int | float | list | tuple | type(None)) else ""
    return shown if 0 < len(shown) <= 60 else type(value).__name__


def described(value: object) -> str:
    """Name of a wrong argument for messages: its type, or that it is a class where an object was meant.

    Example:
        >>> described("x"), described(None), described(torch.ones(3)), described(int)
        ("'x'", 'None', 'Tensor', 'the class int itself')
    """
    return f"the class {value.__name__} itself" if isinstance(value, type) else brief(value)


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
