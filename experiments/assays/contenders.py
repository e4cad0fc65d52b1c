"""Contenders of ``experiments.medicine``: each fits training rows and imputes assays of others."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

import calmrl_prob as cal
from calmrl_prob.data import MultimodalData
from experiments.assays.cohorts import Hidden
from experiments.assays.peers import fit_mofaflex, mofaflex_is_there
from experiments.comparison.imputers import Array, has, values
from experiments.default_choice.mofa import fit_mofa, mofa_is_there
from experiments.default_choice.ridge import RidgeOfPairs

#: Latents of the fit that chooses nothing, as many as mofapy2 starts from, and where it stops: of prior, noise and
#: tolerance these were best on training rows of pbmc_mosaic, of which it was a fifth that was imputed.
_FACTORS, _TOLERANCE = 10, 3e-4
#: Share of the training rows that it keeps to set its intervals by.
_KEPT_SHARE = 0.2


@dataclass(frozen=True)
class Imputed:
    """An assay as imputed: its mean (n, D), and its 90% intervals where there are some."""

    mean: Array
    low: Array | None = None
    high: Array | None = None


#: From test rows without an assay, and its name, to what is imputed.
Impute = Callable[[MultimodalData, str], Imputed]


@dataclass(frozen=True)
class Contender:
    """A way to impute.

    Attributes:
        fit: from what is hidden, and a seed, to how assays are imputed, and the fit itself where it is this package's.
        batches: whether it is only of cohorts with batches.
        lacking: why it cannot run here, in words; empty if it can.
        first_seeds: seeds that it is run for at most; None for all.
    """

    fit: Callable[[Hidden, int], tuple[Impute, Any]]
    batches: bool = False
    lacking: Callable[[], str] = lambda: ""
    slow: bool = False


def _by(model: Any, **options: Any) -> Impute:  # noqa: ANN401 - whatever cal.impute takes
    def impute(rows: MultimodalData, name: str) -> Imputed:
        found = cal.impute(model, rows, [name], **options)
        low, high = found.interval(0.9)[name]
        return Imputed(found.mean[name].double().numpy(), low.double().numpy(), high.double().numpy())

    return impute


def _default(effects: Callable[[Hidden], Any]) -> Callable[[Hidden, int], tuple[Impute, Any]]:
    def fit(hidden: Hidden, seed: int) -> tuple[Impute, Any]:
        train = hidden.task.train
        found = cal.fit(cal.SharedLatentModel(train.dims, batch=effects(hidden)), train, seed=seed)
        return _by(found), found

    return fit


def _fast(hidden: Hidden, seed: int) -> tuple[Impute, Any]:
    train, kept = hidden.task.train.split(1.0 - _KEPT_SHARE, seed=seed, stratify=True)
    # a rare gene may be constant in the rows that are left, and has no noise variance of its own then
    moving = all(bool((np.ptp(values(train, name)[has(train, name)], axis=0) > 0).all()) for name in train.names)
    model = cal.SharedLatentModel(train.dims, _FACTORS, "diagonal" if moving else "isotropic", batch=hidden.batch)
    found = cal.fit(model, train, seed=seed, loadings_prior="ard", tolerance=_TOLERANCE)
    linked = kept.subset((kept.observed_mask.sum(1) > 1).numpy())
    intervals = cal.recalibrate(found, linked, by_feature=False, seed=seed)
    return _by(found, recalibrated=intervals), found


def _mofapy2(hidden: Hidden, seed: int) -> tuple[Impute, Any]:
    del seed  # it starts from the data
    return _by(fit_mofa(hidden.task.train, _FACTORS)), None


def _mofaflex(hidden: Hidden, seed: int) -> tuple[Impute, Any]:
    return _by(fit_mofaflex(hidden.task.train, _FACTORS, seed=seed)), None


def _ridge(hidden: Hidden, seed: int) -> tuple[Impute, Any]:
    del seed
    ridge = RidgeOfPairs.fit(hidden.task.train)
    return lambda rows, name: Imputed(ridge.predict(rows, [n for n in rows.names if n != name], name)), None


def _mean(hidden: Hidden, seed: int) -> tuple[Impute, Any]:
    del seed
    centre = hidden.task.centre
    return lambda rows, name: Imputed(np.broadcast_to(centre[name], (len(rows), len(centre[name])))), None


CONTENDERS = {
    "default": Contender(_default(lambda _: None)),
    "default, batch": Contender(_default(lambda hidden: hidden.batch), batches=True),
    "default, batch and scale": Contender(
        _default(lambda hidden: cal.BatchEffects(str(hidden.batch), scale=True)), batches=True
    ),
    "fast": Contender(_fast),
    "ridge": Contender(_ridge),
    "mofapy2": Contender(_mofapy2, lacking=lambda: "" if mofa_is_there() else "mofapy2 is not installed"),
    "mofaflex": Contender(
        _mofaflex, lacking=lambda: "" if mofaflex_is_there() else "mofaflex is not installed", slow=True
    ),
    "mean": Contender(_mean),
}
