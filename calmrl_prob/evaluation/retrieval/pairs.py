"""Scores of all pairs of a query with a candidate, read a tile at a time: the closed forms.

``retrieve`` knows nothing of how a score comes about. It asks a :class:`PairScores` in which groups to take the rows,
and for the tile of one group of queries with one group of candidates.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import reduce
from typing import Protocol

import torch
from torch import Tensor

from calmrl_prob.evaluation.retrieval.instance_sets import InstanceSet
from calmrl_prob.evaluation.retrieval.latent_rows import Encoded
from calmrl_prob.evaluation.retrieval.scores import ClosedForm, Factors, joint_factor, likelihood_ratio, log_volume


class Tile(Protocol):
    """The scores of n queries with m candidates."""

    def block(self) -> Tensor:
        """All scores, shape (n, m)."""

    def paired(self) -> Tensor:
        """The scores of query i with candidate i, shape (n,); needs n = m."""

    def size(self, columns: Tensor) -> Tensor:
        """Size of the numbers behind the scores of each query with the candidates ``columns``, both (n, k)."""


class PairScores(ABC):
    """The (N_q, N_c) scores of queries with candidates, none of which is computed before it is asked for.

    Attributes:
        device: of the scores.
        effective_draws: of a score that is a mean over draws, how many of them the mean for each query and its target
            rests on, (N_q,); filled in as ``Tile.paired`` is called. None of other scores.
    """

    device: torch.device
    effective_draws: Tensor | None = None

    @abstractmethod
    def tile(self, queries: Tensor, candidates: Tensor) -> Tile:
        """The scores of some queries (n,) with some candidates (m,), both row numbers from one group each."""

    def query_groups(self, rows: Tensor, size: int) -> Iterator[Tensor]:
        """Positions in ``rows``, of queries, in groups of at most ``size`` that a tile can hold."""
        return iter(torch.arange(len(rows), device=rows.device).split(size))

    def candidate_groups(self, rows: Tensor, size: int) -> Iterator[Tensor]:
        """The same for candidates."""
        return iter(torch.arange(len(rows), device=rows.device).split(size))


class ClosedPairs(PairScores):
    """A score in closed form under a linear-Gaussian model.

    Args:
        score: the closed form.
        queries, candidates: the rows of each side.
    """

    def __init__(self, score: ClosedForm, queries: Encoded, candidates: Encoded) -> None:
        self._score, self._queries, self._candidates = score, queries, candidates
        self.device = queries.pattern_index.device

    def query_groups(self, rows: Tensor, size: int) -> Iterator[Tensor]:
        """Groups of one missing pattern."""
        return self._queries.groups(rows, size, most_patterns=1)

    def candidate_groups(self, rows: Tensor, size: int) -> Iterator[Tensor]:
        """Groups of as many patterns as memory holds."""
        return self._candidates.groups(rows, size)

    def tile(self, queries: Tensor, candidates: Tensor) -> Tile:
        """The parts of which a matrix product makes the block."""
        return self._score(self._queries.take(queries), self._candidates.take(candidates))


class MixtureRatio(PairScores):
    """The exact log-likelihood ratio under a mixture of C linear-Gaussian models, in nats.

        log p(x^q, x^c) - log p(x^q) - log p(x^c) = log sum_k exp(log r_qk + log r_ck - log pi_k + ratio_k)

    with r_qk and r_ck the responsibilities given the query alone and the candidate alone, and ratio_k the ratio under
    component k by itself: since instances are independent given the component, p(x^q, x^c) = sum_k pi_k p_k(x^q)
    p_k(x^c) exp(ratio_k).

    Args:
        log_weights: log pi, shape (C,).
        queries, candidates: for each component the rows of each side.
    """

    def __init__(self, log_weights: Tensor, queries: Sequence[Encoded], candidates: Sequence[Encoded]) -> None:
        self._sides = list(zip(queries, candidates, strict=True))
        given_query, given_candidate = (
            torch.log_softmax(log_weights + torch.stack([part.log_marginal for part in side], dim=1), dim=1)
            for side in (queries, candidates)
        )
        self._query_terms, self._candidate_terms = given_query - log_weights, given_candidate
        self.device = log_weights.device

    def query_groups(self, rows: Tensor, size: int) -> Iterator[Tensor]:
        """Groups of one missing pattern."""
        return self._sides[0][0].groups(rows, size, most_patterns=1)

    def candidate_groups(self, rows: Tensor, size: int) -> Iterator[Tensor]:
        """Groups of as many patterns as memory holds."""
        return self._sides[0][1].groups(rows, size)

    def tile(self, queries: Tensor, candidates: Tensor) -> MixtureTile:
        """The parts of each component."""
        factors = []
        for k, (asked, shown) in enumerate(self._sides):
            found = likelihood_ratio(asked.take(queries), shown.take(candidates))
            query, candidate = self._query_terms[queries, k], self._candidate_terms[candidates, k]
            factors.append(
                replace(
                    found,
                    query_term=_added(found.query_term, query[:, None]),
                    candidate_term=_added(found.candidate_term, candidate),
                    query_size=_added(found.query_size, query.abs()[:, None]),
                    candidate_size=_added(found.candidate_size, candidate.abs()),
                )
            )
        return MixtureTile(factors)


class MixtureTile:
    """The log of a sum over components of exp of their scores."""

    def __init__(self, components: Sequence[Factors]) -> None:
        self._components = components

    def block(self) -> Tensor:
        """All scores, shape (n, m); two blocks are held at a time."""
        return reduce(torch.logaddexp, (part.block() for part in self._components))

    def paired(self) -> Tensor:
        """The scores of query i with candidate i, shape (n,)."""
        return reduce(torch.logaddexp, (part.paired() for part in self._components))

    def size(self, columns: Tensor) -> Tensor:
        """The largest of any component: a bound on that of the sum."""
        return reduce(torch.maximum, (part.size(columns) for part in self._components))


class StudentTRatio(ClosedPairs):
    """The exact log-likelihood ratio where latent and noise of an instance share a random scale, in nats.

    With nu degrees of freedom, D features on a side and delta its Mahalanobis distance, log p(x) is, but for terms that
    cancel, lgamma((nu + D) / 2) - log|S| / 2 - (nu + D) / 2 log(1 + delta / nu). The volumes and the distance of both
    sides together come from the ratio under normals of the same scale matrices.

    Args:
        degrees_of_freedom: nu, shape ().
        queries, candidates: the rows of each side, under these normals.
    """

    def __init__(self, degrees_of_freedom: Tensor, queries: Encoded, candidates: Encoded) -> None:
        super().__init__(likelihood_ratio, queries, candidates)
        self._freedom = degrees_of_freedom

    def tile(self, queries: Tensor, candidates: Tensor) -> Tile:
        """Tile of scores, from those of the normal model."""
        asked, shown = self._queries.take(queries), self._candidates.take(candidates)
        volume = log_volume(joint_factor(asked, shown), asked, shown)[shown.slot]
        sides = ((self._queries, queries), (self._candidates, candidates))
        distances, widths = zip(
            *((side.mahalanobis[rows], side.num_features[rows]) for side, rows in sides), strict=True
        )
        return _StudentTTile(self._freedom, super().tile(queries, candidates), volume, distances, widths)


class _StudentTTile:
    def __init__(
        self,
        freedom: Tensor,
        normal: Tile,
        volume: Tensor,
        distances: tuple[Tensor, Tensor],
        widths: tuple[Tensor, Tensor],
    ) -> None:
        self._freedom, self._normal, self._volume = freedom, normal, volume
        self._distances, self._widths = distances, widths

    def _turned(self, normal: Tensor, paired: bool) -> Tensor:
        (query, candidate), (query_width, candidate_width) = self._distances, self._widths
        if not paired:
            query, query_width = query[:, None], query_width[:, None]
        together = (query + candidate - 2 * (normal - self._volume)).clamp_min(0)
        terms = self._term(together, query_width + candidate_width)
        alone = self._term(query, query_width) + self._term(candidate, candidate_width)
        return terms - alone + torch.lgamma(self._freedom / 2) + self._volume

    def _term(self, distance: Tensor, width: Tensor) -> Tensor:
        half = (self._freedom + width) / 2
        return torch.lgamma(half) - half * torch.log1p(distance / self._freedom)

    def block(self) -> Tensor:
        """All scores, shape (n, m)."""
        return self._turned(self._normal.block(), paired=False)

    def paired(self) -> Tensor:
        """The scores of query i with candidate i, shape (n,)."""
        return self._turned(self._normal.paired(), paired=True)

    def size(self, columns: Tensor) -> Tensor:
        """That of the normals' scores and the distances, drawn out by the steepest that they are turned with."""
        distances = self._distances[0][:, None] + self._distances[1][columns]
        widths = self._widths[0][:, None] + self._widths[1][columns]
        return (self._normal.size(columns) + distances) * (1 + widths / self._freedom)


def exact_ratio(queries: InstanceSet, candidates: InstanceSet) -> PairScores:
    """The exact likelihood ratio of two sides whose model has an exact form."""
    asked, shown = queries.form, candidates.form
    assert asked is not None
    assert shown is not None
    before = asked.components[0].latent_dim - asked.latent_dim
    after = shown.components[0].latent_dim - shown.latent_dim
    if asked.degrees_of_freedom is not None:
        return StudentTRatio(asked.degrees_of_freedom, queries.encoded, candidates.encoded)
    query_side = [queries.encode(part) for part in asked.beside(before=0, after=after)]
    candidate_side = [candidates.encode(part) for part in shown.beside(before=before, after=0)]
    if len(query_side) == 1:
        return ClosedPairs(likelihood_ratio, query_side[0], candidate_side[0])
    return MixtureRatio(asked.log_weights, query_side, candidate_side)


def _added(term: Tensor | None, more: Tensor) -> Tensor:
    return more if term is None else term + more
