"""Nested values of tensors and plain things as JSON beside named tensors, so that nothing needs to be pickled."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from torch import Tensor

from calmrl_prob._support.arguments import described
from calmrl_prob.errors import ArgumentTypeError


def taken_apart(value: object, name: str = "") -> tuple[Any, dict[str, Tensor]]:
    """A value as what JSON knows, and the tensors in it by name.

    Dicts, lists, tuples, tensors, strings, numbers, truth values and None may lie in each other. JSON knows neither
    tuples nor keys that are no strings, so that an object of it stands for one of three: {"dict": pairs}, {"tuple":
    items} or {"tensor": name}.

    Args:
        value: what is taken apart.
        name: of the value, which the names of its tensors begin with.

    Raises:
        ArgumentTypeError: something else lies in it; names the place.

    Example:
        >>> import torch
        >>> tree, tensors = taken_apart({"step": 3, "weights": {0: torch.ones(2)}})
        >>> tree
        {'dict': [['step', 3], ['weights', {'dict': [[0, {'tensor': 'weights/0'}]]}]]}
        >>> put_together(tree, tensors)
        {'step': 3, 'weights': {0: tensor([1., 1.])}}
    """
    tensors: dict[str, Tensor] = {}
    return _apart(value, name, tensors), tensors


def _apart(value: object, name: str, tensors: dict[str, Tensor]) -> Any:  # noqa: ANN401 - of JSON
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or isinstance(value, bool):
        return value
    for plain in (int, float, str):
        if isinstance(value, plain):
            return plain(value)
    if isinstance(value, Tensor):
        unique = name if name not in tensors else f"{name} ({len(tensors)})"
        tensors[unique] = value
        return {"tensor": unique}
    if isinstance(value, Mapping):
        return {"dict": [[_apart(k, name, tensors), _apart(v, _below(name, k), tensors)] for k, v in value.items()]}
    if isinstance(value, list | tuple):
        items = [_apart(item, _below(name, place), tensors) for place, item in enumerate(value)]
        return items if isinstance(value, list) else {"tuple": items}
    raise ArgumentTypeError(
        f"{name}: expected tensors, numbers, strings, and dicts and lists of these, got {described(value)}; files hold "
        "nothing else, for nothing is pickled: keep it as a tensor or a number."
    )


def _below(name: str, key: object) -> str:
    return f"{name}/{key}" if name else f"{key}"


def put_together(tree: object, tensors: Mapping[str, Tensor]) -> Any:  # noqa: ANN401 - whatever was taken apart
    """The value that :func:`taken_apart` took apart.

    Raises:
        KeyError, TypeError, ValueError: the tree is none that it makes.
    """
    if isinstance(tree, list):
        return [put_together(item, tensors) for item in tree]
    if not isinstance(tree, dict):
        return tree
    ((kind, content),) = tree.items()
    if kind == "tensor":
        return tensors[content]
    if kind == "tuple":
        return tuple(put_together(content, tensors))
    if kind == "dict":
        return {put_together(key, tensors): put_together(value, tensors) for key, value in content}
    raise ValueError(f"expected a dict, a tuple or a tensor, got {kind!r:.50}")
