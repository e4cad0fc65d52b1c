"""What is measured of a fitted model on test rows that lack nothing: squared errors, retrieval, coverage."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

import calmrl_prob as cal
from calmrl_prob.data import MultimodalData
from calmrl_prob.evaluation import cross_modal_recall
from calmrl_prob.inference.protocols import Model
from experiments.comparison.fitted_variant import without
from experiments.comparison.imputers import Array, values

#: Nominal coverage of the intervals that are measured.
LEVELS = (0.5, 0.9, 0.95)

Predict = Callable[[Sequence[str], str], Array]


@dataclass(frozen=True)
class Scores:
    """Measures of one fit.

    Attributes:
        explained: for each modality R^2 of imputing it from all others.
        by_pair: for each modality R^2 of imputing it from one other alone, mean over the others.
        recall: R@1 in percent, mean over ordered pairs of modalities.
        coverage: for each level and modality the share in percent of true values within their intervals, imputed from
            all others; empty where there are no intervals.
    """

    explained: Mapping[str, float]
    by_pair: Mapping[str, float]
    recall: float
    coverage: Mapping[float, Mapping[str, float]] = field(default_factory=dict)

    @property
    def row(self) -> dict[str, float]:
        """Means over modalities, and for each level the lowest and highest coverage of a modality."""
        found = {
            "R2": float(np.mean(list(self.explained.values()))),
            "R2 by pair": float(np.mean(list(self.by_pair.values()))),
            "R@1": self.recall,
        }
        for level, shares in self.coverage.items():
            of = list(shares.values())
            found |= {f"coverage {level:.0%}": float(np.mean(of))}
            found |= {f"lowest {level:.0%}": min(of), f"highest {level:.0%}": max(of)}
        return found

    @property
    def modality_rows(self) -> list[dict[str, float | str]]:
        """The same for each modality."""
        return [
            {"modality": name, "R2": self.explained[name], "R2 by pair": self.by_pair[name]}
            | {f"coverage {level:.0%}": shares[name] for level, shares in self.coverage.items()}
            for name in self.explained
        ]


def explained_share(truth: Array, predicted: Array, centre: Array) -> float:
    """R^2 = 1 - sum (x - xhat)^2 / sum (x - mean)^2, over all rows and features together.

    Args:
        truth: (n, D_m).
        predicted: (n, D_m).
        centre: the mean of the training rows, (D_m,).

    Example:
        >>> explained_share(np.array([[1.0], [3.0]]), np.array([[1.0], [2.0]]), np.array([2.0]))
        0.5
    """
    return 1.0 - float(np.sum((truth - predicted) ** 2) / np.sum((truth - centre) ** 2))


def explained(predict: Predict, test: MultimodalData, centre: Mapping[str, Array]) -> tuple[dict[str, float], ...]:
    """R^2 of each modality: imputed from all others, and from one other alone (the mean over them).

    Args:
        predict: given the modalities to use and the one to impute, its values (n, D_m).
        test: rows that lack nothing.
        centre: see :class:`~experiments.default_choice.removal.Task`.
    """
    whole, single = {}, {}
    for name in test.names:
        truth, others = values(test, name), [other for other in test.names if other != name]
        whole[name] = explained_share(truth, predict(others, name), centre[name])
        alone = [explained_share(truth, predict([other], name), centre[name]) for other in others]
        single[name] = float(np.mean(alone))
    return whole, single


def score_model(model: Model, test: MultimodalData, centre: Mapping[str, Array]) -> Scores:
    """All measures of a model; retrieval by likelihood ratio.

    Args:
        model: fitted.
        test: rows that lack nothing.
        centre: see :class:`~experiments.default_choice.removal.Task`.
    """

    def predict(given: Sequence[str], name: str) -> Array:
        mean: Array = cal.impute(model, test.select(list(given)), [name]).mean[name].double().numpy()
        return mean

    whole, single = explained(predict, test, centre)
    return Scores(whole, single, recall_of(model, test), coverage_of(model, test))


def recall_of(model: Model, test: MultimodalData) -> float:
    """R@1 in percent by likelihood ratio, mean over ordered pairs."""
    return 100.0 * float(cross_modal_recall(model, test)["R@1"].mean())


def coverage_of(model: Model, test: MultimodalData) -> dict[float, dict[str, float]]:
    """For each level and modality the share in percent of values within their intervals, imputed from all others."""
    found: dict[float, dict[str, float]] = {level: {} for level in LEVELS}
    for name in test.names:
        imputed, truth = cal.impute(model, without(test, name), [name]), test[name]
        for level in LEVELS:
            low, high = imputed.interval(level)[name]
            found[level][name] = 100.0 * float(((low <= truth) & (truth <= high)).double().mean())
    return found
