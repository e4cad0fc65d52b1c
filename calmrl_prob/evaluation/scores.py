"""Scores between a query and a candidate, each with any modalities observed.

Every score here is bilinear: for instances of one missing pattern against instances of another,

    score[i, j] = a_i . b_j + s_i + t_j          with a_i, b_j of a few (at most K) numbers

so a block of scores is one matrix product in K dimensions, whatever the widths D_m of the modalities. A score is
a function that returns these four parts (:class:`Factors`); write one, add it to ``SCORES``, and ``retrieve`` takes it.

The latent is measured from its prior mean m0 throughout, so that moving the origin of the latent space (which changes
nothing about the data) changes no score.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from calmrl_prob.data import MultimodalData
from calmrl_prob.errors import ArgumentTypeError, DataError, SchemaError
from calmrl_prob.linear_gaussian import LinearGaussian, ObservedBlocks, posterior
from calmrl_prob.linear_gaussian.posterior import factorize, modality_precisions

#: Instances whose posterior is computed at once.
_ENCODE_ROWS = 8192


class HasLinearGaussian(Protocol):
    """A model that can state its linear-Gaussian form, such as ``SharedLatentModel``."""

    def linear_gaussian(self) -> LinearGaussian:
        """The parameters, as a LinearGaussian."""
        ...


@dataclass(frozen=True)
class PatternRows:
    """n instances that share one missing pattern, as the scores see them. All is measured from the prior mean.

    Attributes:
        natural_mean: sum over the observed modalities of W^T Psi^-1 (x - mu), shape (n, K).
        mean: posterior mean of the latent, shape (n, K).
        projection: sum over the observed modalities of W^T (x - mu), shape (n, K).
        length: Euclidean norm of the stacked x - mu of the observed modalities, shape (n,), data units.
        information: posterior precision less prior precision, shape (K, K).
        logdet: log determinant of the posterior precision, shape ().
        gram: sum over the observed modalities of W^T W, shape (K, K).
        prior_precision: S0^-1, shape (K, K).
    """

    natural_mean: Tensor
    mean: Tensor
    projection: Tensor
    length: Tensor
    information: Tensor
    logdet: Tensor
    gram: Tensor
    prior_precision: Tensor


@dataclass(frozen=True)
class Factors:
    """The parts of a block of scores, ``query @ candidate.T + query_term[:, None] + candidate_term``.

    Attributes:
        query: (n, R); candidate: (m, R), with R at most K.
        query_term: (n,); candidate_term: (m,).
    """

    query: Tensor
    candidate: Tensor
    query_term: Tensor
    candidate_term: Tensor

    def block(self) -> Tensor:
        """All scores, shape (n, m)."""
        return torch.addmm(self.candidate_term, self.query, self.candidate.mT).add_(self.query_term[:, None])

    def paired(self) -> Tensor:
        """The scores of query i with candidate i, shape (n,); needs n = m."""
        return (self.query * self.candidate).sum(1) + self.query_term + self.candidate_term

    def query_scale(self) -> Tensor:
        """Size of the numbers that a query brings to the sum, shape (n,): rounding errors are in proportion to it."""
        return self.query.square().sum(1) + self.query_term.abs()

    def candidate_scale(self) -> Tensor:
        """Size of the numbers that a candidate brings to the sum, shape (m,)."""
        return self.candidate.square().sum(1) + self.candidate_term.abs()


Score = Callable[[PatternRows, PatternRows], Factors]


def likelihood_ratio(queries: PatternRows, candidates: PatternRows) -> Factors:
    """Exact log-likelihood ratio, in nats: log p(x^c, x^q) - log p(x^c) - log p(x^q) = log p(x^c|x^q) - log p(x^c).

    With P_q, h_q and P_c, h_c the posterior precisions and natural means given the query and given the candidate, the
    latent given both has P = P_q + P_c - S0^-1 and h = h_q + h_c (measured from the prior mean), and

        2 score = h^T P^-1 h - h_q^T P_q^-1 h_q - h_c^T P_c^-1 h_c + logdet P_q + logdet P_c - logdet P + logdet S0

    Positive where the candidate is likelier to show the query's instance than a random one. A modality that stands
    in both is taken as two measurements of one latent with independent noise, never as a copy. Source: Ioffe,
    Probabilistic Linear Discriminant Analysis, 2006; here with any observed modalities on either side.
    """
    factor = factorize(queries.prior_precision + queries.information + candidates.information)
    query = torch.linalg.solve_triangular(factor, queries.natural_mean.mT, upper=False).mT
    candidate = torch.linalg.solve_triangular(factor, candidates.natural_mean.mT, upper=False).mT
    constant = (
        queries.logdet + candidates.logdet - _logdet(factor) - _logdet(torch.linalg.cholesky(queries.prior_precision))
    )
    query_term = query.square().sum(1) - (queries.natural_mean * queries.mean).sum(1)
    candidate_term = candidate.square().sum(1) - (candidates.natural_mean * candidates.mean).sum(1)
    return Factors(query, candidate, 0.5 * query_term, 0.5 * (candidate_term + constant))


def cosine_latent(queries: PatternRows, candidates: PatternRows) -> Factors:
    """Cosine of the two posterior means, measured from the prior mean (zero by default): in [-1, 1].

    It weighs all latents alike and knows nothing of how sure either mean is; ``likelihood_ratio`` does. The cosine
    with a zero vector is taken as 0, as in scikit-learn.
    """
    return _cosine(_unit(queries.mean), _unit(candidates.mean))


def cosine_predicted(queries: PatternRows, candidates: PatternRows) -> Factors:
    """Cosine of the query's prediction of the candidate's modalities with what the candidate shows: in [-1, 1].

    With W stacked over the candidate's observed modalities: cosine of W E[z | x_q] with x_c - mu. Both sides are
    centred by the model's mean: a common offset would push all cosines towards 1 and hide what tells instances
    apart. The modalities of a candidate are stacked as they are, so the one with the largest spread weighs most.
    The cosine with a zero vector is taken as 0.
    """
    predicted = torch.linalg.vecdot(queries.mean @ candidates.gram, queries.mean).clamp_min(0).sqrt()
    return _cosine(_divide(queries.mean, predicted), _divide(candidates.projection, candidates.length))


#: The scores that ``retrieve`` knows, by name.
SCORES: dict[str, Score] = {
    "likelihood_ratio": likelihood_ratio,
    "cosine_latent": cosine_latent,
    "cosine_predicted": cosine_predicted,
}


class Encoded:
    """N instances reduced to what the scores need: O(N K) numbers, whatever the widths of the modalities.

    Args:
        model: the fitted model.
        data: N instances, any modalities of the model.
        argument: how errors call ``data``.

    Raises:
        SchemaError: a modality of ``data`` is unknown to the model or has another width.
        DataError: some rows lack single features.
    """

    def __init__(self, model: LinearGaussian | HasLinearGaussian, data: MultimodalData, argument: str) -> None:
        full = as_linear_gaussian(model)
        _check_schema(full, data, argument)
        blocks = data.blocks
        chosen = full.select(blocks.names).to(torch.float64)
        lg = LinearGaussian(
            chosen.loadings,
            {name: chosen.intercepts[name] + chosen.loadings[name] @ chosen.prior_mean for name in chosen.names},
            chosen.noise_variance,
            torch.zeros_like(chosen.prior_mean),
            chosen.prior_covariance,
        )
        self.patterns = blocks.patterns.to(lg.device)
        self.pattern_index = blocks.pattern_index.to(lg.device)
        precisions = modality_precisions(lg)
        self._information, self._prior_precision = precisions[:-1], precisions[-1]
        self._gram = torch.stack([loadings.mT @ loadings for loadings in lg.loadings.values()])
        parts = [self._encode(lg, blocks, start) for start in range(0, blocks.num_instances, _ENCODE_ROWS)]
        self._natural_mean, self._mean, self._projection, self._length = (
            torch.cat(columns) for columns in zip(*parts, strict=True)
        )
        self._logdet = torch.stack(
            [
                _logdet(factorize(self._prior_precision + self._sum(self._information, p)))
                for p in range(len(self.patterns))
            ]
        )

    def __len__(self) -> int:
        """Number of instances N."""
        return len(self.pattern_index)

    def tiles(self, size: int) -> Iterator[tuple[int, Tensor]]:
        """Cut the instances into (pattern, row numbers): at most ``size`` rows of one pattern each."""
        order = torch.argsort(self.pattern_index, stable=True)
        counts = torch.bincount(self.pattern_index, minlength=len(self.patterns)).tolist()
        for pattern, members in enumerate(torch.split(order, counts)):
            for rows in torch.split(members, size):
                if len(rows):
                    yield pattern, rows

    def take(self, pattern: int, rows: Tensor) -> PatternRows:
        """Some instances, all of the same ``pattern``."""
        return PatternRows(
            self._natural_mean[rows],
            self._mean[rows],
            self._projection[rows],
            self._length[rows],
            self._sum(self._information, pattern),
            self._logdet[pattern],
            self._sum(self._gram, pattern),
            self._prior_precision,
        )

    def _sum(self, matrices: Tensor, pattern: int) -> Tensor:
        return matrices[self.patterns[pattern]].sum(dim=0)

    @staticmethod
    def _encode(lg: LinearGaussian, blocks: ObservedBlocks, start: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Natural means, means, projections and lengths of the instances from ``start`` on, in float64."""
        # float64 from here on: a duplicate must get the same score wherever it stands, and float32 products do not
        part = _rows(blocks, start, start + _ENCODE_ROWS, lg.device)
        given = posterior(lg, part)
        projection = torch.zeros_like(given.mean)
        square = projection.new_zeros(len(projection))
        for name, values in part.values.items():
            centred = values - lg.intercepts[name]
            projection[part.rows[name]] += centred @ lg.loadings[name]
            square[part.rows[name]] += centred.square().sum(1)
        return given.natural_mean, given.mean, projection, square.sqrt()


