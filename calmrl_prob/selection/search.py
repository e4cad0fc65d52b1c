"""The search over settings: each is fitted to all folds but one, scored on that one, from warm starts along a path."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from calmrl_prob.errors import ArgumentError, NumericalError
from calmrl_prob.linear_gaussian import LinearGaussian, fit_em
from calmrl_prob.selection.folds import Fold
from calmrl_prob.selection.held_out import HeldOutSums
from calmrl_prob.selection.scores import Score, mean_score, score_fold
from calmrl_prob.selection.settings import Setting

#: E-steps of a fit of the search, from the data and from a neighbour's parameters; what differs after is far below
#: what settings differ by.
_COLD, _WARM = 40, 12
#: From the data with more latents than these, where a step costs much and the start is close.
_MANY, _COLD_MANY = 64, 25
#: Of a fit without pseudo-rows, which stopping early would shrink.
_UNSHRUNK = 200
_TOLERANCE = 1e-5
#: What a step of a climb has to gain for another to be taken.
_LEAST_GAIN = 3e-4


@dataclass(frozen=True, eq=False)
class Tried:
    """A setting that was fitted and scored.

    Attributes:
        setting: which.
        score: the mean over folds.
        folds: of each fold.
        fits: the model of each fold: a ``LinearGaussian``, or a model with a prior of another family.
        sums: what was imputed in each fold.
        seconds: that it took, CPU.
        reason: why it was tried.
    """

    setting: Setting
    score: Score
    folds: Sequence[Score]
    fits: Sequence[Any]
    sums: Sequence[Sequence[HeldOutSums]]
    seconds: float
    reason: str


#: Score of what could not be fitted.
_FAILED = Score(-math.inf, {}, {}, {}, -math.inf)


def _steps(setting: Setting, warm: bool) -> int:
    """E-steps at most."""
    if setting.ard or setting.pseudo_rows == 0:
        return _UNSHRUNK  # stopped early such fits would look better than they end
    return _WARM if warm else _COLD if setting.latent_dim <= _MANY else _COLD_MANY


def _same_form(one: Setting, other: Setting) -> bool:
    """Whether a fit of one can start from the parameters of the other."""
    kinds = [(s.latent_dim, s.noise in ("full", "low_rank"), s.noise_rank) for s in (one, other)]
    return kinds[0] == kinds[1]


class BudgetSpentError(Exception):
    """The seconds that the search may take are spent; internal to the search."""


@dataclass
class Search:
    """Settings tried so far; the best is kept with its fits.

    Attributes:
        folds: of the data.
        seed: of the fits.
        criterion: "imputation" or "retrieval": what is to be high.
        deadline: seconds of ``time.perf_counter`` after which nothing more is begun.
        callback: told of every setting tried.
        fixed: options of every fit.
        tried: all settings, in order.
    """

    folds: Sequence[Fold]
    seed: int
    criterion: str = "imputation"
    deadline: float = float("inf")
    callback: Callable[[int, float], None] | None = None
    fixed: Mapping[str, Any] = field(default_factory=dict)
    tried: dict[Setting, Tried] = field(default_factory=dict)

    @property
    def best(self) -> Tried:
        """The setting of the highest value."""
        return max(self.tried.values(), key=self.value)

    def value_of_fold(self, score: Score) -> float:
        """The number that is to be high."""
        return score.retrieval if self.criterion == "retrieval" else score.value

    def value(self, tried: Tried) -> float:
        """Value that is to be high, mean over folds."""
        values = np.array([self.value_of_fold(fold) for fold in tried.folds])
        known = values[~np.isnan(values)]  # a fold may hold nothing to compare
        return float(known.mean()) if len(known) else -math.inf

    def try_(self, setting: Setting, reason: str, near: Tried | None = None) -> Tried:
        """Fit and score a setting, from the parameters of another of as many latents if one is given.

        Raises:
            BudgetSpentError: there is no time left.
        """
        warm = near is not None and bool(near.fits) and _same_form(near.setting, setting)

        def fit(k: int) -> LinearGaussian:
            return self._fit(self.folds[k], setting, near.fits[k] if warm and near is not None else None)

        return self.scored(setting, reason, fit, lambda fold, lg: fold.sums(lg))

    def scored(
        self,
        setting: Setting,
        reason: str,
        fit: Callable[[int], Any],
        sums_of: Callable[[Fold, Any], Sequence[HeldOutSums]],
    ) -> Tried:
        """Fit and score a setting in a way of its own.

        Args:
            setting: which.
            reason: of trying it.
            fit: from the number of a fold to the model of all others.
            sums_of: from a fold and its model to sums over what was imputed.

        Raises:
            BudgetSpentError: there is no time left.
        """
        if setting in self.tried:
            return self.tried[setting]
        if time.perf_counter() > self.deadline:
            raise BudgetSpentError
        begun = time.process_time()
        fits: list[Any] = []
        scores: list[Score] = []
        sums: list[Sequence[HeldOutSums]] = []
        for k, fold in enumerate(self.folds):
            try:
                model = fit(k)
            except (NumericalError, ArgumentError) as error:  # what cannot be computed with is none to choose
                if not self.tried:
                    raise  # the first has nothing special about it: options or data are to blame
                scores, fits, sums = [_FAILED] * len(self.folds), [], []  # none is a start of others
                reason += f"; failed: {error}"
                break
            parts = sums_of(fold, model)
            fits.append(model)
            sums.append(parts)
            scores.append(score_fold(parts, fold, fold.retrieval(model) if self.criterion == "retrieval" else math.nan))
        found = Tried(setting, mean_score(scores), scores, fits, sums, time.process_time() - begun, reason)
        self.tried[setting] = found
        if self.callback is not None:
            self.callback(len(self.tried), float("nan"))
        return found

    def _fit(self, fold: Fold, setting: Setting, start: LinearGaussian | None) -> LinearGaussian:
        settings: Mapping[str, Any] = {
            **self.fixed,
            **setting.options(),
            "noise": setting.noise,
            "noise_rank": setting.noise_rank,
            "seed": self.seed,
            "tolerance": _TOLERANCE,
            "max_iterations": _steps(setting, start is not None),
        }
        return fit_em(fold.train, setting.latent_dim, start=start, **settings).linear_gaussian

    def climb(self, start: Tried, step: Callable[[Setting, int], Setting | None], reason: str, first: int = 1) -> Tried:
        """Go up along one line of settings, in the better direction, until it falls; the range has no end.

        Args:
            start: where.
            step: from a setting and a direction, +1 or -1, to the next; None at the end.
            reason: of trying them.
            first: the direction to look in first.
        """
        best = start
        for direction in (first, -first):
            here, gained = best, False
            while (following := step(here.setting, direction)) is not None:
                here = self.try_(following, reason, near=here)
                if self.value(here) <= self.value(best) + _LEAST_GAIN:
                    best = max(best, here, key=self.value)
                    break
                best, gained = here, True
            if gained:
                break  # the other direction was left on the way here
        return best
