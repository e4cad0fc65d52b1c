"""R^2 of imputations: how much nearer they are to the hidden values than the mean of these."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from calmrl_prob.evaluation.imputation.held_out import Array, HeldOut, array


def centres(parts: Iterable[HeldOut]) -> dict[str, Array]:
    """For each modality the mean of its hidden values (D_m,), each instance once however often it was hidden."""
    values: dict[str, dict[int, Array]] = {}
    for part in parts:
        values.setdefault(part.modality, {}).update(zip(part.rows.tolist(), array(part.truth), strict=True))
    return {name: np.mean(list(rows.values()), axis=0) for name, rows in values.items()}


def explained(
    error: tuple[Array, Array], distance: tuple[Array, Array], feature: int = 0
) -> tuple[float, float, float]:
    """Root mean squared distance from the mean, R^2 = 1 - E / S, and the standard error of R^2.

    E and S are means over instances of squared errors and squared distances e_n and s_n, themselves means over the
    cells of an instance. The standard error is that of a ratio by its first-order expansion, the standard deviation of
    (e_n - E / S s_n) / S over the root of their number.

    Source of the standard error: Cochran, Sampling Techniques (1977), section 2.11.

    Args:
        error: sums of squared errors and numbers of cells, each (N, F).
        distance: the same of squared distances from the mean; in the same cells.
        feature: the column.

    Returns:
        NaN for what has no variance to explain, and for the standard error of one instance.

    Example:
        >>> ones = np.ones((4, 1))
        >>> e, s = np.array([[1.0], [0.0], [1.0], [0.0]]), np.array([[4.0], [4.0], [0.0], [0.0]])
        >>> [round(value, 3) for value in explained((e, ones), (s, ones))]
        [1.414, 0.75, 0.204]
    """
    there = error[1][:, feature] > 0
    e = error[0][there, feature] / error[1][there, feature]
    s = distance[0][there, feature] / distance[1][there, feature]
    if not len(e):
        return float("nan"), float("nan"), float("nan")
    spread = float(s.mean())
    if spread <= 0:
        return 0.0, float("nan"), float("nan")
    ratio = float(e.mean()) / spread
    off = (e - ratio * s) / spread
    se = float(off.std(ddof=1) / len(off) ** 0.5) if len(off) > 1 else float("nan")
    return spread**0.5, 1 - ratio, se
