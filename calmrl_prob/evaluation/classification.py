"""Linear probe: what a linear classifier can read from a representation, the posterior mean of the latent say."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from calmrl_prob._support.arguments import brief, real_number, required_array, whole_number
from calmrl_prob.data.entries import entries, grouped
from calmrl_prob.errors import ArgumentError, ArgumentTypeError, DataError

if TYPE_CHECKING:
    from sklearn.pipeline import Pipeline

#: Inverse penalties of the logistic regression to choose from.
PENALTIES = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)


@dataclass(frozen=True, eq=False, repr=False)
class ProbeResult:
    """Accuracy of the probe on the test rows.

    Attributes:
        accuracy: share of test rows classified rightly, in [0, 1].
        balanced_accuracy: mean over the classes of the test rows of the share classified rightly, in [0, 1].
        chance: accuracy of always naming the commonest training class.
        inverse_penalty: the C of the logistic regression, chosen by cross-validation on the training rows.
        predictions: the predicted labels, (N_test,).
    """

    accuracy: float
    balanced_accuracy: float
    chance: float
    inverse_penalty: float
    predictions: NDArray[np.generic]

    def __repr__(self) -> str:
        return (
            f"ProbeResult: accuracy {self.accuracy:.1%}, balanced {self.balanced_accuracy:.1%}, chance "
            f"{self.chance:.1%}, on {len(self.predictions):,} test rows (inverse penalty {self.inverse_penalty:g})"
        )


def linear_probe(
    train_features: ArrayLike | Tensor,
    train_labels: ArrayLike | Tensor,
    test_features: ArrayLike | Tensor,
    test_labels: ArrayLike | Tensor,
    seed: int = 0,
    penalties: Sequence[float] = PENALTIES,
    folds: int = 3,
) -> ProbeResult:
    """Fit a multinomial logistic regression on standardised training features and score it on the test rows.

    The penalty is chosen by stratified cross-validation on the training rows whose class has at least ``folds`` of
    them; where fewer than two classes do, C = 1. The test rows are looked at once, at the end. A test row of a class
    that training never showed counts as wrong.

    Args:
        train_features: (N_train, K), numpy or torch.
        train_labels: (N_train,), numbers or strings.
        test_features: (N_test, K).
        test_labels: (N_test,).
        seed: decides the folds.
        penalties: values of C to choose from; one value skips the choice.
        folds: number of folds.

    Raises:
        DataError: numbers of rows or columns differ, a feature is not finite, or training has only one class.
        ArgumentError: ``penalties``, ``folds`` or ``seed`` cannot be used.
        ArgumentTypeError: something is not an array of numbers, or a setting of another type.

    Example:
        >>> features = np.array([[-1.0], [-1.2], [-0.9], [1.1], [0.8], [1.0]])
        >>> labels = np.array(["cat"] * 3 + ["dog"] * 3)
        >>> result = linear_probe(features, labels, np.array([[-2.0], [2.0]]), ["cat", "dog"])
        >>> result.accuracy, result.predictions.tolist()
        (1.0, ['cat', 'dog'])
    """
    seed, folds = whole_number("seed", seed), whole_number("folds", folds, 2)
    if isinstance(penalties, str) or not isinstance(penalties, Iterable):
        raise ArgumentTypeError(f"penalties: expected a list of numbers, got {brief(penalties)}; pass [1.0], say.")
    penalties = [real_number("penalties", penalty, 1.0) for penalty in penalties]
    if not penalties or not min(penalties) > 0:
        raise ArgumentError(f"penalties: expected one or more positive numbers, got {penalties}.")
    x_train, y_train = _check(train_features, train_labels, "train")
    x_test, y_test = _check(test_features, test_labels, "test")
    if x_train.shape[1] != x_test.shape[1]:
        raise DataError(
            f"test_features: expected {x_train.shape[1]} columns as in train_features, got {x_test.shape[1]}."
        )
    classes, codes, counts = np.unique(y_train, return_inverse=True, return_counts=True)
    if len(classes) < 2:
        raise DataError(f"train_labels: expected at least two classes, got only {classes.tolist()}.")
    inverse_penalty = _choose_penalty(x_train, codes, counts, seed, penalties, folds)
    predictions = classes[_classifier(inverse_penalty).fit(x_train, codes).predict(x_test)]
    right = predictions == y_test
    return ProbeResult(
        float(right.mean()),
        float(np.mean([right[y_test == label].mean() for label in np.unique(y_test)])),
        float(np.mean(y_test == classes[counts.argmax()])),
        inverse_penalty,
        predictions,
    )


def _choose_penalty(
    features: NDArray[np.float64],
    codes: NDArray[np.int64],
    counts: NDArray[np.int64],
    seed: int,
    penalties: Sequence[float],
    folds: int,
) -> float:
    from sklearn.model_selection import GridSearchCV, StratifiedKFold

    if len(penalties) == 1:
        return float(penalties[0])
    common = counts >= folds  # a rarer class cannot stand in every fold
    if common.sum() < 2:
        return 1.0
    usable = common[codes]
    search = GridSearchCV(
        _classifier(1.0),
        {"logisticregression__C": list(penalties)},
        cv=StratifiedKFold(folds, shuffle=True, random_state=seed),
        refit=False,
    )
    search.fit(features[usable], codes[usable])
    return float(search.best_params_["logisticregression__C"])


def _classifier(inverse_penalty: float) -> Pipeline:
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    return make_pipeline(StandardScaler(), LogisticRegression(C=inverse_penalty, max_iter=1000))


def _check(
    features: ArrayLike | Tensor, labels: ArrayLike | Tensor, side: str
) -> tuple[NDArray[np.float64], NDArray[np.generic]]:
    given_features = features.detach().cpu().numpy() if isinstance(features, Tensor) else features
    try:
        x = np.asarray(given_features, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise ArgumentTypeError(
            f"{side}_features: expected an (N, K) array of numbers, got {type(features).__name__}; pass an array, such "
            "as the attribute mean of what calmrl_prob.posterior returns."
        ) from error
    required_array(f"{side}_labels", labels, object)
    y = labels.detach().cpu().numpy() if isinstance(labels, Tensor) else entries(labels)
    if x.ndim != 2:
        raise DataError(f"{side}_features: expected shape (N, K), got {x.shape}.")
    if y.shape != (len(x),) or len(x) == 0:
        raise DataError(
            f"{side}_labels: expected one label for each of the {len(x)} rows of {side}_features, at least one, "
            f"got shape {y.shape}."
        )
    kinds, index = grouped(y)
    if kinds[-1] is None:
        raise DataError(
            f"{side}_labels: {int((index == len(kinds) - 1).sum())} of {len(y)} are missing (None or NaN); leave those "
            "rows out."
        )
    bad = np.flatnonzero(~np.isfinite(x).all(axis=1))
    if len(bad):
        raise DataError(
            f"{side}_features: expected finite numbers, got NaN or infinity in row {bad[0]} and {len(bad) - 1} more. "
            "Impute first, or probe the posterior mean, which every instance has."
        )
    return x, y
