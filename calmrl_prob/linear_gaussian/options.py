"""Options of a method as one object, whose fields can be given as keywords too."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Self

from calmrl_prob.errors import ArgumentError, ArgumentTypeError


@dataclass(frozen=True, kw_only=True)
class Options:
    """Base class of options: frozen dataclasses whose ``__post_init__`` refuses what is out of range."""

    @classmethod
    def of(cls, options: Self | None, settings: Mapping[str, Any], owner: str, besides: Sequence[str] = ()) -> Self:
        """The options, with the fields that ``settings`` names in place of theirs.

        Args:
            options: None for the defaults.
            settings: fields by name.
            owner: whose options they are, for messages.
            besides: what else the owner takes by keyword, for the message alone.

        Raises:
            ArgumentError: there is no such field, or its value is out of range.
            ArgumentTypeError: ``options`` are those of another method, or none at all.

        Example:
            >>> from calmrl_prob.linear_gaussian import EMOptions
            >>> EMOptions.of(EMOptions(seed=1), {"noise": "diagonal"}, "fit_em").noise
            'diagonal'
        """
        if options is not None and not isinstance(options, cls):
            raise ArgumentTypeError(
                f"options: expected {cls.__name__}, got {type(options).__name__}; pass one, or its fields as keywords."
            )
        known = [field.name for field in fields(cls)]
        unknown = sorted(set(settings) - set(known))
        if unknown:
            raise ArgumentError(f"options: {owner} has no option {unknown[0]!r}; it has {[*known, *besides]}.")
        return cls(**settings) if options is None else replace(options, **settings)
