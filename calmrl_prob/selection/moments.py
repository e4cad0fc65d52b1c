"""Mean and variance of each feature over the instances that have it, of rows or of their statistics."""

from __future__ import annotations

import torch
from torch import Tensor

from calmrl_prob.data import MultimodalData
from calmrl_prob.linear_gaussian import SufficientStatistics
from calmrl_prob.linear_gaussian.em.parameters import Shape
from calmrl_prob.linear_gaussian.em.statistics import pattern_features, pattern_totals


def feature_moments(data: MultimodalData | SufficientStatistics) -> dict[str, tuple[Tensor, Tensor]]:
    """For each modality the mean and the variance of its features, (D_m,) float64 each, data units (squared).

    Both are 0 where no instance has a feature.

    Example:
        >>> mean, variance = feature_moments(MultimodalData({"a": torch.tensor([[1.0], [3.0]])}))["a"]
        >>> mean.tolist(), variance.tolist()
        ([2.0], [1.0])
    """
    if isinstance(data, SufficientStatistics):
        shape = Shape.of(data.dims, data.shift.device)
        parts = [(scatter, pattern_features(shape, present)) for present, scatter in data.scatters.items()]
        count, total, square = pattern_totals(parts, shape)
        mean = total / count.clamp(min=1)
        variance = (square / count.clamp(min=1) - mean.square()).clamp(min=0)
        widths = list(data.dims.values())
        found = zip((mean + data.shift).split(widths), variance.split(widths), strict=True)
        return dict(zip(data.dims, found, strict=True))
    return {name: _of_rows(data[name].double()) for name in data.names}


def _of_rows(values: Tensor) -> tuple[Tensor, Tensor]:
    """Of (N, D), NaN where missing."""
    there = values.isfinite()
    count = there.sum(0).clamp(min=1)
    mean = torch.where(there, values, 0).sum(0) / count
    return mean, torch.where(there, (values - mean).square(), 0).sum(0) / count
