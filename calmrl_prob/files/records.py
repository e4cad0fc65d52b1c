"""Records: trees of values as JSON and tensors, and back.

Numbers, text, lists, tuples, mappings, slices, tensors, arrays and frames are kept as what they are. Anything else is
kept only if its class is in a table that the reader has too: a file names classes and brings none, so that reading one
imports nothing, unpickles nothing and runs nothing but what this library has for those classes. A thing that is met
twice is written once, and is one thing again when it is read.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, fields
from typing import Any

import numpy as np
import torch
from torch import Tensor

from calmrl_prob._support.arguments import described
from calmrl_prob._support.frozen import FrozenMapping
from calmrl_prob.errors import ArgumentTypeError, FileFormatError

#: What JSON holds of a value.
Packed = Any
#: For the first word of a field's annotation what its value has to be; of other words it may be anything.
_ANNOTATED: dict[str, type | tuple[type, ...]] = {
    "int": int,
    "float": (int, float),
    "bool": bool,
    "str": str,
    "Tensor": Tensor,
    "NDArray": np.ndarray,
    "Mapping": Mapping,
    "Sequence": (list, tuple),
    "tuple": tuple,
}


@dataclass(frozen=True)
class Kept:
    """A class of which files keep instances.

    Attributes:
        type: the class; those of classes derived from it are not kept.
        take: from an instance to the values that it is made of.
        make: from these values to an instance that answers as the first did; refuses what no instance is made of.
    """

    type: type
    take: Callable[[Any], Mapping[str, Any]]
    make: Callable[[Mapping[str, Any]], Any]


def kept_dataclass(kind: type) -> Kept:
    """The entry of a dataclass: its fields, checked by the first word of their annotations when it is made again."""

    def take(thing: Any) -> dict[str, Any]:  # noqa: ANN401
        return {field.name: getattr(thing, field.name) for field in fields(kind)}

    def make(values: Mapping[str, Any]) -> Any:  # noqa: ANN401
        for field in fields(kind):
            if field.name not in values and field.default is not MISSING:
                continue  # a file of before it had the field
            annotation, value = str(field.type), values[field.name]
            word = re.match(r"\w*", annotation)
            expected = _ANNOTATED.get(word.group() if word else "", object)
            if not isinstance(value, expected) and not (value is None and "None" in annotation):
                raise FileFormatError(f"{kind.__name__}.{field.name}: expected {annotation}, got {described(value)}")
        made = kind(**values)
        for name, value in values.items():
            if isinstance(value, Tensor):  # bit by bit: what is normalised once more may differ in its last digit
                object.__setattr__(made, name, value)
        return made

    return Kept(kind, take, make)


class Packer:
    """Takes things apart into JSON and tensors.

    Args:
        table: the classes whose instances are kept, by the names that files have for them.

    Attributes:
        tensors: those met so far, by where they were met.

    Example:
        >>> packer = Packer({})
        >>> packer.pack({"image": torch.ones(2), "count": (3, None)}, "parts")
        {'dict': [['image', {'tensor': 'parts/image'}], ['count', {'tuple': [3, None]}]]}
        >>> Unpacker({}, packer.tensors).unpack({"dict": [["image", {"tensor": "parts/image"}]]})
        {'image': tensor([1., 1.])}
    """

    def __init__(self, table: Mapping[str, Kept]) -> None:
        self.tensors: dict[str, Tensor] = {}
        self._table, self._names = table, {kept.type: name for name, kept in table.items()}
        self._numbers: dict[int, int] = {}
        self._keys: dict[int, str] = {}
        self._front: set[int] = set()
        self._alive: list[Any] = []  # so that no other thing gets the identity of one that was met

    def pack(self, value: Any, place: str) -> Packed:  # noqa: ANN401
        """JSON that stands for a value, which is at a place: what messages and tensors call it by.

        Raises:
            ArgumentTypeError: it is, or holds, something of a class that is not in the table, or holds itself.
        """
        if isinstance(value, np.generic):
            value = value.item()
        if value is None or isinstance(value, bool | int | str):
            return value
        if isinstance(value, float):
            return value if math.isfinite(value) else {"float": str(value)}
        if type(value) in self._names:
            return self._object(value, place)
        if isinstance(value, Tensor):
            return {"tensor": self._tensor(value, value, place)}
        if isinstance(value, np.ndarray):
            return self._array(value, place)
        return self._several(value, place)

    def _several(self, value: Any, place: str) -> Packed:  # noqa: ANN401
        if isinstance(value, list | tuple):
            items = [self.pack(item, f"{place}/{i}") for i, item in enumerate(value)]
            return items if isinstance(value, list) else {"tuple": items}
        if isinstance(value, Mapping):
            pairs = [[self.pack(key, place), self.pack(inner, f"{place}/{key}")] for key, inner in value.items()]
            return {"frozen" if isinstance(value, FrozenMapping) else "dict": pairs}
        if isinstance(value, slice):
            return {"slice": [self.pack(end, place) for end in (value.start, value.stop, value.step)]}
        if type(value).__module__.split(".")[0] == "pandas" and type(value).__name__ == "DataFrame":
            return {"frame": [[name, self.pack(value[name].to_numpy(), f"{place}/{name}")] for name in value.columns]}
        raise ArgumentTypeError(
            f"model: {place} is {described(value)}, which no file keeps; leave it out, as by dataclasses.replace, or "
            "save the parts that you need: a SharedLatentModel, parameters (cal.save), or a torch module's state_dict "
            "(safetensors)."
        )

    def _object(self, value: Any, place: str) -> Packed:  # noqa: ANN401
        if id(value) in self._numbers:
            return {"same": self._numbers[id(value)]}
        if id(value) in self._front:
            raise ArgumentTypeError(f"model: {place} holds itself, which no file keeps; take the attachment off it.")
        self._front.add(id(value))
        self._alive.append(value)
        name = self._names[type(value)]
        inner = {key: self.pack(part, f"{place}/{key}") for key, part in self._table[name].take(value).items()}
        self._numbers[id(value)] = len(self._numbers)
        return {"object": [name, inner]}

    def _tensor(self, met: Any, tensor: Tensor, place: str) -> str:  # noqa: ANN401
        if id(met) not in self._keys:
            while place in self.tensors:
                place += "'"
            self._alive.append(met)
            self._keys[id(met)], self.tensors[place] = place, tensor.detach()
        return self._keys[id(met)]

    def _array(self, array: np.ndarray, place: str) -> Packed:
        if array.dtype.kind in "OU":
            items = [self.pack(item, f"{place}/{i}") for i, item in enumerate(array.ravel().tolist())]
            return {"items": [items, list(array.shape), array.dtype.kind == "O"]}
        if array.dtype.kind not in "biuf" or array.dtype.itemsize > 8:
            raise ArgumentTypeError(f"model: {place} is an array of {array.dtype}, which no file keeps; leave it out.")
        unsigned = array.dtype.kind == "u"
        plain = np.array(array, dtype=array.dtype.newbyteorder("="), order="C")
        stored = torch.from_numpy(plain.view(f"i{plain.itemsize}") if unsigned else plain)
        return {"array": [self._tensor(array, stored, place), unsigned]}


class Unpacker:
    """Puts together what a :class:`Packer` took apart.

    Args:
        table: the classes that may occur, by name.
        tensors: of the file.
    """

    def __init__(self, table: Mapping[str, Kept], tensors: Mapping[str, Tensor]) -> None:
        self._table, self._tensors = table, tensors
        self._made: list[Any] = []
        self._arrays: dict[str, np.ndarray] = {}
        self._parts: dict[str, Callable[[Any], Any]] = {
            "float": float,
            "tensor": lambda key: self._tensors[key],
            "array": self._array,
            "items": self._items,
            "tuple": lambda items: tuple(self.unpack(items)),
            "dict": self._mapping,
            "frozen": lambda pairs: FrozenMapping(self._mapping(pairs)),
            "slice": lambda ends: slice(*self.unpack(ends)),
            "frame": self._frame,
            "object": self._object,
            "same": lambda number: self._made[number],
        }

    def unpack(self, packed: Packed) -> Any:  # noqa: ANN401
        """The value that JSON stands for.

        Raises:
            FileFormatError, ArgumentError, KeyError, TypeError, ValueError, IndexError: it stands for none.
        """
        if isinstance(packed, list):
            return [self.unpack(item) for item in packed]
        if not isinstance(packed, dict):
            return packed
        ((kind, inner),) = packed.items()
        return self._parts[kind](inner)

    def _object(self, inner: tuple[str, Mapping[str, Packed]]) -> Any:  # noqa: ANN401
        name, parts = inner
        made = self._table[name].make({key: self.unpack(part) for key, part in parts.items()})
        self._made.append(made)
        return made

    def _mapping(self, pairs: list[tuple[Packed, Packed]]) -> dict[Any, Any]:
        return {self.unpack(key): self.unpack(value) for key, value in pairs}

    def _array(self, inner: tuple[str, bool]) -> np.ndarray:
        key, unsigned = inner
        if key not in self._arrays:
            found = self._tensors[key].numpy()
            self._arrays[key] = found.view(f"u{found.itemsize}") if unsigned else found
        return self._arrays[key]

    def _items(self, inner: tuple[list[Packed], list[int], bool]) -> np.ndarray:
        items, shape, objects = inner
        if not objects:
            return np.array(self.unpack(items), dtype=np.str_).reshape(shape)
        array = np.empty(len(items), dtype=object)
        array[:] = self.unpack(items)
        return array.reshape(shape)

    def _frame(self, columns: list[tuple[str, Packed]]) -> Any:  # noqa: ANN401
        import pandas as pd

        return pd.DataFrame({name: self.unpack(column) for name, column in columns})
