"""Shifts and scales of batches: their block of closed-form EM, exact given the rest of the model.

    x_n^m = c^m + d_b^m + s_b^m (y_n^m - c^m),    y_n from the linear-Gaussian model, b the batch of n
    d_b^m ~ N(0, diag(t^m)),    log p(u) = nu D_m (log u - u^2 / 2) + const for u = 1 / s_b^m

Given the model, the shifts of a batch maximise a quadratic: with R = diag(sqrt(t) / s), d = s R e, P its patterns,

    (I + R sum_p n_p S_p^T Cov_p^-1 S_p R) e = R sum_p S_p^T Cov_p^-1 sum_{n in p} (c + (x_n - c) / s - mu)

by conjugate gradients, whose matrix differs from a diagonal one by rank P K. Given the shifts, u of one modality
maximises (N + nu) D log u - (Q + nu D) u^2 / 2 - l u: the positive root of a quadratic. What shifts have in common goes
into mu, since their prior alone tells these apart: mu + a with d_b - s_b a, a = sum_b s_b d_b / sum_b s_b^2; what
scales have in common goes into W, Psi and mu - c. None of it lowers the evidence plus log priors. As an adjustment of
data: Johnson, Li & Rabinovic, Adjusting batch effects in microarray expression data using empirical Bayes methods
(2007).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from calmrl_prob.linear_gaussian.blocks import ObservedBlocks
from calmrl_prob.linear_gaussian.posterior import posterior
from calmrl_prob.linear_gaussian.structure import LinearGaussian, solve_noise

#: nu: how many instances of scale 1 each scale of a batch is drawn to 1 by.
_SCALE_ROWS = 10.0
#: Conjugate gradients end at this residual, relative to the right-hand side, or after so many products.
_RESIDUAL, _MOST_PRODUCTS = 1e-12, 500


@dataclass(frozen=True, eq=False)
class BatchMoves:
    """Shifts d and scales s of B batches, the last row of each (0, 1): of instances of no known batch.

    Attributes:
        centre: for each modality c, (D_m,), data units.
        shift: for each modality d, (B + 1, D_m), data units.
        scale: for each modality s, (B + 1,).
        variance: for each modality t, (D_m,), of shifts between batches, data units squared.
        count: for each modality the instances of each batch that have it, (B + 1,); the last is 0.
    """

    centre: Mapping[str, Tensor]
    shift: Mapping[str, Tensor]
    scale: Mapping[str, Tensor]
    variance: Mapping[str, Tensor]
    count: Mapping[str, Tensor]

    @property
    def names(self) -> tuple[str, ...]:
        """The modalities."""
        return tuple(self.centre)

    def adjusted(self, name: str, values: Tensor, batch: Tensor) -> Tensor:
        """The rows y of a modality, (n, D_m), of rows x whose batches are (n,) int64."""
        centre, shift = self.centre[name].to(values), self.shift[name].to(values)
        return centre + (values - centre - shift[batch]) / self.scale[name].to(values)[batch, None]

    def moved(self, name: str, values: Tensor, batch: Tensor) -> Tensor:
        """The rows x of rows y, (n, D_m): the inverse of :meth:`adjusted`."""
        centre, shift = self.centre[name].to(values), self.shift[name].to(values)
        return centre + shift[batch] + self.scale[name].to(values)[batch, None] * (values - centre)

    def blocks(self, blocks: ObservedBlocks, batch: Tensor) -> ObservedBlocks:
        """The rows y of all modalities, of instances whose batches are (N,)."""
        found = copy(blocks)
        found.values = {n: self.adjusted(n, values, batch[blocks.rows[n]]) for n, values in blocks.values.items()}
        return found

    def log_prior(self) -> float:
        """Log densities of shifts and scales, but for what does not depend on them, nats."""
        total = 0.0
        for name in self.names:
            there = self.variance[name] > 0
            shift = self.shift[name].detach()[:, there]
            total -= 0.5 * float((shift.square() / self.variance[name][there]).sum())
            u = 1 / self.scale[name].detach()
            total += _SCALE_ROWS * self.shift[name].shape[1] * float((u.log() - (u.square() - 1) / 2).sum())
        return total

    def log_volume(self) -> float:
        """Excess of log densities of rows x over those of rows y, nats."""
        return -sum(float(self.count[n] @ self.scale[n].detach().log()) * self.shift[n].shape[1] for n in self.names)

    def structure(self, lg: LinearGaussian, b: int) -> LinearGaussian:
        """The model of a batch's rows x. Where it never had a modality, shifts are noise of the variance t."""
        scale = {name: self.scale[name][b].to(lg.dtype) for name in lg.names}
        own = {name: self.variance[name].to(lg.dtype) * (self.count[name][b] == 0) for name in lg.names}
        centre = {name: self.centre[name].to(lg.dtype) for name in lg.names}
        shift = {name: self.shift[name][b].to(lg.dtype) for name in lg.names}
        factor = lg.noise_factor
        return replace(
            lg,
            loadings={n: lg.loadings[n] * scale[n] for n in lg.names},
            intercepts={n: centre[n] + shift[n] + scale[n] * (lg.intercepts[n] - centre[n]) for n in lg.names},
            noise_variance={n: lg.noise_variance[n] * scale[n].square() + own[n] for n in lg.names},
            noise_factor=None if factor is None else {n: factor[n] * scale[n] for n in lg.names},
        )


