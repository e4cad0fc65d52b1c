"""Noise that is correlated within a modality: Psi = B B^T + diag(psi), and the few things that the engine asks of it.

B has R columns. Where these are few, everything goes through the R x R capacitance C = I + B^T diag(psi)^-1 B and
nothing of size D x D is ever made:

    Psi^-1 Y      = diag(psi)^-1 (Y - B S),   S = C^-1 B^T diag(psi)^-1 Y
    x^T Psi^-1 x  = |psi^-1/2 (x - B s)|^2 + |s|^2,   a sum of squares, in which nothing cancels
    logdet Psi    = logdet C + sum log psi

(Woodbury, Inverting modified matrices, 1950). Where they are many, as for a full covariance, which is R = D, Psi itself
is factored.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from calmrl_prob.errors import NumericalError


@dataclass(frozen=True, eq=False)
class CorrelatedNoise:
    """Noise of one modality, of covariance Psi = B B^T + diag(psi).

    Attributes:
        specific: psi, (D,), positive: what each feature's noise shares with no other.
        factor: B, (D, R).

    Example:
        >>> import torch
        >>> noise = CorrelatedNoise(torch.ones(2), torch.ones(2, 1))
        >>> noise.covariance().tolist(), [[round(v, 2) for v in row] for row in noise.solve(torch.eye(2)).tolist()]
        ([[2.0, 1.0], [1.0, 2.0]], [[0.67, -0.33], [-0.33, 0.67]])
    """

    specific: Tensor
    factor: Tensor

    @property
    def dense(self) -> bool:
        """Whether Psi itself is factored: B has so many columns that the detour would cost more."""
        width, rank = self.factor.shape
        return 2 * rank > width

    @cached_property
    def _lower(self) -> Tensor:
        """The Cholesky factor of Psi, (D, D), or of the capacitance C, (R, R)."""
        if self.dense:
            return _factorized(self.covariance())
        inner = self.factor.mT @ (self.factor / self.specific[:, None])
        return _factorized(inner + torch.eye(len(inner), dtype=inner.dtype, device=inner.device))

    @cached_property
    def variance(self) -> Tensor:
        """diag(Psi), (D,)."""
        return self.specific + self.factor.square().sum(1)

    def covariance(self) -> Tensor:
        """Psi, (D, D)."""
        return self.factor @ self.factor.mT + torch.diag(self.specific)

    def log_determinant(self) -> Tensor:
        """Logdet Psi, ()."""
        half = self._lower.diagonal().log().sum()
        return 2 * half if self.dense else 2 * half + self.specific.log().sum()

    def times(self, right: Tensor) -> Tensor:
        """Psi Y for Y of shape (D, L)."""
        return self.factor @ (self.factor.mT @ right) + self.specific[:, None] * right

    def solve(self, right: Tensor) -> Tensor:
        """Psi^-1 Y for Y of shape (D, L)."""
        if self.dense:
            found: Tensor = torch.cholesky_solve(right, self._lower)
            return found
        scores = torch.cholesky_solve(self.factor.mT @ (right / self.specific[:, None]), self._lower)
        return (right - self.factor @ scores) / self.specific[:, None]

    @cached_property
    def _inverse(self) -> Tensor:
        """Psi^-1, (D, D), where Psi itself is factored."""
        inverse: Tensor = torch.cholesky_inverse(self._lower)
        return inverse

    def inverse_diagonal(self) -> Tensor:
        """diag(Psi^-1), (D,)."""
        if self.dense:
            return self._inverse.diagonal()
        whitened: Tensor = torch.linalg.solve_triangular(self._lower, self.factor.mT, upper=False)
        return 1 / self.specific - whitened.square().sum(0) / self.specific.square()

    def squares(self, rows: Tensor) -> Tensor:
        """x^T Psi^-1 x of each row of ``rows`` (n, D), in their type; (n,)."""
        if self.dense:
            half: Tensor = torch.linalg.solve_triangular(self._lower.to(rows.dtype), rows.mT, upper=False)
            return half.square().sum(0)
        to_scores = torch.cholesky_solve((self.factor / self.specific[:, None]).mT, self._lower).mT.to(rows.dtype)
        scores: Tensor = rows @ to_scores
        left = rows - scores @ self.factor.mT.to(rows.dtype)
        return left.square() @ (1 / self.specific).to(rows.dtype) + scores.square().sum(1)

    def log_density(self, rows: Tensor) -> Tensor:
        """log N(x; 0, Psi) of each row of ``rows`` (n, D), nats; (n,)."""
        constant = rows.shape[1] * math.log(2 * math.pi) + self.log_determinant()
        return -0.5 * (self.squares(rows) + constant)

    def trace_solve(self, times: Callable[[Tensor], Tensor], diagonal: Tensor) -> Tensor:
        """tr(Psi^-1 S), (), of a symmetric S that is known by its products with blocks and its diagonal.

        Args:
            times: the map Y -> S Y for Y of shape (D, L).
            diagonal: of S, (D,).
        """
        if self.dense:
            return times(self._inverse).diagonal().sum()
        scaled = self.factor / self.specific[:, None]
        inner = torch.cholesky_solve(scaled.mT @ times(scaled), self._lower)
        return (diagonal / self.specific).sum() - inner.diagonal().sum()

    def trace_product(self, matrix: Tensor) -> Tensor:
        """tr(Psi^-1 S), (), of a matrix S (D, D) at hand, where Psi itself is factored."""
        return (self._inverse * matrix).sum()

    def draw(self, num_rows: int, generator: torch.Generator | None = None) -> Tensor:
        """Noise of n rows, (n, D)."""
        own = torch.empty(num_rows, len(self.specific)).to(self.specific).normal_(generator=generator)
        return own * self.specific.sqrt() + self.draw_shared(num_rows, generator)

    def draw_shared(self, num_rows: int, generator: torch.Generator | None = None) -> Tensor:
        """The part of the noise of n rows that features share, B y with y ~ N(0, I); (n, D)."""
        return self.draw_scores(num_rows, generator) @ self.factor.mT

    def draw_scores(self, num_rows: int, generator: torch.Generator | None = None) -> Tensor:
        """The y of that part, (n, R)."""
        return torch.empty(num_rows, self.factor.shape[1]).to(self.factor).normal_(generator=generator)


def _factorized(matrix: Tensor) -> Tensor:
    factor: Tensor
    factor, failures = torch.linalg.cholesky_ex(matrix)
    if bool(failures.any()):
        raise NumericalError(
            "noise: expected a positive-definite covariance of each modality's noise, got one that is not, or is not "
            "finite. Use float64, raise noise_floor, or state the noise with more variance of each feature's own."
        )
    return factor
