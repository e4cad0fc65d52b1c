"""A predictive whose central intervals are as wide as held-out errors ask for."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from calmrl_prob.posteriors.predictive import Predictive
from calmrl_prob.posteriors.rescaled import Rescaled


class HeldOutPredictive(Rescaled):
    """A predictive with variances, quantiles and, where it lost to the mean, means put right by held-out errors.

        x' = centre + slope (mean - centre) + sqrt(factor) (x - mean)

    and, with tables of half-widths q of central intervals, quantile((1 + level) / 2) = mean' + q(level) sd.

    Args:
        base: p(x) of the model.
        factor: (N, D), what variances are multiplied by.
        centre: (D,) or (N, D), the mean of training rows.
        slope: for each kind of instance, of the distance from it.
        levels: (Q,) of the tables.
        tables: for each kind of instance (F, Q), F being D or 1; None for the quantiles of the base, rescaled.
        index: (N,), the kind of each instance.

    Example:
        >>> from calmrl_prob.posteriors.predictive import NormalPredictive
        >>> base = NormalPredictive(torch.zeros(1, 1), torch.zeros(1, 1), torch.ones(1))
        >>> levels, widths = torch.tensor([0.5, 0.9]).double(), torch.tensor([[1.0, 3.0]]).double()
        >>> one, first = torch.ones(1), torch.tensor([0])
        >>> found = HeldOutPredictive(base, one[:, None], torch.zeros(1), one, levels, [widths], first)
        >>> [round(float(found.quantile(p)), 2) for p in (0.05, 0.25, 0.5, 0.95)]
        [-3.0, -1.0, 0.0, 3.0]
    """

    def __init__(
        self,
        base: Predictive,
        factor: Tensor,
        centre: Tensor,
        slope: Tensor,
        levels: Tensor,
        tables: Sequence[Tensor] | None,
        index: Tensor,
    ) -> None:
        super().__init__(base, factor)
        self._centre, self._slope = centre, slope
        self._levels, self._tables, self._index = levels, tables, index.to(base.mean.device)

    @property
    def normal(self) -> bool:  # type: ignore[override]  # a constant of most classes
        """Whether quantiles are those of a normal."""
        return self._tables is None and self.base.normal

    @property
    def mean(self) -> Tensor:
        """(N, D)."""
        if bool((self._slope == 1).all()):
            return self.base.mean
        return self._centre + self._slope[self._index, None] * (self.base.mean - self._centre)

    def spread(self, values: Tensor) -> Tensor:
        """Values (N, D) of the base, drawn out about its mean and moved to this one's."""
        return self.mean + (values - self.base.mean) * self.factor.sqrt()

    def restore(self, values: Tensor) -> Tensor:
        """The values of the base that ``spread`` turns into these, (N, D)."""
        return self.base.mean + (values - self.mean) / self.factor.sqrt()

    def quantile(self, probability: float) -> Tensor:
        """The value that each feature stays below with this probability, (N, D)."""
        if self._tables is None:
            return super().quantile(probability)
        level, sign = abs(2 * probability - 1), 1.0 if probability >= 0.5 else -1.0
        widths = torch.stack([self._at(table, level).expand(self.mean.shape[1]) for table in self._tables])
        return self.mean + sign * widths.to(self.mean)[self._index] * self.base.variance.sqrt()

    def cdf(self, values: Tensor) -> Tensor:
        """1/2 -/+ half the level whose interval ends at the value, (N, D): what ``quantile`` inverts."""
        if self._tables is None:
            return super().cdf(values)
        z = ((values - self.mean) / self.base.variance.sqrt()).double().cpu().numpy()
        level = np.zeros_like(z)
        for kind, table in enumerate(self._tables):
            rows = (self._index == kind).nonzero().squeeze(1).cpu().numpy()
            widths = np.concatenate([np.zeros((len(table), 1)), table.numpy()], axis=1)
            reached = np.concatenate([[0.0], self._levels.numpy()])
            for d in range(z.shape[1]):
                own = widths[d if len(widths) > 1 else 0]
                distance = np.abs(z[rows, d])
                level[rows, d] = np.where(
                    distance <= own[-1], np.interp(distance, own, reached), self._beyond_level(distance, own[-1])
                )
        return 0.5 + 0.5 * torch.from_numpy(np.sign(z) * level).to(self.mean)

    def _at(self, table: Tensor, level: float) -> Tensor:
        """Half-widths (F,) of a level: straight lines between those of the table, a normal's tail beyond."""
        last = float(self._levels[-1])
        if level > last:
            return table[:, -1] * (_normal(level) / _normal(last))
        widths = torch.cat([table.new_zeros(len(table), 1), table], dim=1)
        reached = torch.cat([self._levels.new_zeros(1), self._levels])
        place = int(torch.searchsorted(reached, torch.tensor(level, dtype=torch.float64)).clamp(min=1))
        share = (level - float(reached[place - 1])) / float(reached[place] - reached[place - 1])
        return torch.lerp(widths[:, place - 1], widths[:, place], share)

    def _beyond_level(self, distance: np.ndarray, last: float) -> np.ndarray:
        """The level of distances beyond the table."""
        standard = torch.from_numpy(distance) * (_normal(float(self._levels[-1])) / last)
        level: np.ndarray = (2 * torch.special.ndtr(standard) - 1).numpy()
        return level


def _normal(level: float) -> float:
    """Half-width of a standard normal's central interval of a level."""
    return float(torch.special.ndtri(torch.tensor((1 + level) / 2, dtype=torch.float64)))
