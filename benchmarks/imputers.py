"""``CalibratedImputer`` beside scikit-learn's imputers: ``python -m benchmarks.imputers``.

Each instance of a complete data set keeps one modality and each other with probability 0.6; half the instances, 800 at
most, are fitted to, and missing values of the others are imputed. Columns are standardised. R^2 is about the means of
the rows fitted to, over all hidden values; coverage is of 90% intervals; accuracy is of a logistic regression fitted to
the completed rows. Everything has its default settings.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before numpy and torch

import warnings
from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from sklearn.datasets import load_breast_cancer, load_digits
from sklearn.exceptions import ConvergenceWarning
from sklearn.experimental import enable_iterative_imputer  # noqa: F401 - IterativeImputer is not there without it
from sklearn.impute import IterativeImputer, KNNImputer, SimpleImputer
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

import calmrl_prob as cal
from benchmarks.clock import cpu_seconds
from benchmarks.tables import Row, show
from calmrl_prob.sklearn import CalibratedImputer

Values = NDArray[np.float64]
_MOST_ROWS, _KEPT, _LEVEL = 800, 0.6, 0.9


def data_sets() -> Iterator[tuple[str, Values, NDArray[np.int64], dict[str, slice]]]:
    """Name, complete rows, classes, and the columns of each modality."""
    leaves = cal.datasets.load_leaves()
    ends = np.cumsum([0, *leaves.dims.values()])
    groups = {name: slice(*ends[k : k + 2]) for k, name in enumerate(leaves.names)}
    rows = torch.cat([leaves[name] for name in leaves.names], dim=1).double().numpy()
    yield "leaves: margin, shape, texture", rows, np.unique(leaves.labels, return_inverse=True)[1], groups
    digits = load_digits()
    yield "digits: upper half, lower half", digits.data, digits.target, {"upper": slice(0, 32), "lower": slice(32, 64)}
    cells = load_breast_cancer()
    kinds = {name: slice(10 * k, 10 * k + 10) for k, name in enumerate(("mean", "error", "worst"))}
    yield "breast cancer: mean, error, worst", cells.data, cells.target, kinds


def hide(rows: Values, groups: dict[str, slice], generator: np.random.Generator) -> Values:
    """The rows with modalities missing at random, never all of a row."""
    kept = generator.random((len(rows), len(groups))) < _KEPT
    kept[np.arange(len(rows)), generator.integers(len(groups), size=len(rows))] = True
    hidden = rows.copy()
    for k, columns in enumerate(groups.values()):
        hidden[~kept[:, k], columns] = np.nan
    return hidden


def measure(name: str, rows: Values, classes: NDArray[np.int64], groups: dict[str, slice]) -> Iterator[Row]:
    """One row for each imputer."""
    generator = np.random.default_rng(0)
    hidden = hide(rows, groups, generator)
    order = generator.permutation(len(rows))
    fitted = min(_MOST_ROWS, len(rows) // 2)
    train, test = order[:fitted], order[fitted:]
    scaler = StandardScaler().fit(hidden[train])
    X, truth = scaler.transform(hidden), scaler.transform(rows[test])
    missing = np.isnan(X[test])
    for imputer in (SimpleImputer(), KNNImputer(), IterativeImputer(random_state=0), CalibratedImputer(groups)):
        seconds = cpu_seconds(lambda imputer=imputer: imputer.fit(X[train]))
        completed, found = imputer.transform(X[train]), imputer.transform(X[test])
        classifier = LogisticRegression(max_iter=5000, C=0.1).fit(completed, classes[train])
        error, spread = (np.square((values - truth)[missing]).sum() for values in (found, np.zeros_like(truth)))
        coverage = float("nan")
        if isinstance(imputer, CalibratedImputer):
            lower, upper = imputer.interval(X[test], _LEVEL)
            coverage = float(((lower <= truth) & (truth <= upper))[missing].mean())
        yield {
            "data": name,
            "imputer": type(imputer).__name__,
            "R^2": round(1 - float(error / spread), 3),
            "coverage": round(coverage, 3),
            "accuracy": round(float(classifier.score(found, classes[test])), 3),
            "fit, CPU s": seconds,
        }


def main() -> None:
    """Measure and print."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore", ConvergenceWarning)  # IterativeImputer's, of its own default of 10 rounds
    show(Console(width=120), "Imputers, default settings", [row for case in data_sets() for row in measure(*case)])


if __name__ == "__main__":
    main()
