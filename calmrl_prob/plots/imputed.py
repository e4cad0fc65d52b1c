"""Imputed values beside true ones, with their intervals."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import ArrayLike

from calmrl_prob._support.arguments import real_number
from calmrl_prob.errors import ArgumentError
from calmrl_prob.plots.canvas import BLACK, BLUE, GREY, VERMILION, canvas, legend_beside, numbers

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from torch import Tensor


def imputed_against_true(
    truth: ArrayLike | Tensor,
    mean: ArrayLike | Tensor,
    lower: ArrayLike | Tensor,
    upper: ArrayLike | Tensor,
    ax: Axes | None = None,
    *,
    level: float = 0.9,
    by: Literal["value", "rank"] = "value",
    unit: str = "data units",
) -> Axes:
    """True values over the imputed ones, each within its interval or not.

    Read off: how much imputation tells (how far the points follow the diagonal), how sure it says it is (the length of
    the bars) and whether that is right: of n cells about n (1 - level) should lie outside; the title counts them.

    Args:
        truth: true values, (n,): one feature of n instances, say.
        mean: imputed values, (n,): ``imputation.mean["audio"][:, 0]``.
        lower: lower ends of their intervals, (n,), from ``imputation.interval(0.9)["audio"]``.
        upper: the upper ends.
        ax: where to draw; new axes by default.
        level: nominal coverage of the intervals, for the legend.
        by: place cells along the axis by imputed "value", or evenly, by its "rank", where values are crowded.
        unit: of the values, for the axes.

    Returns:
        The axes: intervals, imputed values, and true values inside and outside.

    Raises:
        ArgumentError: shapes differ, an interval ends before it begins, ``level`` is not in (0, 1), or no such ``by``.
        ArgumentTypeError: something is no number.
        DataError: a number is not finite.
        MissingDependencyError: matplotlib is not installed.

    Example:
        >>> ax = imputed_against_true([0.1, 3.0], mean=[0.0, 1.0], lower=[-1.0, 0.0], upper=[1.0, 2.0])
        >>> ax.get_title()
        '1 of 2 true values inside'
    """
    true_values = numbers("truth", truth, 1)
    means, low, high = (
        numbers(n, v, true_values.shape) for n, v in (("mean", mean), ("lower", lower), ("upper", upper))
    )
    level = real_number("level", level, 0.9)
    if not 0 < level < 1:
        raise ArgumentError(f"level: expected a number between 0 and 1, both excluded, got {level}.")
    if by not in ("value", "rank"):
        raise ArgumentError(f"by: expected 'value' or 'rank', got {by!r}.")
    if np.any(low > high):
        row = int(np.argmax(low > high))
        raise ArgumentError(f"lower: expected at most upper, got {low[row]:.3g} > {high[row]:.3g} in row {row}.")
    order = np.argsort(means, kind="stable")
    true_values, means, low, high = (part[order] for part in (true_values, means, low, high))
    place = means if by == "value" else np.arange(len(means), dtype=np.float64)
    inside = (low <= true_values) & (true_values <= high)
    with canvas(ax, (5.6, 3.4)) as ax:
        ax.vlines(place, low, high, color=GREY, linewidth=2.2, alpha=0.55, label=f"{100 * level:.0f}% interval")
        ax.plot(place, means, "_", color=BLACK, markersize=4, label="imputed value")
        ax.plot(place[inside], true_values[inside], "o", color=BLUE, markersize=3.5, label="truth, inside")
        ax.plot(place[~inside], true_values[~inside], "x", color=VERMILION, markersize=5, label="truth, outside")
        ax.set(
            title=f"{inside.sum()} of {len(inside)} true values inside",
            xlabel=f"imputed value ({unit})" if by == "value" else "instances, ordered by imputed value",
            ylabel=f"true value ({unit})",
        )
        if by == "rank":
            ax.set_xticks([])
        legend_beside(ax)
        return ax
