"""Rows that a model was fitted to, remembered by hashes, so that what is said to be held out can be checked.

Of each modality every row is hashed, over up to 64 of its features: mantissa to 24 bits and exponent, so that float32
and float64 of the same numbers agree. Of many rows only a share of the hashes is kept, chosen by their own last bits,
at most about 65,000 a modality. Rows may coincide by chance, as those of labels do: by Good's estimate a new row equals
one of n old ones with probability 1 - (rows that occur once) / n, and what goes beyond that is told.

Source: Good, The population frequencies of species and the estimation of population parameters (1953).
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from calmrl_prob._support.warnings import level_of_caller
from calmrl_prob.data import MultimodalData
from calmrl_prob.errors import ArgumentError, ReliabilityWarning
from calmrl_prob.inference.feature_names import aligned
from calmrl_prob.posteriors.posterior import PosteriorResult

#: Features of a modality that are hashed, rows at a time, and hashes kept of a modality, all at most.
_MOST_FEATURES, _CHUNK, _MOST_HASHES = 64, 2**16, 2**16
#: Share of rows that coincide by chance from which on a modality tells nothing.
_MUCH_CHANCE = 0.9
#: Share of seen rows beyond which held-out rows are not held out, and below which those of a fit are others.
_SOME, _NEARLY_ALL = 0.02, 0.9
#: Rows of a posterior that are hashed, at most.
_SAMPLED = 16
#: Standard errors by which a share has to exceed what chance makes.
_ERRORS = 4.0


@dataclass(frozen=True, eq=False)
class SeenModality:
    """Hashes of one modality's rows.

    Attributes:
        hashes: (H,) uint64, distinct, ascending.
        mask: only hashes that have none of its bits are kept.
        chance: share of new rows that would be among them by chance.
        width: D_m.
    """

    hashes: NDArray[np.uint64]
    mask: int
    chance: float
    width: int


@dataclass(frozen=True, eq=False)
class SeenRows:
    """Rows that a model was fitted to.

    Attributes:
        modalities: hashes of each modality.
        num_instances: N.

    Example:
        >>> x = np.random.default_rng(0).normal(size=(40, 3))
        >>> seen = SeenRows.of(MultimodalData({"x": x[:20]}))
        >>> seen.share(MultimodalData({"x": x[10:30].astype("f4")})), seen.share(MultimodalData({"x": x[20:]}))
        (0.5, 0.0)
    """

    modalities: Mapping[str, SeenModality]
    num_instances: int

    @classmethod
    def of(cls, data: MultimodalData) -> SeenRows:
        """Hash the rows of data."""
        found = {}
        for name in data.names:
            hashes = _hashes(data, name)
            mask = (1 << max(0, math.ceil(math.log2(max(len(hashes), 1) / _MOST_HASHES)))) - 1
            kept, counts = np.unique(hashes[(hashes & np.uint64(mask)) == 0], return_counts=True)
            chance = 1 - float((counts == 1).sum()) / max(int(counts.sum()), 1)
            found[name] = SeenModality(kept, mask, chance, data.dims[name])
        return cls(found, len(data))

    def share(self, data: MultimodalData) -> float | None:
        """Share of the rows of data that were seen, by the modality with the least; None where nothing tells."""
        shares = []
        for name, seen in self.modalities.items():
            if seen.chance > _MUCH_CHANCE or name not in data or data.dims[name] != seen.width:
                continue
            hashes = _hashes(data, name)
            hashes = hashes[(hashes & np.uint64(seen.mask)) == 0]
            if len(hashes) == 0:
                continue
            found = float(np.isin(hashes, seen.hashes).mean())
            error = math.sqrt(seen.chance * (1 - seen.chance) * (1 / len(hashes) + 1 / max(len(seen.hashes), 1)))
            told = found - seen.chance > _ERRORS * error
            shares.append((found - seen.chance) / (1 - seen.chance) if told else 0.0)
        return min(shares, default=None)


@dataclass(frozen=True, eq=False)
class SampledRows:
    """Some instances that a posterior was found for, by which those it is asked about are known to be the same.

    They are kept as they were, and hashed when they are compared: a posterior of one row is not to wait for that.

    Attributes:
        kept: for each modality the numbers of rows that have it, (n,), and up to 64 of their features; none where some
            of the rows lack single features.

    Example:
        >>> x = np.random.default_rng(0).normal(size=(40, 3))
        >>> rows = SampledRows.of(MultimodalData({"x": x}))
        >>> rows.other(MultimodalData({"x": x.astype("f4")})), rows.other(MultimodalData({"x": x[::-1].copy()}))
        (None, ('x', 0))
    """

    kept: Mapping[str, tuple[NDArray[np.int64], NDArray[np.float64]]]

    @classmethod
    def of(cls, data: MultimodalData) -> SampledRows:
        """Keep some rows of data, evenly spaced."""
        number = len(data)
        few = number <= _SAMPLED
        rows = np.arange(number) if few else np.unique(np.linspace(0, number - 1, _SAMPLED).round().astype(np.int64))
        some = data if few else data.subset(torch.from_numpy(rows).to(data.device))
        names = () if some.has_partial_rows else some.names
        present = {name: some.observed(name) for name in names}
        return cls({name: (rows[own.cpu().numpy()], _looked_at(some[name][own])) for name, own in present.items()})

    def other(self, data: MultimodalData) -> tuple[str, int] | None:
        """A modality and row that the data have otherwise, of those that both have; None where there is none."""
        found = SampledRows.of(data).kept
        for name in self.kept.keys() & found.keys():
            (rows, values), (given, new) = self.kept[name], found[name]
            _, mine, theirs = np.intersect1d(rows, given, return_indices=True)
            differ = _hashed(values[mine]) != _hashed(new[theirs])
            if differ.any():
                return name, int(rows[mine[differ][0]])
        return None


def require_rows(result: PosteriorResult, data: MultimodalData) -> MultimodalData:
    """The data, with the modalities of a posterior in its order, if they are the instances that it was found for.

    Raises:
        ArgumentError: they are others, or in another order, as far as some rows show.
        SchemaError: they have other modalities or features.
    """
    if len(data) != len(result.mean):
        raise ArgumentError(f"data: expected the {len(result.mean)} instances of the posterior, got {len(data)}.")
    data = data.conform(result.dims)
    other = result.rows.other(data) if isinstance(result.rows, SampledRows) else None
    if other is not None:
        raise ArgumentError(
            f"data: row {other[1]} of modality {other[0]!r} is another one than the posterior was found for; pass the "
            "same instances in the same order, or the model instead of its posterior."
        )
    return data


def remember_rows(model: Any, data: object) -> SeenRows | None:  # noqa: ANN401 - whatever was fitted
    """The rows that a model was fitted to, kept as ``model.rows_of_fit`` where that can be; None of statistics."""
    seen = SeenRows.of(data) if isinstance(data, MultimodalData) else None
    try:
        model.rows_of_fit = seen
    except (AttributeError, TypeError):
        return seen
    return seen


def share_of_seen(model: Any, data: MultimodalData) -> float | None:  # noqa: ANN401 - whatever impute takes
    """Share of rows that a model, or the model of a fit, was fitted to; None where that is not known."""
    owner = getattr(model, "model", model)
    seen = getattr(owner, "rows_of_fit", None) or getattr(model, "rows_of_fit", None)
    # columns in another order are the same rows
    return seen.share(aligned(model, data)) if isinstance(seen, SeenRows) else None


def warn_if_seen(model: object, data: MultimodalData) -> None:
    """Warn where rows that are taken as held out were among those of the fit.

    Warns:
        ReliabilityWarning: they were; says how many, and what to do.
    """
    share = share_of_seen(model, data)
    if share is not None and share > _SOME:
        warnings.warn(
            f"data: about {share:.0%} of these {len(data)} instances are among those that the model was fitted to, of "
            "which it knows the answer, so that errors are too small and what is learned from them holds for no other "
            "instance. Give instances that it was not fitted to; or pass folds=5 (to cal.recalibrate method='cv' or "
            "'cv+'), which fits it anew without those that it imputes.",
            ReliabilityWarning,
            stacklevel=level_of_caller(),
        )


def warn_if_not_seen(model: object, data: MultimodalData, method: str) -> None:
    """Warn where rows that are taken as those of the fit are others.

    Warns:
        ReliabilityWarning: they are; says how many, and what to do.
    """
    share = share_of_seen(model, data)
    if share is not None and share < _NEARLY_ALL:
        warnings.warn(
            f"calibration: method {method!r} takes the instances that the model was fitted to, but only about "
            f"{share:.0%} of these {len(data)} are, so that models of the folds err differently than this one. Give "
            "the instances of the fit, or recalibrate by method='conformal', which is for others.",
            ReliabilityWarning,
            stacklevel=level_of_caller(),
        )


def _hashes(data: MultimodalData, name: str) -> NDArray[np.uint64]:
    """One hash for each row that has a modality, (n,)."""
    rows = data.observed(name).nonzero().squeeze(1)
    out = [_hashed(_looked_at(data[name][chunk])) for chunk in rows.split(_CHUNK)]
    return np.concatenate([np.empty(0, np.uint64), *out])


def _looked_at(values: Tensor) -> NDArray[np.float64]:
    """Up to 64 features of rows (n, D), copied."""
    width = values.shape[1]
    if width > _MOST_FEATURES:
        values = values[:, np.unique(np.linspace(0, width - 1, _MOST_FEATURES).round().astype(np.int64))]
    return values.detach().cpu().numpy().astype(np.float64)


def _hashed(values: NDArray[np.float64]) -> NDArray[np.uint64]:
    """One hash for each row of (n, F), (n,)."""
    salt = _mixed(np.arange(1, values.shape[1] + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15))
    mantissa, exponent = np.frexp(values + 0.0)  # no negative zeros
    bits = np.ascontiguousarray(mantissa.astype(np.float32)).view(np.uint32).astype(np.uint64)
    bits = np.where(np.isnan(values), np.uint64(0x7FC00000), bits) << np.uint64(16)
    keys = bits ^ np.where(np.isnan(values), 0, exponent + 4096).astype(np.uint64)
    hashes: NDArray[np.uint64] = _mixed(_mixed(keys + salt).sum(axis=1, dtype=np.uint64))
    return hashes


def _mixed(keys: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Each number as another, all bits stirred: the finaliser of SplitMix64 (Steele, Lea & Flood, 2014)."""
    keys = (keys ^ (keys >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    keys = (keys ^ (keys >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: NDArray[np.uint64] = keys ^ (keys >> np.uint64(31))
    return mixed
