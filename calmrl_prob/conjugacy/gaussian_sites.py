"""The distribution of a sample site, seen through its wrappers, as one Gaussian or a finite mixture of them.

``to_event``, ``expand``, ``mask`` and affine transforms are looked through; ``Normal``, ``MultivariateNormal`` in any
parametrisation and ``LowRankMultivariateNormal`` are Gaussian; ``MixtureSameFamily`` of these is a mixture; of the
Student-t family the Gaussian of its scale is returned, with the degrees of freedom beside it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import ExpandedDistribution, MaskedDistribution
from torch import Tensor
from torch.distributions import TransformedDistribution
from torch.distributions.transforms import AffineTransform, ComposeTransform

from calmrl_prob.programs.sites import Site

#: A mixture with more components is left to other routes: each costs a posterior of its own.
MAX_COMPONENTS = 1024


@dataclass(frozen=True)
class Gaussian:
    """A Gaussian for each of n instances: covariance diag(diagonal) + factor factor^T.

    Attributes:
        mean: (n, F).
        diagonal: (n, F).
        factor: (n, F, R), or None.
        degrees_of_freedom: (n,) or (n, F) where it is the scale of a Student-t instead; else None.
    """

    mean: Tensor
    diagonal: Tensor
    factor: Tensor | None = None
    degrees_of_freedom: Tensor | None = None

    def map(self, function: Callable[[Tensor], Tensor]) -> Gaussian:
        """Every part, where there is one, through a function of (n, ...)."""
        parts = (self.factor, self.degrees_of_freedom)
        optional = (None if part is None else function(part) for part in parts)
        return Gaussian(function(self.mean), function(self.diagonal), *optional)

    def deviation(self) -> Tensor:
        """Standard deviations, (n, F)."""
        variance = self.diagonal if self.factor is None else self.diagonal + self.factor.square().sum(-1)
        return variance.sqrt()

    def log_density(self, values: Tensor, present: Tensor | None = None) -> Tensor | None:
        """log N(x_n) of the features that are present, (n,), dense: for a few rows. None of a Student-t.

        Args:
            values: x, (n, F).
            present: (n, F) bool; all by default.
        """
        if self.degrees_of_freedom is not None:
            return None
        residual = values - self.mean
        if present is not None:
            residual = torch.where(present, residual, 0.0)
        if self.factor is None:
            terms = residual.square() / self.diagonal + (2 * math.pi * self.diagonal).log()
            return -0.5 * (terms if present is None else torch.where(present, terms, 0.0)).sum(1)
        covariance = torch.diag_embed(self.diagonal) + self.factor @ self.factor.mT
        if present is not None:  # absent features become independent, standard and zero
            both = present[:, :, None] & present[:, None, :]
            covariance = torch.where(both, covariance, torch.eye(present.shape[1]).to(covariance))
        lower = torch.linalg.cholesky_ex(covariance).L
        white = torch.linalg.solve_triangular(lower, residual[..., None], upper=False)[..., 0]
        number = residual.shape[1] if present is None else present.sum(1).to(residual.dtype)
        log_scale = lower.diagonal(dim1=-2, dim2=-1).log().sum(1)
        density: Tensor = -0.5 * (white.square().sum(1) + number * math.log(2 * math.pi)) - log_scale
        return density


@dataclass(frozen=True)
class Mixture:
    """Gaussians with log weights (n, C)."""

    log_weight: Tensor
    components: tuple[Gaussian, ...]

    def log_density(self, values: Tensor, present: Tensor | None = None) -> Tensor | None:
        """Of the mixture, like :meth:`Gaussian.log_density`; its weights count where anything is present."""
        parts = [component.log_density(values, present) for component in self.components]
        densities = [part for part in parts if part is not None]
        if len(densities) < len(parts):
            return None
        return (self.log_weight + torch.stack(densities, dim=1)).logsumexp(1)


def read_site(site: Site) -> Gaussian | Mixture | None:
    """The distribution of a site, one row for each instance; None if it is of another family.

    Args:
        site: in the plate "instances".

    Example:
        >>> fn = dist.Normal(torch.zeros(3, 2), 2.0).to_event(1)
        >>> read_site(Site("x", fn, torch.zeros(3, 2), -1, None, 1.0)).diagonal.tolist()
        [[4.0, 4.0], [4.0, 4.0], [4.0, 4.0]]
    """
    fn = unwrap(site.fn)
    if isinstance(fn, dist.MixtureOfDiagNormals):
        return _diagonal_mixture(site, fn)
    if isinstance(fn, dist.MixtureSameFamily):
        return _mixture(site, fn)
    return _gaussian(site, fn)


def unwrap(fn: Any) -> Any:  # noqa: ANN401 - any distribution
    """The distribution inside ``Independent``, ``MaskedDistribution`` and ``ExpandedDistribution``."""
    while isinstance(
        fn, dist.Independent | torch.distributions.Independent | MaskedDistribution | ExpandedDistribution
    ):
        fn = fn.base_dist
    return fn


def _gaussian(site: Site, fn: Any) -> Gaussian | None:  # noqa: ANN401
    location: Tensor | float = 0.0
    scale: Tensor | float = 1.0
    while isinstance(fn, TransformedDistribution):  # x = location + scale * base, outermost transform last
        inner = _affine(fn.transforms)
        if inner is None:
            return None
        location, scale = location + scale * inner[0], scale * inner[1]
        fn = unwrap(fn.base_dist)
    if isinstance(fn, torch.distributions.Normal):
        return Gaussian(site.rows(location + scale * fn.loc), site.rows((scale * fn.scale).square()))
    if isinstance(fn, torch.distributions.StudentT):
        freedom = site.rows(fn.df)
        return Gaussian(site.rows(location + scale * fn.loc), site.rows((scale * fn.scale).square()), None, freedom)
    if not (isinstance(scale, float) and scale == 1.0):
        return None  # a scaled multivariate: rare, and its covariance would have to be scaled along
    if isinstance(fn, torch.distributions.MultivariateNormal):
        return _multivariate(site, fn.loc + location, fn.scale_tril, None)
    if isinstance(fn, torch.distributions.LowRankMultivariateNormal):
        mean, diagonal = site.rows(fn.loc + location), site.rows(fn.cov_diag)
        return Gaussian(mean, diagonal, _blocks(site, fn.cov_factor))
    if isinstance(fn, dist.MultivariateStudentT):
        return _multivariate(site, fn.loc + location, fn.scale_tril, fn.df)
    return None


def _multivariate(site: Site, mean: Tensor, scale_tril: Tensor, freedom: Tensor | None) -> Gaussian:
    rows, factor = site.rows(mean), _blocks(site, scale_tril)
    if freedom is not None:
        freedom = freedom.expand(site.fn.batch_shape).movedim(site.place(), 0).reshape(len(rows), -1)[:, 0]
    lower = factor.tril(-1)
    if bool((lower == 0).all()) and factor.shape[-1] == factor.shape[-2]:
        return Gaussian(rows, factor.diagonal(dim1=-2, dim2=-1).square(), None, freedom)
    return Gaussian(rows, torch.zeros_like(rows), factor, freedom)


def _blocks(site: Site, factor: Tensor) -> Tensor:
    """A factor (..., E, R) of the event's covariance as (n, F, B R): block-diagonal over the B other plates."""
    shape = (*site.fn.batch_shape, *factor.shape[-2:])
    moved = factor.expand(shape).movedim(site.place(), 0)
    flat = moved.reshape(len(moved), -1, *factor.shape[-2:])
    blocks = flat.shape[1]
    if blocks == 1:
        return flat[:, 0]
    identity = torch.eye(blocks, dtype=factor.dtype, device=factor.device)
    wide = torch.einsum("nber,bc->nbecr", flat, identity)
    return wide.reshape(len(flat), blocks * factor.shape[-2], blocks * factor.shape[-1])


