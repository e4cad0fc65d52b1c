"""The criterion: how well a setting imputes whole modalities of held-out rows, by squared error and by log score.

For each modality, over held-out rows and the modalities that they were imputed from, about the mean of training rows:

    R^2    = 1 - sum (x - imputed)^2 / sum (x - mean)^2
    R_log  = 1 - exp(-2 G),   G = mean over features of log p(x | others) - log N(x; mean, variance), nats

R_log is the same share in terms of log score (Cox & Snell, Analysis of Binary Data, 1989, whose R^2 it is): equal to
R^2 for one feature with a normal error of the right size. The log score is that of variances put right feature by
feature, as the intervals of a fit are, so that neither a setting that claims too much nor one that claims too little is
charged for what is mended anyway: G = 1/2 mean over features of log (sum (x - mean)^2 / sum (x - imputed)^2), for each
pattern of others; where predictives are not normal it is that of their densities, their variances put right alike. The
score is 3/4 R^2 + 1/4 R_log, mean over modalities: squared error is what imputations are judged by, in the units of the
modality; the other does not depend on units, and keeps small features from being forgotten.

The evidence of held-out rows is not used: how features of one modality go together outweighs there what modalities tell
of each other, and fits whose imputations are worse than the mean have had the best of it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from calmrl_prob.selection.folds import Fold
from calmrl_prob.selection.held_out import OWN_PART, HeldOutSums

#: Weight of R^2 against R_log.
_SQUARED = 0.75
#: Variances up to this share of the modality's count as none.
_TINY = 1e-9


@dataclass(frozen=True)
class Score:
    """The score of one setting on one fold, or on all.

    Attributes:
        value: the mean over modalities of 3/4 R^2 + 1/4 R_log; higher is better.
        r2: by modality.
        log_score: G by modality, nats a feature gained over the mean.
        calibration: by modality the mean squared standardised error: 1 where variances are right.
        retrieval: mean reciprocal rank of true partners across modalities; NaN where it was not asked for.
    """

    value: float
    r2: Mapping[str, float]
    log_score: Mapping[str, float]
    calibration: Mapping[str, float]
    retrieval: float = math.nan


def score_fold(parts: Sequence[HeldOutSums], fold: Fold, retrieval: float = math.nan) -> Score:
    """Score of the held-out rows of one fold.

    Where single features were imputed from the rest of their modality besides, that counts as much as imputing the
    modality whole; what is told by modality is of the latter.
    """
    told: dict[str, _Shares] = {}
    values = []
    for name in dict.fromkeys(part.modality for part in parts):
        spread = fold.spread[name]
        moving = spread > _TINY * float(spread.mean())  # a constant feature has no log score to gain
        own = [part for part in parts if part.modality == name]
        kinds = ([p for p in own if p.seen != (OWN_PART,)], [p for p in own if p.seen == (OWN_PART,)])
        shares = [found for found in (_shares(kind, moving) for kind in kinds) if found is not None]
        if shares:
            told[name] = shares[0]
            values.append(sum(found.value for found in shares) / len(shares))
    return Score(
        sum(values) / len(values) if values else math.nan,
        {name: found.r2 for name, found in told.items()},
        {name: found.log_score for name, found in told.items()},
        {name: found.calibration for name, found in told.items()},
        retrieval,
    )


@dataclass(frozen=True)
class _Shares:
    """R^2, G and mean squared standardised error of one modality."""

    r2: float
    log_score: float
    calibration: float

    @property
    def value(self) -> float:
        """3/4 R^2 + 1/4 R_log."""
        return _SQUARED * self.r2 + (1 - _SQUARED) * (1 - math.exp(-2 * self.log_score))


def _shares(parts: Sequence[HeldOutSums], moving: Tensor) -> _Shares | None:
    """Of the sums of one modality; None where they have nothing to compare."""
    error = sum(float(part.square_error.sum()) for part in parts)
    square = sum(float(part.square.sum()) for part in parts)
    gained, cells, standard = 0.0, 0.0, 0.0
    for part in parts:
        there = (part.count > 0) & moving
        count, errors, stated = part.count[there], part.square_error[there], part.variance[there]
        squares = part.square[there]
        least = _TINY * float(squares.mean())
        if part.log_density is None:
            gained += 0.5 * float((count * (squares.clamp(min=least) / errors.clamp(min=least)).log()).sum())
        else:  # against a normal about the mean, of the right variance
            normal = -0.5 * count * (2 * math.pi * math.e * squares.clamp(min=least) / count).log()
            gained += float((part.log_density[there] - normal).sum())
        standard += float((errors / stated).sum())
        cells += float(count.sum())
    if not cells or square <= 0:
        return None
    return _Shares(1 - error / square, gained / cells, standard / cells)


def mean_score(scores: Sequence[Score]) -> Score:
    """The mean over folds."""

    def mean(parts: Sequence[Mapping[str, float]]) -> dict[str, float]:
        names = dict.fromkeys(name for part in parts for name in part)
        found = {name: [part[name] for part in parts if name in part] for name in names}
        return {name: sum(values) / len(values) for name, values in found.items()}

    value = float(torch.tensor([score.value for score in scores]).nanmean())
    retrieval = float(torch.tensor([score.retrieval for score in scores]).nanmean())
    r2, log_score = mean([s.r2 for s in scores]), mean([s.log_score for s in scores])
    return Score(value, r2, log_score, mean([s.calibration for s in scores]), retrieval)
