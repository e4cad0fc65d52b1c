"""Things that nobody can change and that travel: they can be pickled, copied and sent to another process."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Self, TypeVar

K = TypeVar("K")
V = TypeVar("V")


class FrozenMapping(Mapping[K, V]):
    """A mapping without methods that change it; ``types.MappingProxyType`` is one too, but cannot be pickled.

    Args:
        items: a mapping, or pairs of keys and values; copied.

    Example:
        >>> import copy, pickle
        >>> options = FrozenMapping({"tolerance": 1e-3})
        >>> options["tolerance"], {**options, "memory": 2}, options == {"tolerance": 1e-3}
        (0.001, {'tolerance': 0.001, 'memory': 2}, True)
        >>> pickle.loads(pickle.dumps(options)), copy.deepcopy(options)
        ({'tolerance': 0.001}, {'tolerance': 0.001})
    """

    __slots__ = ("_items",)

    def __init__(self, items: Mapping[K, V] | Iterable[tuple[K, V]] = ()) -> None:
        self._items: dict[K, V] = dict(items)

    def __getitem__(self, key: K) -> V:
        return self._items[key]

    def __iter__(self) -> Iterator[K]:
        return iter(self._items)

    def __len__(self) -> int:
        return len(self._items)

    def __contains__(self, key: object) -> bool:
        return key in self._items

    def __or__(self, other: Mapping[K, V]) -> dict[K, V]:
        return {**self._items, **other}

    def __ror__(self, other: Mapping[K, V]) -> dict[K, V]:
        return {**other, **self._items}

    def __repr__(self) -> str:
        return repr(self._items)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self._items,)


class TravelsDetached(ABC):
    """Base class of frozen things of tensors: what is pickled or copied of them is cut off from the autograd graph.

    torch can copy no tensor that was computed from parameters, and a graph cannot leave its process.
    """

    @abstractmethod
    def detach(self) -> Self:
        """A copy cut off from the autograd graph."""

    def __getstate__(self) -> dict[str, Any]:
        return dict(vars(self.detach()))
