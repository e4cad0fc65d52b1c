"""Structures that instances are divided over: one for each of their groups."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from calmrl_prob.linear_gaussian.structure import LinearGaussian


@dataclass(frozen=True, eq=False)
class StructuresByInstance:
    """G structures, and which of them each instance has.

    Attributes:
        structures: one for each group; all of the same modalities and latents.
        index: the structure of each instance, (N,) int64.
        groups: their names, for messages.
        column: what tells the group of an instance, for messages.
    """

    structures: tuple[LinearGaussian, ...]
    index: Tensor
    groups: tuple[str, ...]
    column: str
