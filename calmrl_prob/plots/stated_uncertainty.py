"""Whether stated uncertainty is what it turns out to be: coverage, PIT, and error against predicted deviation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike

from calmrl_prob._support.arguments import brief, whole_number
from calmrl_prob.errors import ArgumentError, ArgumentTypeError
from calmrl_prob.evaluation.imputation.coverage import standardized_error
from calmrl_prob.plots.canvas import BLUE, GREY, Looks, canvas, numbers, series, series_style

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from torch import Tensor

#: Coverage of the band in which a histogram of uniform values stays, bin by bin.
_BAND = 0.95


def coverage(
    curves: pd.DataFrame | Mapping[str, pd.DataFrame],
    ax: Axes | None = None,
    *,
    difference: bool = False,
    looks: Looks | None = None,
) -> Axes:
    """Share of true values inside central intervals, against what the intervals promise.

    Read off: below the diagonal (or below zero), intervals are too narrow and the stated uncertainty too small; above
    it they are wider than need be. Differences of a few percent show only with ``difference``.

    Args:
        curves: what :func:`calmrl_prob.evaluation.coverage_curve` returns, with the columns ``level`` and ``coverage``
            (shares); or a mapping of labels to such. A table that has a column ``modality`` or ``pattern`` is one curve
            for each; of one that has ``coverage_se``, a band shows one standard error.
        ax: where to draw; new axes by default.
        difference: draw coverage less level, in percentage points.
        looks: options of ``Axes.plot`` by label.

    Returns:
        The axes, with the ideal first, then one line for each curve, in percent.

    Raises:
        ArgumentTypeError: a curve is no DataFrame.
        ArgumentError: it lacks a column, or holds no rows, or something that is no share.
        DataError: it holds numbers that are not finite.
        MissingDependencyError: matplotlib is not installed.

    Example:
        >>> from calmrl_prob.evaluation import coverage_curve
        >>> truth = np.random.default_rng(0).normal(size=500)
        >>> ax = coverage({"stated": coverage_curve(truth, 0.0, 1.0), "too sure": coverage_curve(truth, 0.0, 0.5)})
        >>> ax.get_ylabel()
        'true values inside (%)'
    """
    import pandas as pd

    drawn = {}
    for label, curve in series("curves", _by_group(curves)).items():
        where = f"curves[{label!r}]" if label else "curves"
        if not isinstance(curve, pd.DataFrame):
            raise ArgumentTypeError(f"{where}: expected a DataFrame as coverage_curve returns, got {brief(curve)}.")
        lacking = [column for column in ("level", "coverage") if column not in curve]
        if lacking:
            raise ArgumentError(f"{where}: it lacks the column {lacking[0]!r}; it has {list(curve.columns)}.")
        level, inside = (numbers(f"{where}.{c}", curve[c].to_numpy(), 1) for c in ("level", "coverage"))
        for column, values in (("level", level), ("coverage", inside)):
            if not np.all((values >= 0) & (values <= 1)):
                raise ArgumentError(
                    f"{where}.{column}: expected shares in [0, 1], got {values.min()} .. {values.max()}."
                )
        error = numbers(f"{where}.coverage_se", curve["coverage_se"].to_numpy(), 1) if "coverage_se" in curve else None
        drawn[label] = (100 * level, 100 * (inside - level if difference else inside), error)
    with canvas(ax, (4.2, 3.6)) as ax:
        ideal = [0, 0] if difference else [0, 100]
        ax.plot([0, 100], ideal, color=GREY, linewidth=1, label="perfectly calibrated")
        for number, (label, (level, height, error)) in enumerate(drawn.items()):
            options = {"markersize": 4, "linewidth": 1.2} | series_style(number, label, looks)
            if error is not None:
                low, high = height - 100 * error, height + 100 * error
                ax.fill_between(level, low, high, color=options["color"], alpha=0.2, linewidth=0)
            ax.plot(level, height, label=label or "observed", **options)
        ax.set(
            title=f"Coverage: below {'zero' if difference else 'the line'}, intervals are too narrow",
            xlabel="nominal coverage of the interval (%)",
            ylabel="inside minus nominal (percentage points)" if difference else "true values inside (%)",
            xlim=(0, 100),
        )
        if not difference:
            ax.set_ylim(0, 100)
        ax.legend()
        return ax


def _by_group(curves: object) -> object:
    """A table of several groups as a mapping of their names to their rows."""
    import pandas as pd

    if not isinstance(curves, pd.DataFrame):
        return curves
    keys = [key for key in ("modality", "pattern") if key in curves]
    if not keys:
        return curves
    return {", given ".join(map(str, group)): rows for group, rows in curves.groupby(keys, sort=False)}


def pit(
    values: ArrayLike | Tensor | Mapping[str, ArrayLike | Tensor],
    ax: Axes | None = None,
    *,
    bins: int = 20,
    num_independent: int | None = None,
    looks: Looks | None = None,
) -> Axes:
    """Histogram of probability integral transforms: where true values fall in their predictive distributions.

    Read off: level at 1, the predictions are calibrated; heaped at both ends, stated variances are too small; heaped in
    the middle, too large; sloped, the means are biased. The band is where each bar of uniform values would stay
    95 times in 100, if they were independent. Features of one instance are not: say how many values these are worth.

    Args:
        values: what :func:`calmrl_prob.evaluation.pit_values` returns, any shape; or a mapping of labels to such.
        ax: where to draw; new axes by default.
        bins: bars, of equal width.
        num_independent: independent values that each series is worth, for the band: at least the number of instances.
            By default as many as the shortest series has.
        looks: options of ``Axes.stairs`` by label: ``color``, ``linestyle``, ``linewidth``.

    Returns:
        The axes.

    Raises:
        ArgumentTypeError: values are no numbers, or a count is no whole number.
        ArgumentError: a value is outside [0, 1], there are none, or a count is below 1.
        DataError: a value is not finite.
        MissingDependencyError: matplotlib is not installed.

    Example:
        >>> ax = pit(np.random.default_rng(0).uniform(size=1000), bins=10)
        >>> ax.get_xlabel()
        'share of the predictive distribution below the true value'
    """
    from scipy.stats import binom

    bins = whole_number("bins", bins, least=1)
    drawn = {label: numbers("values", value).ravel() for label, value in series("values", values).items()}
    for label, value in drawn.items():
        if value.min() < 0 or value.max() > 1:
            name = f"values[{label!r}]" if label else "values"
            raise ArgumentError(f"{name}: expected numbers in [0, 1], got {value.min():.3g} .. {value.max():.3g}.")
    count = min(map(len, drawn.values())) if num_independent is None else num_independent
    count = whole_number("num_independent", count, least=1)
    low, high = binom.ppf([(1 - _BAND) / 2, (1 + _BAND) / 2], count, 1 / bins) * bins / count
    with canvas(ax) as ax:
        ax.axhspan(
            low, high, color=GREY, alpha=0.25, linewidth=0, label=f"uniform, {_BAND:.0%} of bars ({count:,} values)"
        )
        ax.axhline(1, color=GREY, linewidth=1)
        for number, (label, value) in enumerate(drawn.items()):
            options = series_style(number, label, looks)
            options = {"linewidth": 1.4} | {key: value for key, value in options.items() if key != "marker"}
            density, edges = np.histogram(value, bins=bins, range=(0, 1), density=True)
            ax.stairs(density, edges, label=label or "observed", **options)
        ax.set(
            title="PIT: flat is right, hollow is too narrow",
            xlabel="share of the predictive distribution below the true value",
            ylabel="density (1 where calibrated)",
            xlim=(0, 1),
        )
        ax.set_ylim(bottom=0)
        ax.legend(loc="lower center")
        return ax


def error_against_sd(
    truth: ArrayLike | Tensor,
    mean: ArrayLike | Tensor,
    variance: ArrayLike | Tensor,
    ax: Axes | None = None,
    *,
    bins: int = 10,
    unit: str = "data units",
) -> Axes:
    """Actual error against predicted standard deviation, over bins of cells from the most certain to the least.

        x_b = sqrt(mean of variance in b)        y_b = sqrt(mean of (truth - mean)^2 in b)

    Read off: on the diagonal, the stated deviations are right, not only on average; flat, they do not tell easy cells
    from hard ones; above it, they are too small. Whiskers are one standard error of y_b, by the delta method, as if
    cells were independent. Source: Levi, Gispan, Giladi & Fetaya, Evaluating and calibrating uncertainty prediction in
    regression tasks (2022).

    Args:
        truth: true values, any shape; all cells count alike.
        mean: predictive means; the three broadcast to one shape.
        variance: predictive variances, positive.
        ax: where to draw; new axes by default.
        bins: of about equally many cells.
        unit: of the values, for the axes.

    Returns:
        The axes.

    Raises:
        ArgumentError: shapes do not fit, a variance is not positive, or there are fewer cells than bins.
        ArgumentTypeError: something is no number.
        DataError: a number is not finite.
        MissingDependencyError: matplotlib is not installed.

    Example:
        >>> generator = np.random.default_rng(0)
        >>> sd = generator.uniform(0.5, 2, size=400)
        >>> ax = error_against_sd(generator.normal(0, sd), 0.0, sd**2, bins=5)
        >>> ax.get_xlabel()
        'predicted standard deviation (data units)'
    """
    bins = whole_number("bins", bins, least=1)
    parts = [numbers(n, v) for n, v in (("truth", truth), ("mean", mean), ("variance", variance))]
    standardized_error(*parts)  # refuses shapes that do not fit and variances that are not positive
    true_values, means, variances = (part.ravel() for part in np.broadcast_arrays(*parts))
    if len(variances) < bins:
        raise ArgumentError(f"bins: expected at most the number of cells, {len(variances)}, got {bins}.")
    squares = (true_values - means) ** 2
    groups = np.array_split(np.argsort(variances, kind="stable"), bins)
    predicted = np.sqrt([variances[group].mean() for group in groups])
    actual = np.sqrt([squares[group].mean() for group in groups])
    spread = np.array([squares[group].std() / np.sqrt(len(group)) for group in groups])
    whisker = np.divide(spread, 2 * actual, out=np.zeros(bins), where=actual > 0)
    with canvas(ax, (4.2, 3.6)) as ax:
        both = np.concatenate([predicted, actual - whisker, actual + whisker])
        ends = (0.95 * both.min(), 1.05 * both.max())
        ax.plot(ends, ends, color=GREY, linewidth=1, label="as predicted")
        ax.errorbar(
            predicted, actual, whisker, fmt="o-", color=BLUE, markersize=4, linewidth=1.2, capsize=2,
            label=f"{bins} bins of cells",
        )  # fmt: skip
        ax.set(
            title="Errors: above the line, larger than predicted",
            xlabel=f"predicted standard deviation ({unit})",
            ylabel=f"root mean squared error ({unit})",
        )
        ax.set(xlim=ends, ylim=ends)
        ax.legend()
        return ax
