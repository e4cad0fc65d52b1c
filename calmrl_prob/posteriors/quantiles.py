"""Quantiles of mixtures of normals."""

from __future__ import annotations

import math

import torch
from torch import Tensor

#: Steps of the search at most: Newton's, kept in a bracket that is halved where they leave it.
_STEPS = 60
#: Steps below this share of the narrowest component's standard deviation end the search; in single precision, and far
#: from zero, what rounding allows.
_ENOUGH = 1e-12


def mixture_quantile(location: Tensor, scale: Tensor, probability: float, weight: Tensor | None = None) -> Tensor:
    """Quantile of a mixture of normals along the first axis, by Newton's steps within a shrinking bracket.

    Args:
        location: (C, N, D) or any other (C, ...), means of the components.
        scale: the same shape, standard deviations.
        probability: between 0 and 1.
        weight: (C, N), weights that sum to one over C, of components (C, N, D); equal by default.

    Returns:
        (N, D), or the other shape without C.

    Example:
        >>> location, scale = torch.tensor([-1.0, 1.0]).double(), torch.ones(2).double()
        >>> abs(round(float(mixture_quantile(location, scale, 0.5)), 6))
        0.0
    """

    def average(values: Tensor) -> Tensor:
        return values.mean(0) if weight is None else torch.einsum("cn,cnd->nd", weight, values)

    standard = float(torch.special.ndtri(torch.tensor(probability, dtype=torch.float64)))
    ends = location + standard * scale
    low, high = ends.amin(0), ends.amax(0)
    point = (low + high) / 2
    rounding = torch.finfo(point.dtype).eps
    enough = max(_ENOUGH, rounding) * scale.amin(0)
    for _ in range(_STEPS):
        z = (point - location) / scale
        below = average(torch.special.ndtr(z)) - probability
        density = average(torch.exp(-0.5 * z.square()) / scale) / math.sqrt(2 * math.pi)
        low, high = torch.where(below < 0, point, low), torch.where(below < 0, high, point)
        moved = point - below / density
        inside = (moved >= low) & (moved <= high)  # False for NaN too
        following = torch.where(inside, moved, (low + high) / 2)
        if bool(((following - point).abs() <= enough + rounding * point.abs()).all()):
            return following
        point = following
    return point
