"""The choice of a classifier's settings by labels held out of the training rows.

Labelled instances are dealt to folds, each class evenly, whole groups where there are any. For each fold the model is
fitted again without its rows, with the settings that the fit chose: latents of rows that a model was fitted to are
known better than those of new ones, and classes look further apart on them than they are. Settings are tried one after
the other, as in ``selection/ladder.py``, and judged by the mean log probability of held-out labels, each with the
temperature and the floor that are best for it.

Classes come of EM along the span of class means, or of regression (``regression.py``), which does better where latents
outnumber the rows, or of EM along the regression's directions.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import product
from typing import Any

import torch
from torch import Tensor

from calmrl_prob.classification.classifier import tempered
from calmrl_prob.classification.folds import HeldOut
from calmrl_prob.classification.options import ClassSetting

#: Values tried, the first of each where the search starts.
_MEAN_COUNTS, _COVARIANCE_COUNTS = (1.0, 0.1, 0.02), (math.inf, 100.0, 10.0)
_TEMPERATURES = (0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.45, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.15, 1.3, 1.5, 2.0)
_FLOORS = (0.0, 0.005, 0.01, 0.02, 0.05)
#: Instances in a class, on average, from which on a covariance of its own is tried; and directions that are few.
_OWN_COVARIANCE, _FEW = 20, 10
#: Instances of each missing pattern that all instances together count as, for its temperature.
_SHARED_ROWS = 20.0
#: Priors of the regression's coefficients to try.
_REGRESSIONS = (0.03, 0.3)


@dataclass(frozen=True)
class TriedSetting:
    """A setting with its held-out score."""

    setting: ClassSetting
    log_score: float
    temperature: float
    floor: float


@dataclass(frozen=True)
class Stated:
    """Held-out instances: what the folds say of them, log p(x | c) up to a constant and log pi, and what they are."""

    ratios: Tensor
    weights: Tensor
    labels: Tensor
    observed_mask: Tensor

    @classmethod
    def of(cls, folds: Sequence[HeldOut], setting: ClassSetting, *, thinned: bool = False) -> Stated:
        """Of one setting; with ``thinned`` of instances with modalities dropped too."""
        parts = [
            (ratios, weights, held.labels, held.observed_mask)
            for fold in folds
            for ratios, weights, held in fold.log_ratios(setting, thinned=thinned)
        ]
        return cls(*(torch.cat(part) for part in zip(*parts, strict=True)))

    def log_scores(self, temperature: float, floor: float) -> Tensor:
        """log p(class | x) of each instance, (N,)."""
        found = tempered(self.ratios, self.weights, temperature, floor)
        return found.gather(1, self.labels[:, None]).squeeze(1)


def choose(
    folds: Sequence[HeldOut], most: int, unlabelled: Sequence[bool]
) -> tuple[TriedSetting, list[dict[str, Any]]]:
    """The best setting, and a row for each that was tried.

    Args:
        folds: to judge by.
        most: R at most.
        unlabelled: values to try.
    """
    sizes = [fold.train for fold in folds]
    share = min(int((part.labels >= 0).sum()) / part.num_classes for part in sizes)
    steps: dict[str, list[Any]] = {
        "covariance_pseudo_count": list(_COVARIANCE_COUNTS) if share >= _OWN_COVARIANCE else [math.inf],
        "mean_pseudo_count": list(_MEAN_COUNTS),
        "directions": [most, most // 2] if most > _FEW else [most],
        "unlabelled": list(unlabelled),
    }
    tried: dict[ClassSetting, TriedSetting] = {}
    best = score(folds, ClassSetting(most, unlabelled=unlabelled[0]))
    tried[best.setting] = best
    for name, values in steps.items():
        for value in values:
            setting = best.setting.but(**{name: value})
            if setting not in tried:
                tried[setting] = score(folds, setting)
        best = max(tried.values(), key=lambda one: one.log_score)
    for setting in _regressions(best.setting, most):
        tried[setting] = score(folds, setting)
    along = max((one for one in tried.values() if one.setting.regression), key=lambda one: one.log_score)
    refined = best.setting.but(regression=along.setting.regression, directions=along.setting.directions)
    tried[refined] = score(folds, refined)
    best = max(tried.values(), key=lambda one: one.log_score)
    rows = [{**asdict(one.setting), **_facts(one), "chosen": one is best} for one in tried.values()]
    return best, rows


def _regressions(best: ClassSetting, most: int) -> list[ClassSetting]:
    return [best.but(regression=value, refined=False, directions=most) for value in _REGRESSIONS]


def score(folds: Sequence[HeldOut], setting: ClassSetting) -> TriedSetting:
    """The held-out log score of a setting, with the temperature and floor that are best for it."""
    stated = Stated.of(folds, setting)

    def reached(pair: tuple[float, float]) -> float:
        return float(stated.log_scores(*pair).mean())

    pair = max(product(_TEMPERATURES, _FLOORS), key=reached)
    return TriedSetting(setting, reached(pair), *pair)


def temperatures(folds: Sequence[HeldOut], best: TriedSetting) -> tuple[Tensor, Tensor]:
    """The temperature of each missing pattern of the held-out instances.

    An error of the model counts once for each modality that shows it, so that instances with many want another than
    those with few. Instances with modalities dropped on purpose tell of patterns that few have by themselves. All
    instances together count as much in each as so many of its own.

    Returns:
        Patterns (P, M) bool, and their temperatures (P,).
    """
    stated = Stated.of(folds, best.setting, thinned=True)
    patterns, index = stated.observed_mask.unique(dim=0, return_inverse=True)
    table = torch.stack([stated.log_scores(t, best.floor) for t in _TEMPERATURES])  # (T, N)
    sums = table.new_zeros(len(table), len(patterns)).index_add_(1, index, table)
    chosen = (sums + _SHARED_ROWS * table.mean(1, keepdim=True)).argmax(0)
    return patterns, table.new_tensor(_TEMPERATURES)[chosen]


def _facts(one: TriedSetting) -> dict[str, float]:
    return {"log_score": one.log_score, "temperature": one.temperature, "floor": one.floor}
