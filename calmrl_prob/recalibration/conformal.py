"""Predictives whose quantiles are conformal: split, with the model's own centre, or CV+, with those of the folds."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from calmrl_prob.posteriors.predictive import Predictive
from calmrl_prob.posteriors.rescaled import Rescaled
from calmrl_prob.recalibration.scores import PatternScores, SortedScores

#: Halvings of the bracket of a CV+ quantile.
_BISECTIONS = 32


class ConformalPredictive(Rescaled):
    """A predictive whose central intervals are conformal; its mean is the model's, its variances rescaled.

    With one calibration set the interval of a level is mean -/+ q(level) sd. With K folds, of which fold k gave the
    scores s_i of its instances by a model fitted without them, it is that of CV+,

        [ the floor((1 - level)(n + 1))-th least of mean_k(i) - s_i sd_k(i),
          the ceil(level (n + 1))-th least of mean_k(i) + s_i sd_k(i) ]

    with mean_k and sd_k what that model predicts of the new instance. Source: Barber, Candes, Ramdas & Tibshirani,
    Predictive inference with the jackknife+, 2021. Joint draws and densities are those of the rescaled predictive: a
    conformal method states intervals, not densities.

    Args:
        base: of the model.
        factor: (N, F), what its variances are multiplied by.
        folds: predictives of the K models; the base alone where nothing was refitted.
        groups: the calibration scores of the patterns that occur.
        index: (N,), the group of each instance.
    """

    def __init__(
        self,
        base: Predictive,
        factor: Tensor,
        folds: Sequence[Predictive],
        groups: Sequence[PatternScores],
        index: Tensor,
    ) -> None:
        super().__init__(base, factor)
        self._folds, self._groups, self._index = folds, groups, index

    @property
    def normal(self) -> bool:  # type: ignore[override]  # a constant of most classes
        """No."""
        return False

    def quantile(self, probability: float) -> Tensor:
        """The end of the central interval that leaves this probability below, or 1 - probability above, (N, D).

        Raises:
            ArgumentError: there are too few calibration instances for an interval of that level.
        """
        for group in self._present():
            group.require(abs(2 * probability - 1))
        return self._quantile(probability)

    def cdf(self, values: Tensor) -> Tensor:
        """1/2 -/+ half the least level whose interval holds the value, (N, D): what ``quantile`` inverts."""
        out = torch.full_like(self.mean, 0.5)
        for group, rows in self._rows():
            above, below = torch.zeros_like(out[rows]), torch.zeros_like(out[rows])
            for fold, scores in zip(self._folds, group.features, strict=True):
                z = (values[rows] - fold.mean[rows]) / fold.variance[rows].sqrt()
                above += scores.below(z)
                below += scores.below(-z)
            out[rows] += 0.5 * torch.where(above >= below, above, -below) / (group.num_instances + 1)
        return out

    def crps(self, values: Tensor) -> Tensor:
        """By its quantiles; those beyond what the calibration instances tell are taken as the last that they do."""
        return _Truncated(self).crps(values)

    def _quantile(self, probability: float, *, truncated: bool = False) -> Tensor:
        level, sign = abs(2 * probability - 1), 1.0 if probability >= 0.5 else -1.0
        out = self.mean.clone()
        if level == 0:
            return out
        for group, rows in self._rows():
            most = group.num_instances / (group.num_instances + 1)
            centres = [sign * fold.mean[rows] for fold in self._folds]
            scales = [fold.variance[rows].sqrt() for fold in self._folds]
            out[rows] = sign * upper_end(group.features, centres, scales, min(level, most) if truncated else level)
        return out

    def _present(self) -> list[PatternScores]:
        return [self._groups[g] for g in self._index.unique().tolist()]

    def _rows(self) -> list[tuple[PatternScores, Tensor]]:
        return [(self._groups[g], (self._index == g).nonzero().squeeze(1)) for g in self._index.unique().tolist()]


class _Truncated(Predictive):
    """The quantiles of a conformal predictive, never further out than its calibration scores reach."""

    normal = False

    def __init__(self, whole: ConformalPredictive) -> None:
        self._whole = whole

    @property
    def mean(self) -> Tensor:
        return self._whole.mean

    @property
    def latent_variance(self) -> Tensor:
        return self._whole.latent_variance

    @property
    def noise_variance(self) -> Tensor:
        return self._whole.noise_variance

    def quantile(self, probability: float) -> Tensor:
        return self._whole._quantile(probability, truncated=True)


def upper_end(
    scores: Sequence[SortedScores], centres: Sequence[Tensor], scales: Sequence[Tensor], level: float
) -> Tensor:
    """min {t : sum_k A_k((t - centre_k) / scale_k) >= level (n + 1)}, (n, D); of one fold centre + q(level) scale."""
    if len(scores) == 1:
        return centres[0] + scores[0].quantile(level).to(centres[0]) * scales[0]
    wanted = level * (scores[0].num_instances + 1) - 1e-9
    reach = [part.values.amax().item() if part.values.numel() else 0.0 for part in scores]
    low = torch.stack([c.double() for c in centres]).amin(0)  # less than any, as scores are not negative
    high = torch.stack([c.double() + r * s.double() for c, s, r in zip(centres, scales, reach, strict=True)]).amax(0)
    low = low - 1e-9 * (high - low)
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        reached = torch.zeros_like(middle)
        for part, centre, scale in zip(scores, centres, scales, strict=True):
            reached += part.below((middle - centre) / scale)
        low, high = torch.where(reached < wanted, middle, low), torch.where(reached < wanted, high, middle)
    return high.to(centres[0])


def norm_moments(predictive: Predictive) -> tuple[Tensor, Tensor]:
    """About where the norm of the whole vector lies, and how far it spreads, (N,) each.

        centre = sqrt(sum_d mean_d^2 + var_d)       spread = sqrt(sum_d 4 mean_d^2 var_d + 2 var_d^2) / (2 centre)

    The first is the root of E|x|^2, the second its standard deviation by the delta method, features taken as
    uncorrelated. A conformal score needs no more than that its scale rises where errors do: what is left of correlation
    and shape is in the quantile of the scores.
    """
    mean, variance = predictive.mean.double(), predictive.variance.double()
    centre = (mean.square() + variance).sum(dim=1).sqrt()
    spread = (4 * mean.square() * variance + 2 * variance.square()).sum(dim=1).sqrt() / (2 * centre)
    return centre, spread
