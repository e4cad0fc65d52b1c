"""The figures of a comparison. Each function takes a tidy table and returns a matplotlib Figure, tied to no backend."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy.special import ndtri

from analysis.figures.style import line, style
from calmrl_prob import plots


def recall_by_share(shares: pd.DataFrame, title: str) -> Figure:
    """R@1 against the share of modality cells missing in training, one line for each variant.

    Args:
        shares: variant, label, share (in [0, 1]), R@1 (percent).
        title: of the figure.
    """
    with style():
        figure = Figure(figsize=(6.4, 3.8))
        axes = figure.subplots()
        for variant, rows in shares.groupby("variant", sort=False):
            ordered = rows.sort_values("share")
            axes.plot(100 * ordered["share"], ordered["R@1"], label=rows["label"].iloc[0], **line(str(variant)))
        axes.set(title=title, xlabel="modality cells missing in the training rows (%)", ylabel="R@1 on test rows (%)")
        axes.set_ylim(bottom=0)
        axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
        return figure


def recall_bars(summary: pd.DataFrame, title: str) -> Figure:
    """R@1 of each variant, mean over seeds, with one standard deviation if there are several.

    Args:
        summary: as ``analysis.statistics.tables.summarize`` makes it.
        title: of the figure.
    """
    with style():
        shown = summary[summary["R@1"].notna()].iloc[::-1]
        figure = Figure(figsize=(6.4, 0.6 + 0.34 * len(shown)))
        axes = figure.subplots()
        colours = [line(variant)["color"] for variant in shown["variant"]]
        several = bool(shown["R@1 sd"].notna().any())
        spreads = shown["R@1 sd"].fillna(0.0)
        axes.barh(shown["label"], shown["R@1"], xerr=spreads if several else None, color=colours, capsize=3)
        for place, (value, spread) in enumerate(zip(shown["R@1"], spreads, strict=True)):
            axes.annotate(f"{value:.1f}", (value + spread, place), (5, 0), textcoords="offset points", va="center")
        axes.margins(x=0.1)
        whiskers = "; whiskers: one standard deviation over seeds" if several else ""
        axes.set(title=title, xlabel="R@1 on test rows (%)" + whiskers)
        axes.grid(visible=False, axis="y")
        return figure


def gain(summary: pd.DataFrame, title: str) -> Figure:
    """What a variant is worth, beside others and complete data: errors of imputed values, and retrieval.

    Args:
        summary: as ``analysis.statistics.tables.summarize`` makes it, of the variants to show, the first on top.
        title: of the figure.
    """
    with style():
        shown = summary.iloc[::-1]
        figure = Figure(figsize=(7.4, 1.0 + 0.28 * len(shown)))
        panels = figure.subplots(1, 2, sharey=True)
        sides = [("RMSE", 3, "RMSE of imputed values (in sd): further left is better")]
        sides += [("R@1", 1, "R@1 of retrieval (%): further right is better")]
        for axes, (name, digits, label) in zip(panels, sides, strict=True):
            spreads = shown[f"{name} sd"].fillna(0.0)
            for place, (variant, value, spread) in enumerate(zip(shown["variant"], shown[name], spreads, strict=True)):
                look = line(variant) | {"linestyle": ""}
                axes.errorbar(value, place, xerr=spread, capsize=3, markersize=8, **look)
                text = f"{value:.{digits}f}±{spread:.{digits}f}"
                axes.annotate(text, (value, place), (0, 8), textcoords="offset points", ha="center", fontsize=8)
            axes.set_xlabel(label, fontsize=8)
            axes.margins(x=0.18)
            axes.set_ylim(-0.5, len(shown) - 0.3)
        panels[0].set_yticks(range(len(shown)), shown["label"])
        figure.suptitle(title, fontsize=10)
        return figure


def intervals(table: pd.DataFrame, level: float, title: str) -> Figure:
    """Imputed values with their intervals against the truth, one panel for each modality.

    Args:
        table: modality, mean, sd, truth, in standard deviations of the modality.
        level: nominal coverage of the intervals, in (0, 1).
        title: of the figure.
    """
    with style():
        names = list(table["modality"].unique())
        columns = min(2, len(names))
        height = -(-len(names) // columns)
        figure = Figure(figsize=(3.7 * columns, 2.5 * height + 0.5))
        panels = figure.subplots(height, columns, squeeze=False)
        for panel in panels.flat[len(names) :]:
            panel.set_visible(False)
        for panel, name in zip(panels.flat, names, strict=False):
            rows = table[table["modality"] == name]
            mean, reach = rows["mean"], float(ndtri((1 + level) / 2)) * rows["sd"]
            plots.imputed_against_true(rows["truth"], mean, mean - reach, mean + reach, panel, level=level, by="rank")
            panel.set(title=f"{name}: {panel.get_title().replace(' true values', '')}", xlabel="", ylabel="")
            panel.get_legend().remove()  # one for all panels, below
        for panel in panels[-1]:
            panel.set_xlabel("test rows, ordered by imputed value")
        for panel in panels[:, 0]:
            panel.set_ylabel("first feature (sd)")
        handles, labels = _merged_legend(panels.flat[: len(names)])
        figure.legend(handles, labels, loc="outside lower center", ncols=4)
        figure.suptitle(title, fontsize=10)
        return figure


def coverage(table: pd.DataFrame, title: str) -> Figure:
    """Nominal against actual coverage, and their difference, one line for each variant, mean over seeds.

    Args:
        table: variant, label, seed, level, coverage (shares in [0, 1]).
        title: of the figure.
    """
    with style():
        figure = Figure(figsize=(7.4, 4.4))
        whole, difference = figure.subplots(1, 2)
        curves, looks = {}, {}
        for variant, rows in table.groupby("variant", sort=False):
            label = rows["label"].iloc[0]
            curves[label] = rows.groupby("level", as_index=False)["coverage"].mean()
            looks[label] = line(str(variant)) | {"markevery": 3}
        for axes in (whole, difference):
            plots.coverage(curves, axes, difference=axes is difference, looks=looks)
            axes.set_title("")
            axes.get_legend().remove()
        handles, labels = _merged_legend([whole])
        figure.legend(handles, labels, loc="outside lower center", ncols=3)
        figure.suptitle(title, fontsize=10)
        return figure


def evidence(table: pd.DataFrame, title: str) -> Figure:
    """Evidence still to be gained at each EM iteration; one line for each variant and seed.

    Args:
        table: variant, label, seed, iteration, objective (nats per training row).
        title: of the figure.
    """
    with style():
        figure = Figure(figsize=(6.4, 3.6))
        axes = figure.subplots()
        traces: dict[str, list[np.ndarray]] = {}
        looks = {}
        for variant, rows in table.groupby("variant", sort=False):
            label = rows["label"].iloc[0]
            seeds = [trace.sort_values("iteration") for _, trace in rows.groupby("seed", sort=False)]
            traces[label] = [trace["objective"].to_numpy() for trace in seeds]
            looks[label] = line(str(variant)) | {"marker": "", "linewidth": 1.1}
        plots.evidence_trace(traces, axes, to_come=True, looks=looks)
        axes.set(title=title, xlabel="EM iteration", ylabel="rise still to come\n(nats per training row)")
        axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
        return figure


def recall_matrix(pairs: pd.DataFrame, title: str) -> Figure:
    """R@1 from each modality (rows) to each other (columns), mean over seeds; blank where no row has both.

    Args:
        pairs: query, candidate, R@1 (shares in [0, 1]; NaN where no row has both).
        title: of the figure.
    """
    with style():
        names = list(dict.fromkeys([*pairs["query"], *pairs["candidate"]]))
        mean = pairs.groupby(["query", "candidate"])["R@1"].mean().unstack()
        matrix = 100 * mean.reindex(index=names, columns=names).to_numpy()
        highest = np.max(matrix, initial=0.0, where=np.isfinite(matrix)) or 1.0
        figure = Figure(figsize=(1.8 + 0.8 * len(names), 1.2 + 0.55 * len(names)))
        axes = figure.subplots()
        image = axes.imshow(matrix, cmap="cividis", vmin=0, vmax=highest, aspect="auto")
        for (row, column), value in np.ndenumerate(matrix):
            if np.isfinite(value):
                colour = "white" if value < highest / 2 else "black"
                axes.text(column, row, f"{value:.1f}", ha="center", va="center", color=colour)
        axes.set(title=title, xlabel="candidates", ylabel="queries")
        axes.set_xticks(range(len(names)), names, rotation=20, ha="right", rotation_mode="anchor")
        axes.set_yticks(range(len(names)), names)
        axes.grid(visible=False)
        figure.colorbar(image, label="R@1 (%)")
        return figure


def _merged_legend(panels: Iterable[Axes]) -> tuple[list[Artist], list[str]]:
    found: dict[str, Artist] = {}
    for panel in panels:
        for handle, label in zip(*panel.get_legend_handles_labels(), strict=True):
            found.setdefault(label, handle)
    return list(found.values()), list(found)
