"""The usual ways to fill in missing modalities: zero, the mean, nearest neighbours, ridge regression.

They are the competition, so they get what CalMRL gets: every setting is chosen on validation rows, and predictions
come with a variance, measured on the same rows. All predict a modality of a row from the row's other modalities alone.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Self

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import Ridge
from sklearn.metrics.pairwise import nan_euclidean_distances

from calmrl_prob.data import MultimodalData
from calmrl_prob.errors import ArgumentError

Array = NDArray[np.float64]

#: Variances are kept above this share of a modality's own, so that densities stay finite.
_SMALLEST_VARIANCE_SHARE = 1e-6


class Imputer(ABC):
    """Fills in missing modalities by a rule learned from training rows, which may themselves lack modalities.

    Attributes:
        centre: for each modality the mean (D_m,) over the training rows that have it.
        scale: for each modality the root mean square deviation from it, one number: features of one modality keep
            their proportions, and no modality counts more for having larger numbers.
        residual_variance: for each modality the mean squared error (D_m,) on validation rows.
    """

    centre: dict[str, Array]
    scale: dict[str, float]
    residual_variance: dict[str, Array]

    def fit(self, train: MultimodalData) -> Self:
        """Learn the rule from training rows."""
        observed = {name: values(train, name)[has(train, name)] for name in train.names}
        self.centre = {name: rows.mean(axis=0) for name, rows in observed.items()}
        self.scale = {
            name: float(np.sqrt(np.mean((rows - self.centre[name]) ** 2))) or 1.0 for name, rows in observed.items()
        }
        self._learn(train)
        return self

    def choose(self, fit_rows: MultimodalData, validation: MultimodalData) -> Self:
        """Learn from ``fit_rows``, then choose settings and measure variances on ``validation``; both training rows."""
        self.fit(fit_rows)
        self._choose(fit_rows, validation)
        self.residual_variance = {}
        for name in fit_rows.names:
            self.residual_variance[name] = self._variance(name, self._squares(validation, name), fit_rows)
        return self

    def _squares(self, validation: MultimodalData, name: str) -> Array:
        """Squared errors (n, D_m) on the rows that have the modality and another."""
        seen = validation.subset(predictable(validation, name))
        return (values(seen, name) - self.predict(seen, name)) ** 2

    def _variance(self, name: str, squares: Array, fit_rows: MultimodalData) -> Array:
        """The mean of squared errors (n, D_m); where there are none to measure, as unsure as the mean."""
        if not len(squares):
            squares = (values(fit_rows, name)[has(fit_rows, name)] - self.centre[name]) ** 2
        smallest = _SMALLEST_VARIANCE_SHARE * self.scale[name] ** 2
        variance: Array = np.maximum(squares.mean(axis=0), smallest)
        return variance

    def complete(self, data: MultimodalData) -> MultimodalData:
        """The data with every missing modality filled in."""
        filled = {}
        for name in data.names:
            array, missing = values(data, name).copy(), ~has(data, name)
            if missing.any():
                array[missing] = self.predict(data.subset(missing), name)
            filled[name] = array.astype(data[name].cpu().numpy().dtype)
        return MultimodalData(filled, ids=data.ids, labels=data.labels)

    @abstractmethod
    def predict(self, data: MultimodalData, name: str) -> Array:
        """One modality (N, D_m) from the others; what the rows hold of it themselves is never read."""

    def _learn(self, train: MultimodalData) -> None:  # noqa: B027 - rules may need nothing more
        """Parameters that ``predict`` needs besides ``centre`` and ``scale``; none by default."""

    def _choose(self, fit_rows: MultimodalData, validation: MultimodalData) -> None:  # noqa: B027 - nor to choose
        """Settings to choose; none by default."""


class Zero(Imputer):
    """Zero in the data's own units."""

    def predict(self, data: MultimodalData, name: str) -> Array:
        """Zeros, (N, D_m)."""
        return np.zeros((len(data), len(self.centre[name])))


class Mean(Imputer):
    """The mean over the training rows that have the modality."""

    def predict(self, data: MultimodalData, name: str) -> Array:
        """The same mean for every row, (N, D_m)."""
        return np.tile(self.centre[name], (len(data), 1))


