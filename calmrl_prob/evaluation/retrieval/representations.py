"""Retrieval by plain representations of one width, without a model: by their cosine."""

from __future__ import annotations

import pandas as pd
import torch
from torch import Tensor
from torch.nn.functional import normalize

from calmrl_prob.data import MultimodalData
from calmrl_prob.errors import SchemaError


@torch.no_grad()
def cosine_recall(representations: MultimodalData, ks: tuple[int, ...] = (1, 10)) -> pd.DataFrame:
    """Recall of each instance's own candidate, for each ordered pair of modalities, by the cosine.

    Args:
        representations: N instances, all modalities of one width.
        ks: how many candidates may be looked at.

    Returns:
        One row for each ordered pair: query, candidate, num_queries (the rows that have both, which are the candidates
        too), and for each k the share R@k of queries whose own candidate is among the k nearest; ties count against.

    Raises:
        SchemaError: widths differ.

    Example:
        >>> x = torch.eye(3)
        >>> cosine_recall(MultimodalData({"image": x, "text": x[[0, 2, 1]]}))["R@1"].round(2).tolist()
        [0.33, 0.33]
    """
    if len(set(representations.dims.values())) > 1:
        raise SchemaError(f"representations: expected one width for all modalities, got {representations.dims}.")
    found = []
    for query in representations.names:
        for candidate in representations.names:
            if query == candidate:
                continue
            both = representations.observed(query) & representations.observed(candidate)
            ranks = _ranks(representations[query][both], representations[candidate][both])
            shares = {f"R@{k}": float((ranks <= k).double().mean()) if len(ranks) else float("nan") for k in ks}
            found.append({"query": query, "candidate": candidate, "num_queries": len(ranks), **shares})
    return pd.DataFrame(found)


def _ranks(queries: Tensor, candidates: Tensor, chunk: int = 4096) -> Tensor:
    """1 + how many other candidates are at least as near as the query's own, (n,)."""
    queries, candidates = normalize(queries, dim=1), normalize(candidates, dim=1)
    ranks = []
    for start in range(0, len(queries), chunk):
        scores = queries[start : start + chunk] @ candidates.mT
        rows = torch.arange(len(scores), device=scores.device)
        own = scores[rows, rows + start]
        ranks.append((scores >= own[:, None]).sum(dim=1))
    return torch.cat(ranks) if ranks else torch.empty(0)
