"""The parameters as EM works on them: all modalities stacked, data about a shift, latent standard normal.

EM runs on z' = L^-1 (z - m0) with S0 = L L^T, whose prior is standard normal, and on data about a fixed shift c:
W' = W L and mu' = mu + W m0 - c. Both changes of variable leave the evidence as it is and are undone at the end.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from calmrl_prob.linear_gaussian.noise import CorrelatedNoise
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
    """Stacked loadings (D, K), intercepts about the shift (D,) and noise variances (D,); float64 unless asked.

    Where noise is correlated within modalities, ``noise_factor`` has B^m (D_m, R_m) of each, and ``noise_variance`` is
    what they leave: Psi^m = B^m B^mT + diag(noise_variance^m).
    """

    loadings: Tensor
    intercepts: Tensor
    noise_variance: Tensor
    noise_factor: tuple[Tensor, ...] | None = None

    @cached_property
    def noises(self) -> tuple[CorrelatedNoise, ...]:
        """The noise of each modality, where it is correlated."""
        factors = () if self.noise_factor is None else self.noise_factor
        specific = self.noise_variance.split([len(factor) for factor in factors]) if factors else ()
        return tuple(CorrelatedNoise(own, factor) for own, factor in zip(specific, factors, strict=True))

    @cached_property
    def weights(self) -> Tensor:
        """Psi^-1 W, (D, K)."""
        if self.noise_factor is None:
            return self.loadings / self.noise_variance[:, None]
        return self.solve(self.loadings)

    def solve(self, right: Tensor) -> Tensor:
        """Psi^-1 Y, for Y of shape (D, L), where noise is correlated."""
        parts = right.split([len(noise.specific) for noise in self.noises])
        return torch.cat([noise.solve(part) for noise, part in zip(self.noises, parts, strict=True)])

    def flatten(self) -> Tensor:
        """One vector in which convex steps are legal: noise variances by their logarithm."""
        parts = [self.loadings.flatten(), self.intercepts, self.noise_variance.log()]
        return torch.cat(parts + [_entries(factor) for factor in self.noise_factor or ()])

    def unflatten(self, vector: Tensor) -> Parameters:
        """The inverse of ``flatten``, with the shapes of ``self``."""
        known = self.noise_factor or ()
        sizes = [len(_entries(factor)) for factor in known]
        loadings, intercepts, log_noise, *rest = vector.split(
            [self.loadings.numel(), *[len(self.intercepts)] * 2, *sizes]
        )
        factors = tuple(_with_entries(factor, entries) for factor, entries in zip(known, rest, strict=True))
        loadings = loadings.view_as(self.loadings)
        return Parameters(loadings, intercepts, log_noise.exp(), None if self.noise_factor is None else factors)

    def with_floor(self, floor: Tensor) -> Parameters:
        """The same with no noise variance below ``floor``, (D,)."""
        return replace(self, noise_variance=torch.maximum(self.noise_variance, floor))

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
        variance, factors = self.noise_variance, None
        if self.noise_factor is not None:
            variance = torch.cat([noise.variance for noise in self.noises])
            factors = {name: factor.clone() for name, factor in zip(parts, self.noise_factor, strict=True)}
        return LinearGaussian(
            {name: loadings[part].clone() for name, part in parts.items()},
            {name: intercepts[part].clone() for name, part in parts.items()},
            {name: variance[part].clone() for name, part in parts.items()},
            prior_mean,  # type: ignore[arg-type]  # None stands for the standard normal
            prior_covariance,  # type: ignore[arg-type]
            factors,
        )

    @classmethod
    def from_linear_gaussian(cls, linear_gaussian: LinearGaussian, shift: Tensor) -> Parameters:
        """Make both changes of variable."""
        loadings = torch.cat(list(linear_gaussian.loadings.values()))
        intercepts = torch.cat(list(linear_gaussian.intercepts.values())) + loadings @ linear_gaussian.prior_mean
        factor = factorize(linear_gaussian.prior_covariance)
        noise = torch.cat(list(linear_gaussian.noise_variance.values()))
        shared = None
        if linear_gaussian.noise_factor is not None:
            shared = tuple(linear_gaussian.noise_factor.values())
            noise = noise - torch.cat([part.square().sum(1) for part in shared])
        return cls(loadings @ factor, intercepts - shift.to(loadings.dtype), noise.clone(), shared)


def _entries(factor: Tensor) -> Tensor:
    """The entries of B that may differ from 0: those of a square one are at and below the diagonal."""
    if factor.shape[0] != factor.shape[1]:
        return factor.flatten()
    rows, columns = torch.tril_indices(*factor.shape, device=factor.device)
    return factor[rows, columns]


def _with_entries(like: Tensor, entries: Tensor) -> Tensor:
    """The inverse of ``_entries``."""
    if like.shape[0] != like.shape[1]:
        return entries.view_as(like)
    factor = torch.zeros_like(like)
    rows, columns = torch.tril_indices(*like.shape, device=like.device)
    factor[rows, columns] = entries
    return factor
