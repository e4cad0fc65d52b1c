"""Instances as the retrieval scores see them: O(K) numbers each, whatever the widths of their modalities."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from calmrl_prob.linear_gaussian import LinearGaussian, ObservedBlocks, posterior
from calmrl_prob.linear_gaussian.posterior import factorize, modality_precisions

#: Instances whose posterior is computed at once.
_ENCODE_ROWS = 8192
#: Numbers (not bytes) in the (B, K, K) and (B, K, n) arrays of the patterns that are worked on at once.
_BATCH_NUMBERS = 2**22


@dataclass(frozen=True)
class LatentRows:
    """n instances of B missing patterns, in order of pattern, as the scores see them. Queries come with B = 1.

    All is measured from the prior mean.

    Attributes:
        natural_mean: sum over the observed modalities of W^T Psi^-1 (x - mu), shape (n, K).
        mean: posterior mean of the latent, shape (n, K).
        projection: sum over the observed modalities of W^T (x - mu), shape (n, K).
        length: Euclidean norm of the stacked x - mu of the observed modalities, shape (n,), data units.
        slot: which of the B patterns, ascending, shape (n,).
        counts: number of rows of each of the B patterns.
        information: posterior precision less prior precision, shape (B, K, K).
        logdet: log determinant of the posterior precision, shape (B,).
        gram: sum over the observed modalities of W^T W, shape (B, K, K).
        prior_precision: S0^-1, shape (K, K).
        prior_logdet: its log determinant, shape ().
    """

    natural_mean: Tensor
    mean: Tensor
    projection: Tensor
    length: Tensor
    slot: Tensor
    counts: list[int]
    information: Tensor
    logdet: Tensor
    gram: Tensor
    prior_precision: Tensor
    prior_logdet: Tensor


class Encoded:
    """N instances reduced to what the scores need: O(N K) numbers, whatever the widths of the modalities.

    Args:
        linear_gaussian: the fitted model.
        blocks: N instances, any modalities of the model, each whole or absent.

    Attributes:
        patterns: (P, M) bool, True = PRESENT. pattern_index: which one each instance has, (N,).
        log_marginal: log p(x_n) of what each instance has, (N,), nats.
        mahalanobis: (x_n - E x_n)^T Cov[x_n]^-1 (x_n - E x_n) of the same, (N,).
        num_features: how many features that is, (N,).
    """

    def __init__(self, linear_gaussian: LinearGaussian, blocks: ObservedBlocks) -> None:
        chosen = linear_gaussian.select(blocks.names).to(torch.float64)
        centre = {name: chosen.intercepts[name] + chosen.loadings[name] @ chosen.prior_mean for name in chosen.names}
        lg = replace(chosen, intercepts=centre, prior_mean=torch.zeros_like(chosen.prior_mean))
        self.patterns = blocks.patterns.to(lg.device)
        self.pattern_index = blocks.pattern_index.to(lg.device)
        precisions = modality_precisions(lg)
        self._information, self._prior_precision = precisions[:-1], precisions[-1]
        self._gram = torch.stack([loadings.mT @ loadings for loadings in lg.loadings.values()])
        parts = [self._encode(lg, blocks, start) for start in range(0, blocks.num_instances, _ENCODE_ROWS)]
        self._natural_mean, self._mean, self._projection, self._length, self.log_marginal, self.mahalanobis = (
            torch.cat(columns) for columns in zip(*parts, strict=True)
        )
        self._logdet = torch.cat([log_determinant(factorize(self._precision(part))) for part in self._pattern_parts()])
        widths = torch.tensor(list(lg.dims.values()), dtype=torch.float64, device=lg.device)
        self.num_features = (self.patterns.double() @ widths)[self.pattern_index]
        self._prior_logdet = log_determinant(factorize(self._prior_precision))

    def __len__(self) -> int:
        """Number of instances N."""
        return len(self.pattern_index)

    def groups(self, rows: Tensor, size: int, most_patterns: int | None = None) -> Iterator[Tensor]:
        """Cut some instances into groups, in order of pattern, that the K x K algebra of a block can hold.

        Args:
            rows: row numbers, (n,).
            size: most rows of a group.
            most_patterns: most patterns of a group; as many as memory should hold by default.

        Yields:
            Positions in ``rows``, such that the patterns of ``rows[positions]`` ascend.
        """
        patterns, order = torch.sort(self.pattern_index[rows], stable=True)
        latent_dim = self._mean.shape[1]
        most = most_patterns or max(1, _BATCH_NUMBERS // (latent_dim * max(latent_dim, size)))
        level = torch.unique_consecutive(patterns, return_inverse=True)[1]
        start = 0
        while start < len(rows):
            end = int(torch.searchsorted(level, level[start] + most))
            stop = min(start + size, end)
            yield order[start:stop]
            start = stop

    def take(self, rows: Tensor) -> LatentRows:
        """Some instances, in order of pattern."""
        patterns, slot, counts = torch.unique_consecutive(
            self.pattern_index[rows], return_inverse=True, return_counts=True
        )
        return LatentRows(
            self._natural_mean[rows],
            self._mean[rows],
            self._projection[rows],
            self._length[rows],
            slot,
            counts.tolist(),
            self._sum(self._information, patterns),
            self._logdet[patterns],
            self._sum(self._gram, patterns),
            self._prior_precision,
            self._prior_logdet,
        )

    def _sum(self, matrices: Tensor, patterns: Tensor) -> Tensor:
        """Sum over the modalities that each pattern has, (B, K, K)."""
        return torch.einsum("bm,mkl->bkl", self.patterns[patterns].to(matrices.dtype), matrices)

    def _precision(self, patterns: Tensor) -> Tensor:
        return self._prior_precision + self._sum(self._information, patterns)

    def _pattern_parts(self) -> tuple[Tensor, ...]:
        """The patterns, a few at a time."""
        all_patterns = torch.arange(len(self.patterns), device=self.patterns.device)
        return torch.split(all_patterns, max(1, _BATCH_NUMBERS // self._mean.shape[1] ** 2))

    @staticmethod
    def _encode(lg: LinearGaussian, blocks: ObservedBlocks, start: int) -> tuple[Tensor, ...]:
        """Encoding of each instance from ``start`` on, in float64."""
        # float64 from here on: a duplicate must get the same score wherever it stands, and float32 products do not
        part = _rows(blocks, start, start + _ENCODE_ROWS, lg.device)
        given = posterior(lg, part)
        projection = torch.zeros_like(given.mean)
        square = projection.new_zeros(len(projection))
        for name, values in part.values.items():
            centred = values - lg.intercepts[name]
            projection[part.rows[name]] += centred @ lg.loadings[name]
            square[part.rows[name]] += centred.square().sum(1)
        return given.natural_mean, given.mean, projection, square.sqrt(), given.log_marginal, given.mahalanobis


def _rows(blocks: ObservedBlocks, start: int, stop: int, device: torch.device) -> ObservedBlocks:
    """Instances start to stop - 1, in float64 on ``device``."""
    values = {}
    for name, rows in blocks.rows.items():
        first, last = torch.searchsorted(rows, torch.tensor([start, stop], device=rows.device)).tolist()
        values[name] = blocks.values[name][first:last].to(device=device, dtype=torch.float64)
    return ObservedBlocks(values, blocks.observed_mask[start:stop].to(device))


def log_determinant(factor: Tensor) -> Tensor:
    """Log determinants of L L^T, (...,), for L of shape (..., K, K)."""
    return 2 * factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)
