"""The search by structures of faiss: neighbours found, then ranked by exact scores; its recall is measured."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from calmrl_prob.index.exact import Against, Places, against_all, best, coarse, contenders
from calmrl_prob.index.measured import Floats
from calmrl_prob.index.neighbours import Neighbours, Structure, build
from calmrl_prob.index.pairs import Asked
from calmrl_prob.index.shelves import Shelf

#: Shelves of fewer candidates are scanned: that takes no longer than a structure does.
LEAST_CANDIDATES = 4096
#: Neighbours found for each that is wanted: of a graph exact but for rounding, of codes by far coarser.
_FOUND: dict[Structure, int] = {"hnsw": 2, "ivfpq": 32}
#: Efforts tried, each twice the one before.
_FIRST_EFFORT, _LAST_EFFORT = 16, 4096


@dataclass(eq=False)
class Approximate:
    """Structures for one pattern of queries.

    Attributes:
        structure: "hnsw" or "ivfpq".
        parts: the structure of each shelf that is large enough to have one.
        effort: see :meth:`Neighbours.search`.
        recall: the share of the 10 best that were found, a mean over the queries that it was measured on.
    """

    structure: Structure
    parts: dict[int, Neighbours] = field(default_factory=dict)
    effort: int = _FIRST_EFFORT
    recall: float = 1.0

    def catch_up(self, shelves: list[Shelf]) -> None:
        """Add candidates that are new to the structures of their shelves."""
        for j, part in self.parts.items():
            part.extend(shelves[j])

    def places(self, asked: Asked, against: list[Against], k: int) -> list[Places]:
        """Candidates for the k best of each query, by number."""
        found: list[list[Places]] = [[] for _ in against[0].a]
        for part in against:
            if part.j not in self.parts:
                scores, margin = coarse(asked, [part._replace(start=0)])
                own = [contenders(row, float(off), k) for row, off in zip(scores, margin, strict=True)]
            else:
                count = min(_FOUND[self.structure] * k, len(part.shelf))
                own = list(self.parts[part.j].search(part.v, part.shelf, count, self.effort))
                own = [places[places >= 0] for places in own]
            for query, places in enumerate(own):
                found[query].append(places + part.start)
        return [parts[0] if len(parts) == 1 else np.concatenate(parts) for parts in found]


def prepare(asked: Asked, shelves: list[Shelf], structure: Structure, least_recall: float, seed: int) -> Approximate:
    """Structures for a pattern of queries, with the least effort that finds what is to be found.

    Args:
        asked: the pattern.
        shelves: the candidates.
        structure: "hnsw" or "ivfpq".
        least_recall: share of the 10 best to be found, of 200 queries that the model draws.
        seed: of these draws.
    """
    made = Approximate(structure)
    for j, shelf in enumerate(shelves):
        if len(shelf) >= LEAST_CANDIDATES:
            made.parts[j] = build(shelf, asked.spread(shelf), structure)
    if made.parts:
        against = against_all(asked, shelves, drawn_queries(asked, shelves, 200, seed))
        truth = exact_best(asked, against, 10)
        while (made := measured(made, asked, against, truth)).recall < least_recall and made.effort < _LAST_EFFORT:
            made.effort *= 2
    return made


def measured(made: Approximate, asked: Asked, against: list[Against], truth: list[Places]) -> Approximate:
    """The same with its recall of the best of some queries."""
    k = len(truth[0])
    found = made.places(asked, against, k)
    shares = [
        len(np.intersect1d(best(asked, against, query, places, k)[0], right)) / k
        for query, (places, right) in enumerate(zip(found, truth, strict=True))
    ]
    made.recall = float(np.mean(shares))
    return made


def exact_best(asked: Asked, against: list[Against], k: int) -> list[Places]:
    """The k best of each query by the exact search, a few queries at a time."""
    found = []
    for query in range(len(against[0].a)):
        one = [part._replace(v=part.v[query : query + 1], a=part.a[query : query + 1]) for part in against]
        scores, margin = coarse(asked, one)
        found.append(best(asked, one, 0, contenders(scores[0], float(margin[0]), k), k)[0])
    return found


def drawn_queries(asked: Asked, shelves: list[Shelf], number: int, seed: int) -> Floats:
    """Natural means of queries that show the instances of candidates taken at random, by the model, (n, K).

    Given the candidate z ~ N(P_j^-1 h_c, P_j^-1), and given z h_q ~ N(A_i z, A_i).
    """
    random, instrument = np.random.default_rng(seed), asked.instrument
    values, vectors = np.linalg.eigh(asked.information)
    root = vectors * np.sqrt(values.clip(0))
    sizes = [int(shelf.alive.sum()) for shelf in shelves]
    drawn = []
    for shelf, share in zip(shelves, random.multinomial(number, np.array(sizes) / sum(sizes)), strict=True):
        if not share:
            continue
        natural = shelf.numbers(random.choice(np.flatnonzero(shelf.alive), share)) @ asked.scale.T
        covariance = np.linalg.inv(instrument.prior_precision + instrument.information(shelf.pattern))
        noise = random.standard_normal(natural.shape) @ np.linalg.cholesky(covariance).T
        z = natural @ covariance + noise
        drawn.append(z @ asked.information + random.standard_normal(natural.shape) @ root.T)
    return np.concatenate(drawn)
