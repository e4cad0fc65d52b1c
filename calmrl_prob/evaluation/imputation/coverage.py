"""Calibration: whether the stated uncertainty of Gaussian predictions is what it turns out to be.

Throughout, ``truth``, ``mean`` and ``variance`` broadcast to one shape, (n, D_m) say, and all their cells count alike.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from calmrl_prob._support.arguments import brief
from calmrl_prob.errors import ArgumentError, ArgumentTypeError, DataError


def pit_values(truth: ArrayLike, mean: ArrayLike, variance: ArrayLike) -> NDArray[np.float64]:
    """Probability integral transform: where each true value falls in its predictive distribution.

    Phi((x - mean) / sqrt(variance)), in [0, 1]; uniform when the predictions are calibrated. Heaped at both ends,
    the stated variances are too small; heaped in the middle, too large. Source: Dawid, Statistical Theory: The
    Prequential Approach, 1984.

    Raises:
        ArgumentError: shapes do not fit, or a variance is not positive.
        DataError: a true value or a mean is not finite.

    Example:
        >>> pit_values([0.0, 1.0], mean=[0.0, 0.0], variance=[1.0, 1.0]).round(2).tolist()
        [0.5, 0.84]
    """
    from scipy.special import ndtr

    values = ndtr(standardized_error(truth, mean, variance))
    return np.asarray(values, dtype=np.float64)


def coverage_curve(
    truth: ArrayLike, mean: ArrayLike, variance: ArrayLike, levels: Sequence[float] | None = None
) -> pd.DataFrame:
    """Share of true values inside central predictive intervals, level by level.

    The interval of level q is mean +- sqrt(variance) Phi^-1((1 + q) / 2), cell by cell.

    Args:
        truth: true values, (n, D_m) or any shape, data units.
        mean: predictive means.
        variance: predictive variances, positive, data units squared.
        levels: nominal coverages in (0, 1); 0.05, 0.10, ..., 0.95 and 0.99 by default.

    Returns:
        One row for each level: level, coverage (share of cells, equal to level when calibrated), and width (mean
        width of the intervals, data units).

    Raises:
        ArgumentError: shapes do not fit, a variance is not positive, or a level is not in (0, 1).
        DataError: a true value or a mean is not finite.

    Example:
        >>> coverage_curve([-3.0, -0.1, 0.2, 0.9], mean=0.0, variance=1.0, levels=[0.5]).round(3).values.tolist()
        [[0.5, 0.5, 1.349]]
    """
    from scipy.special import ndtri

    chosen = _numbers("levels", [*np.arange(1, 20) / 20, 0.99] if levels is None else levels)
    if chosen.ndim != 1 or not np.all((chosen > 0) & (chosen < 1)):
        raise ArgumentError(f"levels: expected numbers between 0 and 1, both excluded, got {levels}.")
    distance = np.sort(np.abs(standardized_error(truth, mean, variance)), axis=None)
    half_width = np.asarray(ndtri((1 + chosen) / 2))
    inside = np.searchsorted(distance, half_width, side="right")
    sizes = np.broadcast_to(
        np.sqrt(np.asarray(variance, dtype=np.float64)), np.broadcast_shapes(*map(np.shape, (truth, mean, variance)))
    )
    return pd.DataFrame(
        {
            "level": chosen,
            "coverage": inside / distance.size if distance.size else np.nan,
            "width": 2 * half_width * (sizes.mean() if sizes.size else np.nan),
        }
    )


def standardized_error(truth: ArrayLike, mean: ArrayLike, variance: ArrayLike) -> NDArray[np.float64]:
    """(truth - mean) / sqrt(variance), in float64.

    Raises:
        ArgumentError: shapes do not fit, or a variance is not positive.
        DataError: a true value or a mean is not finite.
    """
    true_values, means, variances = (
        _numbers(argument, part) for argument, part in {"truth": truth, "mean": mean, "variance": variance}.items()
    )
    try:
        np.broadcast_shapes(true_values.shape, means.shape, variances.shape)
    except ValueError as error:
        raise ArgumentError(
            f"truth, mean, variance: expected shapes that broadcast, got {true_values.shape}, {means.shape} and "
            f"{variances.shape}."
        ) from error
    if not np.all(variances > 0):
        raise ArgumentError("variance: expected positive values in every cell; one is zero, negative or NaN.")
    for argument, values in (("truth", true_values), ("mean", means)):
        bad = ~np.isfinite(values)
        if bad.any():
            raise DataError(
                f"{argument}: expected finite numbers, got {values[bad][0]} at {np.argwhere(bad)[0].tolist()} "
                f"({int(bad.sum())} of {values.size} cells); keep only cells where np.isfinite({argument})."
            )
    return np.asarray((true_values - means) / np.sqrt(variances))


def _numbers(argument: str, values: ArrayLike) -> NDArray[np.float64]:
    try:
        return np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise ArgumentTypeError(f"{argument}: expected an array of numbers, got {brief(values)}.") from error