class NearestNeighbours(Imputer):
    """The mean over the nearest training rows that have the modality.

    The rule of scikit-learn's KNNImputer (``nan_euclidean_distances`` over all other modalities, rows that share none
    are no neighbours, equal weights), with modalities brought to one scale. Since a modality goes missing as a whole,
    one search serves all of its features, where KNNImputer makes one for each.

    Args:
        neighbours: numbers of neighbours to choose from, by squared error on validation rows.
    """

    def __init__(self, neighbours: Sequence[int] = (5, 10, 20, 40)) -> None:
        self.neighbours = [int(count) for count in _positive("calibration.knn.imputer.neighbours", neighbours)]
        self.chosen = self.neighbours[0]

    def _learn(self, train: MultimodalData) -> None:
        self._train = train
        self._donors = {name: np.flatnonzero(has(train, name)) for name in train.names}

    def _choose(self, fit_rows: MultimodalData, validation: MultimodalData) -> None:
        errors = np.zeros(len(self.neighbours))
        for name in fit_rows.names:
            rows = predictable(validation, name)
            if rows.any():
                seen = validation.subset(rows)
                order = self._nearest(seen, name)
                truth = values(seen, name)
                for place, count in enumerate(self.neighbours):
                    error: Array = truth - self._average(order, count, name)
                    errors[place] += np.mean(error**2) / self.scale[name] ** 2
        self.chosen = self.neighbours[int(errors.argmin())]

    def predict(self, data: MultimodalData, name: str) -> Array:
        """The mean of the nearest rows that have the modality; the mean of all where no row is comparable."""
        return self._average(self._nearest(data, name), self.chosen, name)

    def _nearest(self, data: MultimodalData, name: str) -> NDArray[np.int64]:
        """The training rows that have the modality, nearest first, as many as may be needed; -1 for "none"."""
        donors = self._donors[name]
        others = [other for other in self._train.names if other != name]
        distance = nan_euclidean_distances(self._stack(data, others), self._stack(self._train, others)[donors])
        order = np.argsort(distance, axis=1, kind="stable")[:, : max(self.neighbours)]  # NaN is sorted last
        comparable = ~np.isnan(np.take_along_axis(distance, order, axis=1))
        return np.where(comparable, donors[order], -1)

    def _average(self, nearest: NDArray[np.int64], count: int, name: str) -> Array:
        chosen = nearest[:, :count]
        used = (chosen >= 0)[:, :, None]
        total = np.where(used, values(self._train, name)[chosen], 0.0).sum(axis=1)
        number = used.sum(axis=1)
        return np.where(number > 0, total / np.maximum(number, 1), self.centre[name])

    def _stack(self, data: MultimodalData, names: Sequence[str]) -> Array:
        return np.hstack([values(data, name) / self.scale[name] for name in names])


