"""Retrieval: rank candidates for each query, and say where the true one came, by any model and route."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import cache
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from calmrl_prob._support.arguments import brief, chosen_names, require_kind, required_array, whole_number
from calmrl_prob.data import MultimodalData
from calmrl_prob.errors import ArgumentError, ArgumentTypeError
from calmrl_prob.evaluation.retrieval.instance_sets import InstanceSet, RetrievalModel, require_whole
from calmrl_prob.evaluation.retrieval.pairs import ClosedPairs, PairScores, exact_ratio
from calmrl_prob.evaluation.retrieval.ranking import Retrieval, mean_reciprocal_rank, median_rank, rank, recall_at
from calmrl_prob.evaluation.retrieval.sampled_pairs import Estimator, LatentCosine, PredictedCosine, SampledRatio
from calmrl_prob.evaluation.retrieval.scores import SCORES
from calmrl_prob.inference.protocols import Model
from calmrl_prob.posteriors.posterior import checked_draws


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
        ArgumentError: an unknown score or estimator, targets that do not fit, or a number out of range; or a ratio that
            would have to be estimated of sites that are no normal, such as counts: the cosines serve these.
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
    scored = RetrievalModel(model, (queries, candidates), {"seed": seed, **options})
    sides = InstanceSet(scored, queries, "queries"), InstanceSet(scored, candidates, "candidates")
    pairs = pair_scores(*sides, score, num_draws=num_draws, estimator=estimator, seed=seed)
    target_rows, reason = _find_targets(queries, candidates, targets)
    return rank(pairs, score, len(queries), len(candidates), target_rows, reason, top_k, chunk_size)


def pair_scores(
    queries: InstanceSet, candidates: InstanceSet, score: str, *, num_draws: int, estimator: Estimator, seed: int
) -> PairScores:
    """A score of every query with every candidate, by the best route that their model has; see ``retrieve``."""
    num_draws, forms = checked_draws(num_draws), (queries.form, candidates.form)
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
_OF_MEANS: dict[str, Callable[[InstanceSet, InstanceSet], PairScores]] = {
    "cosine_latent": LatentCosine,
    "cosine_predicted": PredictedCosine,
}


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
        raise ArgumentTypeError(f"ks: expected a sequence of whole numbers, got {brief(ks)}; pass [1, 5], say.")
    ks = [whole_number("ks", k, 1) for k in ks]
    scored = RetrievalModel(model, [data], {"seed": seed, **options})

    @cache
    def side(name: str, other: str) -> InstanceSet:
        """One modality of the rows that have both; made once where all rows have all."""
        return InstanceSet(scored, data.subset(present[name] & present[other]).select([name]), "data")

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
                found = rank(pairs, score, number, number, torch.arange(number), "", 0, chunk_size)
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

    Raises:
        ArgumentTypeError: it is no table.

    Example:
        >>> mean_over_pairs(pd.DataFrame({"query": ["a", "b"], "candidate": ["b", "a"], "R@1": [0.25, 0.75]}))
        {'R@1': 0.5}
    """
    require_kind("recall", recall, pd.DataFrame, "the table that cross_modal_recall returns")
    metrics = recall.drop(columns=["query", "candidate", "num_queries"], errors="ignore")
    return {str(name): float(value) for name, value in metrics.mean().items()}


def _require_score(score: str) -> None:
    if not isinstance(score, str) or score not in SCORES:
        raise ArgumentError(f"score: expected one of {sorted(SCORES)}, got {score!r}.")


def _find_targets(
    queries: MultimodalData, candidates: MultimodalData, targets: Sequence[int] | NDArray[np.integer] | Tensor | None
) -> tuple[Tensor | None, str]:
    """Row number of the true candidate of each query, (N_q,); or None, and why."""
    num_queries, num_candidates = len(queries), len(candidates)
    if targets is not None:
        given = required_array("targets", targets)
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
