"""A lazy mapping of modalities: what is imputed of each is computed when it is asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

from calmrl_prob.errors import UnknownModalityError

T = TypeVar("T")


class ByModality(Mapping[str, T]):
    """A mapping of modality names to values that are computed when first asked for, and kept.

    Attributes:
        dims: the widths, and the names of features where they are known, of values that have a column for each.

    Example:
        >>> lazy = ByModality(("image", "text"), len)
        >>> lazy["text"], list(lazy)
        (4, ['image', 'text'])
    """

    def __init__(
        self, names: Sequence[str], compute: Callable[[str], T], dims: Mapping[str, int] | None = None
    ) -> None:
        self._names = tuple(names)
        self.dims = dims
        self._compute = compute
        self._known: dict[str, T] = {}

    def __getitem__(self, name: str) -> T:
        if name not in self._names:
            raise UnknownModalityError(f"modality {name!r}: it is not among those here, {list(self._names)}.")
        if name not in self._known:
            self._known[name] = self._compute(name)
        return self._known[name]

    def __contains__(self, name: object) -> bool:
        return name in self._names  # the inherited test would compute the value

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def __repr__(self) -> str:
        return f"ByModality({', '.join(self._names)})"

    def __getstate__(self) -> dict[str, Any]:
        # what computes may be a closure, which cannot travel: the values do, all of them
        return {"_names": self._names, "dims": self.dims, "_compute": None, "_known": dict(self)}
