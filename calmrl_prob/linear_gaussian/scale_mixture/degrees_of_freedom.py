"""Degrees of freedom of Student-t distributions by one-dimensional root finding on their logarithm.

From distances: with delta_n the squared Mahalanobis distance of D_n numbers, the log likelihood of nu is, up to terms
without nu,

    sum_n lgamma((nu + D_n) / 2) - lgamma(nu / 2) + nu / 2 log nu - (nu + D_n) / 2 log(nu + delta_n)

From expected scales: the expected log density of u_n ~ Gamma(nu / 2, nu / 2) is, per instance and up to such terms,

    nu / 2 log(nu / 2) - lgamma(nu / 2) + nu / 2 (mean_n E[log u_n] - mean_n E[u_n])

Source: Liu & Rubin, ML estimation of the t distribution using EM and its extensions, ECM and ECME (1995).
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

#: Degrees of freedom outside of these are told apart by no data.
LEAST, MOST = 0.1, 1e6
#: What fits start from by default.
START_FREEDOM = 10.0


def from_distances(distance: Tensor, num_features: Tensor, current: float) -> float:
    """The degrees of freedom of greatest likelihood near the current ones.

    Args:
        distance: delta_n, shape (N,).
        num_features: D_n, shape (N,).
        current: where to start from. The likelihood of the result is not below that of this.

    Example:
        >>> import torch
        >>> u = (torch.arange(4000, dtype=torch.float64) + 0.5) / 4000
        >>> cauchy = torch.tan(math.pi * (u - 0.5))  # quantiles of t with 1 degree of freedom
        >>> round(from_distances(cauchy.square(), torch.ones(4000).double(), 10.0), 1)
        1.0
    """

    def value(nu: float) -> float:
        return float(
            (torch.lgamma((nu + num_features) / 2) - (nu + num_features) / 2 * (nu + distance).log()).sum()
        ) + len(distance) * (nu / 2 * math.log(nu) - math.lgamma(nu / 2))

    def slope(nu: float) -> float:
        rows = torch.digamma((nu + num_features) / 2) - (nu + distance).log() - (nu + num_features) / (nu + distance)
        return float(rows.mean()) - _digamma(nu / 2) + math.log(nu) + 1

    found = nearest_maximum(slope, current)
    return found if value(found) >= value(current) else current


def from_expected_scales(mean_log_less_mean: float, current: float, least: float = LEAST) -> float:
    """The degrees of freedom that maximise the expected log density of the scales.

    Args:
        mean_log_less_mean: the mean of E[log u_n] - E[u_n], at most -1.
        current: where to start from.
        least: the least that is allowed.

    Example:
        >>> import torch
        >>> nu = 6.0  # what E[log u] - E[u] is under the prior itself gives it back
        >>> round(from_expected_scales(float(torch.digamma(torch.tensor(3.0).double())) - math.log(3.0) - 1, 20.0), 3)
        6.0
    """
    return nearest_maximum(lambda nu: 1 + math.log(nu / 2) - _digamma(nu / 2) + mean_log_less_mean, current, least)


def nearest_maximum(
    slope: Callable[[float], float], start: float, least: float = LEAST, tolerance: float = 1e-7
) -> float:
    """The nearest local maximum uphill, by the sign of the derivative, from ``least`` to ``MOST``.

    Bracket by doubling, then the Illinois variant of regula falsi on log nu.
    """
    low = high = min(max(start, least), MOST)
    at_start = slope(low)
    if at_start == 0:
        return low
    at_low = at_high = at_start
    factor = 1.2
    while at_low * at_high > 0:
        if at_start > 0:
            low, at_low, high = high, at_high, min(high * factor, MOST)
            at_high = slope(high)
            if high == MOST and at_high > 0:
                return MOST
        else:
            high, at_high, low = low, at_low, max(low / factor, least)
            at_low = slope(low)
            if low == least and at_low < 0:
                return least
        factor *= factor
    left, right, side = math.log(low), math.log(high), 0
    middle = left
    for _ in range(100):
        before, middle = middle, (left * at_high - right * at_low) / (at_high - at_low)
        value = slope(math.exp(middle))
        if value == 0 or abs(middle - before) < tolerance:
            break
        if value > 0:
            left, at_low = middle, value
            at_high = at_high / 2 if side > 0 else at_high
        else:
            right, at_high = middle, value
            at_low = at_low / 2 if side < 0 else at_low
        side = 1 if value > 0 else -1
    return math.exp(middle)


def _digamma(value: float) -> float:
    return float(torch.digamma(torch.tensor(value, dtype=torch.float64)))