class RidgePairs(Imputer):
    """Ridge regression from each modality to each other, averaged over the modalities that a row has.

    Each pair has its own penalty, chosen by squared error on validation rows; the average weighs each source by the
    inverse of its error there. A pair of modalities that never meets in training has no regression.

    Args:
        penalties: to choose from, for inputs brought to unit root mean square.
    """

    def __init__(self, penalties: Sequence[float] = (1, 3, 10, 30, 100, 300, 1000)) -> None:
        self.penalties = _positive("calibration.ridge.imputer.penalties", penalties)
        self._penalty: dict[tuple[str, str], float] = {}
        self._error: dict[tuple[str, str], float] = {}

    def _learn(self, train: MultimodalData) -> None:
        middle = self.penalties[len(self.penalties) // 2]
        self._maps = {}
        for source, target in _ordered_pairs(train.names):
            rows = has(train, source) & has(train, target)
            if rows.sum() >= 2:
                penalty = self._penalty.get((source, target), middle)
                self._maps[source, target] = self._regress(train, rows, source, target, penalty)

    def _choose(self, fit_rows: MultimodalData, validation: MultimodalData) -> None:
        for pair in self._maps:
            errors, number = self._errors(pair, fit_rows, validation)
            if number:
                best = int(np.argmin(errors))
                self._penalty[pair], self._error[pair] = self.penalties[best], float(errors[best])
        self._learn(fit_rows)

    def _errors(self, pair: tuple[str, str], fit_rows: MultimodalData, validation: MultimodalData) -> tuple[Array, int]:
        """Mean squared error of each penalty on the rows that have both, learned on others; and their number."""
        source, target = pair
        rows = has(validation, source) & has(validation, target)
        if not rows.any():
            return np.zeros(len(self.penalties)), 0
        inputs, truth = self._inputs(validation, source)[rows], values(validation, target)[rows]
        learn = has(fit_rows, source) & has(fit_rows, target)
        maps = [self._regress(fit_rows, learn, source, target, penalty) for penalty in self.penalties]
        return np.array([np.mean((truth - found.predict(inputs)) ** 2) for found in maps]), int(rows.sum())

    @property
    def chosen(self) -> dict[tuple[str, str], float]:
        """The penalties chosen, of (source, target)."""
        return dict(self._penalty)

    def cross_validate(self, data: MultimodalData, folds: Sequence[tuple[MultimodalData, MultimodalData]]) -> Self:
        """Choose penalties, weights and variances by cross-validation, then learn from all the data.

        Args:
            data: training rows.
            folds: parts of them: for each fold the rows to learn from, and those to measure on.
        """
        rules = [(RidgePairs(self.penalties).fit(others), others, own) for others, own in folds]
        totals: dict[tuple[str, str], Array] = {}
        counts: dict[tuple[str, str], int] = {}
        for rule, others, own in rules:
            for pair in rule._maps:
                errors, number = rule._errors(pair, others, own)
                totals[pair] = totals.get(pair, 0.0) + number * errors
                counts[pair] = counts.get(pair, 0) + number
        for pair, total in totals.items():
            if counts[pair]:
                best = int(np.argmin(total))
                self._penalty[pair], self._error[pair] = self.penalties[best], float(total[best] / counts[pair])
        for rule, others, _ in rules:
            rule._penalty, rule._error = self._penalty, self._error
            rule.fit(others)
        self.fit(data)
        self.residual_variance = {
            name: self._variance(name, np.concatenate([rule._squares(own, name) for rule, _, own in rules]), data)
            for name in data.names
        }
        return self

    def predict(self, data: MultimodalData, name: str) -> Array:
        """The weighted average of the predictions from the modalities each row has; the mean where there is none."""
        total, weights = np.zeros((len(data), len(self.centre[name]))), np.zeros((len(data), 1))
        for (source, target), regression in self._maps.items():
            rows = has(data, source) if target == name and source in data else np.zeros(len(data), dtype=bool)
            if rows.any():
                weight = 1.0 / max(self._error.get((source, target), self.scale[name] ** 2), 1e-300)
                total[rows] += weight * regression.predict(self._inputs(data, source)[rows])
                weights[rows] += weight
        return np.where(weights > 0, total / np.where(weights > 0, weights, 1.0), self.centre[name])

    def _regress(
        self, data: MultimodalData, rows: NDArray[np.bool_], source: str, target: str, penalty: float
    ) -> Ridge:
        return Ridge(alpha=penalty).fit(self._inputs(data, source)[rows], values(data, target)[rows])

    def _inputs(self, data: MultimodalData, name: str) -> Array:
        return (values(data, name) - self.centre[name]) / self.scale[name]


def values(data: MultimodalData, name: str) -> Array:
    """One modality in float64, (N, D_m), NaN where missing."""
    return data[name].cpu().numpy().astype(np.float64)


def has(data: MultimodalData, name: str) -> NDArray[np.bool_]:
    """Mask of the rows that have a modality, (N,) bool."""
    observed: NDArray[np.bool_] = data.observed(name).cpu().numpy()
    return observed


def predictable(data: MultimodalData, name: str) -> NDArray[np.bool_]:
    """Mask of the rows that have a modality and at least one other to predict it from, (N,) bool."""
    number: NDArray[np.int64] = data.observed_mask.sum(dim=1).cpu().numpy()
    return has(data, name) & (number > 1)


def _ordered_pairs(names: Sequence[str]) -> list[tuple[str, str]]:
    return [(source, target) for source in names for target in names if source != target]


def _positive(option: str, numbers: Sequence[float]) -> list[float]:
    given = list(numbers)
    if not given or not all(isinstance(number, int | float) and number > 0 for number in given):
        raise ArgumentError(f"{option}: expected at least one number, all above 0, got {given}.")
    return given