def start_moves(blocks: ObservedBlocks, batch: Tensor, num_batches: int, *, scaled: bool) -> BatchMoves:
    """Moves from means and variances of the batches alone.

    t is one share of each feature's variance in a modality: the mean over its features of the variance between batches,
    by moments of a one-way analysis of variance. Shifts are the means of batches, shrunk by it.

    Args:
        blocks: the rows x.
        batch: (N,) int64, below B.
        num_batches: B.
        scaled: whether scales differ too.
    """
    moves: tuple[dict[str, Tensor], ...] = ({}, {}, {}, {}, {})
    for name, given in blocks.values.items():
        values, own = given.double(), batch[blocks.rows[name]]
        count = torch.bincount(own, minlength=num_batches + 1).double()
        each = count.clamp(min=1)[:, None]
        mean = values.new_zeros(num_batches + 1, values.shape[1]).index_add_(0, own, values) / each
        centre = values.mean(0)
        square = values.new_zeros(mean.shape).index_add_(0, own, (values - mean[own]).square())
        groups, total = int((count > 0).sum()), float(count.sum())
        within = square.sum(0) / max(total - groups, 1.0)
        variance = torch.zeros_like(centre)
        if 1 < groups < total:
            between = (count[:, None] * (mean - centre).square()).sum(0) / (groups - 1)
            size = (total - float(count.square().sum()) / total) / (groups - 1)
            excess = (between - within) / size
            spread = within + excess.clamp(min=0)
            moving = spread > 0
            share = float((excess[moving] / spread[moving]).mean().clamp(min=0)) if bool(moving.any()) else 0.0
            variance = share * spread
        shrunk = variance / (variance + within / each).clamp(min=torch.finfo(torch.float64).tiny)
        scale = torch.ones_like(count)
        if scaled:
            ratio = (square[:, within > 0] / within[within > 0]).mean(1) if bool((within > 0).any()) else scale - 1
            scale = ((_SCALE_ROWS + ratio) / (_SCALE_ROWS + (count - 1).clamp(min=0))).sqrt()
        shift = torch.where((count > 0)[:, None], shrunk * (mean - centre), 0.0)
        for part, value in zip(moves, (centre, shift, scale, variance, count), strict=True):
            part[name] = value
    return BatchMoves(*moves)


def improved_moves(
    moves: BatchMoves, lg: LinearGaussian, blocks: ObservedBlocks, batch: Tensor, *, scaled: bool
) -> tuple[BatchMoves, LinearGaussian]:
    """The shifts that are best given the model and the scales; then the scale of each modality given all else.

    The model that is returned differs from the given one by what shifts and scales had in common.

    Args:
        moves: as they are.
        lg: the model of rows y.
        blocks: the rows x.
        batch: (N,) int64, below B.
        scaled: whether scales are free.
    """
    lg = lg.detach().to(torch.float64)
    moves = replace(moves, shift=_best_shifts(moves, lg, blocks, batch))
    for name in lg.names if scaled else ():
        moves = replace(moves, scale={**moves.scale, name: _best_scales(moves, lg, blocks, batch, name)})
    return _without_common(moves, lg)


def _without_common(moves: BatchMoves, lg: LinearGaussian) -> tuple[BatchMoves, LinearGaussian]:
    """Shifts and scales with all that they have in common moved to the model, so that no row's density changes."""
    shift, scale = dict(moves.shift), dict(moves.scale)
    size, move = {}, {}
    for name in lg.names:
        there = moves.count[name] > 0
        size[name] = (1 / scale[name][there]).square().mean().rsqrt()
        scale[name] = torch.where(there, scale[name] / size[name], 1.0)
        own = torch.where(there, scale[name], 0.0)
        move[name] = own @ shift[name] / own.square().sum()
        shift[name] = shift[name] - own[:, None] * move[name]
    common = BatchMoves(
        moves.centre,
        {name: value[None] for name, value in move.items()},
        {name: value[None] for name, value in size.items()},
        moves.variance,
        {name: torch.ones(1) for name in lg.names},
    )
    return replace(moves, shift=shift, scale=scale), common.structure(lg, 0)


