"""Scores between a query and a candidate, each with any modalities observed.

Every score here is a product in K dimensions, whatever the widths D_m of the modalities: for queries i of one missing
pattern and candidates j, of pattern c(j),

    score[i, j] = g[i, c(j)] (a_i . b_j) + s[i, c(j)] + t_j

so a block of scores is one matrix product. A score is a function that returns these parts (:class:`Factors`); write
one, add it to ``SCORES``, and ``retrieve`` takes it for every model with one linear-Gaussian form. What the same names
mean for other models is in ``pairs.py`` and ``sampled_pairs.py``.

The latent is measured from its prior mean m0 throughout, so that moving the origin of the latent space (which changes
nothing about the data) changes no score.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from calmrl_prob.evaluation.retrieval.latent_rows import LatentRows, log_determinant
from calmrl_prob.linear_gaussian.posterior import factorize


@dataclass(frozen=True)
class Factors:
    """The parts of a block of scores of n queries with m candidates of B patterns.

    Attributes:
        query: a, shape (n, R); candidate: b, shape (m, R), with R at most K.
        slot: c, which of the B patterns each candidate has, shape (m,).
        gain: g, shape (n, B); ones if not given.
        query_term: s, shape (n, B); candidate_term: t, shape (m,); zeros if not given.
        query_size, candidate_size: how large the numbers are that s and t are sums of, shapes (n, B) and (m,), to which
            rounding errors are in proportion; zeros if not given.
    """

    query: Tensor
    candidate: Tensor
    slot: Tensor
    gain: Tensor | None = None
    query_term: Tensor | None = None
    candidate_term: Tensor | None = None
    query_size: Tensor | None = None
    candidate_size: Tensor | None = None

    def block(self) -> Tensor:
        """All scores, shape (n, m)."""
        scores = self.query @ self.candidate.mT
        if self.gain is not None:
            scores *= self._spread(self.gain)
        if self.query_term is not None:
            scores += self._spread(self.query_term)
        if self.candidate_term is not None:
            scores += self.candidate_term
        return scores

    def paired(self) -> Tensor:
        """The scores of query i with candidate i, shape (n,); needs n = m."""
        scores = (self.query * self.candidate).sum(1)
        if self.gain is not None:
            scores = scores * self._own(self.gain)
        if self.query_term is not None:
            scores = scores + self._own(self.query_term)
        return scores if self.candidate_term is None else scores + self.candidate_term

    def size(self, columns: Tensor) -> Tensor:
        """Size of the numbers behind the scores of each query with the candidates ``columns``, both (n, k)."""
        size = self.query.new_ones(columns.shape)
        if self.query_size is not None:
            size = size + self.query_size.gather(1, self.slot[columns])
        return size if self.candidate_size is None else size + self.candidate_size[columns]

    def _spread(self, of_patterns: Tensor) -> Tensor:
        return of_patterns if of_patterns.shape[1] == 1 else of_patterns[:, self.slot]

    def _own(self, of_patterns: Tensor) -> Tensor:
        return of_patterns.gather(1, self.slot[:, None]).squeeze(1)


#: A score in closed form: the parts of a block of scores of some queries, of one pattern, with some candidates.
ClosedForm = Callable[[LatentRows, LatentRows], Factors]


def likelihood_ratio(queries: LatentRows, candidates: LatentRows) -> Factors:
    """Exact log-likelihood ratio, in nats: log p(x^c, x^q) - log p(x^c) - log p(x^q) = log p(x^c|x^q) - log p(x^c).

    With P_q, h_q and P_c, h_c the posterior precisions and natural means given the query and given the candidate, the
    latent given both has P = P_q + P_c - S0^-1 and h = h_q + h_c (measured from the prior mean), and

        2 score = h^T P^-1 h - h_q^T P_q^-1 h_q - h_c^T P_c^-1 h_c + logdet P_q + logdet P_c - logdet P + logdet S0

    Positive where the candidate is likelier to show the query's instance than a random one. A modality that stands
    in both is taken as two measurements of one latent with independent noise, never as a copy. Source: Ioffe,
    Probabilistic Linear Discriminant Analysis, 2006; here with any observed modalities on either side.
    """
    factor = joint_factor(queries, candidates)
    whitened = torch.linalg.solve_triangular(factor, queries.natural_mean.mT.expand(len(factor), -1, -1), upper=False)
    query_joint = whitened.square().sum(1).mT
    query_alone = (queries.natural_mean * queries.mean).sum(1, keepdim=True)
    candidate = _solve(factor, candidates.natural_mean, candidates.counts)
    candidate_joint = (candidates.natural_mean * candidate).sum(1)
    candidate_alone = (candidates.natural_mean * candidates.mean).sum(1)
    constant = 2 * log_volume(factor, queries, candidates)[candidates.slot]
    return Factors(
        queries.natural_mean,
        candidate,
        candidates.slot,
        query_term=0.5 * (query_joint - query_alone),
        candidate_term=0.5 * (candidate_joint - candidate_alone + constant),
        query_size=query_joint + query_alone,
        candidate_size=candidate_joint + candidate_alone + constant.abs(),
    )


def joint_factor(queries: LatentRows, candidates: LatentRows) -> Tensor:
    """Cholesky factors of the latent's precision given the query and a candidate of each pattern, (B, K, K)."""
    return factorize(queries.prior_precision + queries.information + candidates.information)


