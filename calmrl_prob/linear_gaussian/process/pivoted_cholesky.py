"""Partial Cholesky factorisation of a covariance by pivots that are drawn where it still has variance.

For a positive semidefinite C (N, N), r pivots give F (N, r) with

    F F^T = C[:, S] C[S, S]^-1 C[S, :] <= C,      F[S] lower triangular,      C - F F^T zero in the rows of S

which is the Nystroem approximation on S; in a Gaussian process, S are inducing points. Its error is the variance left
over, diag(C) - diag(F F^T), known at every step, so the factorisation stops where the error is small enough: at the
numerical rank, if it may, where it is exact but for rounding. Repeated rows are no trouble: they cost nothing.

Pivots are drawn with probability proportional to (weighted) variance left over, in blocks, for speed; within a block,
those that earlier ones make redundant are left out. Sources: Chen, Epperly, Tropp & Webber, Randomly pivoted Cholesky
(2023), of which the blocks are the robust variant; Burt, Rasmussen & van der Wilk, Convergence of sparse variational
inference in Gaussian process regression (2020), for inducing points chosen this way.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

#: Pivots drawn at once: at least, and at most.
_BLOCKS = (48, 192)


@dataclass(frozen=True, eq=False)
class PartialCholesky:
    """C = factor factor^T + a remainder with diagonal ``residual``.

    Attributes:
        factor: F, shape (N, r).
        pivots: S, (r,) int64, in order: ``factor[pivots]`` is lower triangular.
        residual: (N,) the variance left over, at least 0.
    """

    factor: Tensor
    pivots: Tensor
    residual: Tensor


def pivoted_cholesky(
    rows: Callable[[Tensor], Tensor],
    diagonal: Tensor,
    weight: Tensor,
    *,
    tolerance: float,
    max_rank: int,
    start: Tensor | None = None,
    seed: int = 0,
) -> PartialCholesky:
    """Factorise until sum_n weight_n residual_n <= tolerance, or to a given rank.

    Args:
        rows: function of row numbers (b,) that returns those rows of C, shape (b, N).
        diagonal: of C, shape (N,).
        weight: what a unit of variance left over costs in each row, shape (N,), at least 0. Rows of weight 0 are never
            pivots.
        tolerance: when to stop, in units of the sum.
        max_rank: the most pivots.
        start: a factor (N, q) to go on from; it is not part of the result.
        seed: of the draws of pivots.

    Returns:
        The factorisation of what ``start`` leaves over (of C, if there is none).

    Example:
        >>> import torch
        >>> t = torch.linspace(0, 1, 200, dtype=torch.float64)
        >>> C = torch.exp(-0.5 * ((t[:, None] - t) / 0.2).square())
        >>> partial = pivoted_cholesky(lambda index: C[index], C.diagonal(), torch.ones_like(t), tolerance=1e-8,
        ...                            max_rank=200)
        >>> partial.factor.shape[1] < 30, bool((C - partial.factor @ partial.factor.mT).abs().max() < 1e-8)
        (True, True)
    """
    generator = torch.Generator(device=diagonal.device).manual_seed(seed)
    begun = diagonal.new_empty(0, len(diagonal)) if start is None else start.mT
    found = diagonal.new_empty(_BLOCKS[0], len(diagonal))  # F^T: rows are added at the end
    residual = (diagonal - begun.square().sum(0)).clamp(min=0)
    floor = 8 * torch.finfo(diagonal.dtype).eps * float(diagonal.max()) if len(diagonal) else 0.0
    pivots = [torch.empty(0, dtype=torch.int64, device=diagonal.device)]
    rank = 0
    while rank < max_rank:
        cost = weight * torch.where(residual > floor, residual, 0)
        if not float(cost.sum()) > tolerance:
            break
        count = min(max(_BLOCKS[0], min(_BLOCKS[1], rank // 2)), max_rank - rank, int((cost > 0).sum()))
        drawn = torch.multinomial(cost / cost.max(), count, generator=generator)
        left = rows(drawn) - begun[:, drawn].mT @ begun
        left.addmm_(found[:rank, drawn].mT, found[:rank], alpha=-1)
        kept, lower = _independent(left[:, drawn], floor)
        if len(kept) == 0:
            break
        if rank + len(kept) > len(found):
            found = torch.cat([found, found.new_empty(max(len(found), len(kept)), len(diagonal))])
        block = found[rank : rank + len(kept)]
        torch.linalg.solve_triangular(lower, left[kept], upper=False, out=block)
        residual = (residual - block.square().sum(0)).clamp(min=0)
        residual[drawn[kept]] = 0
        pivots.append(drawn[kept])
        rank += len(kept)
    return PartialCholesky(found[:rank].mT.contiguous(), torch.cat(pivots), residual)


def _independent(matrix: Tensor, floor: float) -> tuple[Tensor, Tensor]:
    """Greedy pivots of a small matrix (b, b), until what is left is a b-th of its trace; and their lower factor.

    Going on to zero would factorise rounding errors, and spend rank where later draws find more variance.
    """
    left = matrix.diagonal().clamp(min=0)
    enough = float(left.sum()) / len(left)
    columns = torch.empty_like(matrix)
    kept: list[int] = []
    while len(kept) < len(left):
        pivot = int(left.argmax())
        largest = float(left[pivot])
        if not largest > floor or (kept and float(left.sum()) <= enough):
            break
        size = len(kept)
        column = (matrix[:, pivot] - columns[:, :size] @ columns[pivot, :size]) / largest**0.5
        columns[:, size] = column
        left = (left - column.square()).clamp(min=0)
        left[pivot] = 0
        kept.append(pivot)
    index = torch.tensor(kept, dtype=torch.int64, device=matrix.device)
    return index, columns[index, : len(kept)].tril()
