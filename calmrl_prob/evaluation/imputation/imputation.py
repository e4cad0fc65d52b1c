"""Scores of imputed representations: errors of the means, and the worth of the stated variances.

A metric is a function of ``truth`` and ``mean``, (n, D_m), and of ``variance``, (n, D_m) or None, that returns one
number; NaN where it needs variances and there are none. Write one, add it to ``IMPUTATION_METRICS``, and
``score_imputation`` has a column more.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from calmrl_prob._support.arguments import real_number, require_kind, required_array
from calmrl_prob.data import MultimodalData
from calmrl_prob.data.stream import require_data
from calmrl_prob.errors import ArgumentError, ArgumentTypeError, DataError, SchemaError

Array = NDArray[np.float64]
Metric = Callable[[Array, Array, Array | None], float]
IntervalMetric = Callable[[Array, Array, Array | None, float], float]

_NAN = float("nan")


def rmse(truth: Array, mean: Array, variance: Array | None = None) -> float:
    """Root of the mean squared error over all n D_m cells, in data units."""
    return float(np.sqrt(np.mean((truth - mean) ** 2)))


def cosine(truth: Array, mean: Array, variance: Array | None = None) -> float:
    """Mean over instances of the cosine of the true and the imputed representation, as they are (not centred).

    In [-1, 1]; the cosine with a zero vector is taken as 0.
    """
    norms = np.linalg.norm(truth, axis=1) * np.linalg.norm(mean, axis=1)
    products = np.einsum("nd,nd->n", truth, mean)
    return float(np.mean(np.divide(products, norms, out=np.zeros_like(norms), where=norms > 0)))


def r_squared(truth: Array, mean: Array, variance: Array | None = None) -> float:
    """1 - SSE / SST: 1 is perfect, 0 is as good as the column means of the true values, below 0 is worse.

    SSE sums the squared errors over all cells, SST the squared distances of the true values from their column means
    over the same rows; NaN where SST is 0. For features that vary this is scikit-learn's variance-weighted r2_score.
    """
    total = np.sum((truth - truth.mean(axis=0)) ** 2)
    return float(1 - np.sum((truth - mean) ** 2) / total) if total > 0 else _NAN


def gaussian_nll(truth: Array, mean: Array, variance: Array | None) -> float:
    """Mean over cells of -log N(x; mean, variance), in nats per feature; lower is better."""
    if variance is None:
        return _NAN
    return float(np.mean(0.5 * (np.log(2 * np.pi * variance) + (truth - mean) ** 2 / variance)))


def crps(truth: Array, mean: Array, variance: Array | None) -> float:
    """Mean over cells of the continuous ranked probability score of the predictive normal, in data units.

    Lower is better; it is the absolute error where the variance goes to 0. Source: Gneiting & Raftery, Strictly
    Proper Scoring Rules, Prediction, and Estimation, 2007.
    """
    import scoringrules

    if variance is None:
        return _NAN
    return float(np.mean(scoringrules.crps_normal(truth, mean, np.sqrt(variance), backend="numpy")))


def interval_coverage(truth: Array, mean: Array, variance: Array | None, level: float) -> float:
    """Share of cells whose true value lies in the central interval of ``level``, in [0, 1]; best equal to ``level``."""
    from scipy.special import ndtri

    if variance is None:
        return _NAN
    return float(np.mean(np.abs(truth - mean) <= ndtri((1 + level) / 2) * np.sqrt(variance)))


def interval_width(truth: Array, mean: Array, variance: Array | None, level: float) -> float:
    """Mean width of the central intervals of ``level``, in data units."""
    from scipy.special import ndtri

    return _NAN if variance is None else float(np.mean(2 * ndtri((1 + level) / 2) * np.sqrt(variance)))


#: Columns of ``score_imputation``: functions of (truth, mean, variance).
IMPUTATION_METRICS: dict[str, Metric] = {
    "rmse": rmse,
    "cosine": cosine,
    "r_squared": r_squared,
    "nll": gaussian_nll,
    "crps": crps,
}

#: More columns: functions of (truth, mean, variance, level).
INTERVAL_METRICS: dict[str, IntervalMetric] = {"coverage": interval_coverage, "width": interval_width}


def score_imputation(
    means: Mapping[str, ArrayLike | Tensor],
    variances: Mapping[str, ArrayLike | Tensor] | None,
    truth: MultimodalData,
    evaluated_mask: ArrayLike | Tensor,
    level: float = 0.9,
    by: Sequence[str] = ("modality",),
    observed_mask: ArrayLike | Tensor | None = None,
) -> pd.DataFrame:
    """Score imputed modalities against the truth, by modality or by modality and missing pattern.

    Args:
        means: for each modality the imputed means, (N, D_m); rows that are not evaluated are never read.
        variances: for each modality the predictive variances (latent and noise together), data units squared: (N, D_m),
            or any shape that broadcasts to it, such as a (D_m,) residual variance for an imputer that states none.
            A modality left out, or None for all, has NaN in the columns that need variances.
        truth: N instances that really have the evaluated cells.
        evaluated_mask: (N, M) bool, True = to be scored; columns as ``truth.names``.
        level: nominal coverage of the intervals, in (0, 1).
        by: ("modality",), or ("modality", "pattern") to score each pattern of modalities that an imputation could
            see apart.
        observed_mask: (N, M) bool, what the imputation could see; by default all that ``truth`` has and that is not
            evaluated. Used for patterns only.

    Returns:
        One row for each modality (and pattern) with evaluated cells: modality, pattern (names of the modalities seen,
        joined by "+"), num_rows, and one column for each metric: rmse, crps, width in data units, cosine, r_squared
        without unit, nll in nats per feature, coverage a share in [0, 1].

    Raises:
        SchemaError: an evaluated modality is not in ``means``, or has another shape.
        DataError: an evaluated cell has no truth, or lacks a single feature of it, or its mean or variance is not
            finite (or not positive).
        ArgumentError, ArgumentTypeError: ``level``, ``by`` or a mask cannot be used, or means are no mapping.

    Example:
        >>> truth = MultimodalData({"a": np.array([[1.0], [2.0]]), "b": np.array([[3.0], [5.0]])})
        >>> evaluated = np.array([[False, True], [False, True]])
        >>> table = score_imputation({"b": np.array([[3.0], [4.0]])}, {"b": np.array([1.0])}, truth, evaluated)
        >>> table[["modality", "num_rows", "r_squared", "coverage"]].values.tolist()
        [['b', 2, 0.5, 1.0]]
    """
    require_kind("by", by, Sequence, "a list of names")
    if tuple(by) not in (("modality",), ("modality", "pattern")):
        raise ArgumentError(f"by: expected ('modality',) or ('modality', 'pattern'), got {by!r}.")
    require_data(truth, "truth")
    kinds = (Mapping, MultimodalData)
    require_kind("means", means, kinds, "a dict of arrays by modality")
    require_kind("variances", variances, (*kinds, type(None)), "a dict of arrays by modality")
    if not 0 < real_number("level", level, 0.9) < 1:
        raise ArgumentError(f"level: expected a number between 0 and 1, both excluded, got {level}.")
    truth = truth.in_order_of(getattr(means, "dims", None) or {}, "truth", "what was imputed")
    present = truth.observed_mask.cpu().numpy()
    evaluated = _as_mask(evaluated_mask, present.shape, "evaluated_mask")
    if np.any(evaluated & ~present):
        row, column = np.argwhere(evaluated & ~present)[0]
        raise DataError(f"evaluated_mask: the truth lacks modality '{truth.names[column]}' in row {row}; leave it out.")
    seen = present & ~evaluated if observed_mask is None else _as_mask(observed_mask, present.shape, "observed_mask")
    table: list[dict[str, Any]] = []
    for m, name in enumerate(truth.names):
        rows = np.flatnonzero(evaluated[:, m])
        if not len(rows):
            continue
        true_values, mean, variance = _cells(name, rows, truth, means, variances)
        for pattern, members in _groups(seen[rows], truth.names, by):
            cells = (true_values[members], mean[members], None if variance is None else variance[members])
            table.append(
                {
                    "modality": name,
                    **({"pattern": pattern} if "pattern" in by else {}),
                    "num_rows": len(cells[0]),
                    **{key: metric(*cells) for key, metric in IMPUTATION_METRICS.items()},
                    **{key: metric(*cells, level) for key, metric in INTERVAL_METRICS.items()},
                }
            )
    return pd.DataFrame(table, columns=[*by, "num_rows", *IMPUTATION_METRICS, *INTERVAL_METRICS])


def _groups(
    seen: NDArray[np.bool_], names: Sequence[str], by: Sequence[str]
) -> list[tuple[str, NDArray[np.int64] | slice]]:
    """The rows of each pattern with the pattern's label, or all rows as one group."""
    if "pattern" not in by:
        return [("", slice(None))]
    patterns, index = np.unique(seen, axis=0, return_inverse=True)
    return [
        ("+".join(name for name, there in zip(names, pattern, strict=True) if there), np.flatnonzero(index == p))
        for p, pattern in enumerate(patterns)
    ]


