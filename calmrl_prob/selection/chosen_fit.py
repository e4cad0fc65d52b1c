"""One choice by held-out imputations, and the fit to all rows that follows."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from typing import Any

import numpy as np
import torch

from calmrl_prob._support.frozen import FrozenMapping
from calmrl_prob._support.progress import Callback
from calmrl_prob.data import MultimodalData
from calmrl_prob.errors import ArgumentError
from calmrl_prob.inference.fit import fit as fit_settled
from calmrl_prob.inference.result import FitResult
from calmrl_prob.inference.seen import remember_rows
from calmrl_prob.linear_gaussian import LinearGaussian
from calmrl_prob.linear_gaussian.em.options import CommonOptions
from calmrl_prob.model import SharedLatentModel
from calmrl_prob.priors import NormalPrior
from calmrl_prob.selection.choice import Choice, choice_of, no_choice
from calmrl_prob.selection.families import model_of, prior_of, try_families
from calmrl_prob.selection.few_values import values_of
from calmrl_prob.selection.folds import Fold, FoldedStatistics, deal, folds_to_fit, make_folds
from calmrl_prob.selection.gathering import groups_of
from calmrl_prob.selection.held_out import added
from calmrl_prob.selection.intervals import HeldOutIntervals, scales_of_rows, scales_of_sums
from calmrl_prob.selection.ladder import Freedom, Size, first_setting, walk
from calmrl_prob.selection.neighbours import NeighbourCorrelation, neighbour_correlations
from calmrl_prob.selection.options import ChoiceOptions
from calmrl_prob.selection.predicted import imputed_by
from calmrl_prob.selection.reliability import warn_of_a_choice, warn_of_few_values, warn_of_neighbours, warn_of_starts
from calmrl_prob.selection.scaling import Scaling
from calmrl_prob.selection.search import BudgetSpentError, Search, Tried
from calmrl_prob.selection.settings import Setting

#: Instances with two modalities or more, in all and as a share, below which the fit to all rows starts from those of
#: all folds, not of one alone.
_FEW_LINKS, _SMALL_SHARE = 200, 0.25
#: The fewest instances with two modalities that can be dealt to folds, and, where there are fewer, the weight of the
#: prior as a share of the rows.
_LEAST_ROWS, _UNSEEN_SHARE = 6, 0.3
#: Options that are of the fit to all rows alone. A prior of the latent moves its axes and no imputation, so that folds
#: are fitted in those of the standard normal.
_OF_THE_LAST_FIT = (
    "max_iterations",
    "tolerance",
    "start",
    "form",
    "seed",
    "callback",
    "prior_mean",
    "prior_covariance",
)
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
        self._groups: Any = how.groups
        if isinstance(data, MultimodalData) and (isinstance(how.groups, str) or callable(how.groups)):
            self._groups = groups_of("data", data, how.groups)
        self._begun = time.perf_counter()
        self._taken: Tried | None = None
        self._scaling = Scaling.of(data, how.scale)
        self._data, self._scaled = data, self._scaling.scaled(data)
        self._effects = model.batch
        if self._scaling.constants:  # a variance of its own would go to zero
            self._freedom = replace(freedom, noise=False)
        if self._scaling.divisors and model.requested[1] == "isotropic":
            if how.scale == "feature":
                raise ArgumentError(
                    "scale: 'feature' gives each feature a noise variance of its own, and the model asks for "
                    "noise='isotropic'; leave one of them out."
                )
            self._scaling, self._scaled = Scaling("none", {}), data  # asked for: one variance in the data's own units
        # of held-out rows too: their share in the mean of a batch is small, and a batch may be in one fold alone
        self._dealt = self._scaled
        if self._effects is not None and isinstance(self._scaled, MultimodalData):
            self._dealt = self._effects.taken_off(self._scaled)

    def fit(self, options: Mapping[str, Any]) -> FitResult:
        """Choose, fit to all rows, and attach choice and intervals."""
        latent_dim, noise = self._model.requested
        linked = _linked(self._data)
        partial = isinstance(self._data, MultimodalData) and self._data.has_partial_rows
        scorable = self._data.num_instances if partial else linked  # single features can be held out of any row
        folds = len(self._data.folds) if isinstance(self._data, FoldedStatistics) else self._folds(scorable)
        trained = max(1, round(self._data.num_instances * (folds - 1) / folds))
        size = Size(trained, self._data.dims)
        first = first_setting(size, latent_dim, noise or "auto", self._model.requested_rank)
        fixed = {key: value for key, value in options.items() if key not in _OF_THE_LAST_FIT}
        if not self._freedom.shrinkage:
            first = first.but(**{"pseudo_rows": 0.0, **_attributes(fixed)})
        starts: Sequence[LinearGaussian] = ()
        neighbours: list[NeighbourCorrelation] = []
        if reason := _unscorable(scorable):
            if self._freedom.shrinkage:
                first = first.but(pseudo_rows=round(_UNSEEN_SHARE * trained, 1))
            choice, intervals = no_choice(first, self._how.criterion, self._scaling.kind, reason), None
        else:
            search, choice = self._choose(first, size, fixed, scorable)
            intervals = None if self._taken is None else self._intervals(search.folds, self._taken)
            if self._taken is not None:
                starts = self._starts(self._taken.fits, linked, scorable)
                neighbours = self._neighbours(search.folds, self._taken)
        if choice.family == "normal":
            found = self._final(choice.setting, {**options, **choice.options}, starts)
        else:
            found = self._final_of_family(choice.setting, options)
        warn_of_a_choice(choice, {} if intervals is None else intervals.slopes)
        warn_of_neighbours(neighbours)
        warn_of_few_values(self._data)
        if intervals is not None:
            intervals = intervals.of(found.model)
        found.model.intervals = intervals
        return replace(found, choice=choice, intervals=intervals, seconds=time.perf_counter() - self._begun)

    def _starts(self, fits: Sequence[LinearGaussian], linked: int, scorable: int) -> Sequence[LinearGaussian]:
        """The fits of folds that the fit to all rows starts from, beside the data."""
        if linked < max(_FEW_LINKS, _SMALL_SHARE * self._data.num_instances):
            return fits  # where few rows link the modalities, one start may end where they do not meet
        many = folds_to_fit(self._how.folds, scorable) < self._how.folds
        return () if many else fits[:1]  # of many rows the data themselves say enough

    def _folds(self, scorable: int) -> int:
        """As many as asked for, or as the rows that can be compared allow: two of them in each."""
        return max(2, min(self._how.folds, scorable // 2))

    def _choose(self, first: Setting, size: Size, fixed: Mapping[str, Any], scorable: int) -> tuple[Search, Choice]:
        folds = make_folds(self._dealt, first.latent_dim, self._folds(scorable), self._seed, self._groups)
        folds = [fold for fold in folds if not fold.lacking]
        if len(folds) < 2:
            reason = "some modality or feature is in so few instances that folds without them lack it"
            return Search(folds, self._seed), no_choice(first, self._how.criterion, self._scaling.kind, reason)
        if self._how.folds == ChoiceOptions.folds:  # more were not asked for
            folds = folds[: folds_to_fit(len(folds), scorable)]
        deadline = np.inf if self._how.budget is None else self._begun + self._how.budget
        search = Search(folds, self._seed, self._how.criterion, deadline, self._callback, fixed)
        not_tried = ""
        try:
            self._taken = walk(search, first, self._freedom, size)
        except BudgetSpentError:
            not_tried = f"the budget of {self._how.budget:g} s was spent after {len(search.tried)} settings"
            self._taken = search.best if search.tried else None
        if self._taken is not None and len(self._how.families) > 1:
            not_tried = self._families(search, self._taken, fixed)
        if self._taken is None:
            return search, no_choice(first, self._how.criterion, self._scaling.kind, not_tried)
        return search, choice_of(search, self._taken, self._how.criterion, self._scaling.kind, not_tried)

    def _families(self, search: Search, best: Tried, fixed: Mapping[str, Any]) -> str:
        """Try the other families, and take one that is better; what could not be tried, in words."""
        others = [family for family in self._how.families if family != "normal"]
        if reason := self._no_families(fixed):
            return f"{', '.join(others)}: {reason}"
        data = self._scaled
        assert isinstance(data, MultimodalData)
        fold = deal(len(data), self._how.folds, self._seed, self._groups)
        trains = [data.subset(np.flatnonzero(fold != k)) for k in range(len(search.folds))]
        self._taken, not_tried = try_families(search, best, others, trains, self._freedom.latent_dim)
        return not_tried

    def _no_families(self, fixed: Mapping[str, Any]) -> str:
        """Why no other family is offered, in words; empty if they are."""
        if not isinstance(self._scaled, MultimodalData):
            return "they need rows, and there are statistics alone"
        if self._effects is not None:
            return "they have no batches"
        if self._scaled.has_partial_rows:
            return "they need whole modalities, and single features are missing"
        if self._how.criterion == "retrieval":
            return "they are not ranked by retrieval; choose by criterion='imputation'"
        if fixed:
            return f"they have no {next(iter(fixed))}, which was given"
        if self._model.settled and not isinstance(self._model.prior, NormalPrior) and self._freedom.latent_dim is False:
            return "the model has a prior of its own"
        return ""

    def _intervals(self, folds: Sequence[Fold], best: Tried) -> HeldOutIntervals:
        sums = list(added(part for parts in best.sums for part in parts).values())
        rows = (
            (part, fold.centre[part.modality])
            for fold, model in zip(folds, best.fits, strict=True)
            for part in imputed_by(model, fold)
        )
        values = values_of(self._data)
        scales = scales_of_sums(sums, values)
        scales |= scales_of_rows(sums, rows, values)  # rows may be a sample, which lacks a rare modality
        centres = {name: torch.stack([fold.centre[name] for fold in folds]).mean(0) for name in folds[0].centre}
        centres = self._scaling.unscale_centres(centres)
        return HeldOutIntervals(self._model.names, scales, centres, len(folds), batch=self._effects)

    def _neighbours(self, folds: Sequence[Fold], best: Tried) -> list[NeighbourCorrelation]:
        """Of rows dealt one by one; where groups were given, what goes together has been said."""
        if self._groups is not None:
            return []
        pairs = ((fold, imputed_by(model, fold, by_row=False)) for fold, model in zip(folds, best.fits, strict=True))
        return neighbour_correlations(pairs, self._data.num_instances, self._seed)

    def _final(self, setting: Setting, options: Mapping[str, Any], starts: Sequence[LinearGaussian]) -> FitResult:
        """The fit to all rows, in the units of the scaling, loaded in the data's own; the best of several starts."""
        data = self._scaled if isinstance(self._scaled, MultimodalData) else self._scaled.total
        noise: Any = setting.noise
        found = []
        for start in ({}, *({"start": lg} for lg in starts)):
            of_model = {"dtype": self._model.dtype, "noise_rank": setting.noise_rank, "batch": self._effects}
            working = SharedLatentModel(self._model.dims, setting.latent_dim, noise, **of_model)  # type: ignore[arg-type]
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
        learned = best.model.batch
        if self._effects is not None:  # the model's own, which intervals look at
            self._effects.load(learned.names, self._scaling.unscaled_moves(learned.moves), self._model.dtype)
        return self._in_own_units(best, options)

    def _final_of_family(self, setting: Setting, options: Mapping[str, Any]) -> FitResult:
        """The same with a prior of another family, by the closed-form EM of that; it starts from the data alone."""
        assert isinstance(self._scaled, MultimodalData)
        served = {field.name for field in fields(CommonOptions)}
        options = {"tolerance": _TOLERANCE, **{key: value for key, value in options.items() if key in served}}
        working = model_of(self._model.dims, setting, self._seed, self._model.dtype)
        found = fit_settled(working, self._scaled, seed=self._seed, **options)
        noise: Any = "diagonal" if self._scaling.divisors else setting.noise
        structure: Any = working.structure()
        self._model.settle(setting.latent_dim, noise, prior_of(setting, self._seed, self._model.dtype))
        self._model.load(self._scaling.unscaled_structure(structure))
        return self._in_own_units(found, options)

    def _in_own_units(self, found: FitResult, options: Mapping[str, Any]) -> FitResult:
        """A fit to scaled rows as one of the model to the rows as they are."""
        volume = self._scaling.log_volume(self._data)
        return replace(
            found,
            model=self._model,
            options=FrozenMapping(dict(options)),
            log_likelihood=found.log_likelihood - volume,
            objective=found.objective - volume,
            rows_of_fit=remember_rows(self._model, self._data),  # not the rows in the units of the scaling
        )


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


def _linked(data: MultimodalData | FoldedStatistics) -> int:
    """Number of instances that have two modalities or more."""
    if isinstance(data, MultimodalData):
        return int((data.observed_mask.sum(1) > 1).sum())
    return int(sum(float(s[-1, -1]) for fold in data.folds for p, s in fold.scatters.items() if sum(p) > 1))


def _unscorable(scorable: int) -> str:
    """Why nothing can be held out, in words; empty if it can."""
    if scorable == 0:
        return "no instance has two modalities, so that no imputation can be compared with the truth"
    if scorable < _LEAST_ROWS:
        return f"only {scorable} instances have two modalities"
    return ""
