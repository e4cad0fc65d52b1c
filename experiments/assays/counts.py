"""Counts as counts against log-normalised counts as normals: ``models/counts.py`` in ``experiments.medicine``."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

import calmrl_prob as cal
from calmrl_prob.data import MultimodalData
from calmrl_prob.errors import CalmrlWarning
from experiments.comparison.imputers import Array, values
from experiments.default_choice.measures import explained_share
from experiments.default_choice.references import timed
from models.counts import Counts

FAMILIES = ("poisson", "negative_binomial")
#: SVI at one rate, until a round gains less: chosen on training rows of pbmc_mosaic.
_SVI = {"learning_rate": 0.05, "patience": 1, "tolerance": 0.01}
#: Draws of imputed counts.
_DRAWS = 200
#: Probability of a count that is taken at the least.
_LEAST_MASS = 1e-12


@dataclass(frozen=True)
class CountOptions:
    """Settings of the comparison.

    Attributes:
        features: of each assay those with the largest variance of log-normalised counts; all of them are too slow.
        latent_dim: K of all.
        max_iterations: rounds of SVI at most, at a rate that is given, since finding one takes as long as the fit.
    """

    features: int = 60
    latent_dim: int = 8
    max_iterations: int = 15


def compare_counts(data: MultimodalData, seed: int, options: CountOptions) -> list[dict[str, Any]]:
    """Fit all three to the same training rows, and impute each assay of the same test rows from the other.

    Args:
        data: log-normalised, with the counts as covariates counts_<assay>, -1 where absent, and classes.
        seed: parts the rows.
        options: settings.

    Returns:
        family; assay; R2 of log-normalised counts; coverage, percent, of 90% intervals of the counts themselves at the
        depth that the cell was read with; score, the mean log probability of a count, nats; seconds of CPU.
    """
    train, test = _parted(_counted(data, options.features), seed)
    out = []
    for family in ("log-normal", *FAMILIES):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", CalmrlWarning)
            fit, seconds = timed(lambda f=family: _fit(f, train, seed, options))
            rows = [_score(family, fit, train, test, name) for name in train.names]
        out += [{"family": family, "seed": seed, **row, "seconds": seconds} for row in rows]
    return out


def _counted(data: MultimodalData, features: int) -> MultimodalData:
    """The counts of some features, with the depth of each cell in thousands of counts as exposure."""
    counts, exposure = {}, {}
    for name in data.names:
        whole = np.asarray(data.covariates[f"counts_{name}"], dtype=np.float64)
        whole[whole[:, 0] < 0] = np.nan
        chosen = np.sort(np.nanvar(values(data, name), axis=0).argsort()[::-1][:features])
        depth = whole.sum(1)
        exposure[f"exposure_{name}"] = np.where(np.isnan(depth), np.nanmedian(depth), depth) / 1e3
        counts[name] = torch.from_numpy(whole[:, chosen])
    return MultimodalData(counts, labels=data.labels, covariates=exposure)


def _parted(data: MultimodalData, seed: int) -> tuple[MultimodalData, MultimodalData]:
    train, test = data.split(0.75, seed=seed, stratify=True)
    return train, test.subset(test.complete_rows())


def _normalised(data: MultimodalData, name: str) -> Array:
    """log(1 + counts of a thousand), (N, D)."""
    found: Array = np.log1p(values(data, name) / np.asarray(data.covariates[f"exposure_{name}"])[:, None])
    return found


def _logged(data: MultimodalData) -> MultimodalData:
    return MultimodalData({n: torch.from_numpy(_normalised(data, n)) for n in data.names}, empty="refuse")


def _fit(family: str, train: MultimodalData, seed: int, options: CountOptions) -> Any:  # noqa: ANN401
    if family == "log-normal":
        model = cal.SharedLatentModel(train.dims, options.latent_dim, "diagonal")
        return cal.fit(model, _logged(train), seed=seed, loadings_prior="ard", tolerance=1e-5)
    counts = Counts(train.dims, options.latent_dim, family, seed=seed)  # type: ignore[arg-type]
    return cal.fit(counts, train, seed=seed, max_iterations=options.max_iterations, **_SVI)


def _score(family: str, fit: Any, train: MultimodalData, test: MultimodalData, name: str) -> dict[str, Any]:  # noqa: ANN401
    truth, counts = _normalised(test, name), values(test, name)
    others = test.select([other for other in test.names if other != name])
    depth = np.asarray(test.covariates[f"exposure_{name}"])[:, None]
    if family == "log-normal":
        found = _of_logs(fit, _logged(others), name, counts, depth)
    else:
        found = _of_counts(fit.model, others, name, counts, depth)
    inside = (found.low <= counts) & (counts <= found.high)
    return {
        "assay": name,
        "R2": explained_share(truth, found.mean, np.nanmean(_normalised(train, name), axis=0)),
        "coverage": 100.0 * float(inside.mean()),
        "score": float(found.score.mean()),
    }


@dataclass(frozen=True)
class _Predicted:
    """Of counts (N, D): mean of their logarithms, ends of intervals of the counts, and log probabilities."""

    mean: Array
    low: Array
    high: Array
    score: Array


def _of_logs(fit: Any, others: MultimodalData, name: str, counts: Array, depth: Array) -> _Predicted:  # noqa: ANN401
    imputed = cal.impute(fit, others, [name])
    low, high = (depth * np.expm1(end.numpy()) for end in imputed.interval(0.9)[name])
    return _Predicted(imputed.mean[name].numpy(), low, high, log_mass(imputed.predictive[name], counts, depth))


def log_mass(predictive: Any, counts: Array, depth: Array) -> Array:  # noqa: ANN401 - has a cdf
    """Log probability (N, D) of the counts as a normal of log(1 + x / depth) has it.

    Each takes what falls to half a unit to either side of it, 0 all that is below.
    """
    ends = [torch.from_numpy(np.log1p(np.maximum(counts + half, 0) / depth)) for half in (-0.5, 0.5)]
    below, above = (predictive.cdf(end).double().numpy() for end in ends)
    found: Array = np.log(np.maximum(above - np.where(counts > 0, below, 0.0), _LEAST_MASS))
    return found


def _of_counts(model: Counts, others: MultimodalData, name: str, counts: Array, depth: Array) -> _Predicted:
    imputed = cal.impute(model, others, [name], max_iterations=0)  # normals at the modes, corrected by weights
    score = imputed.predictive[name].log_density(torch.from_numpy(counts)).numpy()
    # the mean of log(1 + x) over draws is what squared error of the logarithm asks for; quantiles are of draws too,
    # since those of a mixture of negative binomials take longer than the fit
    draws = imputed.sample(_DRAWS, seed=0)[name].numpy()
    low, high = np.quantile(draws, [0.05, 0.95], axis=0, method="inverted_cdf")
    return _Predicted(np.log1p(draws / depth).mean(0), low, high, score)