def _best_shifts(moves: BatchMoves, lg: LinearGaussian, blocks: ObservedBlocks, batch: Tensor) -> dict[str, Tensor]:
    """d of each modality, (B + 1, D_m)."""
    covariance = posterior(lg, blocks).pattern_covariance
    weights = {name: solve_noise(lg, name, lg.loadings[name]) for name in lg.names}
    shape = (len(moves.scale[lg.names[0]]), blocks.num_patterns)
    key = batch * shape[1] + blocks.pattern_index
    counts = torch.bincount(key, minlength=shape[0] * shape[1]).view(shape).double()
    still = replace(moves, shift={name: torch.zeros_like(shift) for name, shift in moves.shift.items()})
    sums = {}
    for name, values in blocks.values.items():
        rows = blocks.rows[name]
        rest = still.adjusted(name, values.double(), batch[rows]) - lg.intercepts[name]
        rest = rest - lg.loadings[name] @ lg.prior_mean
        total = rest.new_zeros(counts.numel(), rest.shape[1]).index_add_(0, key[rows], rest)
        sums[name] = total.view(*shape, -1)
    found = dict(still.shift)
    patterns = [[n for n, here in zip(lg.names, p, strict=True) if here] for p in blocks.patterns.tolist()]
    for b in range(shape[0] - 1):
        kinds = [(covariance[p], names, counts[b, p]) for p, names in enumerate(patterns)]
        root = {n: moves.variance[n].sqrt() / moves.scale[n][b] for n in lg.names}
        system = _ShiftSystem(lg, weights, [kind for kind in kinds if kind[2] > 0], root)
        totals = [{n: sums[n][b, p] for n in names} for p, names in enumerate(patterns) if counts[b, p] > 0]
        for name, e in system.solution(totals).items():
            found[name][b] = moves.scale[name][b] * root[name] * e
    return found


@dataclass(frozen=True)
class _ShiftSystem:
    """The linear system of one batch's shifts.

    Attributes:
        lg: the model of rows y.
        weights: for each modality Psi^-1 W.
        kinds: of each pattern that the batch has V, the modalities, and the number of instances.
        root: for each modality R, (D_m,).
    """

    lg: LinearGaussian
    weights: Mapping[str, Tensor]
    kinds: Sequence[tuple[Tensor, Sequence[str], Tensor]]
    root: Mapping[str, Tensor]

    def solution(self, totals: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
        """e of each modality, (D_m,), for the sums of rows of each pattern; by preconditioned conjugate gradients."""
        right = self._solved(totals)
        counts = {n: sum(count for _, names, count in self.kinds if n in names) for n in self.lg.names}
        diagonal = torch.cat([1 + counts[n] * self.root[n].square() / self.lg.noise_variance[n] for n in self.lg.names])
        e, rest = torch.zeros_like(right), right
        way = rest / diagonal
        square = rest @ way
        enough = _RESIDUAL * float(right.norm())
        for _ in range(_MOST_PRODUCTS):
            if float(rest.norm()) <= enough:
                break
            image = self._times(way)
            step = square / (way @ image)
            e, rest = e + step * way, rest - step * image
            before, square = square, rest @ (rest / diagonal)
            way = rest / diagonal + square / before * way
        return dict(zip(self.lg.names, e.split(list(self.lg.dims.values())), strict=True))

    def _times(self, e: Tensor) -> Tensor:
        own = dict(zip(self.lg.names, e.split(list(self.lg.dims.values())), strict=True))
        return e + self._solved([{n: count * self.root[n] * own[n] for n in names} for _, names, count in self.kinds])

    def _solved(self, given: Sequence[Mapping[str, Tensor]]) -> Tensor:
        """R sum_p S_p^T Cov_p^-1 v_p, (D,)."""
        out = {n: torch.zeros_like(root) for n, root in self.root.items()}
        for (covariance, names, _), vectors in zip(self.kinds, given, strict=True):
            scores = covariance @ torch.stack([self.weights[n].mT @ vectors[n] for n in names]).sum(0)
            for n in names:
                out[n] += solve_noise(self.lg, n, vectors[n][:, None])[:, 0] - self.weights[n] @ scores
        return torch.cat([self.root[n] * out[n] for n in self.lg.names])


def _best_scales(moves: BatchMoves, lg: LinearGaussian, blocks: ObservedBlocks, batch: Tensor, name: str) -> Tensor:
    """s of one modality, (B + 1,)."""
    given = posterior(lg, moves.blocks(blocks, batch))
    rows = blocks.rows[name]
    own, width = batch[rows], lg.dims[name]
    u = 1 / moves.scale[name]
    r = blocks.values[name].double() - moves.centre[name] - moves.shift[name][own]
    rest = (
        r * u[own, None] + (moves.centre[name] - lg.intercepts[name]) - given.mean.double()[rows] @ lg.loadings[name].mT
    )
    solved = solve_noise(lg, name, r.mT).mT  # Psi^-1 r
    scores = solved @ lg.loadings[name]
    square, pattern = (r * solved).sum(1), blocks.pattern_index[rows]
    for p in pattern.unique().tolist():
        here = pattern == p
        square[here] -= ((scores[here] @ given.pattern_covariance[p].double()) * scores[here]).sum(1)

    def by_batch(values: Tensor) -> Tensor:
        return torch.zeros_like(u).index_add_(0, own, values)

    quadratic = by_batch(square)
    linear = by_batch((solved * rest).sum(1)) - u * quadratic
    quadratic = quadratic + _SCALE_ROWS * width
    weight = (moves.count[name] + _SCALE_ROWS) * width
    root = (linear.square() + 4 * quadratic * weight).sqrt()
    # the stable one of two forms of the positive root, whichever sign the linear term has
    u = torch.where(linear > 0, 2 * weight / (linear + root), (root - linear) / (2 * quadratic))
    u[-1] = 1.0
    return 1 / u
