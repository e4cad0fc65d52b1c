"""The choice of a classifier's settings by labels held out of the training rows.

Labelled instances are dealt to folds, each class evenly, whole groups where there are any. For each fold the model is
fitted again without its rows, with the settings that the fit chose: latents of rows that a model was fitted to are
known better than those of new ones, and classes look further apart on them than they are. Settings are tried one after
the other, as in ``selection/ladder.py``, and judged by the mean log probability of held-out labels, each with the
temperature and the floor that are best for it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import product
from typing import Any

import numpy as np
import torch
from torch import Tensor

from calmrl_prob.classification.classifier import tempered
from calmrl_prob.classification.options import ClassSetting
from calmrl_prob.data import MultimodalData
from calmrl_prob.errors import CalmrlError
from calmrl_prob.inference.fit import fit as fit_settled
from calmrl_prob.linear_gaussian import LinearGaussian, Posterior, posterior
from calmrl_prob.linear_gaussian.mixture.expectation import LatentComponents
from calmrl_prob.linear_gaussian.mixture.labelled import (
    DirectionEvidence,
    LabelledEM,
    class_directions,
    predictive_classes,
    standardized,
)
from calmrl_prob.model import SharedLatentModel
from calmrl_prob.selection import Choice
from calmrl_prob.selection.scaling import Scaling

#: Values tried, the first of each where the search starts.
_MEAN_COUNTS, _COVARIANCE_COUNTS = (1.0, 0.1, 0.02), (math.inf, 100.0, 10.0)
_TEMPERATURES = (0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.45, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.15, 1.3, 1.5, 2.0)
_FLOORS = (0.0, 0.005, 0.01, 0.02, 0.05)
#: Instances in a class, on average, from which on a covariance of its own is tried; and directions that are few.
_OWN_COVARIANCE, _FEW = 20, 10
#: Instances of each missing pattern that all instances together count as, for its temperature.
_SHARED_ROWS = 20.0
#: Pseudo-instances of each class at the mean of all, where directions are looked for.
_DIRECTION_COUNT = 1.0


@dataclass(frozen=True)
class Labelled:
    """Posteriors and labels of the same instances.

    Attributes:
        given: the posterior under a model with prior N(0, I).
        labels: (N,) int64, -1 where it is not known.
        num_classes: C.
    """

    given: Posterior
    labels: Tensor
    num_classes: int

    def learn(self, setting: ClassSetting, tolerance: float) -> tuple[Tensor, LatentComponents]:
        """Directions, and the classes along them as new instances have them."""
        axes = class_directions(self.given, self.labels, self.num_classes, setting.directions, _DIRECTION_COUNT)
        evidence, labels = DirectionEvidence.of(self.given, axes), self.labels
        if not setting.unlabelled:
            rows = (labels >= 0).nonzero().squeeze(1)
            evidence, labels = evidence.subset(rows), labels[rows]
        em = LabelledEM(evidence, labels, setting.model(), setting.mean_pseudo_count)
        classes = em.fit(self.num_classes, tolerance=tolerance)
        counts = torch.bincount(labels[labels >= 0], minlength=self.num_classes).to(axes)
        return axes, predictive_classes(classes, counts, setting.mean_pseudo_count)


@dataclass(frozen=True)
class HeldOut:
    """One fold: what is learned from, and instances whose labels are not shown."""

    train: Labelled
    test: Posterior
    labels: Tensor
    observed_mask: Tensor

    def log_ratios(self, setting: ClassSetting) -> tuple[Tensor, Tensor]:
        """log p(x | c) of the held-out instances, up to a constant of each, (n, C); and log pi, expanded."""
        axes, classes = self.train.learn(setting, tolerance=1e-2)
        ratios = DirectionEvidence.of(self.test, axes).log_ratios(classes)
        return ratios, classes.log_weights.expand_as(ratios)


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
    def of(cls, folds: Sequence[HeldOut], setting: ClassSetting) -> Stated:
        """Of one setting."""
        parts = [(*fold.log_ratios(setting), fold.labels, fold.observed_mask) for fold in folds]
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
    rows = [{**asdict(one.setting), **_facts(one), "chosen": one is best} for one in tried.values()]
    return best, rows


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
    those with few. All instances together count as much in each as so many of its own.

    Returns:
        Patterns (P, M) bool, and their temperatures (P,).
    """
    stated = Stated.of(folds, best.setting)
    patterns, index = stated.observed_mask.unique(dim=0, return_inverse=True)
    table = torch.stack([stated.log_scores(t, best.floor) for t in _TEMPERATURES])  # (T, N)
    sums = table.new_zeros(len(table), len(patterns)).index_add_(1, index, table)
    chosen = (sums + _SHARED_ROWS * table.mean(1, keepdim=True)).argmax(0)
    return patterns, table.new_tensor(_TEMPERATURES)[chosen]


def _facts(one: TriedSetting) -> dict[str, float]:
    return {"log_score": one.log_score, "temperature": one.temperature, "floor": one.floor}


def held_out_folds(
    data: MultimodalData,
    labels: Tensor,
    num_classes: int,
    fold: np.ndarray,
    whole: LinearGaussian,
    refit: tuple[Choice, SharedLatentModel] | None,
    seed: int,
) -> Iterator[HeldOut]:
    """The folds, each with a model of its own.

    Args:
        data: all rows.
        labels: (N,), -1 where not known.
        num_classes: C.
        fold: (N,) of each row; -1 for rows without a label, which are in none.
        whole: the model of all rows, of prior N(0, I); for folds where it is not fitted again.
        refit: the settings of the fit, and its model; None to leave it.
        seed: of fits.
    """
    for k in range(int(fold.max()) + 1):
        inside, outside = np.flatnonzero(fold != k), np.flatnonzero(fold == k)
        if not len(outside) or not bool((labels[inside] >= 0).any()):
            continue
        train, test = data.subset(inside), data.subset(outside)
        lg = whole if refit is None else _fitted_again(train, *refit, seed, whole)
        here = Labelled(posterior(lg, train.blocks), labels[inside], num_classes)
        yield HeldOut(here, posterior(lg, test.blocks), labels[outside], test.observed_mask)


def _fitted_again(
    data: MultimodalData, choice: Choice, model: SharedLatentModel, seed: int, whole: LinearGaussian
) -> LinearGaussian:
    """The model fitted to some of the rows, in the units and with the settings that were chosen."""
    setting = choice.setting
    noise: Any = setting.noise
    try:
        scaling = Scaling.of(data, "feature" if choice.scale == "feature" else "none")
        working = SharedLatentModel(model.dims, setting.latent_dim, noise, noise_rank=setting.noise_rank)
        fit_settled(working, scaling.scaled(data), "em", seed=seed, tolerance=1e-4, **setting.options())  # type: ignore[arg-type]
    except CalmrlError:  # a modality or feature is in too few of these rows: the fit to all has to do
        return whole
    return standardized(scaling.unscaled(working.linear_gaussian().detach()))
