"""The parameters as EM works on them: all modalities stacked, data about a shift, latent standard normal.

EM runs on z' = L^-1 (z - m0) with S0 = L L^T, whose prior is standard normal, and on data about a fixed shift c:
W' = W L and mu' = mu + W m0 - c. Both changes of variable leave the evidence as it is and are undone at the end.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from calmrl_prob.linear_gaussian.posterior import factorize
from calmrl_prob.linear_gaussian.structure import LinearGaussian


@dataclass(frozen=True)
class Shape:
    """Places of each modality's features in the stacked arrays.

    Attributes:
        dims: number of features of each modality.
        feature_modality: (D,) int64, the modality of each stacked feature.
    """

    dims: Mapping[str, int]
    feature_modality: Tensor

    @classmethod
    def of(cls, dims: Mapping[str, int], device: torch.device | None = None) -> Shape:
        """The layout of modalities of these widths."""
        widths = torch.tensor(list(dims.values()), device=device)
        return cls(dict(dims), torch.repeat_interleave(torch.arange(len(widths), device=device), widths))

    @cached_property
    def slices(self) -> list[slice]:
        """For each modality its part of a stacked array."""
        stops = torch.cumsum(torch.tensor(list(self.dims.values())), 0).tolist()
        return [slice(stop - width, stop) for stop, width in zip(stops, self.dims.values(), strict=True)]

    @property
    def total(self) -> int:
        """D, the number of stacked features."""
        return len(self.feature_modality)


@dataclass(frozen=True)
class Parameters:
    """Stacked loadings (D, K), intercepts about the shift (D,) and noise variances (D,); float64 unless asked."""

    loadings: Tensor
    intercepts: Tensor
    noise_variance: Tensor

    def flatten(self) -> Tensor:
        """One vector in which convex steps are legal: noise variances by their logarithm."""
        return torch.cat([self.loadings.flatten(), self.intercepts, self.noise_variance.log()])

    def unflatten(self, vector: Tensor) -> Parameters:
        """The inverse of ``flatten``, with the shapes of ``self``."""
        loadings, intercepts, log_noise = vector.split([self.loadings.numel(), *[len(self.intercepts)] * 2])
        return Parameters(loadings.view_as(self.loadings), intercepts, log_noise.exp())

    def with_floor(self, floor: Tensor) -> Parameters:
        """The same with no noise variance below ``floor``, (D,)."""
        return Parameters(self.loadings, self.intercepts, torch.maximum(self.noise_variance, floor))

    def to_linear_gaussian(
        self, shape: Shape, shift: Tensor, prior_mean: Tensor | None = None, prior_covariance: Tensor | None = None
    ) -> LinearGaussian:
        """Undo both changes of variable, for the given prior (standard normal if None)."""
        loadings, intercepts = self.loadings, self.intercepts + shift
        if prior_covariance is not None:
            factor = torch.linalg.cholesky(prior_covariance)
            loadings = torch.linalg.solve_triangular(factor, loadings, upper=False, left=False)
        if prior_mean is not None:
            intercepts = intercepts - loadings @ prior_mean
        parts = dict(zip(shape.dims, shape.slices, strict=True))
        return LinearGaussian(
            {name: loadings[part].clone() for name, part in parts.items()},
            {name: intercepts[part].clone() for name, part in parts.items()},
            {name: self.noise_variance[part].clone() for name, part in parts.items()},
            prior_mean,  # type: ignore[arg-type]  # None stands for the standard normal
            prior_covariance,  # type: ignore[arg-type]
        )

    @classmethod
    def from_linear_gaussian(cls, linear_gaussian: LinearGaussian, shift: Tensor) -> Parameters:
        """Make both changes of variable."""
        loadings = torch.cat(list(linear_gaussian.loadings.values()))
        intercepts = torch.cat(list(linear_gaussian.intercepts.values())) + loadings @ linear_gaussian.prior_mean
        factor = factorize(linear_gaussian.prior_covariance)
        noise = torch.cat(list(linear_gaussian.noise_variance.values()))
        return cls(loadings @ factor, intercepts - shift.to(loadings.dtype), noise.clone())
