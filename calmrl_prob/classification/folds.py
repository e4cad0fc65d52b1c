"""Labels held out: rows dealt to folds by what they are, a model fitted again without each, and modalities dropped."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from calmrl_prob.classification.options import ClassSetting
from calmrl_prob.classification.regression import class_coefficients, consistent_classes
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

#: Pseudo-instances of each class at the mean of all, where directions are those of class means.
_DIRECTION_COUNT = 1.0


@dataclass(frozen=True)
class Labelled:
    """Posteriors and labels of the same instances.

    Attributes:
        given: the posterior under a model with prior N(0, I).
        labels: (N,) int64, -1 where it is not known.
        num_classes: C.
        coefficients: those of regressions that were made, by their prior.
    """

    given: Posterior
    labels: Tensor
    num_classes: int
    coefficients: dict[float, Tensor] = field(default_factory=dict)

    def learn(self, setting: ClassSetting, tolerance: float) -> tuple[Tensor, LatentComponents]:
        """Directions, and the classes along them as new instances have them."""
        counts = torch.bincount(self.labels[self.labels >= 0], minlength=self.num_classes).to(self.given.mean)
        if setting.regression:
            axes, classes = consistent_classes(self._regressed(setting.regression), counts, setting.directions)
            if not setting.refined:
                return axes, classes
        else:
            axes = class_directions(self.given, self.labels, self.num_classes, setting.directions, _DIRECTION_COUNT)
        evidence, labels = DirectionEvidence.of(self.given, axes), self.labels
        if not setting.unlabelled:
            rows = (labels >= 0).nonzero().squeeze(1)
            evidence, labels = evidence.subset(rows), labels[rows]
        em = LabelledEM(evidence, labels, setting.model(), setting.mean_pseudo_count)
        classes = em.fit(self.num_classes, tolerance=tolerance)
        return axes, predictive_classes(classes, counts, setting.mean_pseudo_count)

    def _regressed(self, variance: float) -> Tensor:
        if variance not in self.coefficients:
            self.coefficients[variance] = class_coefficients(self.given, self.labels, self.num_classes, variance)
        return self.coefficients[variance]


@dataclass(frozen=True)
class Held:
    """Instances whose labels are not shown: their posteriors, labels (n,) and observed mask (n, M)."""

    given: Posterior
    labels: Tensor
    observed_mask: Tensor


@dataclass(frozen=True)
class HeldOut:
    """One fold: what is learned from, held-out instances as they are, and again with modalities dropped."""

    train: Labelled
    test: Held
    thinned: Held | None

    def log_ratios(self, setting: ClassSetting, *, thinned: bool = False) -> Iterator[tuple[Tensor, Tensor, Held]]:
        """log p(x | c) up to a constant of each instance, (n, C), and log pi, expanded; of which instances."""
        axes, classes = self.train.learn(setting, tolerance=1e-2)
        for part in (self.test, self.thinned if thinned else None):
            if part is not None:
                ratios = DirectionEvidence.of(part.given, axes).log_ratios(classes)
                yield ratios, classes.log_weights.expand_as(ratios), part


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
        seed: of fits, and of modalities dropped.
    """
    generator = np.random.default_rng(seed)
    for k in range(int(fold.max()) + 1):
        inside, outside = np.flatnonzero(fold != k), np.flatnonzero(fold == k)
        if not len(outside) or not bool((labels[inside] >= 0).any()):
            continue
        train = data.subset(inside)
        lg = whole if refit is None else _fitted_again(train, *refit, seed, whole)
        here = Labelled(posterior(lg, train.blocks), labels[inside], num_classes)
        rows, mask = fewer(data.observed_mask[outside].cpu().numpy(), generator)
        yield HeldOut(
            here,
            _held(lg, data.subset(outside), labels[outside]),
            _held(lg, data.subset(outside[rows]).mask(torch.as_tensor(mask)), labels[outside[rows]])
            if len(rows)
            else None,
        )


def _held(lg: LinearGaussian, data: MultimodalData, labels: Tensor) -> Held:
    return Held(posterior(lg, data.blocks), labels, data.observed_mask)


def fewer(observed_mask: NDArray[np.bool_], generator: np.random.Generator) -> tuple[NDArray[Any], NDArray[np.bool_]]:
    """Rows with modalities dropped at random: each row once with every smaller number of them, but none.

    Args:
        observed_mask: (N, M), True = PRESENT.
        generator: of what is dropped.

    Returns:
        The number of the row that each is of, (n,), and what it still has, (n, M).
    """
    order = np.where(observed_mask, generator.random(observed_mask.shape), 2.0).argsort(1).argsort(1)
    counts = observed_mask.sum(1)
    rows = np.concatenate([np.flatnonzero(counts > size) for size in range(1, observed_mask.shape[1] + 1)])
    sizes = np.concatenate([np.full((counts > size).sum(), size) for size in range(1, observed_mask.shape[1] + 1)])
    return rows, order[rows] < sizes[:, None]


def canonical_order(
    data: MultimodalData, codes: NDArray[np.int64], groups: NDArray[Any] | None = None
) -> NDArray[np.int64]:
    """Rows in an order that does not depend on where they stand: by ids, or by what they hold where they have none.

    Rows of which that does not tell are in the order of their labels, (N,), and their groups' names.
    """
    if data.ids is not None:
        keys = [str(name) for name in data.ids]
    else:
        names = sorted(data.names)
        held = [part.cpu().numpy() for n in names for part in (data.feature_mask(n), data.filled(n).double())]
        parts = zip(*held, strict=True)
        keys = [hashlib.blake2b(b"".join(part.tobytes() for part in row), digest_size=8).hexdigest() for row in parts]
    shared = [] if groups is None else [np.array([str(name) for name in groups.tolist()])]
    return np.lexsort([*shared, codes, np.array(keys)])


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
