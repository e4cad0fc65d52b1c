"""Alignment objectives. One file a family; with a line in ``OBJECTIVES`` it has a name and is held to the contract."""

from __future__ import annotations

from typing import Any

from calmrl_prob._support.arguments import brief, constructed
from calmrl_prob.alignment.objectives.anchor_contrast import AnchorContrast
from calmrl_prob.alignment.objectives.combined import Combined
from calmrl_prob.alignment.objectives.gram import Gram
from calmrl_prob.alignment.objectives.matching import Matching
from calmrl_prob.alignment.objectives.objective import Objective
from calmrl_prob.alignment.objectives.pairs import Anchored, Pairwise
from calmrl_prob.alignment.objectives.pmrl import PMRL
from calmrl_prob.alignment.objectives.reconstruction import Reconstruction
from calmrl_prob.alignment.objectives.temperature import Temperature
from calmrl_prob.alignment.objectives.triangle import Triangle
from calmrl_prob.errors import ArgumentError

#: Name -> class.
OBJECTIVES: dict[str, type[Objective]] = {
    objective.name: objective
    for objective in (PMRL, Gram, Triangle, Pairwise, Anchored, AnchorContrast, Matching, Combined)
}


def make_objective(name: str, **settings: Any) -> Objective:
    """An objective by its name in ``OBJECTIVES``.

    Args:
        name: the name.
        settings: what its class takes.

    Raises:
        ArgumentError: there is none of that name, or it does not take the settings.

    Example:
        >>> make_objective("pairwise", temperature=0.1).temperature.value
        0.1
    """
    if name not in OBJECTIVES:
        raise ArgumentError(f"name: no objective is called {brief(name)}; the objectives are {sorted(OBJECTIVES)}.")
    return constructed(OBJECTIVES[name], name, **settings)


__all__ = [
    "OBJECTIVES",
    "PMRL",
    "AnchorContrast",
    "Anchored",
    "Combined",
    "Gram",
    "Matching",
    "Objective",
    "Pairwise",
    "Reconstruction",
    "Temperature",
    "Triangle",
    "make_objective",
]
