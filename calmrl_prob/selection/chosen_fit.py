"""One choice by held-out imputations, and the fit to all rows that follows."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import Any

import numpy as np
import torch

from calmrl_prob._support.progress import Callback
from calmrl_prob.data import MultimodalData
from calmrl_prob.inference.fit import fit as fit_settled
from calmrl_prob.inference.result import FitResult
from calmrl_prob.inference.seen import remember_rows
from calmrl_prob.linear_gaussian import LinearGaussian
from calmrl_prob.model import SharedLatentModel
from calmrl_prob.selection.choice import Choice, choice_of, no_choice
from calmrl_prob.selection.folds import Fold, FoldedStatistics, make_folds
from calmrl_prob.selection.held_out import added
from calmrl_prob.selection.intervals import HeldOutIntervals, scales_of_rows, scales_of_sums
from calmrl_prob.selection.ladder import Freedom, Size, first_setting, walk
from calmrl_prob.selection.options import ChoiceOptions
from calmrl_prob.selection.reliability import warn_of_a_choice, warn_of_starts
from calmrl_prob.selection.scaling import Scaling
from calmrl_prob.selection.search import BudgetSpentError, Search, Tried
from calmrl_prob.selection.settings import SETTLES_PRIOR, Setting

#: Instances with two modalities or more, in all and as a share, below which the fit to all rows starts from those of
#: all folds, not of one alone.
_FEW_LINKS, _SMALL_SHARE = 200, 0.25
#: Held-out instances of a fold that tell enough, and the folds that are then fitted.
_ENOUGH_ROWS, _ENOUGH_FOLDS = 1500, 2
#: Tolerance of the fit to all rows, where none was asked for: settings differ by more than what is left.
_TOLERANCE = 1e-5


class ChosenFit:
    """A choice and the fit that follows.

    Args:
        model: whose parameters are replaced.
        data: rows, or statistics of folds.
        seed: of folds and fits.
        how: to choose.
        freedom: what is open.
        callback: told of every setting tried.
    """

    def __init__(
        self,
        model: SharedLatentModel,
        data: MultimodalData | FoldedStatistics,
        seed: int,
        how: ChoiceOptions,
        freedom: Freedom,
        callback: Callback | None,
    ) -> None:
        self._model, self._seed, self._how, self._freedom, self._callback = model, seed, how, freedom, callback
        self._begun = time.perf_counter()
        self._taken: Tried | None = None
        self._scaling = Scaling.of(data, how.scale)
        self._data, self._scaled = data, self._scaling.scaled(data)
        if self._scaling.constants:  # a variance of its own would go to zero
            self._freedom = replace(freedom, noise=False)
        if freedom.noise is False and self._scaling.divisors and model.requested[1] == "isotropic":
            self._scaling, self._scaled = Scaling("none", {}), data  # asked for: one variance in the data's own units

    def fit(self, options: Mapping[str, Any]) -> FitResult:
        """Choose, fit to all rows, and attach choice and intervals."""
        latent_dim, noise = self._model.requested
        scorable = _scorable(self._data)
        folds = self._how.folds if isinstance(self._data, MultimodalData) else len(self._data.folds)
        trained = max(1, round(self._data.num_instances * (folds - 1) / folds))
        size = Size(trained, self._data.dims)
        first = first_setting(size, latent_dim, noise or "auto", self._model.requested_rank)
        fixed = {key: value for key, value in options.items() if key in SETTLES_PRIOR}
        if not self._freedom.shrinkage:
            first = first.but(**{"pseudo_rows": 0.0, **_attributes(fixed)})
        starts: Sequence[LinearGaussian] = ()
        if reason := _unscorable(scorable, folds):
            choice, intervals = no_choice(first, self._how.criterion, self._scaling.kind, reason), None
        else:
            search, choice = self._choose(first, size, fixed, scorable)
            intervals = None if self._taken is None else self._intervals(search.folds, self._taken)
            if self._taken is not None:  # where few rows link the modalities, one start may end where they do not meet
                few = scorable < max(_FEW_LINKS, _SMALL_SHARE * self._data.num_instances)
                starts = self._taken.fits if few else self._taken.fits[:1]
        found = self._final(choice.setting, {**options, **choice.options}, starts)
        warn_of_a_choice(choice, {} if intervals is None else intervals.slopes)
        if intervals is not None:
            intervals = intervals.of(found.model)
        found.model.intervals = intervals
        return replace(found, choice=choice, intervals=intervals, seconds=time.perf_counter() - self._begun)

    def _choose(self, first: Setting, size: Size, fixed: Mapping[str, Any], scorable: int) -> tuple[Search, Choice]:
        folds = make_folds(self._scaled, first.latent_dim, self._how.folds, self._seed, self._how.groups)
        if scorable >= _ENOUGH_ROWS * len(folds):  # each fold tells enough, and every fit costs the same
            folds = folds[:_ENOUGH_FOLDS]
        deadline = np.inf if self._how.budget is None else self._begun + self._how.budget
        search = Search(folds, self._seed, self._how.criterion, deadline, self._callback, fixed)
        not_tried = ""
        try:
            self._taken = walk(search, first, self._freedom, size)
        except BudgetSpentError:
            not_tried = f"the budget of {self._how.budget:g} s was spent after {len(search.tried)} settings"
            self._taken = search.best if search.tried else None
        if self._taken is None:
            return search, no_choice(first, self._how.criterion, self._scaling.kind, not_tried)
        return search, choice_of(search, self._taken, self._how.criterion, self._scaling.kind, not_tried)

    def _intervals(self, folds: Sequence[Fold], best: Tried) -> HeldOutIntervals:
        sums = list(added(part for parts in best.sums for part in parts).values())
        rows = (
            (part, fold.centre[part.modality])
            for fold, lg in zip(folds, best.fits, strict=True)
            for part in fold.rows(lg)
        )
        scales = scales_of_rows(sums, rows) or scales_of_sums(sums)
        centres = {name: torch.stack([fold.centre[name] for fold in folds]).mean(0) for name in folds[0].centre}
        centres = self._scaling.unscale_centres(centres)
        return HeldOutIntervals(self._model.names, scales, centres, len(folds))

    def _final(self, setting: Setting, options: Mapping[str, Any], starts: Sequence[LinearGaussian]) -> FitResult:
        """The fit to all rows, in the units of the scaling, loaded in the data's own; the best of several starts."""
        data = self._scaled if isinstance(self._scaled, MultimodalData) else self._scaled.total
        noise: Any = setting.noise
        found = []
        for start in ({}, *({"start": lg} for lg in starts)):
            working = SharedLatentModel(
                self._model.dims, setting.latent_dim, noise, dtype=self._model.dtype, noise_rank=setting.noise_rank
            )
            found.append(
                fit_settled(working, data, "em", seed=self._seed, **{"tolerance": _TOLERANCE, **options, **start})
            )
        best = max(found, key=lambda one: float(one.objective[-1]))
        if len(starts) > 1:
            warn_of_starts(found, best)
        form: LinearGaussian = self._scaling.unscaled(best.linear_gaussian().detach())
        prior = self._model.prior if self._model.requested[0] is not None else None
        if self._scaling.divisors and noise == "isotropic":
            noise = "diagonal"  # one variance in units of the features' own spreads
        self._model.settle(setting.latent_dim, noise, prior, setting.noise_rank)
        self._model.load_linear_gaussian(form)
        seen = remember_rows(self._model, self._data)  # not the rows in the units of the scaling
        return replace(best, model=self._model, options=MappingProxyType(dict(options)), rows_of_fit=seen)


def _attributes(options: Mapping[str, Any]) -> dict[str, Any]:
    """Attributes of a setting that the options of a fit give."""
    found: dict[str, Any] = {}
    if "pseudo_rows" in options:
        found["pseudo_rows"] = float(options["pseudo_rows"])
    if "pseudo_row_pooling" in options:
        found["pooling"] = float(options["pseudo_row_pooling"])
    if options.get("loadings_prior") == "ard":
        found["ard"] = True
    return found


def _scorable(data: MultimodalData | FoldedStatistics) -> int:
    """Number of instances that have two modalities or more."""
    if isinstance(data, MultimodalData):
        return int((data.observed_mask.sum(1) > 1).sum())
    return int(sum(float(s[-1, -1]) for fold in data.folds for p, s in fold.scatters.items() if sum(p) > 1))


def _unscorable(scorable: int, folds: int) -> str:
    """Why nothing can be held out, in words; empty if it can."""
    if scorable == 0:
        return "no instance has two modalities, so that no imputation can be compared with the truth"
    if scorable < 2 * folds:
        return f"only {scorable} instances have two modalities, too few for {folds} folds"
    return ""
