"""Units that a fit works in, folded into its parameters afterwards so that nothing has to be undone.

Priors that pool the features of a modality, and noise of one variance for a modality, mean something only where its
features share a unit. Where their spreads differ beyond what one unit explains, each feature is divided by its own; a
model of z and x / s is the same model of x with loadings s W, intercepts s mu and noise s^2 psi, so the fitted
parameters, the saved model and all outputs are in the data's own units.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from calmrl_prob.data import MultimodalData
from calmrl_prob.errors import ArgumentError
from calmrl_prob.linear_gaussian import (
    BatchMoves,
    LinearGaussian,
    LinearGaussianMixture,
    ScaleMixture,
    Structure,
    SufficientStatistics,
)
from calmrl_prob.selection.folds import FoldedStatistics
from calmrl_prob.selection.moments import feature_moments

Scale = Literal["auto", "feature", "none"]
#: Greatest standard deviation of a modality's features over their median from which on units are taken to differ:
#: components sorted by variance stay well below, counts beside fractions do not.
_UNITS_DIFFER = 100.0


@dataclass(frozen=True, eq=False)
class Scaling:
    """Divisors of the features of each modality.

    Attributes:
        kind: "feature" or "none".
        divisors: for each modality (D_m,), in data units; empty for "none".
        constants: whether some feature never varies.
    """

    kind: str
    divisors: Mapping[str, Tensor]
    constants: bool = False

    @classmethod
    def of(cls, data: MultimodalData | FoldedStatistics, scale: Scale) -> Scaling:
        """The scaling asked for, or the one that the spreads of the features call for.

        Raises:
            ArgumentError: there is no such kind.
        """
        if scale not in get_args(Scale):
            raise ArgumentError(f"scale: expected one of {list(get_args(Scale))}, got {scale!r}.")
        spreads = feature_spreads(data)
        constants = any(bool((spread == 0).any()) for spread in spreads.values())
        differ = any(_units_differ(spread) for spread in spreads.values())
        if scale == "none" or (scale == "auto" and not differ):
            return cls("none", {}, constants)
        divisors = {name: torch.where(spread > 0, spread, 1.0) for name, spread in spreads.items()}
        return cls("feature", divisors, constants)

    def scaled(self, data: MultimodalData | FoldedStatistics) -> MultimodalData | FoldedStatistics:
        """The data in units of the divisors."""
        if not self.divisors:
            return data
        if isinstance(data, MultimodalData):
            return self._scaled_rows(data)
        samples = [None if sample is None else self._scaled_rows(sample) for sample in data.samples]
        return FoldedStatistics([self._scaled_statistics(fold) for fold in data.folds], samples)

    def _scaled_rows(self, data: MultimodalData) -> MultimodalData:
        values = {name: data[name] / self.divisors[name].to(data[name]) for name in data.names}
        beside: Any = {"labels": data.labels, "covariates": data.covariates}  # batches are told apart by them
        return MultimodalData(values, missing=data.missing, empty="drop", **beside)

    def _scaled_statistics(self, statistics: SufficientStatistics) -> SufficientStatistics:
        kept = statistics.to_tensors()
        shift = {name: value / self.divisors[name] for name, value in kept["shift"].items()}
        scatters = {}
        for present, scatter in kept["scatters"].items():
            here = [self.divisors[name] for name, there in zip(statistics.dims, present, strict=True) if there]
            divisor = torch.cat([*here, scatter.new_ones(1)])
            scatters[present] = scatter / torch.outer(divisor, divisor)
        return SufficientStatistics.from_tensors({**kept, "shift": shift, "scatters": scatters})

    def unscaled(self, lg: LinearGaussian) -> LinearGaussian:
        """The same model of the data in their own units."""
        if not self.divisors:
            return lg
        s = {name: self.divisors[name].to(lg.loadings[name]) for name in lg.names}
        factor = lg.noise_factor
        return LinearGaussian(
            {name: lg.loadings[name] * s[name][:, None] for name in lg.names},
            {name: lg.intercepts[name] * s[name] for name in lg.names},
            {name: lg.noise_variance[name] * s[name].square() for name in lg.names},
            lg.prior_mean,
            lg.prior_covariance,
            None if factor is None else {name: factor[name] * s[name][:, None] for name in lg.names},
        )

    def unscaled_moves(self, moves: BatchMoves) -> BatchMoves:
        """Shifts of batches in the data's own units."""
        if not self.divisors:
            return moves
        s = {name: self.divisors[name].to(value) for name, value in moves.centre.items()}
        return replace(
            moves,
            centre={name: value * s[name] for name, value in moves.centre.items()},
            shift={name: value * s[name] for name, value in moves.shift.items()},
            variance={name: value * s[name].square() for name, value in moves.variance.items()},
        )

    def log_volume(self, data: MultimodalData | FoldedStatistics) -> float:
        """Excess of log densities of the scaled data over those in the data's own units: sum of log s, nats."""
        if not self.divisors:
            return 0.0
        logs = {name: divisor.log() for name, divisor in self.divisors.items()}
        if isinstance(data, MultimodalData):
            return sum(float((data.feature_mask(n).double() @ logs[n].to(data.device)).sum()) for n in data.names)
        counts = [
            (float(scatter[-1, -1]), [n for n, here in zip(fold.dims, present, strict=True) if here])
            for fold in data.folds
            for present, scatter in fold.scatters.items()
        ]
        return sum(count * float(logs[n].sum()) for count, names in counts for n in names)

    def unscaled_structure(self, structure: LinearGaussianMixture | ScaleMixture) -> Structure:
        """The same of a model with a prior of another family, which scaling leaves as it is."""
        if isinstance(structure, ScaleMixture):
            return replace(structure, linear_gaussian=self.unscaled(structure.linear_gaussian))
        return replace(structure, components=tuple(self.unscaled(part) for part in structure.components))

    def unscale_centres(self, centres: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Points of each modality (D_m,) in the data's own units."""
        return {
            name: value * self.divisors[name].to(value) if self.divisors else value for name, value in centres.items()
        }


def feature_spreads(data: MultimodalData | FoldedStatistics) -> dict[str, Tensor]:
    """For each modality the standard deviation of its features, (D_m,) float64; 0 for a constant."""
    dtype = data.dtype if isinstance(data, MultimodalData) else torch.float64
    moments = feature_moments(data if isinstance(data, MultimodalData) else data.total)
    return {name: _standard_deviations(variance, mean, dtype) for name, (mean, variance) in moments.items()}


def _standard_deviations(variance: Tensor, mean: Tensor, dtype: torch.dtype) -> Tensor:
    """Standard deviations; 0 where there is no more than rounding makes of a constant."""
    spread = variance.sqrt()
    return torch.where(spread > 4 * torch.finfo(dtype).eps * mean.abs(), spread, 0.0)


def _units_differ(spread: Tensor) -> bool:
    moving = spread[spread > 0]
    return len(moving) > 1 and float(moving.max() / moving.median()) > _UNITS_DIFFER
