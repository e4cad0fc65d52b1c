"""Retrieval: rank candidates for each query, and say where the true one came, by any model and route.

The whole (N_q, N_c) table of scores is never held: it is made in tiles, each tile is compared with the score of the
true candidate and merged into the best so far, and dropped. Memory is O((N_q + N_c) K) plus a few tiles, where the
model has an exact form.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from calmrl_prob._arguments import chosen_names, short, whole_number
from calmrl_prob.data import MultimodalData
from calmrl_prob.errors import ArgumentError, ArgumentTypeError
from calmrl_prob.evaluation.pairs import ClosedPairs, PairScores, Tile, exact_ratio
from calmrl_prob.evaluation.sampled_pairs import Estimator, LatentCosine, PredictedCosine, SampledRatio
from calmrl_prob.evaluation.scores import SCORES
from calmrl_prob.evaluation.sides import Scored, Side, require_whole
from calmrl_prob.inference.posterior import Model

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
    """What ``retrieve`` found. Row numbers are those of the data given to it.

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


@torch.no_grad()
def retrieve(
    model: Model,
    queries: MultimodalData,
    candidates: MultimodalData,
    score: str = "likelihood_ratio",
    targets: Sequence[int] | NDArray[np.integer] | Tensor | None = None,
    top_k: int = 10,
    chunk_size: int = 2048,
    *,
    num_draws: int = 256,
    estimator: Estimator = "moments",
    seed: int = 0,
    **options: Any,
) -> Retrieval:
    """Rank the candidates for each query by a score of the fitted model.

    Queries and candidates may each have any of the model's modalities, differing from row to row, and those of a
    query need not have met those of a candidate in training. All arithmetic is float64, on the model's device.

    The likelihood ratio log p(x^c | x^q) - log p(x^c) is exact where the model is linear-Gaussian (however it is
    spelled: a Pyro model's form is discovered), a mixture of such (draws of its parameters make one too), or
    multivariate t. For other models it is estimated from draws of each query's latents, see ``estimator``; where
    covariates enter, with those of the query.

    Args:
        model: whatever :func:`calmrl_prob.posterior` takes: a SharedLatentModel, a LinearGaussian, a Pyro model, the
            FitResult of one. A Pyro model that has no attribute ``dims`` is called with the modalities of both sides.
        queries: N_q instances.
        candidates: N_c instances.
        score: "likelihood_ratio" (nats), "cosine_latent" or "cosine_predicted"; see ``SCORES``.
        targets: for each query the row number of its true candidate, (N_q,). By default the candidate with the same
            id when both sides have ids, else the one in the same row when N_q = N_c, else unknown.
        top_k: how many of the best to list; at most N_c are.
        chunk_size: most rows of a tile of scores, on either side. It changes memory and time, not results: a tile
            takes 8 ``chunk_size``^2 bytes, and about four are held. Where the ratio is exact, time is that of one
            K x K factorisation for each pair of missing patterns and of N_q N_c K multiplications (each C times for C
            components); from S draws, of N_q N_c D S multiplications or, for moments, N_q N_c D min(D, S).
        num_draws: S, of a ratio that is estimated.
        estimator: of such a ratio: "moments" (the normal with the draws' moments) or "monte_carlo" (the mean over the
            draws; needs far more of them the more latents there are).
        seed: of these draws, and of what the route to the posterior draws.
        **options: of :func:`calmrl_prob.posterior`.

    Raises:
        ArgumentError: an unknown score or estimator, targets that do not fit, or a number out of range.
        ArgumentTypeError: an argument is of another type.
        SchemaError: a modality is unknown to the model or has another width.
        DataError: some rows lack single features.

    Example:
        >>> from calmrl_prob.linear_gaussian import LinearGaussian
        >>> one, zero = torch.ones(1, 1), torch.zeros(1)
        >>> lg = LinearGaussian({"a": one, "b": one}, {"a": zero, "b": zero}, {"a": zero + 0.1, "b": zero + 0.1})
        >>> queries = MultimodalData({"a": np.array([[-2.0], [0.1], [2.0]])})
        >>> candidates = MultimodalData({"b": np.array([[-1.9], [0.0], [2.2]])})
        >>> found = retrieve(lg, queries, candidates, top_k=1)
        >>> found.top_indices.ravel().tolist(), found.ranks.tolist(), found.metrics()["R@1"]
        ([0, 1, 2], [1, 1, 1], 1.0)
    """
    _require_score(score)
    scored = Scored(model, (queries, candidates), {"seed": seed, **options})
    sides = Side(scored, queries, "queries"), Side(scored, candidates, "candidates")
    pairs = pair_scores(*sides, score, num_draws=num_draws, estimator=estimator, seed=seed)
    target_rows, reason = _find_targets(queries, candidates, targets)
    return _rank(pairs, score, len(queries), len(candidates), target_rows, reason, top_k, chunk_size)


