"""The E-step under a prior of several Gaussians: a mixture, or one Gaussian for each known group of instances.

With A = Psi^-1 W, data about a shift, and for component c and pattern p

    P_cp = S_c^-1 + sum_{m in p} A^mT W^m,   h_nc = S_c^-1 m_c + A_p^T x_n - b_p,   z_nc = V_cp h_nc,   V_cp = P_cp^-1
    log r_nc = log pi_c + 1/2 (h_nc^T z_nc - logdet P_cp - logdet S_c - m_c^T S_c^-1 m_c) - (normaliser over c)

the large products A_p^T x_n and sum_n x_n (sum_c r_nc z_nc)^T are made once, whatever the number of components; all
else is K-dimensional. Known groups are the case in which each instance has one component only.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from calmrl_prob.linear_gaussian.em.expectation import Moments, augment
from calmrl_prob.linear_gaussian.em.parameters import Parameters
from calmrl_prob.linear_gaussian.em.rowwise import RowwiseStep
from calmrl_prob.linear_gaussian.layout import Bucket
from calmrl_prob.linear_gaussian.posterior import factorize

#: Numbers that the K x K arrays of all components, and the latents of all components, may hold at once.
_MATRIX_BUDGET, _ROW_BUDGET = 2**19, 2**20
#: Stands for the logarithm of a weight of 0 where vectors have to be finite; exp of it is the least positive number.
_LEAST_LOG_WEIGHT = -700.0


@dataclass(frozen=True)
class LatentComponents:
    """C Gaussians of the latent, with their weights.

    Attributes:
        log_weights: log pi, (C,); zeros where each instance has one component only.
        means: m_c, (C, K).
        covariances: S_c, (C, K, K).
    """

    log_weights: Tensor
    means: Tensor
    covariances: Tensor

    @cached_property
    def factor(self) -> Tensor:
        """Lower Cholesky factors of the covariances."""
        return factorize(self.covariances)

    @cached_property
    def precision(self) -> Tensor:
        """S_c^-1, (C, K, K)."""
        return torch.cholesky_inverse(self.factor)

    @cached_property
    def natural(self) -> Tensor:
        """S_c^-1 m_c, (C, K)."""
        return (self.precision @ self.means[:, :, None]).squeeze(2)

    @cached_property
    def constant(self) -> Tensor:
        """log pi_c - 1/2 (m_c^T S_c^-1 m_c + logdet S_c), (C,)."""
        half_logdet = self.factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        return self.log_weights - 0.5 * (self.natural * self.means).sum(1) - half_logdet

    def flatten(self) -> Tensor:
        """One vector in which convex steps are legal: covariances by their Cholesky factors, diagonals by logarithm."""
        diagonal = self.factor.diagonal(dim1=-2, dim2=-1).log()
        factor = self.factor.tril(-1) + torch.diag_embed(diagonal)
        weights = self.log_weights.clamp(min=_LEAST_LOG_WEIGHT)
        return torch.cat([weights, self.means.flatten(), factor.flatten()])

    def unflatten(self, vector: Tensor) -> LatentComponents:
        """The inverse of ``flatten``, with the shapes of ``self``."""
        count, latent_dim = self.means.shape
        weights, means, rest = vector.split([count, count * latent_dim, count * latent_dim**2])
        factor = rest.view(count, latent_dim, latent_dim)
        factor = factor.tril(-1) + torch.diag_embed(factor.diagonal(dim1=-2, dim2=-1).exp())
        return LatentComponents(weights, means.view_as(self.means), factor @ factor.mT)

    def moved(self, origin: Tensor, factor: Tensor) -> LatentComponents:
        """The components of L^-1 (z - origin), with L lower triangular."""
        means = torch.linalg.solve_triangular(factor, (self.means - origin).mT, upper=False).mT
        half = torch.linalg.solve_triangular(factor, self.factor, upper=False)
        return LatentComponents(self.log_weights, means, half @ half.mT)


@dataclass(frozen=True)
class MixtureMoments:
    """Expected sufficient statistics for the M-step.

    Attributes:
        likelihood: for loadings, intercepts and noise, as with a single Gaussian; its evidence is the mixture's.
        components: (C, K + 1, K + 1) sum of r_nc E[zz^T | c] for z augmented by a 1; the last entry is sum_n r_nc.
    """

    likelihood: Moments
    components: Tensor


class MixtureStep:
    """The E-step over rows.

    Args:
        rowwise: how to get from the data to latents and back; its layout holds the patterns.
        component_of: (C', P) int64, the components that instances of each pattern may have. All of them for a mixture;
            for known groups, by which patterns are then told apart too, C' = 1.
    """

    def __init__(self, rowwise: RowwiseStep, component_of: Tensor) -> None:
        self.rowwise = rowwise
        self._component_of = component_of

    @classmethod
    def of_mixture(cls, rowwise: RowwiseStep, num_components: int, num_patterns: int) -> MixtureStep:
        """Every instance may have every component."""
        every = torch.arange(num_components, device=rowwise.grouping.feature_group.device)
        return cls(rowwise, every[:, None].expand(-1, num_patterns))

    def __call__(self, parameters: Parameters, components: LatentComponents) -> MixtureMoments:
        """Expected moments and evidence."""
        step, latent_dim = self.rowwise, parameters.loadings.shape[1]
        weights = parameters.loadings / parameters.noise_variance[:, None]
        precision, offset = step.group_precisions(weights, parameters)
        natural = step.to_slots(weights)
        latents = natural.new_zeros(natural.shape[1], latent_dim)
        groups, count = step.members[0].shape[1], len(components.log_weights)
        sums = _Sums(
            weights.new_zeros(groups, latent_dim), weights.new_zeros(groups, latent_dim**2), weights.new_zeros(groups)
        )
        parts = _Sums(
            weights.new_zeros(count, latent_dim), weights.new_zeros(count, latent_dim**2), weights.new_zeros(count)
        )
        evidence = step.feature_log_density(parameters)
        for bucket, members, chosen in self._blocks(len(self._component_of) * latent_dim**2):
            ids = self._component_of[:, bucket.patterns]  # (C', b)
            size = len(members)
            shared = members[:, :-1] @ precision.reshape(len(precision), -1)
            inner = components.precision[ids] + shared.view(size, latent_dim, latent_dim)
            factor = factorize(inner)
            covariance = torch.cholesky_inverse(factor)
            constant = components.constant[ids] - factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)
            prior = (components.natural[ids] - members[:, :-1] @ offset)[:, :, None]
            first = weights.new_zeros(*ids.shape, latent_dim)
            second = torch.zeros_like(covariance)
            total = torch.zeros_like(constant)
            slots = natural[:, bucket.start : bucket.stop].view(latent_dim, -1, bucket.capacity)[:, chosen]
            place = latents[bucket.start : bucket.stop].view(-1, bucket.capacity, latent_dim)[chosen]
            width = max(1, _ROW_BUDGET // max(1, ids.numel() * latent_dim))
            for start in range(0, bucket.capacity, width):
                rows = slice(start, start + width)
                h = slots[:, :, rows].permute(1, 2, 0) + prior  # (C', b, rows, K)
                z = h @ covariance
                score = constant[:, :, None] + 0.5 * (h * z).sum(-1)
                filled = bucket.filled[:, rows, 0]
                log_marginal = score.logsumexp(0)
                evidence = evidence + (log_marginal * filled).sum()
                share = (score - log_marginal).exp_().mul_(filled)
                weighted = z * share[..., None]
                place[:, rows] = weighted.sum(0)
                first += weighted.sum(2)
                second += weighted.mT @ z
                total += share.sum(2)
            second += total[..., None, None] * covariance
            sums.add(members.mT, first.sum(0), second.sum(0), total.sum(0))
            parts.scatter(ids, first, second, total)
        likelihood = Moments(float(evidence), step.from_slots(latents), augment(sums.first, sums.second, sums.total))
        return MixtureMoments(likelihood, augment(parts.first, parts.second, parts.total))

    def _blocks(self, numbers: int) -> Iterator[tuple[Bucket, Tensor, slice]]:
        """Buckets, cut into blocks of patterns whose matrices, of so many numbers each, fit into memory.

        Yields:
            The bucket with the patterns and fill of the block alone, the members of those, and where they stand in it.
        """
        step = max(1, _MATRIX_BUDGET // numbers)
        for bucket, members in zip(self.rowwise.layout.buckets, self.rowwise.members, strict=True):
            for start in range(0, len(members), step):
                chosen = slice(start, start + step)
                part = Bucket(
                    bucket.patterns[chosen], bucket.start, bucket.stop, bucket.capacity, bucket.filled[chosen]
                )
                yield part, members[chosen], chosen


@dataclass(frozen=True)
class _Sums:
    """Sums of z (R, K), zz^T (R, K^2) and 1 (R,), added to in place."""

    first: Tensor
    second: Tensor
    total: Tensor

    def add(self, weights: Tensor, first: Tensor, second: Tensor, total: Tensor) -> None:
        """Add sums over patterns, (b, ...), to the rows that ``weights`` (R, b) names."""
        self.first.addmm_(weights, first)
        self.second.addmm_(weights, second.flatten(1))
        self.total.addmv_(weights, total)

    def scatter(self, ids: Tensor, first: Tensor, second: Tensor, total: Tensor) -> None:
        """Add sums over components and patterns, (C', b, ...), to the rows ``ids`` (C', b)."""
        flat = ids.flatten()
        self.first.index_add_(0, flat, first.flatten(0, 1))
        self.second.index_add_(0, flat, second.flatten(0, 1).flatten(1))
        self.total.index_add_(0, flat, total.flatten())
