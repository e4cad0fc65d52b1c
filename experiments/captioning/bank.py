"""Captioning by retrieval: the nearest training row's caption, or the one that most of the likely rows agree on.

With the probability p_r that the row to be captioned shows what training row r shows, and vectors v of captions whose
inner product is CIDEr / 10 (``calmrl_prob/evaluation/captions/ngrams.py``), the consensus caption is of least risk:

    c* = argmax over captions c of the likely rows of  <v(c), sum_r p_r mean over captions j of r of v(j)> * g(c)

with g the penalty of CIDEr-D at the expected length. What is maximised is the expected agreement, between 0 and 1: the
posterior mass that agrees with the caption, weighed by how well. It is the caption's confidence.

Source: Devlin et al., Exploring nearest neighbor approaches for image captioning (2015), which has equal p_r.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from calmrl_prob.evaluation.captions import ngram_vectors

Array = NDArray[np.float64]
_SIGMA = 6.0


@dataclass(frozen=True)
class Ranked:
    """The likeliest training rows of n queries, best first.

    Attributes:
        places: numbers in the bank, (n, k).
        scores: (n, k), falling.
    """

    places: NDArray[np.int64]
    scores: Array

    @classmethod
    def of(cls, scores: Array, k: int) -> Ranked:
        """From the scores of all rows of the bank, (n, N)."""
        order = np.argsort(-scores, axis=1, kind="stable")[:, :k]  # of equal ones the first comes first, everywhere
        return cls(order, np.take_along_axis(scores, order, axis=1))

    def probabilities(self, temperature: float) -> Array:
        """Scores / temperature as log odds, (n, k); of log-likelihood ratios at 1 it is the posterior."""
        weights = np.exp((self.scores - self.scores[:, :1]) / temperature)
        return weights / weights.sum(axis=1, keepdims=True)


class CaptionBank:
    """Captions of training rows, with what is needed to agree on one.

    Args:
        captions: for each row, normalised, one at least.
    """

    def __init__(self, captions: Sequence[Sequence[str]]) -> None:
        self.captions = [list(own) for own in captions]
        self._flat = [text for own in captions for text in own]
        counts = np.array([len(own) for own in captions])
        self._starts = np.concatenate([[0], np.cumsum(counts)])
        vectors, _ = ngram_vectors(self.captions)
        self._vectors: Any = vectors.stacked()
        self._lengths = vectors.lengths.astype(np.float64)
        row = np.repeat(np.arange(len(counts)), counts)
        mean = sparse.csr_array((1.0 / counts[row], (row, np.arange(len(row)))), (len(counts), len(row)))
        self._row_vectors: Any = mean @ self._vectors
        self._row_lengths = mean @ self._lengths

    def __len__(self) -> int:
        """Number of rows."""
        return len(self.captions)

    def nearest(self, ranked: Ranked) -> list[str]:
        """The first caption of the likeliest row."""
        return [self.captions[place][0] for place in ranked.places[:, 0]]

    def consensus(self, ranked: Ranked, temperatures: Sequence[float]) -> list[tuple[list[str], Array]]:
        """The caption that the likely rows agree on, and how much they do, (n,), at each temperature."""
        number, likely = ranked.places.shape
        rows = np.repeat(np.arange(number), likely)
        expected, lengths = [], []
        for temperature in temperatures:
            weights = ranked.probabilities(temperature).ravel()
            spread = sparse.csr_array((weights, (rows, ranked.places.ravel())), (number, len(self)))
            expected.append((spread @ self._row_vectors).tocsr())
            lengths.append(spread @ self._row_lengths)
        texts: list[list[str]] = [[] for _ in temperatures]
        agreement = np.zeros((len(temperatures), number))
        for query, places in enumerate(ranked.places):
            own = np.concatenate([np.arange(self._starts[place], self._starts[place + 1]) for place in places])
            vectors, words = self._vectors[own], self._lengths[own]
            for setting, (part, length) in enumerate(zip(expected, lengths, strict=True)):
                product = vectors @ part[[query]].toarray().ravel()
                product *= np.exp(-((words - length[query]) ** 2) / (2 * _SIGMA**2))
                best = int(product.argmax())
                texts[setting].append(self._flat[own[best]])
                agreement[setting, query] = product[best]
        return list(zip(texts, agreement, strict=True))