def log_volume(factor: Tensor, queries: LatentRows, candidates: LatentRows) -> Tensor:
    """-1/2 log(|Cov[x^q, x^c]| / |Cov[x^q]| |Cov[x^c]|) for each pattern of the candidates, (B,), from that factor."""
    return 0.5 * (queries.logdet + candidates.logdet - log_determinant(factor) - candidates.prior_logdet)


def cosine_latent(queries: LatentRows, candidates: LatentRows) -> Factors:
    """Cosine of the two posterior means, measured from the prior mean (zero by default): in [-1, 1].

    It weighs all latents alike and knows nothing of how sure either mean is; ``likelihood_ratio`` does. The cosine
    with a zero vector is taken as 0, as in scikit-learn.
    """
    return Factors(_unit(queries.mean), _unit(candidates.mean), candidates.slot)


def cosine_predicted(queries: LatentRows, candidates: LatentRows) -> Factors:
    """Cosine of the query's prediction of the candidate's modalities with what the candidate shows: in [-1, 1].

    With W stacked over the candidate's observed modalities: cosine of W E[z | x_q] with x_c - mu. Both sides are
    centred by the model's mean: a common offset would push all cosines towards 1 and hide what tells instances
    apart. The modalities of a candidate are stacked as they are, so the one with the largest spread weighs most.
    The cosine with a zero vector is taken as 0.
    """
    squares = torch.linalg.vecdot(queries.mean @ candidates.gram, queries.mean).mT  # |W E[z]|^2, (n, B)
    gain = torch.where(squares > 0, squares.clamp_min(0).rsqrt(), 0.0)
    return Factors(queries.mean, _divide(candidates.projection, candidates.length), candidates.slot, gain=gain)


#: The scores that ``retrieve`` knows, by name; for any model these three.
SCORES: dict[str, ClosedForm] = {
    "likelihood_ratio": likelihood_ratio,
    "cosine_latent": cosine_latent,
    "cosine_predicted": cosine_predicted,
}


def _unit(vectors: Tensor) -> Tensor:
    return _divide(vectors, torch.linalg.vector_norm(vectors, dim=1))


def _divide(vectors: Tensor, lengths: Tensor) -> Tensor:
    """Rows over their lengths; rows of length zero become zero."""
    return torch.where(lengths[:, None] > 0, vectors / lengths[:, None], 0.0)


def _solve(factor: Tensor, vectors: Tensor, counts: list[int]) -> Tensor:
    """(L L^T)^-1 v for each of n vectors (n, K), with the factor (B, K, K) of its pattern; rows in order of pattern."""
    if len(counts) == len(vectors):  # one row for each pattern, as where patterns are very many
        return torch.cholesky_solve(vectors[:, :, None], factor).squeeze(2)
    parts = torch.split(vectors, counts)
    return torch.cat([torch.cholesky_solve(part.mT, factor[b]).mT for b, part in enumerate(parts)])
