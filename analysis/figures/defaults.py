"""Figure of ``experiments.defaults``: what each method explains of each data set."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from analysis.figures.style import line, style

#: R^2 below this is drawn at the edge: a method that is worse than the mean by so much need not squeeze the rest.
_LOWEST = -0.3


def explained_dots(results: pd.DataFrame, missing: str) -> Figure:
    """R^2 of each method, one line for each data set, means over seeds.

    Args:
        results: rows of one missingness: dataset, variant, label and R2 (NaN where a method was left out).
        missing: the missingness, for the title.
    """
    with style():
        sets = list(dict.fromkeys(results["dataset"]))
        figure = Figure(figsize=(7.0, 1.5 + 0.32 * len(sets)))
        axes = figure.subplots()
        place = np.arange(len(sets))[::-1]
        for variant, rows in results.groupby("variant", sort=False):
            mean = rows.groupby("dataset")["R2"].mean().reindex(sets)
            if variant == "default_retrieval" or not mean.notna().any():
                continue
            marked = line("calmrl" if variant == "default" else str(variant)) | {"linestyle": "none"}
            axes.plot(mean.clip(lower=_LOWEST), place, label=rows["label"].iloc[0], **marked)
        axes.set_yticks(place, sets)
        axes.set(title=f"Explained of each modality from the others ({missing})", xlabel="R2, mean over modalities")
        if bool((results["R2"] < _LOWEST).any()):
            axes.set_xlabel(f"R2, mean over modalities; below {_LOWEST} drawn there")
        axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0))
        return figure
