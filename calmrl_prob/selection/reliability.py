"""Warnings of fits whose imputations or intervals are not to be relied upon, with figure and remedy."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence

from calmrl_prob.data import MultimodalData
from calmrl_prob.errors import ReliabilityWarning
from calmrl_prob.inference.result import FitResult
from calmrl_prob.linear_gaussian import SufficientStatistics
from calmrl_prob.selection.choice import Choice
from calmrl_prob.selection.folds import FoldedStatistics

#: Coefficients of a feature over the rows that it is seen in, (K + 1) / n_m, from which on maximum likelihood explains
#: so much by chance that it claims clearly too much: its noise variance is too small by about this share, and that of
#: new rows greater by as much again.
_MANY = 0.2
#: Settings below which a budget left too little to compare.
_FEW_SETTINGS = 5
_MORE_TIME, _MORE_ROWS = "Give a larger budget.", "Give more instances that have two modalities or more."
#: Nats an instance of the objective beyond which two fits are different places, and not one reached more or less.
_APART = 1.0


def warn_of_a_choice(choice: Choice, shrunk: dict[str, float]) -> None:
    """Warn where nothing could be held out, or where a modality is imputed no better than by its mean."""
    if choice.fallback:
        warnings.warn(
            f"the settings were not chosen by held-out imputations: {choice.fallback}. The fit has {choice.setting}, "
            "and its intervals are the model's own, unchecked. "
            + (_MORE_TIME if "budget" in choice.fallback else _MORE_ROWS),
            ReliabilityWarning,
            stacklevel=4,
        )
    if choice.not_tried and len(choice.table) < _FEW_SETTINGS:
        warnings.warn(
            f"{choice.not_tried}: hardly anything was compared. {_MORE_TIME}", ReliabilityWarning, stacklevel=4
        )
    lost = {name: value for name, value in choice.r2.items() if value <= 0 or shrunk.get(name, 1) < 1}
    lost |= {name: math.nan for name, slope in shrunk.items() if slope < 1 and name not in choice.r2}
    if lost:
        figures = ", ".join(f"{name} (held-out R^2 {value:.3f})" for name, value in lost.items())
        drawn = ", ".join(f"{name} by {shrunk.get(name, 1):.2f}" for name in lost)
        warnings.warn(
            f"modalities imputed from the others no better than by their means: {figures}. cal.impute draws their "
            f"imputations to the mean (distance times: {drawn}). What the others tell of them is too little for these "
            "rows: give more rows that have them and another, or leave them out of what you impute.",
            ReliabilityWarning,
            stacklevel=4,
        )


def warn_of_starts(fits: Sequence[FitResult], best: FitResult) -> None:
    """Warn where fits from several starts ended in places that the data tell apart by little or a lot."""
    behind = [float(best.objective[-1] - fit.objective[-1]) for fit in fits]
    if max(behind) > _APART * best.num_instances:
        warnings.warn(
            f"few instances link the modalities, and fits from {len(fits)} starts ended in different places: the "
            f"others are {', '.join(f'{gap:.1f}' for gap in sorted(behind) if gap > 0)} nats behind the one taken. How "
            "the modalities go together hangs on few rows: give more instances that have two of them.",
            ReliabilityWarning,
            stacklevel=5,
        )


def warn_of_plain_likelihood(found: FitResult, data: object) -> None:
    """Warn of a fit by maximum likelihood with many coefficients for the rows that a modality is seen in."""
    if found.method != "em" or any(found.options.get(key) for key in ("pseudo_rows", "loadings_prior")):
        return
    latent_dim = getattr(found.model, "latent_dim", 0)
    ratios = {name: (latent_dim + 1) / max(count, 1) for name, count in _rows(data).items()}
    name = max(ratios, key=ratios.__getitem__, default="")
    if name and ratios[name] >= _MANY:
        warnings.warn(
            f"maximum likelihood of {latent_dim} latents claims too much here: modality {name!r} has "
            f"(K + 1) / rows = {ratios[name]:.2f}, so that its noise is explained by chance and intervals are too "
            "narrow. Leave latent_dim to the fit, cal.SharedLatentModel(dims), or pass shrinkage='held-out' or "
            "pseudo_rows=...",
            ReliabilityWarning,
            stacklevel=3,
        )


def _rows(data: object) -> dict[str, int]:
    """Numbers of instances that have each modality."""
    if isinstance(data, MultimodalData):
        return {name: int(data.observed(name).sum()) for name in data.names}
    if isinstance(data, FoldedStatistics):
        data = data.total
    if not isinstance(data, SufficientStatistics):
        return {}
    counts = dict.fromkeys(data.dims, 0)
    for present, scatter in data.scatters.items():
        for name, here in zip(data.dims, present, strict=True):
            counts[name] += int(scatter[-1, -1]) if here else 0
    return counts
