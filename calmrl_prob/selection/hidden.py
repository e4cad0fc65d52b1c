"""Held-out rows of which a modality, or some of its features, are hidden, and their imputation by any number of models.

What is hidden, and what is seen in its place, depends on the rows alone: found once, it serves all settings of a
choice.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from calmrl_prob.data import MultimodalData
from calmrl_prob.linear_gaussian import FeatureBlocks, LinearGaussian, ObservedBlocks, posterior
from calmrl_prob.selection.held_out import OWN_PART, HeldOutSums

#: Of a modality's features one in so many is hidden to see how single ones are imputed.
_HIDDEN_EVERY = 3


@dataclass(frozen=True, eq=False)
class HeldOutRows:
    """Held-out instances of one pattern, one modality being hidden and imputed from the others.

    Attributes:
        modality: what was hidden.
        seen: the modalities that it was imputed from.
        truth: (n, D_m); NaN where single features are missing.
        imputed: (n, D_m).
        variance: (n, D_m), that the model states, or (D_m,), where it is one for all or their mean was asked for.
        rows: (n,) numbers of the instances.
    """

    modality: str
    seen: tuple[str, ...]
    truth: Tensor
    imputed: Tensor
    variance: Tensor
    rows: Tensor

    def sums(self, centre: Tensor) -> HeldOutSums:
        """Sums over the instances."""
        there = self.truth.isfinite()
        deviation = torch.where(there, self.truth - centre, 0)
        imputed = torch.where(there, self.imputed - centre, 0)
        count = there.sum(0).to(deviation)
        variance = self.variance if self.variance.ndim == 1 else self.variance.mean(0)
        return HeldOutSums(
            self.modality,
            self.seen,
            count,
            (deviation - imputed).square().sum(0),
            deviation.square().sum(0),
            (deviation * imputed).sum(0),
            variance,
        )


@dataclass(frozen=True, eq=False)
class Hidden:
    """Instances of which one modality, or some of its features, are hidden, whatever model is to impute them.

    Attributes:
        modality: which.
        given: the modalities of the model that it is imputed from.
        shown: what the instances have of these.
        truth: (n, D_m), NaN where nothing is hidden.
        rows: (n,) numbers of the instances.
        kinds: the modalities seen and, for each combination, the places (k,) among the instances.
    """

    modality: str
    given: tuple[str, ...]
    shown: ObservedBlocks | FeatureBlocks
    truth: Tensor
    rows: Tensor
    kinds: tuple[tuple[tuple[str, ...], Tensor], ...]

    def imputed_by(self, lg: LinearGaussian, *, by_row: bool) -> Iterator[HeldOutRows]:
        """Imputations, for each combination of modalities seen, with variances of each instance or their mean."""
        given = posterior(lg.select(self.given), self.shown)
        loadings, noise = lg.loadings[self.modality], lg.noise_variance[self.modality]
        imputed = given.mean @ loadings.mT + lg.intercepts[self.modality]
        by_pattern = given.feature_variance(loadings) + noise if by_row else None
        truth = self.truth.to(imputed)
        for seen, own in self.kinds:
            patterns = given.pattern_index[own]
            if by_pattern is None:
                variance = given.mean_feature_variance(loadings, patterns) + noise
            else:
                variance = by_pattern[patterns[0]] if bool((patterns == patterns[0]).all()) else by_pattern[patterns]
            yield HeldOutRows(self.modality, seen, truth[own], imputed[own], variance, self.rows[own])


def hidden_parts(data: MultimodalData) -> Iterator[Hidden]:
    """Every modality hidden from the rows that have it and others.

    Of data that lack single features, some features of each besides, to be imputed from the rest of their modality too.
    """
    if data.has_partial_rows:
        yield from _hidden_features(data)
    for name in data.names:
        others = [other for other in data.names if other != name]
        if not others:
            continue
        observed = torch.stack([data.observed(other) for other in others], dim=1)
        rows = (data.observed(name) & observed.any(1)).nonzero().squeeze(1)
        if not len(rows):
            continue
        chosen = data.subset(rows.cpu().numpy())
        kinds, kind = observed[rows].unique(dim=0, return_inverse=True)
        seen = (tuple(o for o, here in zip(others, which, strict=True) if here) for which in kinds.tolist())
        places = [(names, (kind == k).nonzero().squeeze(1)) for k, names in enumerate(seen)]
        yield Hidden(name, tuple(others), chosen.select(others).blocks, chosen[name], rows, tuple(places))


def _hidden_features(data: MultimodalData) -> Iterator[Hidden]:
    """Every third feature of each modality hidden from the others, those of its own modality included.

    The same features are hidden in all rows, so that columns that are seen together stay so.
    """
    for name, width in data.dims.items():
        if width < _HIDDEN_EVERY:
            continue
        hidden = torch.zeros(width, dtype=torch.bool, device=data.device)
        hidden[1::_HIDDEN_EVERY] = True
        truth = torch.where(data.feature_mask(name) & hidden, data[name], torch.nan)
        shown = data[name].clone()
        shown[:, hidden] = torch.nan
        rows = (truth.isfinite().any(1) & shown.isfinite().any(1)).nonzero().squeeze(1)
        if not len(rows):
            continue
        part = MultimodalData({n: (shown if n == name else data[n])[rows] for n in data.names}, missing="features")
        places = torch.arange(len(rows), device=rows.device)
        yield Hidden(name, data.names, part.blocks, truth[rows], rows, (((OWN_PART,), places),))


def imputed_rows(
    lg: LinearGaussian, data: MultimodalData | Iterable[Hidden], *, by_row: bool = True
) -> Iterator[HeldOutRows]:
    """Imputations of held-out rows, for each modality and each pattern of others that they have.

    Args:
        lg: the model.
        data: the held-out rows, with the modalities of the model; or what is hidden of them.
        by_row: whether variances are of each instance; else their mean, which costs far less where single features are
            missing and nearly every instance has a pattern of its own.
    """
    parts = hidden_parts(data) if isinstance(data, MultimodalData) else data
    return (rows for part in parts for rows in part.imputed_by(lg, by_row=by_row))
