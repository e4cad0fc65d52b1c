"""Measures of a fitted variant on test rows: the numbers of the table, and the data of the figures.

Imputation errors are in units of a modality's standard deviation (root mean square over its features, over the complete
training rows), so that modalities of different scale can be averaged.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.special import ndtri

from calmrl_prob.data import MultimodalData
from calmrl_prob.evaluation import coverage_curve, linear_probe, mean_over_pairs, score_imputation
from experiments.comparison.fitted_variant import FittedVariant
from experiments.comparison.imputers import Array, predictable, values
from experiments.comparison.standardisation import Imputed, Standardisation


@dataclass(frozen=True)
class EvaluationRows:
    """The rows that all variants are measured on.

    Attributes:
        train: training rows as the variants learned from them, modalities missing.
        test: test rows as they are.
        masked_test: the same with modalities removed by the mechanism, by a fixed seed.
        scale: for each modality the unit of its imputation errors.
        level: nominal coverage of the intervals, in (0, 1).
        seed: decides the folds of the linear probe.
    """

    train: MultimodalData
    test: MultimodalData
    masked_test: MultimodalData
    scale: Mapping[str, float]
    level: float
    seed: int


@dataclass(frozen=True)
class Imputations:
    """Every modality of every test row, imputed from the row's others.

    Attributes:
        parts: for each modality its imputation.
        evaluated: (N, M) bool, the cells that were there to compare with.
    """

    parts: dict[str, Imputed]
    evaluated: NDArray[np.bool_]

    @property
    def mean(self) -> dict[str, Array]:
        """For each modality (N, D_m); NaN in the rows that are not evaluated."""
        return {name: part.mean for name, part in self.parts.items()}

    @property
    def variance(self) -> dict[str, Array]:
        """The same of the variances."""
        return {name: part.variance for name, part in self.parts.items()}


def impute_all(fitted: FittedVariant, data: MultimodalData, level: float = 0.9) -> Imputations:
    """Hide one modality at a time, and impute it; ``level`` is the nominal coverage of the intervals."""
    evaluated = np.stack([predictable(data, name) for name in data.names], axis=1)
    return Imputations({name: fitted.impute(data, name, level) for name in data.names}, evaluated)


def measure(
    fitted: FittedVariant, evaluation: EvaluationRows, imputations: Imputations, pairs: pd.DataFrame
) -> dict[str, float]:
    """The columns of the table: recall and accuracies in percent, RMSE in standard deviations, NLL in nats."""
    recall = mean_over_pairs(pairs)
    return {
        "R@1": 100 * recall["R@1"],
        "R@10": 100 * recall["R@10"],
        **measure_imputations(imputations, evaluation.test, evaluation.scale, evaluation.level),
        "probe": 100 * probe_accuracy(fitted, evaluation),
        "seconds": fitted.seconds,
    }


def measure_imputations(
    imputations: Imputations, truth: MultimodalData, scale: Mapping[str, float], level: float
) -> dict[str, float]:
    """RMSE in standard deviations, NLL in nats for each missing cell and coverage in percent, means over modalities.

    The density is that of one feature at a time given the row's other modalities, of values in standard deviations.
    """
    scores = score_imputation(
        imputations.mean, imputations.variance, truth, imputations.evaluated, level=level
    ).set_index("modality")
    for name, part in imputations.parts.items():
        rows = imputations.evaluated[:, truth.names.index(name)]
        if part.log_density is not None and part.lower is not None and part.upper is not None and rows.any():
            true = values(truth, name)[rows]
            scores.loc[name, "nll"] = -part.log_density[rows].mean()
            scores.loc[name, "coverage"] = ((part.lower[rows] <= true) & (true <= part.upper[rows])).mean()
    unit = pd.Series(scale).reindex(scores.index)
    return {
        "RMSE": float(np.sqrt(((scores["rmse"] / unit) ** 2).mean())),
        "NLL": float((scores["nll"] - np.log(unit)).mean()),
        "coverage": 100 * float(scores["coverage"].mean()),
    }


def modality_coverage(imputations: Imputations, truth: MultimodalData, level: float) -> pd.DataFrame:
    """The share of true values inside the intervals of each modality: modality, level, coverage (in [0, 1])."""
    rows = []
    for m, name in enumerate(truth.names):
        part, here = imputations.parts[name], imputations.evaluated[:, m]
        if not here.any():
            continue
        true = values(truth, name)[here]
        if part.lower is not None and part.upper is not None:
            inside = (part.lower[here] <= true) & (true <= part.upper[here])
        else:
            inside = np.abs(true - part.mean[here]) <= ndtri((1 + level) / 2) * np.sqrt(part.variance[here])
        rows.append({"modality": name, "level": level, "coverage": float(inside.mean())})
    return pd.DataFrame(rows, columns=["modality", "level", "coverage"])


def nll(imputations: Imputations, truth: MultimodalData) -> float:
    """The negative log density of each feature given the row's others, nats in the data's units, mean over modalities.

    NaN where no row has two modalities.
    """
    if not imputations.evaluated.any():
        return float("nan")
    return measure_imputations(imputations, truth, dict.fromkeys(truth.names, 1.0), 0.9)["NLL"]


def probe_accuracy(fitted: FittedVariant, evaluation: EvaluationRows) -> float:
    """Accuracy of a linear classifier on the representation, in [0, 1]; NaN where the data have no labels.

    It learns from the training rows with what they have, and is tested on test rows from which modalities were removed
    by the same mechanism.
    """
    if evaluation.train.labels is None or evaluation.masked_test.labels is None:
        return float("nan")
    found = linear_probe(
        fitted.features(evaluation.train),
        evaluation.train.labels,
        fitted.features(evaluation.masked_test),
        evaluation.masked_test.labels,
        seed=evaluation.seed,
    )
    return found.accuracy


def coverage_table(evaluation: EvaluationRows, imputations: Imputations) -> pd.DataFrame:
    """Nominal against actual coverage over all evaluated cells: level, coverage, width in standard deviations.

    By normal intervals of the predictive's mean and variance, whatever its shape.
    """
    truth, mean, variance = [], [], []
    for m, name in enumerate(evaluation.test.names):
        rows, unit = imputations.evaluated[:, m], evaluation.scale[name]
        truth.append(values(evaluation.test, name)[rows].ravel() / unit)
        mean.append(imputations.mean[name][rows].ravel() / unit)
        variance.append(imputations.variance[name][rows].ravel() / unit**2)
    return coverage_curve(np.concatenate(truth), np.concatenate(mean), np.concatenate(variance))


def interval_table(
    evaluation: EvaluationRows, imputations: Imputations, num_rows: int, feature: int = 0
) -> pd.DataFrame:
    """One feature of some test rows, imputed and true: modality, row, mean, sd, truth, in standard deviations."""
    tables = []
    for m, name in enumerate(evaluation.test.names):
        rows = np.flatnonzero(imputations.evaluated[:, m])
        rows = rows[np.linspace(0, len(rows) - 1, min(num_rows, len(rows))).astype(int)] if len(rows) else rows
        unit = evaluation.scale[name]
        tables.append(
            pd.DataFrame(
                {
                    "modality": name,
                    "row": rows,
                    "mean": imputations.mean[name][rows, feature] / unit,
                    "sd": np.sqrt(imputations.variance[name][rows, feature]) / unit,
                    "truth": values(evaluation.test, name)[rows, feature] / unit,
                }
            )
        )
    return pd.concat(tables, ignore_index=True)


def modality_scale(data: MultimodalData) -> Mapping[str, float]:
    """The root mean square deviation of each modality's features from their means, one number a modality."""
    return Standardisation.of(data).scale
