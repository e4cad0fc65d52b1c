"""How strongly noise and covariance are to be shrunk: by what rows that were held out of the fit tell."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal

import numpy as np
import pandas as pd

from calmrl_prob._support.arguments import checked_seed, described, short, whole_number
from calmrl_prob._support.progress import progress_bar
from calmrl_prob.data import MultimodalData
from calmrl_prob.errors import ArgumentError, ArgumentTypeError
from calmrl_prob.evaluation.imputation.held_out import Array, array
from calmrl_prob.evaluation.imputation.masked_validation import hidden_names, masked_validation
from calmrl_prob.inference.fit import fit
from calmrl_prob.inference.posterior import posterior

#: What is tried by default, for ``SharedLatentModel`` by EM: from nothing to strong.
GRID: Mapping[str, Sequence[float]] = MappingProxyType(
    {"pseudo_rows": (0, 25, 50, 100, 200, 400, 800), "noise_floor": (1e-4, 0.03, 0.1, 0.3)}
)


@dataclass(frozen=True, eq=False, repr=False)
class ShrinkageChoice:
    """What was found.

    Attributes:
        options: the chosen options of ``cal.fit``, by name; those that were fixed included.
        curve: one row for each setting tried: the options, ``evidence`` (mean over held-out rows, nats), ``error`` (its
            standard error over rows), ``behind`` (the best's less this one's) and ``behind_error`` (the standard error
            of that, row by row).
    """

    options: Mapping[str, Any]
    curve: pd.DataFrame

    def __repr__(self) -> str:
        return f"ShrinkageChoice({', '.join(f'{name}={value:g}' for name, value in self.options.items())})"


def choose_shrinkage(
    model: Any,  # noqa: ANN401 - whatever cal.fit takes
    data: MultimodalData,
    grid: Mapping[str, Sequence[float]] | None = None,
    *,
    criterion: Literal["imputation", "evidence"] = "imputation",
    folds: int = 5,
    seed: int = 0,
    progress: bool = False,
    **fixed: Any,
) -> ShrinkageChoice:
    """Choose options of a fit that keep its noise from collapsing, by how likely it finds held-out rows.

    Maximum likelihood explains training rows too well, and the intervals that it states for others are too narrow; a
    floor or a prior of the noise, or a prior of the covariance (``pseudo_rows``), mends that at its root, which no
    recalibration of a finished fit can. The options are varied one after another, from the middle of their ranges, each
    setting being fitted to all folds but one, and scored on that one's rows.

    Args:
        model: what ``cal.fit`` takes; copies of it are fitted, and it stays as it is.
        data: N training rows, modalities missing or not.
        grid: for each option of ``cal.fit`` the values to choose from, in rising order; ``pseudo_rows`` (0 to 800) and
            ``noise_floor`` (1e-4 to 0.3) by default.
        criterion: "imputation", the log density of a feature of a modality given the row's other modalities, mean over
            features and modalities: what intervals of imputations come from. Or "evidence", log p(x_n) of whole rows,
            in which how features of one modality go together outweighs what modalities tell of each other.
        folds: how many.
        seed: of the folds and the fits.
        progress: show a progress bar on standard error.
        **fixed: options of ``cal.fit`` that stay, such as ``tolerance``.

    Raises:
        ArgumentError: an option without values, an unknown criterion, or too many folds.
        ArgumentTypeError: ``data`` or ``grid`` is of another type.

    Example:
        >>> from calmrl_prob.datasets import make_synthetic
        >>> from calmrl_prob.model import SharedLatentModel
        >>> data = make_synthetic(60, {"image": 10, "text": 8}, latent_dim=2, seed=0).complete
        >>> model = SharedLatentModel(data.dims, latent_dim=6)
        >>> found = choose_shrinkage(model, data, {"pseudo_rows": [0, 20, 40]}, tolerance=1e-3)
        >>> found.options["pseudo_rows"] > 0
        True
    """
    if not isinstance(data, MultimodalData):
        raise ArgumentTypeError(f"data: expected MultimodalData, got {described(data)}; wrap it in MultimodalData.")
    if criterion not in _CRITERIA:
        raise ArgumentError(f"criterion: expected one of {list(_CRITERIA)}, got {criterion!r}.")
    chosen_grid = GRID if grid is None else grid
    if not isinstance(chosen_grid, Mapping):
        raise ArgumentTypeError(f"grid: expected a mapping of options to values, got {short(grid)}.")
    for name, values in chosen_grid.items():
        if isinstance(values, str) or not isinstance(values, Sequence | np.ndarray):
            raise ArgumentTypeError(
                f"grid[{name!r}]: expected a list of values, got {short(values)}; use [{values!r}]."
            )
        if not len(values):
            raise ArgumentError(f"grid[{name!r}]: expected at least one value, got none.")
    count = whole_number("folds", folds, least=2)
    if count > len(data):
        raise ArgumentError(f"folds: expected at most {len(data)}, the instances, got {count}.")
    fold = np.random.default_rng(checked_seed(seed)).permutation(len(data)) % count
    parts = [(data.subset(fold != k), data.subset(fold == k)) for k in range(count)]
    tried: dict[tuple[float, ...], Array] = {}
    total = 1 + sum(len(values) for values in chosen_grid.values())
    with progress_bar("shrinkage", total) if progress else nullcontext() as callback:

        def score(setting: Mapping[str, Any]) -> float:
            key = tuple(setting.values())
            if key not in tried:
                scores = np.empty(len(data))
                for k, (others, own) in enumerate(parts):
                    fitted = fit(copy.deepcopy(model), others, seed=seed, **fixed, **setting)
                    scores[fold == k] = _CRITERIA[criterion](fitted, own)
                tried[key] = scores
                if callback is not None:
                    callback(len(tried), float("nan"))
            return float(np.nanmean(tried[key]))

        setting: dict[str, Any] = {name: values[len(values) // 2] for name, values in chosen_grid.items()}
        score(setting)
        for name, values in chosen_grid.items():
            setting = max(({**setting, name: value} for value in values), key=score)
    best = tried[tuple(setting.values())]
    told = np.isfinite(best)  # a row of one modality tells nothing of imputation
    root = told.sum() ** 0.5
    curve = pd.DataFrame(
        [
            dict(zip(chosen_grid, key, strict=True))
            | {
                "evidence": scores.mean(),
                "error": scores.std(ddof=1) / root,
                "behind": (best[told] - scores).mean(),
                "behind_error": (best[told] - scores).std(ddof=1) / root,
            }
            for key, scores in ((key, found[told]) for key, found in tried.items())
        ]
    )
    return ShrinkageChoice(MappingProxyType({**fixed, **setting}), curve)


def _imputation(model: object, data: MultimodalData) -> Array:
    """Mean log density of a feature given the row's other modalities, (N,); NaN where a row has one modality."""
    total, count = np.zeros(len(data)), np.zeros(len(data))
    if bool((data.observed_mask.sum(dim=1) > 1).any()):
        for part in masked_validation(model, data, "each", names=hidden_names(data), num_draws=0).parts:
            total[part.rows] += array(part.predictive.log_density(part.truth)).mean(axis=1)
            count[part.rows] += 1
    mean: Array = np.divide(total, count, out=np.full(len(data), np.nan), where=count > 0)
    return mean


def _evidence(model: Any, data: MultimodalData) -> Array:  # noqa: ANN401
    """log p(x_n), (N,)."""
    return array(posterior(model, data).log_marginal)


#: What settings are chosen by: functions of a fitted model and rows, which return a number for each row.
_CRITERIA: dict[str, Callable[[Any, MultimodalData], Array]] = {"imputation": _imputation, "evidence": _evidence}
