"""Whether uncertainty tells good imputations from bad: the error of the most certain ones."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike

from calmrl_prob.errors import ArgumentError
from calmrl_prob.plots.canvas import BLACK, GREY, Array, Looks, canvas, numbers, series, series_style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from torch import Tensor


def risk_coverage(
    error: ArrayLike | Tensor,
    uncertainty: ArrayLike | Tensor | Mapping[str, ArrayLike | Tensor],
    ax: Axes | None = None,
    *,
    unit: str = "data units",
    looks: Looks | None = None,
) -> Axes:
    """Mean error of the most certain share of instances, against that share.

        risk(k / N) = mean error of the k instances of least uncertainty        area = mean of risk over k = 1 .. N

    Instances that are equally uncertain (as those of one missing pattern are, by their latent variance) come in any
    order: the curve is the mean over all of them. Read off: between the line of no use (any order) and the best
    possible order; what may be kept if errors are to stay below some level. A curve that rises from the left says that
    uncertainty finds the bad imputations. Source: El-Yaniv & Wiener, On the foundations of noise-free selective
    classification (2010).

    Args:
        error: of each instance, (N,), not negative, such as the root mean squared error of its imputed features.
        uncertainty: of each instance, (N,), any increasing scale; or a mapping of labels to such.
        ax: where to draw; new axes by default.
        unit: of the errors, for the axis.
        looks: options of ``Axes.plot`` by label.

    Returns:
        The axes, with one line for each uncertainty, then the best possible and the mean. The legend has the areas.

    Raises:
        ArgumentError: shapes differ, or an error is negative.
        ArgumentTypeError: something is no number.
        DataError: a number is not finite.
        MissingDependencyError: matplotlib is not installed.

    Example:
        >>> ax = risk_coverage([1.0, 2.0, 3.0], [0.1, 0.2, 0.3])
        >>> ax.lines[0].get_ydata().tolist()
        [1.0, 1.5, 2.0]
    """
    errors = numbers("error", error, 1)
    if errors.min() < 0:
        raise ArgumentError(f"error: expected numbers of at least 0, got {errors.min():.3g}; pass a norm or a square.")
    given = {
        label: numbers(f"uncertainty[{label!r}]" if label else "uncertainty", value, errors.shape)
        for label, value in series("uncertainty", uncertainty).items()
    }
    share = 100 * np.arange(1, len(errors) + 1) / len(errors)
    with canvas(ax) as ax:
        for number, (label, values) in enumerate(given.items()):
            risk = _risk(errors, values)
            text = f"{label or 'most certain first'} (area {risk.mean():.3g})"
            ax.plot(share, risk, label=text, **(series_style(number, label, looks, marker=False)))
        best = _risk(errors, errors)
        ax.plot(share, best, color=BLACK, linewidth=1, linestyle=":", label=f"best possible (area {best.mean():.3g})")
        ax.axhline(errors.mean(), color=GREY, linewidth=1, label=f"any order (area {errors.mean():.3g})")
        ax.set(
            title="Error of the most certain: the further below, the better",
            xlabel="most certain instances kept (%)",
            ylabel=f"mean error of those kept\n({unit})",
            xlim=(0, 100),
        )
        ax.legend()
        return ax


def _risk(errors: Array, uncertainty: Array) -> Array:
    """Mean error of the k least uncertain, k = 1 .. N; of tied ones the mean over their orders."""
    _, group, counts = np.unique(uncertainty, return_inverse=True, return_counts=True)
    mean = np.bincount(group, weights=errors) / counts
    ordered = mean[np.sort(group)]  # each instance counts as the mean of its ties: that is the mean over orders
    return np.asarray(np.cumsum(ordered) / np.arange(1, len(errors) + 1))
