"""Data sets: two that come with the library, one generated from known parameters, and one of generated raw inputs.

Every loader in ``DATASETS`` takes keyword arguments only and returns a :class:`calmrl_prob.MultimodalData` with labels.
Where the bundled data come from, and their licences, stands in ATTRIBUTION.md beside this file.
"""

from __future__ import annotations

from collections.abc import Callable

from calmrl_prob.data import MultimodalData
from calmrl_prob.datasets.bundled import load_emoji, load_leaves
from calmrl_prob.datasets.scenes import Scenes, load_scenes, make_scenes
from calmrl_prob.datasets.synthetic import SyntheticData, load_synthetic, make_synthetic

#: Every data set by name. One added here runs the contract tests by itself.
DATASETS: dict[str, Callable[..., MultimodalData]] = {
    "emoji": load_emoji,
    "leaves": load_leaves,
    "scenes": load_scenes,
    "synthetic": load_synthetic,
}

__all__ = [
    "DATASETS",
    "Scenes",
    "SyntheticData",
    "load_emoji",
    "load_leaves",
    "load_scenes",
    "load_synthetic",
    "make_scenes",
    "make_synthetic",
]