def _cells(
    name: str,
    rows: NDArray[np.int64],
    truth: MultimodalData,
    means: Mapping[str, ArrayLike | Tensor],
    variances: Mapping[str, ArrayLike | Tensor] | None,
) -> tuple[Array, Array, Array | None]:
    """Truth, means and variances of one modality at the evaluated rows, (n, D_m) each, in float64."""
    shape = (truth.num_instances, truth.dims[name])
    if name not in means:
        raise SchemaError(
            f"means: modality '{name}' is to be evaluated but has no imputation; there are {list(means)}."
        )
    mean = required_array(f"means[{name!r}]", means[name])
    if mean.shape != shape:
        raise SchemaError(f"means['{name}']: expected shape {shape}, got {mean.shape}.")
    mean = mean[rows].astype(np.float64)
    _refuse(~np.isfinite(mean), rows, f"means['{name}']", "a finite number")
    true_values = truth[name].numpy(force=True)[rows].astype(np.float64)
    remedy = f"evaluate only rows that have every feature: evaluated_mask[:, m] &= truth.feature_mask({name!r}).all(1)"
    _refuse(~np.isfinite(true_values), rows, f"truth['{name}']", "a finite number", remedy)
    if variances is None or name not in variances:
        return true_values, mean, None
    variance = required_array(f"variances[{name!r}]", variances[name], scalar=True)
    try:
        variance = np.broadcast_to(variance, shape)[rows].astype(np.float64)
    except ValueError as error:
        raise SchemaError(
            f"variances['{name}']: expected a shape that broadcasts to {shape}, got {variance.shape}."
        ) from error
    _refuse(~(np.isfinite(variance) & (variance > 0)), rows, f"variances['{name}']", "a positive number")
    return true_values, mean, variance


def _refuse(
    bad: NDArray[np.bool_], rows: NDArray[np.int64], argument: str, expected: str, remedy: str = "leave that row out"
) -> None:
    if bad.any():
        row, feature = np.argwhere(bad)[0]
        raise DataError(
            f"{argument}: expected {expected} in every evaluated cell; not so in row {rows[row]}, feature {feature}; "
            f"{remedy}."
        )


def _as_mask(mask: ArrayLike | Tensor, shape: tuple[int, ...], argument: str) -> NDArray[np.bool_]:
    array = required_array(argument, mask)
    if array.dtype != np.bool_:
        raise ArgumentTypeError(f"{argument}: expected booleans, True = {argument.split('_')[0]}, got {array.dtype}.")
    if array.shape != shape:
        raise ArgumentError(f"{argument}: expected shape (N, M) = {shape}, got {array.shape}.")
    return array
