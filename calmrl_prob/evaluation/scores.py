"""Scores between a query and a candidate, each with any modalities observed.

Every score here is a product in K dimensions, whatever the widths D_m of the modalities: for queries i of one missing
pattern and candidates j, of pattern c(j),

    score[i, j] = g[i, c(j)] (a_i . b_j) + s[i, c(j)] + t_j

so a block of scores is one matrix product. A score is a function that returns these parts (:class:`Factors`); write
one, add it to ``SCORES``, and ``retrieve`` takes it.

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
#: Numbers (not bytes) in the (B, K, K) and (B, K, n) arrays of the patterns that are worked on at once.
_BATCH_NUMBERS = 2**22


class HasLinearGaussian(Protocol):
    """A model that can state its linear-Gaussian form, such as ``SharedLatentModel``."""

    def linear_gaussian(self) -> LinearGaussian:
        """The parameters, as a LinearGaussian."""
        ...


@dataclass(frozen=True)
class LatentRows:
    """n instances of B missing patterns, in order of pattern, as the scores see them. Queries come with B = 1.

    All is measured from the prior mean.

    Attributes:
        natural_mean: sum over the observed modalities of W^T Psi^-1 (x - mu), shape (n, K).
        mean: posterior mean of the latent, shape (n, K).
        projection: sum over the observed modalities of W^T (x - mu), shape (n, K).
        length: Euclidean norm of the stacked x - mu of the observed modalities, shape (n,), data units.
        slot: which of the B patterns, ascending, shape (n,).
        counts: number of rows of each of the B patterns.
        information: posterior precision less prior precision, shape (B, K, K).
        logdet: log determinant of the posterior precision, shape (B,).
        gram: sum over the observed modalities of W^T W, shape (B, K, K).
        prior_precision: S0^-1, shape (K, K).
        prior_logdet: its log determinant, shape ().
    """

    natural_mean: Tensor
    mean: Tensor
    projection: Tensor
    length: Tensor
    slot: Tensor
    counts: list[int]
    information: Tensor
    logdet: Tensor
    gram: Tensor
    prior_precision: Tensor
    prior_logdet: Tensor


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


Score = Callable[[LatentRows, LatentRows], Factors]


def likelihood_ratio(queries: LatentRows, candidates: LatentRows) -> Factors:
    """Exact log-likelihood ratio, in nats: log p(x^c, x^q) - log p(x^c) - log p(x^q) = log p(x^c|x^q) - log p(x^c).

    With P_q, h_q and P_c, h_c the posterior precisions and natural means given the query and given the candidate, the
    latent given both has P = P_q + P_c - S0^-1 and h = h_q + h_c (measured from the prior mean), and

        2 score = h^T P^-1 h - h_q^T P_q^-1 h_q - h_c^T P_c^-1 h_c + logdet P_q + logdet P_c - logdet P + logdet S0

    Positive where the candidate is likelier to show the query's instance than a random one. A modality that stands
    in both is taken as two measurements of one latent with independent noise, never as a copy. Source: Ioffe,
    Probabilistic Linear Discriminant Analysis, 2006; here with any observed modalities on either side.
    """
    factor = factorize(queries.prior_precision + queries.information + candidates.information)
    whitened = torch.linalg.solve_triangular(factor, queries.natural_mean.mT.expand(len(factor), -1, -1), upper=False)
    query_joint = whitened.square().sum(1).mT
    query_alone = (queries.natural_mean * queries.mean).sum(1, keepdim=True)
    candidate = _solve(factor, candidates.natural_mean, candidates.counts)
    candidate_joint = (candidates.natural_mean * candidate).sum(1)
    candidate_alone = (candidates.natural_mean * candidates.mean).sum(1)
    constant = (queries.logdet + candidates.logdet - _logdet(factor) - candidates.prior_logdet)[candidates.slot]
    return Factors(
        queries.natural_mean,
        candidate,
        candidates.slot,
        query_term=0.5 * (query_joint - query_alone),
        candidate_term=0.5 * (candidate_joint - candidate_alone + constant),
        query_size=query_joint + query_alone,
        candidate_size=candidate_joint + candidate_alone + constant.abs(),
    )


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
        self._logdet = torch.cat([_logdet(factorize(self._precision(part))) for part in self._pattern_parts()])
        self._prior_logdet = _logdet(factorize(self._prior_precision))

    def __len__(self) -> int:
        """Number of instances N."""
        return len(self.pattern_index)

    def groups(self, rows: Tensor, size: int, most_patterns: int | None = None) -> Iterator[Tensor]:
        """Cut some instances into groups, in order of pattern, that the K x K algebra of a block can hold.

        Args:
            rows: row numbers, (n,).
            size: most rows of a group.
            most_patterns: most patterns of a group; as many as memory should hold by default.

        Yields:
            Positions in ``rows``, such that the patterns of ``rows[positions]`` ascend.
        """
        patterns, order = torch.sort(self.pattern_index[rows], stable=True)
        latent_dim = self._mean.shape[1]
        most = most_patterns or max(1, _BATCH_NUMBERS // (latent_dim * max(latent_dim, size)))
        level = torch.unique_consecutive(patterns, return_inverse=True)[1]
        start = 0
        while start < len(rows):
            fits = int(torch.searchsorted(level, level[start] + most))
            stop = min(start + size, fits)
            yield order[start:stop]
            start = stop

    def take(self, rows: Tensor) -> LatentRows:
        """Some instances, in order of pattern."""
        patterns, slot, counts = torch.unique_consecutive(
            self.pattern_index[rows], return_inverse=True, return_counts=True
        )
        return LatentRows(
            self._natural_mean[rows],
            self._mean[rows],
            self._projection[rows],
            self._length[rows],
            slot,
            counts.tolist(),
            self._sum(self._information, patterns),
            self._logdet[patterns],
            self._sum(self._gram, patterns),
            self._prior_precision,
            self._prior_logdet,
        )

    def _sum(self, matrices: Tensor, patterns: Tensor) -> Tensor:
        """Sum over the modalities that each pattern has, (B, K, K)."""
        return torch.einsum("bm,mkl->bkl", self.patterns[patterns].to(matrices.dtype), matrices)

    def _precision(self, patterns: Tensor) -> Tensor:
        return self._prior_precision + self._sum(self._information, patterns)

    def _pattern_parts(self) -> tuple[Tensor, ...]:
        """The patterns, a few at a time."""
        all_patterns = torch.arange(len(self.patterns), device=self.patterns.device)
        return torch.split(all_patterns, max(1, _BATCH_NUMBERS // self._mean.shape[1] ** 2))

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


def _unit(vectors: Tensor) -> Tensor:
    return _divide(vectors, torch.linalg.vector_norm(vectors, dim=1))


def _divide(vectors: Tensor, lengths: Tensor) -> Tensor:
    """Rows over their lengths; rows of length zero become zero."""
    return torch.where(lengths[:, None] > 0, vectors / lengths[:, None], 0.0)


def _logdet(factor: Tensor) -> Tensor:
    """Log determinants of L L^T, (...,), for L of shape (..., K, K)."""
    return 2 * factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)


def _solve(factor: Tensor, vectors: Tensor, counts: list[int]) -> Tensor:
    """(L L^T)^-1 v for each of n vectors (n, K), with the factor (B, K, K) of its pattern; rows in order of pattern."""
    if len(counts) == len(vectors):  # one row for each pattern, as where patterns are very many
        return torch.cholesky_solve(vectors[:, :, None], factor).squeeze(2)
    parts = torch.split(vectors, counts)
    return torch.cat([torch.cholesky_solve(part.mT, factor[b]).mT for b, part in enumerate(parts)])