def _affine(transforms: Any) -> tuple[Any, Any] | None:  # noqa: ANN401
    """Location and scale of a chain of affine transforms; None if there are others in it."""
    location: Any = 0.0
    scale: Any = 1.0
    for transform in transforms:
        parts = transform.parts if isinstance(transform, ComposeTransform) else [transform]
        for part in parts:
            if not isinstance(part, AffineTransform):
                return None
            location, scale = part.loc + part.scale * location, part.scale * scale
    return location, scale


def _diagonal_mixture(site: Site, fn: Any) -> Mixture | None:  # noqa: ANN401
    """Pyro's own class of mixtures of diagonal normals: locations and scales (..., C, F)."""
    if len(fn.batch_shape) > len(site.fn.batch_shape) or len(site.fn.batch_shape) != 1:
        return None
    count = fn.locs.shape[-2]
    rows = site.fn.batch_shape[0]
    log_weight = fn.component_logits.log_softmax(-1).expand(rows, count)
    components = [
        Gaussian(site.rows(fn.locs[..., c, :]), site.rows(fn.coord_scale[..., c, :].square())) for c in range(count)
    ]
    return Mixture(log_weight, tuple(components))


def _mixture(site: Site, fn: Any) -> Mixture | None:  # noqa: ANN401
    """A mixture along the last batch dimension of its components, if these are Gaussian."""
    weights = fn.mixture_distribution
    count = weights.logits.shape[-1]
    if count > MAX_COMPONENTS:
        return None
    inner, depth = fn.component_distribution, len(fn.event_shape)
    if len(fn.batch_shape) > len(site.fn.batch_shape):  # a mixture for each feature is one of C^F components
        return None
    log_weight = weights.logits.expand(*site.fn.batch_shape, count).movedim(site.place(), 0)
    log_weight = log_weight.reshape(len(log_weight), -1, count)
    if log_weight.shape[1] != 1:  # and so is one for each place in other plates
        return None
    components = []
    for c in range(count):
        part = _select(unwrap(inner), c, count, depth)
        gaussian = None if part is None else _gaussian(site, part)
        if gaussian is None:
            return None
        components.append(gaussian)
    return Mixture(log_weight[:, 0].log_softmax(-1), tuple(components))


def _select(fn: Any, index: int, count: int, depth: int) -> Any:  # noqa: ANN401
    """Component ``index`` of a batch of Gaussians whose component axis stands before ``depth`` event axes."""
    if isinstance(fn, torch.distributions.Normal | torch.distributions.StudentT):
        shape = torch.broadcast_shapes(fn.loc.shape, (count, *([1] * depth)))
        parts = {"loc": fn.loc, "scale": fn.scale} | ({"df": fn.df} if hasattr(fn, "df") else {})
        chosen = {key: value.expand(shape).select(-1 - depth, index) for key, value in parts.items()}
        return (dist.StudentT if "df" in chosen else dist.Normal)(**chosen)
    if isinstance(fn, torch.distributions.MultivariateNormal):
        return dist.MultivariateNormal(fn.loc.select(-2, index), scale_tril=fn.scale_tril.select(-3, index))
    if isinstance(fn, torch.distributions.LowRankMultivariateNormal):
        return dist.LowRankMultivariateNormal(
            fn.loc.select(-2, index), fn.cov_factor.select(-3, index), fn.cov_diag.select(-2, index)
        )
    return None
