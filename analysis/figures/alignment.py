"""Figures of the experiments of alignment. Each function takes a tidy table and returns a matplotlib Figure."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from analysis.figures.style import BLUE, SKY, line, style

#: The scores that variants are measured by, and what figures call them.
_SCORES = {"R@1 cosine": "cosine", "R@1 ratio": "likelihood ratio"}


def variant_bars(results: pd.DataFrame, title: str) -> Figure:
    """R@1 of each variant by either score, mean over seeds, with one standard deviation if there are several.

    Args:
        results: label, seed, and R@1 by cosine and by likelihood ratio (percent; NaN where there is none).
        title: of the figure.
    """
    with style():
        groups = results.groupby("label", sort=False)[list(_SCORES)]
        mean, spread = groups.mean().iloc[::-1], groups.std(ddof=1).iloc[::-1].fillna(0.0)
        place = np.arange(len(mean))
        figure = Figure(figsize=(7.0, 0.9 + 0.42 * len(mean)))
        axes = figure.subplots()
        several = results["seed"].nunique() > 1
        for offset, colour, (score, name) in zip((0.2, -0.2), (SKY, BLUE), _SCORES.items(), strict=True):
            whiskers = spread[score] if several else None
            axes.barh(place + offset, mean[score], 0.38, xerr=whiskers, label=name, capsize=2, color=colour)
        axes.set_yticks(place, mean.index)
        axes.grid(visible=False, axis="y")
        axes.set(title=title, xlabel="R@1 on test rows (%)" + "; whiskers: one standard deviation over seeds" * several)
        axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0))
        return figure


def ablation(results: pd.DataFrame, title: str) -> Figure:
    """R@1 by cosine against the values of each factor, one panel a factor, mean over seeds.

    Args:
        results: factor, value (text), variant, label, seed and R@1 by cosine (percent).
        title: of the figure.
    """
    with style():
        factors = list(dict.fromkeys(results["factor"]))
        figure = Figure(figsize=(3.4 * min(2, len(factors)) + 0.4, 2.6 * -(-len(factors) // 2) + 0.6))
        panels = figure.subplots(-(-len(factors) // 2), min(2, len(factors)), squeeze=False, sharey=True)
        handles = {}
        for panel in panels.flat[len(factors) :]:
            panel.set_visible(False)
        for panel, factor in zip(panels.flat, factors, strict=False):
            part = results[results["factor"] == factor]
            values = list(dict.fromkeys(part["value"]))
            for variant, rows in part.groupby("variant", sort=False):
                mean = rows.groupby("value")["R@1 cosine"].mean().reindex(values)
                (drawn,) = panel.plot(range(len(values)), mean, **line(str(variant)))
                handles[rows["label"].iloc[0]] = drawn
            panel.set_xticks(range(len(values)), values)
            panel.set_xlabel(f"{factor} (* default)")
        for panel in panels[:, 0]:
            panel.set_ylabel("R@1, cosine (%)")
        figure.legend(list(handles.values()), list(handles), loc="outside lower center", ncols=2)
        figure.suptitle(title, fontsize=10)
        return figure
