"""Scores of stated class probabilities: accuracy, log score, Brier score and calibration error, with intervals.

With p_nc the stated probabilities, y_n the class, and in each of B bins of equally many instances by their greatest
probability: n_b instances, accuracy a_b and mean greatest probability q_b, s_b^2 = a_b (1 - a_b) / n_b,

    log score = mean log p_n,y_n        Brier = mean sum_c (p_nc - [c = y_n])^2
    ECE = sum_b n_b/N |a_b - q_b|  less sum_b n_b/N (E|N(a_b - q_b, s_b^2)| - |a_b - q_b|)

The last term takes out part of what chance adds, by which few instances make calibrated probabilities look wrong: of
200 about 0.07, and 0.05 with it.

Sources: Naeini, Cooper & Hauskrecht, Obtaining well calibrated probabilities using Bayesian binning (2015); Kumar,
Liang & Ma, Verified uncertainty calibration (2019), for the part of chance.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray

from calmrl_prob._support.arguments import checked_seed, real_number, required_array, whole_number
from calmrl_prob.errors import ArgumentError, DataError

if TYPE_CHECKING:
    import pandas as pd

Array = NDArray[np.float64]
#: The least probability that a log score counts, so that one error does not decide it all.
_LEAST = 1e-12


def score_probabilities(
    probabilities: ArrayLike,
    labels: ArrayLike,
    classes: ArrayLike,
    *,
    level: float = 0.95,
    num_draws: int = 500,
    bins: int = 10,
    seed: int = 0,
) -> pd.DataFrame:
    """Scores of class probabilities with intervals by bootstrap over the instances.

    An instance of a class that is not among ``classes`` counts as one that was given the probability 1e-12, the least
    that the log score knows.

    Args:
        probabilities: (N, C), rows that sum to 1.
        labels: (N,) the true classes.
        classes: (C,) what the columns are.
        level: of the intervals.
        num_draws: of the bootstrap.
        bins: of the calibration error.
        seed: of the bootstrap.

    Returns:
        Rows "accuracy", "log_score" (nats), "brier" and "ece", with ``value``, ``lower`` and ``upper``.

    Raises:
        DataError: shapes do not fit, or rows are no probabilities.
        ArgumentError: ``level``, ``num_draws`` or ``bins`` is out of range.

    Example:
        >>> found = score_probabilities([[0.9, 0.1], [0.2, 0.8], [0.6, 0.4]], ["a", "b", "b"], ["a", "b"])
        >>> found["value"].round(3).to_dict()
        {'accuracy': 0.667, 'log_score': -0.415, 'brier': 0.273, 'ece': 0.3}
    """
    import pandas as pd

    stated = required_array("probabilities", probabilities, float)
    truth, names = required_array("labels", labels), required_array("classes", classes)
    if stated.ndim != 2 or stated.shape != (len(truth), len(names)) or not len(truth):
        raise DataError(
            f"probabilities: expected shape ({len(truth)}, {len(names)}), of labels and classes, got {stated.shape}."
        )
    bad = np.flatnonzero(~((np.abs(stated.sum(1) - 1) < 1e-5) & (stated >= 0).all(1)))
    if len(bad):
        raise DataError(f"probabilities: expected rows that sum to 1, got {stated[bad[0]].tolist()} in row {bad[0]}.")
    if not 0 < real_number("level", level, 0.95) < 1:
        raise ArgumentError(f"level: expected a share between 0 and 1, got {level!r}.")
    num_draws, bins = whole_number("num_draws", num_draws, least=2), whole_number("bins", bins, least=1)
    hit = names[None] == truth[:, None]
    confidence, right = stated.max(1), hit[np.arange(len(truth)), stated.argmax(1)].astype(float)
    log_p = np.log(np.maximum((stated * hit).sum(1), _LEAST))
    brier = ((stated - hit) ** 2).sum(1)
    scores: dict[str, Callable[[NDArray[np.int64]], float]] = {
        "accuracy": lambda rows: float(right[rows].mean()),
        "log_score": lambda rows: float(log_p[rows].mean()),
        "brier": lambda rows: float(brier[rows].mean()),
        "ece": lambda rows: calibration_error(confidence[rows], right[rows], bins),
    }
    generator = np.random.default_rng(checked_seed(seed))
    drawn = [generator.integers(len(truth), size=len(truth)) for _ in range(num_draws)]
    tails, rows = [(1 - level) / 2, (1 + level) / 2], []
    for name, of in scores.items():
        lower, upper = np.quantile([of(draw) for draw in drawn], tails)
        rows.append({"score": name, "value": of(np.arange(len(truth))), "lower": lower, "upper": upper})
    return pd.DataFrame(rows).set_index("score")


def calibration_error(confidence: Array, right: Array, bins: int = 10) -> float:
    """ECE of stated probabilities (N,) of events that came, 1, or not, 0, less the part of chance; 0 at least."""
    order, total = np.argsort(confidence, kind="stable"), 0.0
    for part in np.array_split(order, min(bins, len(order))):
        accuracy = right[part].mean()
        gap, spread = abs(accuracy - confidence[part].mean()), math.sqrt(accuracy * (1 - accuracy) / len(part))
        total += len(part) / len(order) * (2 * gap - _folded_mean(gap, spread))
    return max(total, 0.0)


def _folded_mean(mean: float, deviation: float) -> float:
    """E|N(mean, deviation^2)|."""
    if deviation == 0:
        return abs(mean)
    ratio = mean / deviation
    return deviation * math.sqrt(2 / math.pi) * math.exp(-(ratio**2) / 2) + mean * math.erf(ratio / math.sqrt(2))
