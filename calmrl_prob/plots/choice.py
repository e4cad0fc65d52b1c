"""Settings that a fit tried before it chose: scores by weight of the prior, and the held-out R^2 of the chosen one."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from calmrl_prob._support.arguments import described
from calmrl_prob.errors import ArgumentError, ArgumentTypeError
from calmrl_prob.inference import FitResult
from calmrl_prob.plots.canvas import BLACK, BLUE, VERMILION, canvas, series_style
from calmrl_prob.selection import Choice

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

#: Inches of a figure of its own, and the share of the second panel.
_SIZE, _PANELS = (7.6, 4.2), (2.6, 1.0)
#: Settings without a weight stand to the left of the least weight, by this factor for the first kind.
_APART = 2.0
#: Times the distance from the best score to the median, beyond which scores are left out below.
_SPREADS = 6.0
_SCORES = {"imputation": "score of held-out imputations", "retrieval": "mean reciprocal rank of held-out partners"}


def choice(choice: Choice | FitResult, ax: Axes | None = None, r2_ax: Axes | None = None) -> Axes:
    """Scores of all settings that a fit tried, against the weight of the prior, and the one that it chose.

    A line joins settings that differ in the weight alone: one for each number of latents, form of the noise and
    pooling of the prior's variances. Automatic relevance determination and fits without a prior, which have no such
    weight, stand left of the dotted line. How many scores are too far behind to be shown is said in the corner.
    Whiskers: one standard error over folds of how far a setting is behind the best, whose own have no length. Read
    off: whether the best weight is inside the range, how flat the top is, and what more latents or another form of
    the noise are worth. Where all settings have one weight, scores stand against the number of latents.

    Args:
        choice: what ``cal.fit`` returned, or its ``choice``.
        ax: where to draw; by default two new panels, the second as for ``r2_ax``.
        r2_ax: where to draw the held-out R^2 of each modality at the setting chosen: 0 is its mean, 1 the truth.

    Returns:
        The axes of the scores.

    Raises:
        ArgumentTypeError: ``choice`` is something else, or ``ax`` no axes.
        ArgumentError: nothing was tried: all was given, or nothing could be held out.
        MissingDependencyError: matplotlib is not installed.

    Example:
        >>> import calmrl_prob as cal
        >>> data = cal.datasets.make_synthetic(200, {"image": 8, "text": 6}, latent_dim=2, seed=0).data
        >>> ax = cal.plots.choice(cal.fit(cal.SharedLatentModel(data.dims), data))
        >>> ax.get_xlabel(), len(ax.figure.axes)
        ('weight of the prior (pseudo-rows)', 2)
    """
    found = _checked(choice)
    with canvas(ax, _SIZE) as scores:
        if ax is None:
            grid = scores.figure.add_gridspec(1, 2, width_ratios=_PANELS)
            scores.set_subplotspec(grid[0, 0])
            r2_ax = scores.figure.add_subplot(grid[0, 1]) if r2_ax is None else r2_ax
        _draw_scores(found, scores)
        if r2_ax is not None:
            with canvas(r2_ax) as panel:
                _draw_r2(found, panel)
        return scores


def _checked(given: object) -> Choice:
    """The choice of a fit, with something to show."""
    found = given.choice if isinstance(given, FitResult) else given
    if isinstance(given, FitResult) and found is None:
        raise ArgumentError(
            "choice: this fit chose nothing, as all was given; fit cal.SharedLatentModel(dims), without latent_dim."
        )
    if not isinstance(found, Choice):
        raise ArgumentTypeError(f"choice: expected what cal.fit returns, or its choice, got {described(given)}.")
    if found.table.empty or not np.isfinite(found.table["score"]).any():
        raise ArgumentError(f"choice: no setting was scored, so there is nothing to show: {found.fallback}.")
    return found


def _draw_scores(found: Choice, ax: Axes) -> None:
    table = found.table[np.isfinite(found.table["score"])]
    weighted = table.loc[table["pseudo_rows"] > 0, "pseudo_rows"]
    against_weight = weighted.nunique() > 1
    places = table["latent_dim"].astype(float)
    if against_weight:
        places = table["pseudo_rows"].astype(float).copy()
        for number, kind in enumerate((table["ard"], ~table["ard"] & (table["pseudo_rows"] == 0)), start=1):
            places[kind] = float(weighted.min()) / _APART**number
        if bool((table["pseudo_rows"] == 0).any()):
            ax.axvline(float(weighted.min()) / _APART**0.5, color=BLACK, linewidth=0.8, linestyle=":")
    lines = [*(["latent_dim"] if against_weight else []), "noise", "pooling"]
    family = table["prior"].where(table["family"] != "normal", "")
    for number, (_, rows) in enumerate(table.groupby([*lines, "ard", table["pseudo_rows"] > 0, family], sort=False)):
        ordered = places[rows.index].sort_values()
        rows = rows.loc[ordered.index]
        ax.errorbar(
            ordered, rows["score"], rows["behind_error"],
            capsize=2, linewidth=1.2, markersize=4, label=_label(rows.iloc[0], against_weight), **series_style(number),
        )  # fmt: skip
    best = table["chosen"].idxmax()
    ax.plot(
        places[best], table.loc[best, "score"], "o",
        markersize=12, markerfacecolor="none", markeredgecolor=VERMILION, markeredgewidth=1.6,
        label="chosen",
    )  # fmt: skip
    _show_the_top(ax, table["score"].to_numpy(dtype=np.float64))
    ax.set_xscale("log", base=10 if against_weight else 2)
    ax.set(
        title=f"{len(table)} settings in {found.num_folds} folds; chosen: K {found.latent_dim}, {found.noise} noise",
        xlabel="weight of the prior (pseudo-rows)" if against_weight else "number of latents K",
        ylabel=_SCORES.get(found.criterion, "score"),
    )
    ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=2)


def _show_the_top(ax: Axes, scores: np.ndarray) -> None:
    """Leave settings that are far behind below the axes, so that those that matter can be told apart."""
    top, middle = scores.max(), float(np.median(scores))
    least = top - _SPREADS * (top - middle)
    hidden = int((scores < least).sum())
    if hidden and top > middle:
        ax.set_ylim(least, top + 0.08 * (top - least))
        ax.text(0.99, 0.02, f"{hidden} below", transform=ax.transAxes, ha="right", va="bottom", fontsize="small")


def _label(row: pd.Series, with_latents: bool) -> str:
    """Label of a line: all that its settings have in common."""
    parts = [f"K {row['latent_dim']}"] if with_latents else []
    parts.append(str(row["noise"]) if with_latents else f"{row['noise']} noise")
    if row["family"] != "normal":
        return ", ".join([*parts, row["prior"]])
    if row["ard"]:
        return ", ".join([*parts, "automatic relevance"])
    if row["pseudo_rows"] == 0:
        return ", ".join([*parts, "no prior"])
    kind = {0.0: "own", 1.0: "pooled"}.get(row["pooling"], f"{row['pooling']:.0%} pooled")
    return ", ".join([*parts, f"{kind} variances"])


def _draw_r2(found: Choice, ax: Axes) -> None:
    names, values = list(found.r2), list(found.r2.values())
    colours = [VERMILION if value <= 0 else BLUE for value in values]  # no better than the mean: stands out
    ax.barh(range(len(names)), values, color=colours)
    ax.axvline(0, color=BLACK, linewidth=0.8)
    ax.set_yticks(range(len(names)), names)
    ax.set_ylim(len(names) - 0.5, -0.5)
    ax.grid(visible=False, axis="y")
    ax.set(title="As chosen", xlabel="held-out R$^2$", ylabel="")
