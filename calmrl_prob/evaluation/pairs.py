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

from calmrl_prob.evaluation.latent_rows import Encoded
from calmrl_prob.evaluation.scores import ClosedForm, Factors, likelihood_ratio
from calmrl_prob.evaluation.sides import Side


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

    def tile(self, queries: Tensor, candidates: Tensor) -> Factors:
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
        self._parts = [ClosedPairs(likelihood_ratio, *both) for both in zip(queries, candidates, strict=True)]
        given_query, given_candidate = (
            torch.log_softmax(log_weights + torch.stack([part.log_marginal for part in side], dim=1), dim=1)
            for side in (queries, candidates)
        )
        self._query_terms, self._candidate_terms = given_query - log_weights, given_candidate
        self.device = log_weights.device

    def query_groups(self, rows: Tensor, size: int) -> Iterator[Tensor]:
        """Groups of one missing pattern."""
        return self._parts[0].query_groups(rows, size)

    def candidate_groups(self, rows: Tensor, size: int) -> Iterator[Tensor]:
        """Groups of as many patterns as memory holds."""
        return self._parts[0].candidate_groups(rows, size)

    def tile(self, queries: Tensor, candidates: Tensor) -> MixtureTile:
        """The parts of each component."""
        factors = []
        for k, part in enumerate(self._parts):
            found = part.tile(queries, candidates)
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


def exact_ratio(queries: Side, candidates: Side) -> PairScores:
    """The exact likelihood ratio of two sides whose model has an exact form."""
    asked, shown = queries.form, candidates.form
    assert asked is not None
    assert shown is not None
    before = asked.components[0].latent_dim - asked.latent_dim
    after = shown.components[0].latent_dim - shown.latent_dim
    query_side = [queries.encode(part) for part in asked.beside(before=0, after=after)]
    candidate_side = [candidates.encode(part) for part in shown.beside(before=before, after=0)]
    if len(query_side) == 1:
        return ClosedPairs(likelihood_ratio, query_side[0], candidate_side[0])
    return MixtureRatio(asked.log_weights, query_side, candidate_side)


def _added(term: Tensor | None, more: Tensor) -> Tensor:
    return more if term is None else term + more
