"""Calibration scores of one group of held-out imputations, and their conformal quantiles.

Scores are standardised errors of features, s = |x - mean| / sd. Take n calibration instances and a new one,
exchangeable with them, and let A(t) be the number of instances with a score of at most t. Then

    q(level) = min {t : A(t) >= level (n + 1)}

holds the new instance's score with probability of at least ``level``, whatever the distribution and however wrong the
model, and, without ties, of at most level + 1 / (n + 1). Where an instance brings several scores (all features
together, or several patterns pooled), each counts 1 / (their number), so that A counts instances: the guarantee is then
for a score drawn at random from the new instance's, which for features together is the expected share of them inside.

Source: Vovk, Gammerman & Shafer, Algorithmic Learning in a Random World (2005); several scores an instance: Lee, Barber
& Willett, Distribution-free inference with hierarchical data (2023). Written out here: crepes takes residuals with
scales and Mondrian categories, but of one output and every row alike, and MAPIE wraps an estimator with ``predict``;
neither lets the many features and patterns of an instance count as one, nor centres folds on several predictions (CV+)
of what is already at hand.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from calmrl_prob.errors import ArgumentError


@dataclass(frozen=True, eq=False)
class SortedScores:
    """Scores of n instances in rising order, F lists of L (one for each feature, or one for all).

    Attributes:
        values: (F, L), each row in rising order.
        reached: (F, L), A at each value: how many instances' worth of scores are at most that.
        num_instances: n, over all folds.
    """

    values: Tensor
    reached: Tensor
    num_instances: int

    @classmethod
    def of(cls, scores: Tensor, instances: NDArray[np.int64], by_feature: bool, num_instances: int) -> SortedScores:
        """Sort scores (R, D) of R records, which are of ``instances`` (R,)."""
        _, index, number = np.unique(instances, return_inverse=True, return_counts=True)
        weight = torch.from_numpy(1.0 / number[index.ravel()])[:, None].expand(scores.shape)
        lists = scores.double().cpu().mT if by_feature else scores.double().cpu().reshape(1, -1)
        weight = weight.mT if by_feature else weight.reshape(1, -1) / scores.shape[1]
        values, order = lists.sort(dim=1)
        return cls(values.contiguous(), weight.gather(1, order).cumsum(dim=1).contiguous(), num_instances)

    def quantile(self, level: float) -> Tensor:
        """q(level), (F,); infinite where there are too few scores for it."""
        # a weight's rounding must not cost a place
        wanted = torch.full((len(self.values), 1), level * (self.num_instances + 1) - 1e-9, dtype=torch.float64)
        place = torch.searchsorted(self.reached, wanted)
        padded = torch.cat([self.values, torch.full((len(self.values), 1), torch.inf, dtype=torch.float64)], dim=1)
        return padded.gather(1, place).squeeze(1)

    def below(self, scores: Tensor) -> Tensor:
        """Instances' worth of scores that are less than these, (n, D) as many as F lists, or any D for one list."""
        asked = scores.double().cpu()
        lists = asked.mT.contiguous() if len(self.values) == asked.shape[1] else asked.reshape(1, -1)
        place = torch.searchsorted(self.values, lists)
        padded = torch.cat([torch.zeros(len(self.values), 1, dtype=torch.float64), self.reached], dim=1)
        found = padded.gather(1, place)
        return (found.mT if lists.shape[0] == asked.shape[1] else found.reshape(asked.shape)).to(scores)


@dataclass(frozen=True, eq=False)
class PatternScores:
    """Scores of held-out imputations of one modality, from one pattern or from all together.

    Attributes:
        modality: which.
        pattern: the modalities seen, joined by "+"; None for all patterns together.
        num_instances: n, distinct calibration instances.
        factor: mean squared standardised error, (F,): what variances are to be multiplied by.
        features: scores of features, one :class:`SortedScores` for each fold; a single one where nothing was refitted.
        norms: scores of norms, alike.
    """

    modality: str
    pattern: str | None
    num_instances: int
    factor: Tensor
    features: Sequence[SortedScores]
    norms: Sequence[SortedScores]

    def is_whole(self, modality: str, num_folds: int) -> bool:
        """Whether these are scores of a modality in so many folds, each with as many weights as scores."""
        lists = [*self.features, *self.norms]
        return (
            (self.modality, len(self.features), len(self.norms)) == (modality, num_folds, num_folds)
            and self.factor.ndim == 1
            and all(part.values.ndim == 2 and part.values.shape == part.reached.shape for part in lists)
            and all(len(part.values) == len(self.factor) for part in self.features)
        )

    def require(self, level: float) -> None:
        """Refuse a level that the calibration instances are too few for.

        Raises:
            ArgumentError: saying how many are needed, and what level these allow.
        """
        needed = needed_instances(level)
        if self.num_instances < needed:
            whose = "all patterns together" if self.pattern is None else f"seen from {self.pattern}"
            raise ArgumentError(
                f"level: {level:g} needs at least {needed} calibration instances, and modality {self.modality!r} "
                f"({whose}) has {self.num_instances}; recalibrate with more rows, or ask for at most "
                f"{self.num_instances / (self.num_instances + 1):.3g}."
            )


def needed_instances(level: float) -> int:
    """The fewest calibration instances for which a conformal interval of this level is finite: level / (1 - level).

    Example:
        >>> needed_instances(0.9), needed_instances(0.99)
        (9, 99)
    """
    return math.ceil(level / (1 - level) - 1e-9)
