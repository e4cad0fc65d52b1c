"""Figures of anchor shift: how far anchors are off, and the bounds of it. Each takes a tidy table of cases."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from analysis.figures.style import BLACK, BLUE, GREY, VERMILION, style

#: Rows drawn of each panel of bounds: more would cover each other.
_DRAWN = 600
#: Bins of a histogram.
_BINS = 40


def shift_distributions(cases: pd.DataFrame, title: str) -> Figure:
    """Shares of rows by anchor shift, before and after calibration; one panel for each number missing and training.

    Args:
        cases: "trained on", missing, local, calibrated (vector distances to the anchor of the complete row).
        title: of the figure.
    """
    with style():
        trained, numbers = list(cases["trained on"].unique()), sorted(cases["missing"].unique())
        figure = Figure(figsize=(2.6 * len(numbers) + 0.6, 2.1 * len(trained) + 0.9))
        panels = figure.subplots(len(trained), len(numbers), squeeze=False, sharex=True)
        edges = np.linspace(0, float(cases[["local", "calibrated"]].max().max()), _BINS + 1)
        for across, kind in zip(panels, trained, strict=True):
            for panel, missing in zip(across, numbers, strict=True):
                rows = cases[(cases["trained on"] == kind) & (cases["missing"] == missing)]
                for name, colour, dashes in (("local", VERMILION, "--"), ("calibrated", BLUE, "-")):
                    share = 100 * np.histogram(rows[name], edges)[0] / max(1, len(rows))
                    panel.stairs(share, edges, color=colour, linestyle=dashes, label=f"{name} anchor")
                    panel.axvline(rows[name].mean(), color=colour, linestyle=dashes, linewidth=0.8)
                panel.set_title(f"{missing} missing; trained on {kind}", fontsize=8)
            across[0].set_ylabel("rows (%)")
        for panel in panels[-1]:
            panel.set_xlabel("distance to the full anchor")
        handles, labels = panels[0, 0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=2)
        figure.suptitle(f"{title} (thin lines: means)", fontsize=10)
        return figure


def shift_bounds_drawn(cases: pd.DataFrame, title: str) -> Figure:
    """Lower and upper bounds of each local anchor's shift against the shift itself; all is well off the diagonal.

    Args:
        cases: "trained on", missing, shift, lower, upper (projector distances; upper may be infinite).
        title: of the figure.
    """
    with style():
        trained, numbers = list(cases["trained on"].unique()), sorted(cases["missing"].unique())
        figure = Figure(figsize=(2.6 * len(numbers) + 0.6, 2.4 * len(trained) + 0.9))
        panels = figure.subplots(len(trained), len(numbers), squeeze=False, sharex=True, sharey=True)
        most = float(np.sqrt(2))
        for across, kind in zip(panels, trained, strict=True):
            for panel, missing in zip(across, numbers, strict=True):
                rows = cases[(cases["trained on"] == kind) & (cases["missing"] == missing)].head(_DRAWN)
                upper = rows["upper"].clip(upper=most)
                panel.plot([0, most], [0, most], color=BLACK, linewidth=1, label="the shift itself")
                panel.plot(rows["shift"], upper, "v", color=VERMILION, markersize=2, alpha=0.5, label="upper bound")
                panel.plot(rows["shift"], rows["lower"], "^", color=BLUE, markersize=2, alpha=0.5, label="lower bound")
                panel.axhline(most, color=GREY, linewidth=0.8, linestyle=":")
                panel.set_title(f"{missing} missing; trained on {kind}", fontsize=8)
            across[0].set_ylabel("bound")
        for panel in panels[-1]:
            panel.set_xlabel("shift of the local anchor")
        handles, labels = panels[0, 0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=3, markerscale=3)
        figure.suptitle(f"{title} (projector distance)", fontsize=10)
        return figure
