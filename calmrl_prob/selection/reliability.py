"""Warnings of fits whose imputations or intervals are not to be relied upon, with figure and remedy."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence

from torch import Tensor

from calmrl_prob._support.warnings import level_of_caller
from calmrl_prob.data import MultimodalData
from calmrl_prob.data.features import names_of
from calmrl_prob.errors import ReliabilityWarning
from calmrl_prob.inference.result import FitResult
from calmrl_prob.linear_gaussian import SufficientStatistics
from calmrl_prob.selection.choice import Choice
from calmrl_prob.selection.few_values import few_named, values_of
from calmrl_prob.selection.folds import FoldedStatistics
from calmrl_prob.selection.neighbours import NeighbourCorrelation

#: Coefficients of a feature over the rows that it is seen in, (K + 1) / n_m, from which on maximum likelihood explains
#: so much by chance that it claims clearly too much: its noise variance is too small by about this share, and that of
#: new rows greater by as much again.
_MANY = 0.2
#: Values of a feature below which its intervals hang on those of others.
_FEW = 5
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


def warn_of_neighbours(correlations: Sequence[NeighbourCorrelation]) -> None:
    """Warn where held-out rows err as the rows beside them do, so that folds by row may not hold out what is new."""
    if any(found.told for found in correlations):
        figures = ", ".join(f"{found.modality} {found.value:.2f} +/- {found.error:.2f}" for found in correlations)
        warnings.warn(
            f"held-out rows err as the rows beside them do (correlation of neighbours: {figures}; 0 where the order of "
            "rows means nothing). If neighbours share more than new rows will share with them, such as a subject, a "
            "recording or a photograph, held-out scores and intervals promise too much: pass what they share to "
            "cal.fit as groups=, one entry a row. If rows are only sorted, as by class, and new ones are of the same "
            "classes, they hold: say so by groups=range(len(data)).",
            ReliabilityWarning,
            stacklevel=level_of_caller(),
        )


def warn_of_few_values(data: MultimodalData | FoldedStatistics) -> None:
    """Warn of features with so few values that their intervals are those of other features, by name."""
    found = _named(data, {name: values < _FEW for name, values in values_of(data).items()})
    if found:
        warnings.warn(
            f"too few values to tell how a feature goes with others, or how far it spreads: {found}. cal.impute makes "
            "their intervals as wide as the modality's other features suggest, in the same unit, which nobody can "
            "check: give more rows that have them, or leave them out of what you impute.",
            ReliabilityWarning,
            stacklevel=level_of_caller(),
        )


def warn_of_plain_likelihood(found: FitResult, data: object) -> None:
    """Warn of a fit by maximum likelihood with many coefficients for the rows that a modality or feature is seen in."""
    if found.method != "em" or any(found.options.get(key) for key in ("pseudo_rows", "loadings_prior")):
        return
    if not isinstance(data, MultimodalData | SufficientStatistics):
        return
    latent_dim = getattr(found.model, "latent_dim", 0)
    ratios = {name: (latent_dim + 1) / values.clamp(min=1) for name, values in values_of(data).items()}
    many = {name: ratio >= _MANY for name, ratio in ratios.items()}
    if any(bool(which.any()) for which in many.values()):
        worst = max(float(ratio.max()) for ratio in ratios.values())
        warnings.warn(
            f"maximum likelihood of {latent_dim} latents claims too much here: {_named(data, many)} has (K + 1) / rows "
            f"= {worst:.2f} at most, so that its noise is explained by chance and intervals are too narrow. Leave "
            "latent_dim to the fit, cal.SharedLatentModel(dims), or pass shrinkage='held-out' or pseudo_rows=...",
            ReliabilityWarning,
            stacklevel=level_of_caller(),
        )


def _named(data: MultimodalData | SufficientStatistics | FoldedStatistics, few: Mapping[str, Tensor]) -> str:
    """Features that are meant, modality by modality; empty if none are."""
    values, names = values_of(data), names_of(data.dims) if isinstance(data, MultimodalData) else data.feature_names
    found = [few_named(n, values[n], which, names.get(n)) for n, which in few.items() if bool(which.any())]
    return "; ".join(found)
