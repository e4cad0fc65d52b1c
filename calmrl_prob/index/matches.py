"""Matches: what a search finds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from calmrl_prob.index.measured import Floats


@dataclass(frozen=True, eq=False)
class Matches:
    """The best candidates of queries, best first: arrays (n, k), or (k,) of a single query given as vectors.

    Attributes:
        ids: of the candidates: theirs, or their numbers if they came without.
        log_ratios: log p(q, c) - log p(q) - log p(c), nats, float64: positive where it is likelier that both show the
            same instance than that they show two.
        probabilities: that the query shows the instance of the candidate, if it shows that of one of all
            candidates and each was as likely before: exp(log ratio) over its sum over all candidates. None if not asked
            for.
    """

    ids: NDArray[Any]
    log_ratios: Floats
    probabilities: Floats | None = None

    def __repr__(self) -> str:
        """One line: how many candidates of how many queries."""
        queries = "a query" if self.ids.ndim == 1 else f"each of {len(self.ids):,} queries"
        return f"Matches({self.ids.shape[-1]:,} best of {queries})"
