"""Imputations of held-out instances by any fitted model: the predictive of each modality given the others."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from calmrl_prob.data import MultimodalData
from calmrl_prob.inference.posterior import posterior
from calmrl_prob.linear_gaussian import LinearGaussian
from calmrl_prob.posteriors.predictive import Predictive
from calmrl_prob.selection.folds import Fold
from calmrl_prob.selection.hidden import HeldOutRows

#: Numbers that one part may hold, times the components of its predictive.
_CHUNK = 2**20


@dataclass(frozen=True, eq=False)
class PredictedRows:
    """Held-out instances of one pattern, one modality being hidden and predicted from the others.

    Attributes:
        modality: what was hidden.
        seen: the modalities that it was predicted from.
        rows: (n,) numbers of the instances.
        truth: (n, D_m); NaN where single features are missing.
        predictive: of the same, feature by feature.
    """

    modality: str
    seen: tuple[str, ...]
    rows: np.ndarray
    truth: Tensor
    predictive: Predictive

    @property
    def log_density(self) -> Tensor:
        """(n, D_m) log p(x_nd | others), nats; NaN where a feature is missing."""
        there = self.truth.isfinite()
        found = self.predictive.log_density(torch.where(there, self.truth, self.predictive.mean))
        return torch.where(there, found, torch.nan)

    def held_out(self) -> HeldOutRows:
        """Means and variances alone."""
        mean, variance = self.predictive.mean, self.predictive.variance
        return HeldOutRows(self.modality, self.seen, self.truth, mean, variance, torch.from_numpy(self.rows))


def imputed_by(model: Any, fold: Fold, *, by_row: bool = True) -> Iterator[HeldOutRows]:  # noqa: ANN401 - whatever posterior takes
    """Imputations of a fold's rows one by one, none where there are statistics alone; see ``imputed_rows``."""
    if isinstance(model, LinearGaussian) or fold.data is None:
        return fold.imputed(model, by_row=by_row)
    return (part.held_out() for part in predicted_rows(model, fold.data))


def predicted_rows(model: Any, data: MultimodalData) -> Iterator[PredictedRows]:  # noqa: ANN401 - whatever posterior takes
    """Predictives of all instances with two modalities, for each modality and pattern of others that they have.

    Instances of one pattern come in several parts where they are many.

    Args:
        model: fitted to other instances.
        data: the held-out instances.

    Example:
        >>> from calmrl_prob.linear_gaussian import LinearGaussian
        >>> one, zero, noise = torch.ones(1, 1), torch.zeros(1), torch.tensor(1.0)
        >>> lg = LinearGaussian({"a": one, "b": one}, {"a": zero, "b": zero}, {"a": noise, "b": noise})
        >>> rows = predicted_rows(lg, MultimodalData({"a": torch.tensor([[2.0]]), "b": torch.tensor([[4.0]])}))
        >>> [(part.modality, part.seen, part.predictive.mean.item()) for part in rows]
        [('a', ('b',), 2.0), ('b', ('a',), 1.0)]
    """
    observed = {name: data.observed(name).cpu() for name in data.names}
    for name in data.names:
        others = [other for other in data.names if other != name]
        if not others:
            continue
        seen = torch.stack([observed[other] for other in others], dim=1) & observed[name][:, None]
        for kind in seen.unique(dim=0):
            if not bool(kind.any()):
                continue
            own = (seen == kind).all(1).nonzero().squeeze(1).numpy()
            names = tuple(other for other, here in zip(others, kind.tolist(), strict=True) if here)
            for start in range(0, len(own), size := max(1, _CHUNK // data.dims[name])):
                rows = own[start : start + size]
                chosen = data.subset(rows)
                predictive = posterior(model, chosen.select(names)).predictive(name, torch.float64)
                yield PredictedRows(name, names, rows, chosen[name].double(), predictive)
