"""The units in which a model from a file sees its data: each modality centred, and of root mean square one.

Priors of loadings, noise or weights of a network are written for data of about that size. Nothing else changes: no
feature is weighed against another of its modality, and what comes out is turned back to the data's own units.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Self

import numpy as np
import torch

from calmrl_prob.data import MultimodalData
from experiments.comparison.imputers import Array, has, values


@dataclass(frozen=True)
class Imputed:
    """One modality of N rows, imputed; all arrays (N, D_m), NaN in the rows that are not compared.

    Attributes:
        mean, variance: of the predictive.
        log_density: its log density at the true values, nats; None where it is normal.
        lower, upper: ends of its intervals; None where it is normal.
    """

    mean: Array
    variance: Array
    log_density: Array | None = None
    lower: Array | None = None
    upper: Array | None = None

    def at(self, rows: Array, number: int) -> Self:
        """These as the rows ``rows`` (n,) bool of N = ``number``, the others NaN."""

        def spread(part: Array | None) -> Array | None:
            if part is None:
                return None
            whole = np.full((number, part.shape[1]), np.nan)
            whole[rows] = part
            return whole

        parts = {name: spread(part) for name, part in vars(self).items()}
        return replace(self, **parts)


@dataclass(frozen=True)
class Standardisation:
    """Centre and scale of each modality.

    Attributes:
        centre: for each modality (D_m,), data units.
        scale: for each modality one number, data units.
    """

    centre: Mapping[str, Array]
    scale: Mapping[str, float]

    @classmethod
    def of(cls, data: MultimodalData) -> Standardisation:
        """Mean of each feature over the rows that have it, and root mean square of a modality about it."""
        centre, scale = {}, {}
        for name in data.names:
            rows = values(data, name)[has(data, name)]
            centre[name] = rows.mean(axis=0)
            scale[name] = float(np.sqrt(np.mean((rows - centre[name]) ** 2))) or 1.0
        return cls(centre, scale)

    @classmethod
    def own(cls, data: MultimodalData) -> Standardisation:
        """The data's own units."""
        return cls({name: np.zeros(width) for name, width in data.dims.items()}, dict.fromkeys(data.names, 1.0))

    def apply(self, data: MultimodalData) -> MultimodalData:
        """The data in these units; what goes with the rows is kept."""
        arrays = {}
        for name in data.names:
            if bool(data.observed(name).any()):
                centre = torch.as_tensor(self.centre[name], dtype=data.dtype, device=data.device)
                arrays[name] = (data[name] - centre) / self.scale[name]
        changed = MultimodalData(
            arrays,
            observed_mask=torch.stack([data.observed(name) for name in arrays], dim=1),
            ids=data.ids,
            labels=data.labels,
            covariates=data.covariates,
            missing=data.missing,
        )
        return changed.conform(data.dims)  # with those that no row here has

    def undo(self, name: str, found: Imputed) -> Imputed:
        """Imputations in these units, turned back to the data's own."""
        centre, scale = self.centre[name], self.scale[name]
        return Imputed(
            centre + scale * found.mean,
            scale**2 * found.variance,
            None if found.log_density is None else found.log_density - np.log(scale),
            None if found.lower is None else centre + scale * found.lower,
            None if found.upper is None else centre + scale * found.upper,
        )

    def log_volume(self, data: MultimodalData) -> float:
        """Log volume that is added to a log likelihood in the data's own units to have it in these, nats."""
        counts = {name: int(data.feature_mask(name).sum()) for name in data.names}
        return float(sum(counts[name] * np.log(self.scale[name]) for name in data.names))
