"""One group of hidden cells with what was imputed in their place, and every figure of an instance and feature."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from calmrl_prob.posteriors.predictive import Predictive

Array = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class HeldOut:
    """One modality of n instances, hidden and imputed from the same others.

    Attributes:
        modality: what was hidden.
        seen: names of the modalities that it was imputed from.
        rows: (n,) numbers of the instances in the data.
        fold: number of the fold that they are in; -1 where nothing was refitted.
        truth: (n, D_m), data units.
        predictive: p(x_n^m | what was seen), feature by feature.
        joint_log_density: log p(x_n^m | what was seen), all features jointly, (n,), nats; NaN where the route has none.
        mahalanobis: (x - mean)^T Cov^-1 (x - mean) of the same joint distribution, (n,); chi-square of D_m degrees of
            freedom if the model is right. NaN where the predictive is not one normal.
        energy: the energy score E|X - x| - 1/2 E|X - X'| of the joint distribution, (n,), data units; NaN if not asked.
    """

    modality: str
    seen: tuple[str, ...]
    rows: NDArray[np.int64]
    fold: int
    truth: Tensor
    predictive: Predictive
    joint_log_density: Array
    mahalanobis: Array
    energy: Array
    _kept: dict[str, Any] = field(default_factory=dict, repr=False)

    @property
    def pattern(self) -> str:
        """The modalities seen, joined by "+"."""
        return "+".join(self.seen)

    @cached_property
    def mean(self) -> Array:
        """Of the predictive, (n, D_m)."""
        return array(self.predictive.mean)

    @cached_property
    def variance(self) -> Array:
        """Of the predictive, (n, D_m)."""
        return array(self.predictive.variance)

    @cached_property
    def error(self) -> Array:
        """Truth less mean, (n, D_m)."""
        return array(self.truth) - self.mean

    @cached_property
    def pit(self) -> Array:
        """The probability integral transform of the truth, (n, D_m), in [0, 1]."""
        return array(self.predictive.cdf(self.truth))

    def inside(self, level: float) -> NDArray[np.bool_]:
        """Whether the truth lies in the central interval of this level, (n, D_m)."""
        low, high = self._interval(level)
        inside: NDArray[np.bool_] = ((low <= self.truth) & (self.truth <= high)).cpu().numpy()
        return inside

    def width(self, level: float) -> Array:
        """Of the central interval of this level, (n, D_m), data units."""
        low, high = self._interval(level)
        return array(high - low)

    def _interval(self, level: float) -> tuple[Tensor, Tensor]:
        """The last one asked for is kept: quantiles of what is not normal take long."""
        if self._kept.get("level") != level:
            ends = [self.predictive.quantile((1 + sign * level) / 2) for sign in (-1, 1)]
            self._kept.update(level=level, ends=tuple(ends))
        found: tuple[Tensor, Tensor] = self._kept["ends"]
        return found


def array(values: Tensor) -> Array:
    """As numpy, in double precision."""
    found: Array = values.detach().double().cpu().numpy()
    return found


def _part(held: HeldOut, part: Tensor | None) -> Array:
    """A part of the variance, (n, D_m); zeros where there is none."""
    shape = held.truth.shape
    return np.zeros(shape) if part is None else np.broadcast_to(array(part), shape)


#: Figures of one feature of one instance, (n, D_m): functions of a group and a level. Tables show means over them.
CELL_FIGURES: dict[str, Callable[[HeldOut, float], Array]] = {
    "square_error": lambda held, _: held.error**2,
    "square_z": lambda held, _: held.error**2 / held.variance,
    "nll": lambda held, _: -array(held.predictive.log_density(held.truth)),
    "crps": lambda held, _: array(held.predictive.crps(held.truth)),
    "coverage": lambda held, level: held.inside(level).astype(np.float64),
    "width": lambda held, level: held.width(level),
    "variance": lambda held, _: held.variance,
    "latent_variance": lambda held, _: _part(held, held.predictive.latent_variance),
    "noise_variance": lambda held, _: _part(held, held.predictive.noise_variance),
    "parameter_variance": lambda held, _: _part(held, held.predictive.parameter_variance),
}

#: Figures of all features of one instance together, (n,).
ROW_FIGURES: dict[str, Callable[[HeldOut], Array]] = {
    "log_score": lambda held: -held.joint_log_density,
    "energy_score": lambda held: held.energy,
    "mahalanobis": lambda held: held.mahalanobis / held.truth.shape[1],
}


def figure(held: HeldOut, name: str, level: float) -> Array:
    """One of either kind, (n, D_m) or (n, 1)."""
    return ROW_FIGURES[name](held)[:, None] if name in ROW_FIGURES else CELL_FIGURES[name](held, level)


def energy_score(draws: Iterable[Tensor] | None, truth: Tensor) -> Array:
    """The energy score of draws of whole vectors, one number for each instance.

        mean_s |X_s - x| - 1/2 mean_s |X_s - X_{s+1}|                (s + 1 of the last is the first)

    Independent draws make both means unbiased; neighbours alone are compared, so that S draws cost S distances.
    Source: Gneiting & Raftery, Strictly Proper Scoring Rules, Prediction, and Estimation, 2007; neighbouring draws:
    Gneiting, Stanberry, Grimit, Held & Johnson, Assessing probabilistic forecasts of multivariate quantities, 2008.

    Args:
        draws: S tensors (n, D), at least 2; None gives NaN.
        truth: (n, D).

    Example:
        >>> round(float(energy_score([torch.tensor([[0.0]]), torch.tensor([[2.0]])], torch.tensor([[1.0]]))[0]), 3)
        0.0
    """
    if draws is None:
        return np.full(len(truth), np.nan)
    first = last = None
    total, count = np.zeros(len(truth)), 0
    for draw in draws:
        total += _distance(draw, truth)
        if last is None:
            first = draw
        else:
            total -= 0.5 * _distance(draw, last)
        last, count = draw, count + 1
    assert first is not None
    assert last is not None
    return (total - 0.5 * _distance(first, last)) / count


def _distance(left: Tensor, right: Tensor) -> Array:
    return array(torch.linalg.vector_norm((left - right).double(), dim=1))
