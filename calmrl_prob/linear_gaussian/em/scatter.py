"""Second moments within a modality, which noise that is correlated there is estimated from.

    S = sum_n x_n x_n^T   over the rows that have the modality, shape (D_m, D_m)

It is a constant of the data. EM asks for its products with narrow blocks, and S itself is made only where it is small
against the rows, or where the noise is a full covariance: 320 rows of 5,000 features stay 320 rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from calmrl_prob.linear_gaussian.noise import CorrelatedNoise
from calmrl_prob.linear_gaussian.products import cross_product, gram, project, row_chunks


@dataclass(frozen=True)
class Scatter:
    """A symmetric matrix S, known by its diagonal and by products.

    Attributes:
        diagonal: (D,).
        times: the map Y -> S Y for Y of shape (D, L).
    """

    diagonal: Tensor
    times: Callable[[Tensor], Tensor]

    @classmethod
    def of_matrix(cls, matrix: Tensor) -> Scatter:
        """From S itself."""
        return _Matrix(matrix.diagonal(), lambda block: matrix @ block, matrix)

    @classmethod
    def of_rows(cls, values: Tensor) -> Scatter:
        """From rows (n, D)."""
        square = torch.zeros(values.shape[1], dtype=torch.float64, device=values.device)
        for chunk in row_chunks(len(values), values.shape[1]):
            square += values[chunk].square().sum(0)
        return cls(square, lambda block: cross_product(values, project(values, block)))

    def dense(self) -> Tensor:
        """S, (D, D)."""
        identity = torch.eye(len(self.diagonal), dtype=self.diagonal.dtype, device=self.diagonal.device)
        return self.times(identity)

    def plus(self, left: Tensor, right: Tensor, diagonal: Tensor | None = None) -> Scatter:
        """S + (L R^T + R L^T) / 2 + diag(d), for L and R of shape (D, L), whose products may be wide."""
        extra = (left * right).sum(1) if diagonal is None else (left * right).sum(1) + diagonal
        times = self.times

        def both(block: Tensor) -> Tensor:
            out = times(block) + (left @ (right.mT @ block) + right @ (left.mT @ block)) / 2
            return out if diagonal is None else out + diagonal[:, None] * block

        return Scatter(self.diagonal + extra, both)

    def over(self, count: Tensor | float) -> Scatter:
        """S / n."""
        times = self.times
        return Scatter(self.diagonal / count, lambda block: times(block) / count)


@dataclass(frozen=True)
class _Matrix(Scatter):
    """The same with S at hand."""

    matrix: Tensor

    def dense(self) -> Tensor:
        """S, (D, D)."""
        return self.matrix

    def plus(self, left: Tensor, right: Tensor, diagonal: Tensor | None = None) -> Scatter:
        """The matrix itself, since a product with it costs the same."""
        cross = left @ right.mT
        total = self.matrix + (cross + cross.mT) / 2
        if diagonal is not None:
            total.diagonal().add_(diagonal)
        return Scatter.of_matrix(total)

    def over(self, count: Tensor | float) -> Scatter:
        """S / n."""
        return Scatter.of_matrix(self.matrix / count)


def scatters_of_rows(blocks: Iterable[Tensor], *, dense: bool) -> tuple[Scatter, ...]:
    """S of each modality from the rows that have it.

    Args:
        blocks: for each modality (n_m, D_m), about a shift.
        dense: whether the matrices are needed whatever they cost.
    """
    return tuple(
        Scatter.of_matrix(_gram(values)) if dense or values.shape[1] <= len(values) else Scatter.of_rows(values)
        for values in blocks
    )


def _gram(values: Tensor) -> Tensor:
    """X^T X in float64, chunk by chunk."""
    width = values.shape[1]
    total = torch.zeros(width, width, dtype=torch.float64, device=values.device)
    for rows in values.split(max(4 * width, 4096)):  # enough rows to pay for adding a (D, D) product
        total += gram(rows)
    return total


def scatters_of_statistics(dims: Mapping[str, int], scatters: Mapping[tuple[bool, ...], Tensor]) -> tuple[Scatter, ...]:
    """S of each modality: the diagonal blocks of the augmented scatters by pattern, summed."""
    device = next(iter(scatters.values())).device
    out = [torch.zeros(width, width, dtype=torch.float64, device=device) for width in dims.values()]
    for present, scatter in scatters.items():
        start = 0
        for total, here in zip(out, present, strict=True):
            if here:
                stop = start + len(total)
                total += scatter[start:stop, start:stop]
                start = stop
    return tuple(Scatter.of_matrix(total) for total in out)


def trace_solve(noise: CorrelatedNoise, scatter: Scatter) -> Tensor:
    """tr(Psi^-1 S), ()."""
    if noise.dense and isinstance(scatter, _Matrix):
        return noise.trace_product(scatter.matrix)
    return noise.trace_solve(scatter.times, scatter.diagonal)
