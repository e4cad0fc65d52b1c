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

#: What mofapy2 and mofaflex start from; twice as many are no better on training rows of pbmc_mosaic, and take longer.
_FACTORS = 10
#: The fit that chooses nothing: latents, rows of its prior and tolerance, best of some on training rows of pbmc_mosaic.
_FAST_LATENTS, _FAST_OPTIONS = 20, {"pseudo_rows": 200, "tolerance": 1e-2}
#: Share of the training rows with several assays that it keeps to set its intervals by; so many at the least, of which
#: quantiles can be told, or half of them.
_KEPT_SHARE, _LEAST_KEPT = 0.15, 40


@dataclass(frozen=True)
class Imputed:
    """An assay as imputed: its mean (n, D), and its 90% intervals where there are some."""

    mean: Array
    low: Array | None = None
    high: Array | None = None


#: From test rows without an assay, and its name, to what is imputed.
Impute = Callable[[MultimodalData, str], Imputed]
#: From rows to the means of their latents (n, K).
Places = Callable[[MultimodalData], Array]


@dataclass(frozen=True)
class Fitted:
    """A contender that has seen training rows.

    Attributes:
        impute: how assays are imputed.
        places: the latents of rows, where it has such.
        fit: of this package, where it is.
    """

    impute: Impute
    places: Places | None = None
    fit: Any = None


@dataclass(frozen=True)
class Contender:
    """A way to impute.

    Attributes:
        fit: from what is hidden, and a seed.
        batches: whether it is only of cohorts with batches.
        lacking: why it cannot run here, in words; empty if it can.
    """

    fit: Callable[[Hidden, int], Fitted]
    batches: bool = False
    lacking: Callable[[], str] = lambda: ""


def _by(model: Any, fit: Any = None, **options: Any) -> Fitted:  # noqa: ANN401 - whatever cal.impute takes
    def impute(rows: MultimodalData, name: str) -> Imputed:
        found = cal.impute(model, rows, [name], **options)
        low, high = found.interval(0.9)[name]
        return Imputed(found.mean[name].double().numpy(), low.double().numpy(), high.double().numpy())

    def places(rows: MultimodalData) -> Array:
        found: Array = cal.posterior(model, rows).mean.double().numpy()
        return found

    return Fitted(impute, places, fit)


def _default(effects: Callable[[Hidden], Any]) -> Callable[[Hidden, int], Fitted]:
    def fit(hidden: Hidden, seed: int) -> Fitted:
        train = hidden.task.train
        found = cal.fit(cal.SharedLatentModel(train.dims, batch=effects(hidden)), train, seed=seed)
        return _by(found, found)

    return fit


def _fast(hidden: Hidden, seed: int) -> Fitted:
    train, kept = kept_apart(hidden.task.train, hidden.batch, seed)
    # a rare gene may be constant in the rows that are left, and has no noise variance of its own then
    moving = all(bool((np.ptp(values(train, name)[has(train, name)], axis=0) > 0).all()) for name in train.names)
    latent_dim = min(_FAST_LATENTS, sum(train.dims.values()) - 1)
    model = cal.SharedLatentModel(train.dims, latent_dim, "diagonal" if moving else "isotropic", batch=hidden.batch)
    found = cal.fit(model, train, seed=seed, **_FAST_OPTIONS)
    return _by(found, found, recalibrated=cal.recalibrate(found, kept, by_feature=False, seed=seed))


def kept_apart(train: MultimodalData, batch: str | None, seed: int) -> tuple[MultimodalData, MultimodalData]:
    """Rows to fit to, and a share of those with several assays, which can be hidden, and with others of their batch."""
    linked = (train.observed_mask.sum(1) > 1).numpy()
    order = np.random.default_rng(seed).permutation(np.flatnonzero(linked))
    kept = order[: min(max(round(_KEPT_SHARE * len(order)), _LEAST_KEPT), len(order) // 2)]
    left = np.setdiff1d(np.arange(len(train)), kept)
    if batch is not None:
        alone = ~np.isin(train.covariates[batch][kept], train.covariates[batch][left])
        left, kept = np.sort(np.concatenate([left, kept[alone]])), kept[~alone]
    return train.subset(left), train.subset(np.sort(kept))


def _mofapy2(hidden: Hidden, seed: int) -> Fitted:
    del seed  # it starts from the data
    return _by(fit_mofa(hidden.task.train, _FACTORS))


def _mofaflex(hidden: Hidden, seed: int) -> Fitted:
    return _by(fit_mofaflex(hidden.task.train, _FACTORS, seed=seed))


def _ridge(hidden: Hidden, seed: int) -> Fitted:
    del seed
    ridge = RidgeOfPairs.fit(hidden.task.train)
    return Fitted(lambda rows, name: Imputed(ridge.predict(rows, [n for n in rows.names if n != name], name)))


def _mean(hidden: Hidden, seed: int) -> Fitted:
    del seed
    centre = hidden.task.centre
    return Fitted(lambda rows, name: Imputed(np.broadcast_to(centre[name], (len(rows), len(centre[name])))))


CONTENDERS = {
    "default": Contender(_default(lambda _: None)),
    "default, batch": Contender(_default(lambda hidden: hidden.batch), batches=True),
    "default, batch and scale": Contender(
        _default(lambda hidden: cal.BatchEffects(str(hidden.batch), scale=True)), batches=True
    ),
    "fast": Contender(_fast),
    "ridge": Contender(_ridge),
    "mofapy2": Contender(_mofapy2, lacking=lambda: "" if mofa_is_there() else "mofapy2 is not installed"),
    "mofaflex": Contender(_mofaflex, lacking=lambda: "" if mofaflex_is_there() else "mofaflex is not installed"),
    "mean": Contender(_mean),
}