def pair_scores(
    queries: Side, candidates: Side, score: str, *, num_draws: int, estimator: Estimator, seed: int
) -> PairScores:
    """A score of every query with every candidate, by the best route that their model has; see ``retrieve``."""
    forms = queries.form, candidates.form
    ratio = score == "likelihood_ratio"
    if all(form is not None and form.plain and (form.one_gaussian or not ratio) for form in forms):
        return ClosedPairs(SCORES[score], queries.encoded, candidates.encoded)
    if ratio:
        if None not in forms:
            return exact_ratio(queries, candidates)
        return SampledRatio(queries, candidates, num_draws, seed, estimator)
    if score in _OF_MEANS:
        return _OF_MEANS[score](queries, candidates)
    raise ArgumentError(
        f"score: {score!r} is there for models with one linear-Gaussian form; expected one of "
        f"{['likelihood_ratio', *_OF_MEANS]}."
    )


#: Scores other than the ratio, for models that have no closed form of them.
_OF_MEANS: dict[str, Callable[[Side, Side], PairScores]] = {
    "cosine_latent": LatentCosine,
    "cosine_predicted": PredictedCosine,
}


def _rank(
    pairs: PairScores,
    score: str,
    num_queries: int,
    num_candidates: int,
    target_rows: Tensor | None,
    no_targets: str,
    top_k: int,
    chunk_size: int,
) -> Retrieval:
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


@torch.no_grad()
def cross_modal_recall(
    model: Model,
    data: MultimodalData,
    names: Sequence[str] | None = None,
    score: str = "likelihood_ratio",
    ks: Sequence[int] = (1, 5, 10),
    chunk_size: int = 2048,
    *,
    num_draws: int = 256,
    estimator: Estimator = "moments",
    seed: int = 0,
    **options: Any,
) -> pd.DataFrame:
    """Retrieval from every modality to every other, each over the rows that have both.

    Args:
        model: see ``retrieve``.
        data: N instances; row n with one modality asks for row n with another.
        names: which modalities; all of ``data`` by default.
        score: see ``retrieve``.
        ks: the k of R@k.
        chunk_size: see ``retrieve``.
        num_draws: see ``retrieve``.
        estimator: see ``retrieve``.
        seed: see ``retrieve``.
        **options: see ``retrieve``.

    Returns:
        One row for each ordered pair, with columns query, candidate, num_queries, R@k for each k (shares in [0, 1]),
        median_rank and mean_reciprocal_rank; NaN for a pair that no row has. ``mean_over_pairs`` sums it up.

    Raises:
        SchemaError: a modality that the data or the model do not have, or of another width than the model's.
        ArgumentError: an unknown score, a modality named twice, or fewer than two.
        ArgumentTypeError: ``names`` is not a sequence of strings, or ``data`` is not MultimodalData.

    Example:
        >>> from calmrl_prob.linear_gaussian import LinearGaussian
        >>> one, zero = torch.ones(1, 1), torch.zeros(1)
        >>> lg = LinearGaussian({"a": one, "b": one}, {"a": zero, "b": zero}, {"a": zero + 0.1, "b": zero + 0.1})
        >>> data = MultimodalData({"a": np.array([[-2.0], [0.1], [2.0]]), "b": np.array([[-1.9], [0.0], [2.2]])})
        >>> cross_modal_recall(lg, data)[["query", "candidate", "R@1"]].values.tolist()
        [['a', 'b', 1.0], ['b', 'a', 1.0]]
    """
    _require_score(score)
    require_whole(data, "data")
    chosen = chosen_names(data.names if names is None else names, data.names, least=2)
    present = {name: data.observed(name) for name in chosen}
    if not isinstance(ks, Iterable):
        raise ArgumentTypeError(f"ks: expected a sequence of whole numbers, got {short(ks)}; pass [1, 5], say.")
    ks = [whole_number("ks", k, 1) for k in ks]
    scored = Scored(model, [data], {"seed": seed, **options})

    @cache
    def side(name: str, other: str) -> Side:
        """One modality of the rows that have both; made once where all rows have all."""
        return Side(scored, data.subset(present[name] & present[other]).select([name]), "data")

    whole = all(bool(rows.all()) for rows in present.values())
    rows_of_table: list[dict[str, float | str]] = []
    for query in chosen:
        for candidate in chosen:
            if query == candidate:
                continue
            number = int((present[query] & present[candidate]).sum())
            ranks = np.empty(0, dtype=np.int64)
            if number:
                asked, shown = (
                    side(name, name if whole else other) for name, other in ((query, candidate), (candidate, query))
                )
                pairs = pair_scores(asked, shown, score, num_draws=num_draws, estimator=estimator, seed=seed)
                found = _rank(pairs, score, number, number, torch.arange(number), "", 0, chunk_size)
                ranks = found.ranks if found.ranks is not None else ranks
            rows_of_table.append(
                {
                    "query": query,
                    "candidate": candidate,
                    "num_queries": len(ranks),
                    **{f"R@{k}": recall_at(ranks, k) for k in ks},
                    "median_rank": median_rank(ranks),
                    "mean_reciprocal_rank": mean_reciprocal_rank(ranks),
                }
            )
    return pd.DataFrame(rows_of_table)


