"""Every form of the E-step on the same data, for the tests of EM."""

from __future__ import annotations

import torch
from hypothesis import settings
from torch import Tensor

from calmrl_prob.linear_gaussian import (
    FeatureBlocks,
    ObservedBlocks,
    SufficientStatistics,
)
from calmrl_prob.linear_gaussian.em.expectation import ExpectationStep
from calmrl_prob.linear_gaussian.em.rowwise import FeatureStep, ModalityStep, PatternStep
from calmrl_prob.linear_gaussian.em.statistics import FromStatistics

laws = settings(derandomize=True, deadline=None, max_examples=15)
DIMS = {"a": 9, "b": 6, "c": 7}


def relative(one: Tensor, other: Tensor) -> float:
    """Largest difference over largest size."""
    return float((one - other).abs().max() / other.abs().max())


def all_forms(blocks: ObservedBlocks, latent_dim: int) -> dict[str, tuple[ExpectationStep, Tensor]]:
    """Every form of the E-step on the same data, with the shift that it works about."""
    centred, shift = blocks.centred()
    statistics = SufficientStatistics.from_blocks(blocks)
    rows = torch.zeros(blocks.num_instances, sum(blocks.dims.values()), dtype=torch.float64)
    present = torch.zeros_like(rows, dtype=torch.bool)
    start = 0
    for name, values in blocks.values.items():
        rows[blocks.rows[name], start : start + values.shape[1]] = values
        present[blocks.rows[name], start : start + values.shape[1]] = True
        start += values.shape[1]
    features, feature_shift = FeatureBlocks(blocks.dims, rows, present).centred()
    return {
        "modality": (ModalityStep(centred, latent_dim), shift),
        "pattern": (PatternStep(centred, latent_dim), shift),
        "statistics": (FromStatistics(statistics), statistics.shift),
        "features": (FeatureStep(features, latent_dim), feature_shift),
    }