def as_linear_gaussian(model: LinearGaussian | HasLinearGaussian) -> LinearGaussian:
    """The linear-Gaussian form of a model, cut off from the autograd graph.

    Raises:
        ArgumentTypeError: the model has none.
    """
    if isinstance(model, LinearGaussian):
        return model.detach()
    if not hasattr(model, "linear_gaussian"):
        raise ArgumentTypeError(
            f"model: expected a SharedLatentModel or a LinearGaussian, got {type(model).__name__}. "
            "Fit a SharedLatentModel, or build a LinearGaussian from your own parameters."
        )
    return model.linear_gaussian().detach()


def _check_schema(lg: LinearGaussian, data: MultimodalData, argument: str) -> None:
    if not isinstance(data, MultimodalData):
        raise ArgumentTypeError(
            f"{argument}: expected MultimodalData, got {type(data).__name__}. "
            "Wrap arrays as MultimodalData({name: array})."
        )
    if data.has_partial_rows:
        raise DataError(
            f"{argument}: expected whole modalities, present or missing; some rows lack single features. "
            "Impute those first, or make such rows NaN throughout."
        )
    for name, width in data.dims.items():
        if name not in lg.dims:
            raise SchemaError(
                f"{argument}: the model has no modality '{name}'; it has {list(lg.names)}. "
                "Drop it with .select(names), or rename it."
            )
        if width != lg.dims[name]:
            raise SchemaError(
                f"{argument}: modality '{name}' has {width} features, the model expects {lg.dims[name]}. "
                "Preprocess it as the training data were."
            )


def _rows(blocks: ObservedBlocks, start: int, stop: int, device: torch.device) -> ObservedBlocks:
    """Instances start to stop - 1, in float64 on ``device``."""
    values = {}
    for name, rows in blocks.rows.items():
        first, last = torch.searchsorted(rows, torch.tensor([start, stop], device=rows.device)).tolist()
        values[name] = blocks.values[name][first:last].to(device=device, dtype=torch.float64)
    return ObservedBlocks(values, blocks.observed_mask[start:stop].to(device))


def _cosine(query: Tensor, candidate: Tensor) -> Factors:
    return Factors(query, candidate, query.new_zeros(len(query)), candidate.new_zeros(len(candidate)))


def _unit(vectors: Tensor) -> Tensor:
    return _divide(vectors, torch.linalg.vector_norm(vectors, dim=1))


def _divide(vectors: Tensor, lengths: Tensor) -> Tensor:
    """Rows over their lengths; rows of length zero become zero."""
    return torch.where(lengths[:, None] > 0, vectors / lengths[:, None], 0.0)


def _logdet(factor: Tensor) -> Tensor:
    """Log determinant of L L^T."""
    return 2 * factor.diagonal().log().sum()
