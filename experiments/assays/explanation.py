"""What the factors of a fit are: variance explained, scores by class, top weights with intervals, tables of weights."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

import calmrl_prob as cal
from analysis.runs.files import write_table
from calmrl_prob import plots
from calmrl_prob.data import MultimodalData
from calmrl_prob.errors import CalmrlWarning
from calmrl_prob.evaluation import factor_weights, variance_explained
from calmrl_prob.inference.result import FitResult

#: Options of a fit that its refits on resampled rows take too.
_KEPT = ("loadings_prior", "pseudo_rows", "pseudo_row_pooling", "noise_pseudo_count")


@dataclass(frozen=True)
class Explained:
    """The factors of one fit.

    Attributes:
        shares: variance explained of each assay by each factor.
        weights: of each feature, with 90% intervals by the bootstrap: ready for enrichment.
        figures: by name.
    """

    shares: pd.DataFrame
    weights: pd.DataFrame
    figures: dict[str, Figure]

    def write(self, folder: Path, name: str) -> None:
        """Tables NAME_factors.csv and NAME_weights.csv."""
        write_table(self.shares.reset_index(), folder / f"{name}_factors.csv")
        write_table(self.weights, folder / f"{name}_weights.csv")


def explain(fit: FitResult, data: MultimodalData, factors: int, top: int, draws: int, seed: int = 0) -> Explained:
    """Explain a fit.

    Args:
        fit: of a model, with batches or without.
        data: its training rows, with classes.
        factors: how many are kept in the table of weights.
        top: features in the plots.
        draws: refits on rows drawn with replacement, for the intervals.
        seed: of these.
    """
    model: Any = fit.model
    form = model.linear_gaussian().detach()
    rows = data if model.batch is None else model.batch.adjusted(data)
    options = {key: value for key, value in fit.options.items() if key in _KEPT}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CalmrlWarning)  # refits that end early widen intervals by less than they show
        drawn = cal.parameter_draws(form, rows, "bootstrap", num_draws=draws, seed=seed, **options)
    weights = factor_weights(model, drawn, data=data)  # rows of its prior shrank the loadings
    weights = weights[weights["latent"] <= factors].sort_values(["modality", "latent", "rank"]).reset_index(drop=True)
    figures = {"explained": plots.variance_explained(model, data=data).figure}
    figures["factors"] = plots.latent_space(cal.posterior(model, data), labels=data.labels, level=0.5).figure
    for name in data.names:
        figures[f"top_{name}"] = plots.top_weights(weights, name, latent=1, most=top).figure
    return Explained(variance_explained(model, data=data), weights, dict(figures))
