"""Options that travel as one object, a frozen dataclass, and may be written one by one as keywords."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from typing import Any, TypeVar

from calmrl_prob._support.arguments import described, require_known_options
from calmrl_prob.errors import ArgumentTypeError

T = TypeVar("T")


def with_settings(
    kind: type[T], options: T | None, settings: Mapping[str, Any], owner: str, besides: Sequence[str] = ()
) -> T:
    """Options with some of their fields set by keyword.

    Args:
        kind: a frozen dataclass with a default for each field.
        options: one of it, or None for the defaults.
        settings: fields by name, which count before those of ``options``.
        owner: whose options they are, as messages name it.
        besides: what else the owner takes by keyword, for the message alone.

    Raises:
        ArgumentTypeError: ``options`` is something else.
        ArgumentError: there is no such field; names those that there are.

    Example:
        >>> from dataclasses import dataclass
        >>> @dataclass(frozen=True)
        ... class Speed:
        ...     rate: float = 0.1
        ...     decay: float = 0.0
        >>> with_settings(Speed, Speed(rate=0.5), {"decay": 0.2}, "the optimiser")
        Speed(rate=0.5, decay=0.2)
    """
    if options is not None and not isinstance(options, kind):
        raise ArgumentTypeError(
            f"options: expected {kind.__name__}, got {described(options)}; pass one, or its fields as keywords."
        )
    known = [field.name for field in fields(kind)]  # type: ignore[arg-type]
    require_known_options(settings, [*known, *besides], owner)
    return kind(**settings) if options is None else replace(options, **settings)  # type: ignore[type-var]