def mean_over_pairs(recall: pd.DataFrame) -> dict[str, float]:
    """The mean of each metric of a ``cross_modal_recall`` table over its pairs, each pair weighing the same.

    Example:
        >>> mean_over_pairs(pd.DataFrame({"query": ["a", "b"], "candidate": ["b", "a"], "R@1": [0.25, 0.75]}))
        {'R@1': 0.5}
    """
    metrics = recall.drop(columns=["query", "candidate", "num_queries"], errors="ignore")
    return {str(name): float(value) for name, value in metrics.mean().items()}


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


def _require_score(score: str) -> None:
    if score not in list(SCORES):
        raise ArgumentError(f"score: expected one of {sorted(SCORES)}, got {score!r}.")


def _find_targets(
    queries: MultimodalData, candidates: MultimodalData, targets: Sequence[int] | NDArray[np.integer] | Tensor | None
) -> tuple[Tensor | None, str]:
    """Row number of the true candidate of each query, (N_q,); or None, and why."""
    num_queries, num_candidates = len(queries), len(candidates)
    if targets is not None:
        given = np.asarray(targets.cpu() if isinstance(targets, Tensor) else targets)
        if given.shape != (num_queries,) or not np.issubdtype(given.dtype, np.integer):
            raise ArgumentError(
                f"targets: expected {num_queries} row numbers, one per query, got shape {given.shape} of {given.dtype}."
            )
        outside = np.flatnonzero((given < 0) | (given >= num_candidates))
        if len(outside):
            raise ArgumentError(
                f"targets: expected row numbers from 0 to {num_candidates - 1}, got {given[outside[0]]} "
                f"(row {outside[0]})."
            )
        return torch.from_numpy(given.astype(np.int64)), ""
    if queries.ids is not None and candidates.ids is not None:
        return _match_ids(queries.ids, candidates.ids)
    if num_queries == num_candidates:
        return torch.arange(num_queries), ""
    return None, (
        f"the true candidates are not known: {num_queries} queries, {num_candidates} candidates, and no ids on both."
    )


def _match_ids(query_ids: NDArray[np.generic], candidate_ids: NDArray[np.generic]) -> tuple[Tensor | None, str]:
    """Row number of the candidate with the id of each query; or None, and why."""
    row_of: dict[object, int] = {}
    for row, identity in enumerate(candidate_ids.tolist()):
        if row_of.setdefault(identity, row) != row:
            return None, f"the true candidates are not known: the id {identity!r} stands on several candidates."
    asked = query_ids.tolist()
    absent = [identity for identity in asked if identity not in row_of]
    if absent:
        return None, f"the true candidates are not known: no candidate has the id {absent[0]!r} of a query."
    return torch.tensor([row_of[identity] for identity in asked], dtype=torch.int64), ""


def _listed(metrics: dict[str, float]) -> str:
    return ", ".join(f"{name.replace('_', ' ')} {value:.3g}" for name, value in metrics.items())
