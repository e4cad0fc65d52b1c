"""Weights of the features that a latent moves most, with intervals."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from calmrl_prob._support.arguments import described, whole_number
from calmrl_prob.errors import ArgumentError, ArgumentTypeError
from calmrl_prob.plots.canvas import canvas, legend_beside

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

_NEEDED = ("modality", "latent", "feature", "weight", "rank")


def top_weights(table: pd.DataFrame, modality: str, ax: Axes | None = None, *, latent: int = 1, most: int = 12) -> Axes:
    """The largest weights of one latent in one modality, the largest on top, each with its interval where it has one.

    Read off: by which features a latent is known, in which direction they move together, and which of them the data
    are sure of: intervals that stay away from the line at zero.

    Args:
        table: what :func:`calmrl_prob.evaluation.factor_weights` returns.
        modality: which.
        ax: where to draw; new axes by default.
        latent: its number, from 1.
        most: how many features.

    Returns:
        The axes: points at the weights, in the order of the labels, from the top.

    Raises:
        ArgumentTypeError: ``table`` is no such table, or ``ax`` no axes.
        ArgumentError: it has no such modality or latent, or ``most`` is below 1.
        MissingDependencyError: matplotlib is not installed.

    Example:
        >>> cal = __import__("calmrl_prob")
        >>> table = cal.evaluation.factor_weights(cal.datasets.make_synthetic(10, latent_dim=2, seed=0).truth)
        >>> top_weights(table, table["modality"][0], most=3).get_xlabel()
        'correlation with latent 1'
    """
    columns = getattr(table, "columns", ())
    if any(name not in columns for name in _NEEDED):
        raise ArgumentTypeError(f"table: expected what evaluation.factor_weights returns, got {described(table)}.")
    most = whole_number("most", most, least=1)
    own = table[(table["modality"] == modality) & (table["latent"] == latent)]
    if own.empty:
        raise ArgumentError(
            f"modality, latent: the table has no latent {latent!r} of {modality!r}; it has "
            f"{sorted(table['modality'].unique())} and latents up to {int(table['latent'].max())}."
        )
    own = own.sort_values("rank").head(most)
    places = np.arange(len(own))
    with canvas(ax, (4.4, 1.0 + 0.24 * len(own))) as ax:
        ax.axvline(0, color="0.6", lw=0.8)
        if {"lower", "upper"} <= set(columns):
            ax.hlines(places, own["lower"], own["upper"], color="C0", lw=2, alpha=0.5, label="interval")
        ax.plot(own["weight"], places, "o", color="C0", ms=4, label="weight")
        legend_beside(ax)
        ax.set_yticks(places, [str(feature) for feature in own["feature"]])
        ax.invert_yaxis()
        ax.set(title=f"Top weights in {modality}", xlabel=f"correlation with latent {latent}", ylabel="feature")
        return ax
