"""Data that remember which of their columns were read, so that one can tell what a model depends on."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import numpy as np

from calmrl_prob.data import MultimodalData

#: Modules that look at columns only to hand them on.
_INSIDE = ("calmrl_prob.data.multimodal", "calmrl_prob.data.rows", "calmrl_prob.data.schema")


def watched(data: MultimodalData) -> tuple[MultimodalData, set[str]]:
    """The same data, and the set of the columns that have been read of them or their subsets: it grows.

    Covariates are entered one by one, by name.

    Example:
        >>> import torch
        >>> seen, reads = watched(MultimodalData({"x": torch.ones(2, 1)}, covariates={"age": [30, 40]}, labels=[0, 1]))
        >>> _ = seen.subset([0]).covariates["age"]
        >>> reads
        {'age'}
    """
    reads: set[str] = set()
    seen = object.__new__(_Watched)
    seen.__dict__.update(data.__dict__)
    seen.__dict__["_reads"] = reads
    return seen, reads


class _Column:
    """A column that enters its name in ``_reads`` when it is read from outside the container."""

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    def __get__(self, data: MultimodalData, owner: type) -> Any:  # noqa: ANN401
        value = data.__dict__[self._name]
        if sys._getframe(1).f_globals.get("__name__") in _INSIDE:
            return value
        reads: set[str] = data.__dict__["_reads"]
        if self._name == "covariates":
            return _WatchedColumns(value, reads)
        if value is not None:
            reads.add(self._name)
        return value

    def __set__(self, data: MultimodalData, value: Any) -> None:  # noqa: ANN401
        data.__dict__[self._name] = value


class _Watched(MultimodalData):
    """MultimodalData that keep note of what a model reads."""

    ids = _Column()
    labels = _Column()
    partition = _Column()
    covariates = _Column()


class _WatchedColumns(dict[str, np.ndarray]):
    def __init__(self, columns: dict[str, np.ndarray], reads: set[str]) -> None:
        super().__init__(columns)
        self._reads = reads

    def __getitem__(self, name: str) -> np.ndarray:
        value = super().__getitem__(name)
        self._reads.add(name)
        return value

    def get(self, name: str, default: Any = None) -> Any:  # noqa: ANN401
        """The column, or a default."""
        self._reads |= {name} & set(super().keys())
        return super().get(name, default)

    def __iter__(self) -> Iterator[str]:
        self._reads |= set(super().keys())
        return super().__iter__()

    def items(self) -> Any:  # noqa: ANN401
        """All columns."""
        self._reads |= set(super().keys())
        return super().items()

    def values(self) -> Any:  # noqa: ANN401
        """All columns."""
        self._reads |= set(super().keys())
        return super().values()
