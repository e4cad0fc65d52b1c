"""The E-step for Gaussian scale mixtures: exact with one scale for each instance, by coordinate updates with several.

The M-step, or a gradient, needs of each factor f, with u_f its scale, or 1 where it is Gaussian, and z~ = [z; 1],

    sum_n x_n E[u_nf z~_n]^T,   sum_n E[u_nf z~_n z~_n^T],   sum_n x_n^2 E[u_nf],   mean_n (E[log u_nf] - E[u_nf])

for the modality that the factor is the likelihood of, or for the latents whose prior it is; for each feature where
features have scales of their own.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from calmrl_prob.linear_gaussian.blocks import ObservedBlocks
from calmrl_prob.linear_gaussian.em.parameters import Shape
from calmrl_prob.linear_gaussian.posterior import factorize
from calmrl_prob.linear_gaussian.scale_mixture.factors import observed_part
from calmrl_prob.linear_gaussian.scale_mixture.model import Chunk, ScaleMixture
from calmrl_prob.linear_gaussian.scale_mixture.posterior import has_one_scale
from calmrl_prob.linear_gaussian.scale_mixture.quadrature import integrate
from calmrl_prob.linear_gaussian.scale_mixture.updates import update
from calmrl_prob.linear_gaussian.structure import LinearGaussian

#: The factor that is the prior, among names of modalities.
PRIOR = ""


@dataclass(frozen=True)
class ScaleMoments:
    """Expected sufficient statistics for the M-step.

    Attributes:
        evidence: of all data, nats; its lower bound where instances have several scales.
        cross, total, square: sums over the rows of E[u] x z^T (D, K), E[u] x (D,) and E[u] x^2 (D,).
        rows: for each modality how many instances have it; for ``PRIOR`` N.
        latent: for each of these the sum of E[u z~ z~^T], shape (1, K + 1, K + 1), or
            (F, K + 1, K + 1) where features have scales of their own.
        count: for each factor with scales how many instances have it, (1,) or (F,).
        log_less_mean: for each of them the mean of E[log u] - E[u], (1,) or (F,).
        scales: for each of them E[u], (N,) or (N, F), to start the next updates from.
    """

    evidence: float
    cross: Tensor
    total: Tensor
    square: Tensor
    rows: Mapping[str, int]
    latent: Mapping[str, Tensor]
    count: Mapping[str, Tensor]
    log_less_mean: Mapping[str, Tensor]
    scales: list[Tensor]

    def mean_scale(self, name: str) -> Tensor:
        """Mean of E[u] over the instances that have the factor, (1,) or (F,)."""
        return self.latent[name][:, -1, -1] / self.count[name]


def scale_moments(
    model: ScaleMixture, blocks: ObservedBlocks, scales: Sequence[Tensor] | None = None, sweeps: int = 100
) -> ScaleMoments:
    """Expected moments under a model.

    Args:
        model: whose Student-t latents, if any, are all of them.
        blocks: N instances, whole modalities.
        scales: expected scales to start coordinate updates from; 1 by default.
        sweeps: of coordinate updates at most.
    """
    latent_dim, shape = model.linear_gaussian.latent_dim, Shape.of(blocks.dims, blocks.device)
    names = [*([PRIOR] if model.prior_degrees_of_freedom else []), *model.degrees_of_freedom]
    zeros = model.linear_gaussian.prior_mean.new_zeros
    cross, total, square = zeros(shape.total, latent_dim), zeros(shape.total), zeros(shape.total)
    latent: dict[str, Tensor] = {}
    count: dict[str, Tensor] = {}
    less: dict[str, Tensor] = {}
    kept: list[list[Tensor]] = [[] for _ in names]
    exact, evidence = has_one_scale(model, blocks), 0.0
    for chunk in model.chunks(blocks):
        index = torch.unique(blocks.pattern_index[chunk.rows], return_inverse=True)[1]
        start = None if scales is None else [scale[chunk.rows] for scale in scales]
        found, value, reached = _by_quadrature(chunk, index) if exact else _by_updates(chunk, start, sweeps)
        evidence += value
        for place, scale in zip(kept, reached, strict=True):
            place.append(scale)
        expected: dict[str | None, _Expected] = dict(zip((None, *names), found, strict=True))
        for name, part in zip(shape.dims, shape.slices, strict=True):
            own = expected.get(name, expected[None])
            rows, values, _ = observed_part(blocks, name, chunk.rows)
            here = rows - chunk.rows.start
            wide = values.to(cross.dtype)
            weighted = own.weight[here].view(len(here), -1) * wide
            if own.weight.ndim == 1:
                cross[part] += wide.mT @ own.first[here]
            else:
                cross[part] += weighted.mT @ own.mean[here]
            total[part] += weighted.sum(0)
            square[part] += (weighted * wide).sum(0)
            _accumulate(latent, count, less, name, own, here, name in expected)
        own = expected.get(PRIOR, expected[None])
        _accumulate(latent, count, less, PRIOR, own, torch.arange(chunk.size, device=cross.device), PRIOR in expected)
    number = {**{name: len(rows) for name, rows in blocks.rows.items()}, PRIOR: blocks.num_instances}
    means = {name: value / count[name] for name, value in less.items()}
    reached = [torch.cat(parts) for parts in kept]
    return ScaleMoments(evidence, cross, total, square, number, latent, count, means, reached)


class _Expected(ABC):
    """Moments of a chunk of n instances under one weight: that of a factor's scale, or 1.

    Attributes:
        weight, log_weight: E[u] and E[log u], (n,), or (n, F) for features with scales of their own.
        mean: E[z], (n, K), where scale and latent are independent, as under coordinate updates.
        first: E[u z], (n, K).
    """

    def __init__(self, weight: Tensor, log_weight: Tensor, mean: Tensor, first: Tensor) -> None:
        self.weight, self.log_weight, self.mean, self.first = weight, log_weight, mean, first

    @abstractmethod
    def second(self, rows: Tensor) -> Tensor:
        """sum of E[u zz^T] over some rows, (1, K, K) or (F, K, K)."""


class _Independent(_Expected):
    """q(u) q(z)."""

    def __init__(self, weight: Tensor, log_weight: Tensor, mean: Tensor, covariance: Tensor) -> None:
        first = weight[:, None] * mean if weight.ndim == 1 else mean
        super().__init__(weight, log_weight, mean, first)
        self._covariance = covariance

    def second(self, rows: Tensor) -> Tensor:
        weight, mean, latent_dim = self.weight[rows].view(len(rows), -1), self.mean[rows], self.mean.shape[1]
        within = (weight.mT @ self._covariance[rows].flatten(1)).view(-1, latent_dim, latent_dim)
        return within + (weight.mT[:, :, None] * mean).mT @ mean


class _Integrated(_Expected):
    """By quadrature: sums by missing pattern, so that only whole patterns can be asked for."""

    def __init__(self, weight: Tensor, log_weight: Tensor, first: Tensor, by_pattern: Tensor, pattern: Tensor) -> None:
        super().__init__(weight, log_weight, first, first)
        self._by_pattern, self._pattern = by_pattern, pattern

    def second(self, rows: Tensor) -> Tensor:
        return self._by_pattern[torch.unique(self._pattern[rows])].sum(0, keepdim=True)


def _accumulate(
    latent: dict[str, Tensor],
    count: dict[str, Tensor],
    less: dict[str, Tensor],
    name: str,
    own: _Expected,
    rows: Tensor,
    scaled: bool,
) -> None:
    weight, log_weight = (part[rows].view(len(rows), -1) for part in (own.weight, own.log_weight))
    second = own.second(rows)
    first = own.first[rows].sum(0)[None] if own.weight.ndim == 1 else weight.mT @ own.mean[rows]
    moments = second.new_empty(len(second), second.shape[1] + 1, second.shape[2] + 1)
    moments[:, :-1, :-1] = second
    moments[:, -1, :-1] = moments[:, :-1, -1] = first
    moments[:, -1, -1] = weight.sum(0)
    latent[name] = latent[name] + moments if name in latent else moments
    if scaled:
        present = weight.new_full((weight.shape[1],), float(len(rows)))
        difference = (log_weight - weight).sum(0)
        count[name] = count[name] + present if name in count else present
        less[name] = less[name] + difference if name in less else difference


def _by_updates(
    chunk: Chunk, start: Sequence[Tensor] | None, sweeps: int
) -> tuple[list[_Expected], float, list[Tensor]]:
    found = update(chunk, start, sweeps)
    mean, covariance = found.given.mean, found.covariance
    one = torch.ones_like(mean[:, 0])
    expected: list[_Expected] = [_Independent(one, torch.zeros_like(one), mean, covariance)]
    for scale, a, b in zip(found.scales, found.shape, found.rate, strict=True):
        expected.append(_Independent(scale, torch.digamma(a) - b.log(), mean, covariance))
    return expected, float(found.bound.sum()), found.scales


def _by_quadrature(chunk: Chunk, index: Tensor) -> tuple[list[_Expected], float, list[Tensor]]:
    """Under 1 and under the scale; the nodes by turns, in the basis of each pattern."""
    part = integrate(chunk, index)
    size, scale = len(part.basis), part.log_scale.exp()
    firsts = [torch.zeros_like(part.fixed) for _ in range(2)]
    diagonals = [part.fixed.new_zeros(size, part.fixed.shape[1]) for _ in range(2)]
    seconds = [torch.zeros_like(part.basis) for _ in range(2)]
    members = [(part.pattern == p).nonzero().squeeze(1) for p in range(size)]
    for weight, node, log_scale in zip(part.weight, scale, part.log_scale, strict=True):
        mean, variance = part.node(log_scale)
        for k, row in enumerate((weight, weight * node)):
            weighted = row[:, None] * mean
            firsts[k] += weighted
            diagonals[k].index_add_(0, part.pattern, row[:, None] * variance)
            for p, rows in enumerate(members):
                seconds[k][p].addmm_(weighted[rows].mT, mean[rows])
    expected_log = (part.weight * part.log_scale).sum(0)
    expected: list[_Expected] = []
    for k, weight in enumerate((torch.ones_like(expected_log), (part.weight * scale).sum(0))):
        first = torch.empty_like(firsts[k])
        for p, rows in enumerate(members):
            first[rows] = firsts[k][rows] @ part.basis[p].mT
        inner = seconds[k] + torch.diag_embed(diagonals[k])
        expected.append(_Integrated(weight, k * expected_log, first, part.basis @ inner @ part.basis.mT, part.pattern))
    return expected, float(part.log_marginal.sum()), [expected[1].weight]


def expected_log_joint(model: ScaleMixture, moments: ScaleMoments) -> Tensor:
    """E[log p(x, z, u)] under moments that are held fixed, up to a constant, (), nats.

    Its gradient in the parameters, where the moments were taken at the same parameters, is that of the evidence, or of
    the bound (Fisher's identity).

    Args:
        model: differentiable.
        moments: from ``scale_moments``.
    """
    lg, total = model.linear_gaussian, moments.total.new_zeros(())
    start = 0
    for name, loadings in lg.loadings.items():
        part = slice(start, start + len(loadings))
        start = part.stop
        joint = torch.cat([loadings, lg.intercepts[name][:, None]], dim=1)
        right = torch.cat([moments.cross[part], moments.total[part, None]], dim=1)
        inner = moments.latent[name]
        explained = ((joint @ inner[0]) * joint).sum(1)
        if len(inner) > 1:
            explained = torch.einsum("dk,dkl,dl->d", joint, inner, joint)
        residual = moments.square[part] - 2 * (joint * right).sum(1) + explained
        noise = lg.noise_variance[name]
        total = total - 0.5 * (moments.rows[name] * noise.log() + residual / noise).sum()
    freedoms = [*((PRIOR, freedom) for _, freedom in model.prior_degrees_of_freedom), *model.degrees_of_freedom.items()]
    for name, freedom in freedoms:
        half = freedom / 2
        log_prior = half * half.log() - torch.lgamma(half) + half * moments.log_less_mean[name]
        total = total + (moments.count[name] * log_prior).sum()
    return total - 0.5 * _prior_distance(lg, moments)


def _prior_distance(lg: LinearGaussian, moments: ScaleMoments) -> Tensor:
    """N logdet S0 + sum_n E[u (z - m0)^T S0^-1 (z - m0)]."""
    mean, covariance, inner = lg.prior_mean, lg.prior_covariance, moments.latent[PRIOR]
    if len(inner) > 1:  # a scale for each latent, which are then uncorrelated
        variance = covariance.diagonal()
        square, first = inner[:, :-1, :-1].diagonal(dim1=1, dim2=2).diagonal(), inner[:, -1, :-1].diagonal()
        deviation = square - 2 * mean * first + inner[:, -1, -1] * mean.square()
        return moments.rows[PRIOR] * variance.log().sum() + (deviation / variance).sum()
    second, first, weight = inner[0, :-1, :-1], inner[0, -1, :-1], inner[0, -1, -1]
    deviation = second - torch.outer(first, mean) - torch.outer(mean, first) + weight * torch.outer(mean, mean)
    solved = torch.cholesky_solve(deviation, factorize(covariance)).diagonal().sum()
    distance: Tensor = moments.rows[PRIOR] * torch.linalg.slogdet(covariance).logabsdet + solved
    return distance
