"""Ranking by scores of pairs: the best candidates of each query, where its true one came, and metrics of that.

The whole (N_q, N_c) table of scores is never held: it is made in tiles, each tile is compared with the score of the
true candidate and merged into the best so far, and dropped. Memory is O((N_q + N_c) K) plus a few tiles, where the
model has an exact form.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from calmrl_prob._support.arguments import whole_number
from calmrl_prob.errors import ArgumentError
from calmrl_prob.evaluation.retrieval.pairs import PairScores, Tile

#: Scores closer than this, relative to the size of the numbers that they are sums of, are tied: what a float64 sum
#: rounds away depends on where in a tile it stands, and a duplicate of the true candidate must tie wherever it is.
TIE_TOLERANCE = 1e-10


def recall_at(ranks: NDArray[np.int64], k: int) -> float:
    """Share of queries whose true candidate is among the first k, in [0, 1].

    Example:
        >>> recall_at(np.array([1, 3, 12]), k=5) == 2 / 3
        True
    """
    return float(np.mean(ranks <= k)) if len(ranks) else float("nan")


def median_rank(ranks: NDArray[np.int64]) -> float:
    """Median rank of the true candidate; 1 is best."""
    return float(np.median(ranks)) if len(ranks) else float("nan")


def mean_reciprocal_rank(ranks: NDArray[np.int64]) -> float:
    """Mean of 1 / rank, in (0, 1]."""
    return float(np.mean(1 / ranks)) if len(ranks) else float("nan")


#: What ``Retrieval.metrics`` computes, by name: functions from ranks (N_q,) to a number.
RETRIEVAL_METRICS: dict[str, Callable[[NDArray[np.int64]], float]] = {
    "R@1": partial(recall_at, k=1),
    "R@5": partial(recall_at, k=5),
    "R@10": partial(recall_at, k=10),
    "median_rank": median_rank,
    "mean_reciprocal_rank": mean_reciprocal_rank,
}


@dataclass(frozen=True, eq=False, repr=False)
class Retrieval:
    """Ranks and best candidates of a retrieval. Row numbers are those of the data given to ``retrieve``.

    Attributes:
        score: name of the score.
        num_candidates: N_c.
        top_indices: row numbers of the best candidates, best first, (N_q, k); of tied candidates the first row first.
            -1 where fewer than k have a score that is a number.
        top_scores: their scores, (N_q, k), in the score's units.
        ranks: rank of the true candidate of each query, (N_q,), 1 is best: 1 + the number of other candidates that
            score as high or higher, so ties count against the model. N_c if its score is NaN. None without targets.
        target_scores: score of the true candidate, (N_q,), or None.
        no_targets: why there are no ranks, if so.
        effective_draws: of a score that is a mean over draws, how many of them that of each query with its true
            candidate rests on, (N_q,), from 1 to their number: near 1 a single draw decides, and the score is noise.
            None of other scores.
    """

    score: str
    num_candidates: int
    top_indices: NDArray[np.int64]
    top_scores: NDArray[np.float64]
    ranks: NDArray[np.int64] | None = None
    target_scores: NDArray[np.float64] | None = None
    no_targets: str = ""
    effective_draws: NDArray[np.float64] | None = None

    def __repr__(self) -> str:
        num_queries, k = self.top_indices.shape
        known = f"the true candidate is known for each: {_listed(self.metrics())}" if self.ranks is not None else ""
        draws = "" if self.effective_draws is None else f"; {np.median(self.effective_draws):.1f} effective draws"
        return (
            f"Retrieval: {num_queries:,} queries among {self.num_candidates:,} candidates by {self.score}, "
            f"the best {k} listed\n  {known or f'no ranks: {self.no_targets}'}{draws}"
        )

    def metrics(self) -> dict[str, float]:
        """R@1, R@5, R@10 (shares in [0, 1]), median rank and mean reciprocal rank.

        Raises:
            ArgumentError: the true candidates are not known.
        """
        if self.ranks is None:
            raise ArgumentError(f"targets: {self.no_targets} Pass targets, the row number of each query's candidate.")
        return {name: metric(self.ranks) for name, metric in RETRIEVAL_METRICS.items()}


def rank(
    pairs: PairScores,
    score: str,
    num_queries: int,
    num_candidates: int,
    target_rows: Tensor | None,
    no_targets: str,
    top_k: int,
    chunk_size: int,
) -> Retrieval:
    """Rank all candidates for each query.

    Args:
        pairs: the score of any query with any candidate.
        score: its name.
        num_queries: N_q.
        num_candidates: N_c.
        target_rows: row number of the true candidate of each query, (N_q,), where it is known.
        no_targets: why it is not.
        top_k: how many of the best to list; at most N_c are.
        chunk_size: most rows of a tile, on either side.

    Raises:
        ArgumentError: a number is out of range.
        ArgumentTypeError: one is no whole number.
    """
    chunk_size, top_k = whole_number("chunk_size", chunk_size, 1), whole_number("top_k", top_k)
    device, k = pairs.device, min(top_k, num_candidates)
    chosen = target_rows.to(device) if target_rows is not None else None
    target_scores, threshold = _score_targets(pairs, num_queries, chosen, chunk_size)
    below = torch.zeros(num_queries, dtype=torch.int64, device=device)
    top_indices = torch.full((num_queries, k), -1, dtype=torch.int64, device=device)
    top_scores = torch.full((num_queries, k), float("nan"), dtype=torch.float64, device=device)
    place = torch.full((num_candidates,), -1, dtype=torch.int64, device=device)
    candidate_groups = list(pairs.candidate_groups(torch.arange(num_candidates, device=device), chunk_size))
    for query_rows in pairs.query_groups(torch.arange(num_queries, device=device), chunk_size):
        best = _Best(len(query_rows), k, device)
        for candidate_rows in candidate_groups:
            tile = pairs.tile(query_rows, candidate_rows)
            block = tile.block()
            best.merge(block, candidate_rows, tile)
            if chosen is not None:
                place[candidate_rows] = torch.arange(len(candidate_rows), device=device)
                column = place[chosen[query_rows]]
                here = (column >= 0).nonzero().squeeze(1)
                block[here, column[here]] = float("nan")  # the target does not compete with itself
                place[candidate_rows] = -1
                below[query_rows] += (block < threshold[query_rows, None]).sum(1)
        top_indices[query_rows], top_scores[query_rows] = best.ordered()
    drawn = pairs.effective_draws
    return Retrieval(
        score,
        num_candidates,
        top_indices.cpu().numpy(),
        top_scores.cpu().numpy(),
        # all that are not below count against the model: ties and NaN scores among them
        (num_candidates - below).cpu().numpy() if chosen is not None else None,
        target_scores.cpu().numpy() if chosen is not None else None,
        no_targets,
        drawn.cpu().numpy() if drawn is not None and chosen is not None else None,
    )


class _Best:
    """The k best candidates so far of n queries."""

    def __init__(self, num_queries: int, k: int, device: torch.device) -> None:
        self.k = k
        self.scores = torch.empty(num_queries, 0, dtype=torch.float64, device=device)
        self.indices = torch.empty(num_queries, 0, dtype=torch.int64, device=device)
        self.sizes = torch.empty(num_queries, 0, dtype=torch.float64, device=device)

    def merge(self, block: Tensor, rows: Tensor, tile: Tile) -> None:
        """Take in the scores of a tile, (n, m), of the candidates ``rows``, (m,)."""
        if self.k == 0:
            return
        scores, columns = block.topk(min(self.k, len(rows)), dim=1)
        if bool(scores.isnan().any()):  # topk takes NaN for the largest of all
            scores, columns = block.masked_fill(block.isnan(), -torch.inf).topk(scores.shape[1], dim=1)
        sizes = tile.size(columns)
        scores = torch.cat([self.scores, scores], dim=1)
        self.scores, keep = scores.topk(min(self.k, scores.shape[1]), dim=1)
        self.indices = torch.cat([self.indices, rows[columns]], dim=1).gather(1, keep)
        self.sizes = torch.cat([self.sizes, sizes], dim=1).gather(1, keep)

    def ordered(self) -> tuple[Tensor, Tensor]:
        """Indices and scores, (n, k), best first, and of tied candidates the first row first."""
        if self.k == 0:
            return self.indices, self.scores
        gap = self.scores[:, :-1] - self.scores[:, 1:] > TIE_TOLERANCE * self.sizes[:, :-1]
        level = torch.nn.functional.pad(gap.long().cumsum(1), (1, 0))
        order = (level * (int(self.indices.max()) + 1) + self.indices).argsort(dim=1)
        scores, indices = self.scores.gather(1, order), self.indices.gather(1, order)
        missing = scores == -torch.inf
        return indices.masked_fill(missing, -1), scores.masked_fill(missing, float("nan"))


def _score_targets(
    pairs: PairScores, num_queries: int, targets: Tensor | None, chunk_size: int
) -> tuple[Tensor, Tensor]:
    """The score of each query with its target, and the score below which a candidate is worse; both (N_q,)."""
    scores = torch.full((num_queries,), float("nan"), dtype=torch.float64, device=pairs.device)
    threshold = scores.clone()
    if targets is None:
        return scores, threshold
    for query_rows in pairs.query_groups(torch.arange(num_queries, device=scores.device), chunk_size):
        for positions in pairs.candidate_groups(targets[query_rows], chunk_size):
            rows = query_rows[positions]
            tile = pairs.tile(rows, targets[rows])
            scores[rows] = tile.paired()
            sizes = tile.size(torch.arange(len(rows), device=rows.device)[:, None]).squeeze(1)
            threshold[rows] = scores[rows] - TIE_TOLERANCE * sizes
    return scores, threshold


def _listed(metrics: dict[str, float]) -> str:
    return ", ".join(f"{name.replace('_', ' ')} {value:.3g}" for name, value in metrics.items())
