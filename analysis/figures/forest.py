"""Forest plots: the differences of variants from a reference, with their intervals."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from analysis.figures.style import BLUE, GREY, VERMILION, style


def forest(panels: Mapping[str, pd.DataFrame], title: str, level: float = 0.95) -> Figure:
    """One panel for each metric, one line for each variant: difference from the reference, with its interval.

    Variants that are told apart from the reference are filled; a difference without an interval is a cross.

    Args:
        panels: for each metric, as the axis is to name it, what ``analysis.statistics.paired.paired_differences``
            returns.
        title: of the figure.
        level: of the intervals.
    """
    with style():
        labels = list(dict.fromkeys(label for table in panels.values() for label in table["label"]))
        columns = min(2, len(panels))
        lines = -(-len(panels) // columns)
        figure = Figure(figsize=(2.6 + 3.0 * columns, lines * (0.9 + 0.26 * len(labels)) + 0.6))
        axes_of = figure.subplots(lines, columns, squeeze=False, sharey=True)
        for axes in axes_of.flat[len(panels) :]:
            axes.set_visible(False)
        for axes, (heading, table) in zip(axes_of.flat, panels.items(), strict=False):
            place = np.array([len(labels) - 1 - labels.index(label) for label in table["label"]])
            axes.axvline(0, color=GREY, linewidth=1)
            value, apart = table["difference"].to_numpy(), table["verdict"].isin(["higher", "lower"]).to_numpy()
            reach = (table["upper"] - table["difference"]).fillna(0.0).to_numpy()
            bare = table["upper"].isna().to_numpy()
            for rows, marks in (
                (~bare & apart, {"fmt": "o", "color": BLUE, "label": "told apart"}),
                (~bare & ~apart, {"fmt": "o", "color": BLUE, "mfc": "white", "label": "not told apart"}),
                (bare, {"fmt": "x", "color": VERMILION, "label": "one seed: no interval"}),
            ):
                if rows.any():
                    axes.errorbar(value[rows], place[rows], xerr=reach[rows], capsize=3, markersize=5, **marks)
            axes.set_yticks(range(len(labels)), labels[::-1])
            axes.set_ylim(-0.6, len(labels) - 0.4)
            axes.set_xlabel(heading)
            axes.grid(visible=False, axis="y")
        found = {
            label: handle
            for axes in axes_of.flat
            for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)
        }
        figure.legend(
            list(found.values()), list(found), loc="outside lower center", ncols=3,
            title=f"whiskers: {100 * level:g}% intervals over seeds", title_fontsize=8,
        )  # fmt: skip
        figure.suptitle(title, fontsize=10)
        return figure
