"""What one would do without a joint model of classes: fill in what is missing, then learn from the filled rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GroupKFold, StratifiedKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from calmrl_prob.data import MultimodalData
from calmrl_prob.linear_gaussian import LinearGaussian, posterior
from experiments.classification.rows import ClassTask
from experiments.comparison.imputers import Array, has, values

#: p(class | row) of any rows, (N, C).
Stated = Callable[[MultimodalData], Array]
_FOLDS = 3
#: The least probability that counts when penalties are chosen.
_LEAST = 1e-12


def rivals(task: ClassTask, lg: LinearGaussian, penalties: Sequence[float], seed: int) -> dict[str, Stated]:
    """Each rival, learned from the labelled training rows; its settings by cross-validation within them.

    Args:
        task: rows.
        lg: the default fit, for imputations.
        penalties: C of the logistic regression, to choose from.
        seed: of folds, and of boosting.
    """
    fills: dict[str, Callable[[MultimodalData], Array]] = {
        "logistic, default imputations": lambda data: imputed(data, lg),
        "logistic, zero": lambda data: filled(data, dict(task.zero)),
        "logistic, mean": lambda data: filled(data, {name: 0.0 * part for name, part in task.zero.items()}),
    }
    rows = np.array([label is not None for label in task.train.labels.tolist()])
    train, groups = task.train.subset(rows), None if task.groups is None else task.groups[rows]
    codes = np.unique(train.labels.astype(str), return_inverse=True)[1]
    found = {name: logistic(fill, train, codes, groups, penalties, seed) for name, fill in fills.items()}
    found["gradient boosting, NaN"] = boosted(train, codes, seed)
    return found


def filled(data: MultimodalData, fill: dict[str, Array]) -> Array:
    """All features side by side, (N, D), a missing modality as ``fill`` has it."""
    parts = [np.where(has(data, name)[:, None], values(data, name), fill[name]) for name in data.names]
    return np.concatenate(parts, axis=1)


def imputed(data: MultimodalData, lg: LinearGaussian) -> Array:
    """All features side by side, a missing modality as the model imputes it."""
    mean = posterior(lg, data.blocks).mean
    parts = []
    for name in data.names:
        stands = (mean @ lg.loadings[name].mT + lg.intercepts[name]).double().numpy()
        parts.append(np.where(has(data, name)[:, None], values(data, name), stands))
    return np.concatenate(parts, axis=1)


def logistic(
    fill: Callable[[MultimodalData], Array],
    train: MultimodalData,
    codes: NDArray[np.int64],
    groups: NDArray[Any] | None,
    penalties: Sequence[float],
    seed: int,
) -> Stated:
    """Multinomial logistic regression on standardised filled rows, its penalty by held-out log score."""
    x, number = fill(train), int(codes.max()) + 1

    def fitted(rows: Any, penalty: float) -> Any:  # noqa: ANN401 - rows by number; a pipeline
        model = make_pipeline(StandardScaler(), LogisticRegression(C=penalty, max_iter=300, tol=1e-3))
        return model.fit(x[rows], codes[rows])

    kind = StratifiedKFold(_FOLDS, shuffle=True, random_state=seed) if groups is None else GroupKFold(_FOLDS)
    folds = list(kind.split(x, codes, groups))

    def reached(penalty: float) -> float:
        scores = []
        for inside, outside in folds:
            stated = all_classes(fitted(inside, penalty), x[outside], number)
            scores.append(np.log(np.maximum(stated[np.arange(len(outside)), codes[outside]], _LEAST)))
        return float(np.concatenate(scores).mean())

    model = fitted(np.arange(len(x)), max(penalties, key=reached) if len(penalties) > 1 else penalties[0])
    return lambda data: all_classes(model, fill(data), number)


def boosted(train: MultimodalData, codes: NDArray[np.int64], seed: int) -> Stated:
    """Gradient-boosted trees, to which a missing modality is NaN; stopped on a tenth of the training rows."""
    absent = {name: np.full(width, np.nan) for name, width in train.dims.items()}
    rare = np.bincount(codes).min() < 2  # a class of one row cannot stand on both sides
    model = HistGradientBoostingClassifier(
        max_iter=100, early_stopping=not rare, n_iter_no_change=5, random_state=seed
    ).fit(filled(train, absent), codes)
    return lambda data: all_classes(model, filled(data, absent), int(codes.max()) + 1)


def all_classes(model: Any, x: Array, number: int) -> Array:  # noqa: ANN401 - a classifier of scikit-learn
    """Probabilities of all classes, 0 for those that the model has not seen."""
    out = np.zeros((len(x), number))
    out[:, model.classes_] = model.predict_proba(x)
    return out
