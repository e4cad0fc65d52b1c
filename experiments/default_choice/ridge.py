"""Ridge regression of each ordered pair of modalities: the reference that needs no generative model.

One decomposition of each fold's inputs gives the errors of all penalties: with X = inputs and Y = targets, centred,

    prediction of rows V  =  V Q diag(1 / (s + penalty)) Q^T X^T Y,      X^T X = Q diag(s) Q^T

or, with fewer rows than features, the same through X X^T.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import permutations

import numpy as np
from numpy.typing import NDArray

from calmrl_prob.data import MultimodalData
from experiments.comparison.imputers import Array, has, values
from experiments.default_choice.measures import Scores, explained

#: Penalties to choose from, in units of the mean eigenvalue of X^T X.
PENALTIES: Array = np.logspace(-4, 5, 37)
_FOLDS = 5


@dataclass(frozen=True)
class RidgePath:
    """Ridge regressions of all penalties on the same rows.

    Attributes:
        input_centre, target_centre: means that were taken off, (D_s,) and (D_t,).
        axes: (D_s, r), that map centred inputs to coordinates.
        spectrum: eigenvalues, (r,).
        loadings: of the targets on the coordinates, (r, D_t), before penalties.
    """

    input_centre: Array
    target_centre: Array
    axes: Array
    spectrum: Array
    loadings: Array

    @classmethod
    def of(cls, inputs: Array, targets: Array) -> RidgePath:
        """From rows (n, D_s) and (n, D_t)."""
        input_centre, target_centre = inputs.mean(axis=0), targets.mean(axis=0)
        x, y = inputs - input_centre, targets - target_centre
        if len(x) >= x.shape[1]:
            spectrum, axes = np.linalg.eigh(x.T @ x)
            loadings = axes.T @ (x.T @ y)
        else:
            spectrum, vectors = np.linalg.eigh(x @ x.T)
            axes, loadings = x.T @ vectors, vectors.T @ y
        return cls(input_centre, target_centre, axes, np.maximum(spectrum, 0.0), loadings)

    def predict(self, inputs: Array, penalty: float) -> Array:
        """Targets (n, D_t) of inputs (n, D_s)."""
        coordinates = (inputs - self.input_centre) @ self.axes
        found: Array = self.target_centre + (coordinates / (self.spectrum + penalty)) @ self.loadings
        return found

    def squared_errors(self, inputs: Array, targets: Array, penalties: Array) -> Array:
        """Sum of squared errors over rows and features for each penalty.

        With C the coordinates, L the loadings and D = diag(1 / (s + penalty)), |T - C D L|^2 = |T|^2 - 2 tr(D L T^T C)
        + tr(D C^T C D L L^T), so that each penalty costs r^2.
        """
        coordinates, y = (inputs - self.input_centre) @ self.axes, targets - self.target_centre
        cross = np.einsum("rn,nr->r", self.loadings @ y.T, coordinates)
        quadratic = (coordinates.T @ coordinates) * (self.loadings @ self.loadings.T)
        shrunk = 1.0 / (self.spectrum + penalties[:, None])
        errors: Array = np.sum(y**2) - 2.0 * shrunk @ cross + np.einsum("pr,rs,ps->p", shrunk, quadratic, shrunk)
        return errors


@dataclass(frozen=True)
class RidgeOfPairs:
    """One regression for each ordered pair of modalities.

    Attributes:
        paths: of (source, target), on all training rows that have both.
        penalties: chosen by cross-validation.
        errors: squared errors in cross-validation at these, for each row.
        centre: for each modality the mean of the training rows that have it: for pairs that never meet.
    """

    paths: Mapping[tuple[str, str], RidgePath]
    penalties: Mapping[tuple[str, str], float]
    errors: Mapping[tuple[str, str], float]
    centre: Mapping[str, Array]

    @classmethod
    def fit(cls, train: MultimodalData, seed: int = 0) -> RidgeOfPairs:
        """Choose the penalty of each pair by 5-fold cross-validation, and learn from all rows that have both.

        Args:
            train: training rows; of single values that are missing the mean of the feature is taken.
            seed: of the folds.
        """
        known = {name: values(train, name) for name in train.names}
        centre = {name: np.nanmean(array[has(train, name)], axis=0) for name, array in known.items()}
        known = {name: np.where(np.isnan(array), centre[name], array) for name, array in known.items()}
        paths, penalties, errors = {}, {}, {}
        for source, target in permutations(train.names, 2):
            both = has(train, source) & has(train, target)
            if both.sum() >= 2 * _FOLDS:
                inputs, targets = known[source][both], known[target][both]
                penalty, error = _cross_validated(inputs, targets, seed)
                pair = source, target
                paths[pair], penalties[pair], errors[pair] = RidgePath.of(inputs, targets), penalty, error
        return cls(paths, penalties, errors, centre)

    def predict(self, data: MultimodalData, given: Sequence[str], name: str) -> Array:
        """One modality (n, D_m) from others: their predictions, weighed by inverse errors in cross-validation."""
        pairs = [(source, name) for source in given if (source, name) in self.paths]
        if not pairs:
            return np.tile(self.centre[name], (len(data), 1))
        weights = np.array([1.0 / max(self.errors[pair], 1e-300) for pair in pairs])
        found = [self.paths[pair].predict(values(data, pair[0]), self.penalties[pair]) for pair in pairs]
        total: Array = sum(w * part for w, part in zip(weights / weights.sum(), found, strict=True))  # type: ignore[assignment]
        return total


def score_ridge(ridge: RidgeOfPairs, test: MultimodalData) -> Scores:
    """All measures that ridge regression has; retrieval by the cosine of prediction and candidate, both centred."""
    whole, single = explained(lambda given, name: ridge.predict(test, given, name), test, ridge.centre)
    hits = [
        first_by_cosine(
            ridge.predict(test, [source], target) - ridge.centre[target], values(test, target) - ridge.centre[target]
        ).mean()
        for source, target in permutations(test.names, 2)
    ]
    return Scores(whole, single, 100.0 * float(np.mean(hits)))


def first_by_cosine(predicted: Array, candidates: Array) -> NDArray[np.bool_]:
    """Whether the candidate of the same row has the largest cosine with a prediction, (n,) bool; ties are no hits.

    Args:
        predicted: (n, D), centred.
        candidates: (n, D), centred.

    Example:
        >>> first_by_cosine(np.array([[1.0, 0.1], [1.0, 0.2]]), np.eye(2)).tolist()
        [True, False]
    """
    tiny = np.finfo(np.float64).tiny
    one, other = (
        rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), tiny) for rows in (predicted, candidates)
    )
    cosine = one @ other.T
    own = np.diag(cosine).copy()
    np.fill_diagonal(cosine, -np.inf)
    first: NDArray[np.bool_] = own > cosine.max(axis=1)
    return first


def _cross_validated(inputs: Array, targets: Array, seed: int) -> tuple[float, float]:
    """The penalty of least squared error over the folds, and that error for each row."""
    fold = np.random.default_rng(seed).permutation(len(inputs)) % _FOLDS
    centred = inputs - inputs.mean(axis=0)
    unit = float(np.sum(centred**2)) / min(centred.shape) or 1.0
    total = np.zeros(len(PENALTIES))
    for k in range(_FOLDS):
        own = fold == k
        total += RidgePath.of(inputs[~own], targets[~own]).squared_errors(inputs[own], targets[own], unit * PENALTIES)
    best = int(total.argmin())
    return unit * float(PENALTIES[best]), float(total[best]) / len(inputs)
