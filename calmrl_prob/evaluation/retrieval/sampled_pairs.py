"""Scores of all pairs of a query with a candidate for models of any kind: by posterior means, predictives and draws."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import reduce
from typing import Literal, get_args

import torch
from torch import Tensor

from calmrl_prob._support.arguments import brief
from calmrl_prob.errors import ArgumentError
from calmrl_prob.evaluation.retrieval.instance_sets import InstanceSet, StackedFeatures
from calmrl_prob.evaluation.retrieval.pairs import PairScores, Tile
from calmrl_prob.evaluation.retrieval.scores import Factors
from calmrl_prob.posteriors.posterior import checked_draws, seeded_generator

#: How a likelihood ratio is estimated from draws of a query's latents.
Estimator = Literal["moments", "monte_carlo"]
ESTIMATORS: tuple[str, ...] = get_args(Estimator)

#: Numbers of draws of predicted features that are held at once: 256 MB.
_DRAWN_NUMBERS = 2**25
#: Numbers in the arrays of whitened candidates that are worked on at once.
_BATCH_NUMBERS = 2**23


class LatentCosine(PairScores):
    """Cosine of the posterior means, about the mean of the prior where the model has it in closed form.

    Where it has not, about the mean over the candidates.
    """

    def __init__(self, queries: InstanceSet, candidates: InstanceSet) -> None:
        asked, shown = (side.result.mean.double() for side in (queries, candidates))
        known = None if candidates.form is None else candidates.form.prior_mean
        origin = shown.mean(0) if known is None else known
        self._queries, self._candidates = _unit(asked - origin), _unit(shown - origin)
        self.device = asked.device

    def tile(self, queries: Tensor, candidates: Tensor) -> Factors:
        """A product of unit vectors."""
        return Factors(self._queries[queries], self._candidates[candidates], torch.zeros_like(candidates))


class PredictedCosine(PairScores):
    """Cosine of the query's prediction of the candidate's modalities with what the candidate shows.

    Both about the model's mean where that is known in closed form; else about the mean over the candidates.
    """

    def __init__(self, queries: InstanceSet, candidates: InstanceSet) -> None:
        shown, form = candidates.features, candidates.form
        predicted, values = [], []
        for name, columns in zip(shown.names, shown.slices, strict=True):
            known = form.mean(name) if form is not None else None
            centre = shown.centre[columns] if known is None else known
            present = candidates.data.observed(name)[:, None]
            predicted.append(queries.result.predictive(name, torch.float64).mean - centre)
            values.append(torch.where(present, shown.values[:, columns] + (shown.centre[columns] - centre), 0.0))
        self._predicted, stacked = torch.cat(predicted, dim=1), torch.cat(values, dim=1)
        self._candidates = _unit(stacked)
        squares = torch.stack([part.square().sum(1) for part in predicted], dim=1) @ shown.patterns.double().mT
        self._gain = torch.where(squares > 0, squares.clamp_min(0).rsqrt(), 0.0)
        self._slot, self.device = shown.slot, stacked.device

    def tile(self, queries: Tensor, candidates: Tensor) -> Factors:
        """A product of predictions with unit vectors, over the length of the former on what each candidate shows."""
        return Factors(
            self._predicted[queries], self._candidates[candidates], self._slot[candidates], gain=self._gain[queries]
        )


class SampledRatio(PairScores):
    """The log-likelihood ratio log p(x^c | x^q) - log p(x^c) from S joint draws of the query's latents, in nats.

    With z_s drawn from p(z | x^q), f(z_s) and psi(z_s) mean and noise variance of the candidate's modalities given it:

    - "monte_carlo": p(x^c | x^q) ~ 1/S sum_s N(x^c; f(z_s), psi(z_s)). Right for any model as S grows, but with many
      latents a few draws decide it, whatever S: see ``effective_draws``.
    - "moments": p(x^c | x^q) ~ N(mean_s f, cov_s f + mean_s psi), the normal with the draws' moments, features
      correlated. Right, as S grows, where that predictive is normal; far less noisy where latents are many.

    log p(x^c) is the candidate's own evidence.

    Args:
        queries, candidates: the sides.
        num_draws: S.
        seed: of the draws.
        estimator: "moments" or "monte_carlo".

    Raises:
        ArgumentError: an unknown estimator, a number of draws or a seed out of range, or a modality of the candidates
            whose site is no normal (counts, say): its densities are not those above.
    """

    def __init__(
        self, queries: InstanceSet, candidates: InstanceSet, num_draws: int, seed: int, estimator: Estimator = "moments"
    ) -> None:
        if estimator not in ESTIMATORS:
            raise ArgumentError(f"estimator: expected one of {list(ESTIMATORS)}, got {brief(estimator)}.")
        self._given, self._shown = queries.result, candidates.features
        self._num_draws, self._seed = checked_draws(num_draws), seed
        self._evidence = candidates.result.log_marginal.double()
        self._monte_carlo = estimator == "monte_carlo"
        self.device = self._evidence.device
        if self._monte_carlo:
            self.effective_draws = self._evidence.new_full((len(queries),), math.nan)
        self._held: tuple[Tensor, Tensor, Tensor] | None = None
        generator = seeded_generator(seed, self.device)
        drawn = next(iter(self._given.draws(1, generator, self._shown.names)))
        if drawn.sites:
            name = next(iter(drawn.sites))
            raise ArgumentError(
                f"score: the likelihood ratio of draws is one of normal features, and modality {name!r} has another "
                "distribution in this model; pass score='cosine_latent' or 'cosine_predicted', or take the "
                "candidates without it (data.select)."
            )

    def query_groups(self, rows: Tensor, size: int) -> Iterator[Tensor]:
        """Groups whose draws can be held."""
        most = max(1, _DRAWN_NUMBERS // (self._num_draws * self._shown.values.shape[1]))
        return super().query_groups(rows, min(size, most))

    def tile(self, queries: Tensor, candidates: Tensor) -> Tile:
        """Scores from the draws of these queries."""
        location, noise = self._draws(queries)
        shown = Candidates(self._shown, candidates, self._evidence[candidates])
        if not self._monte_carlo:
            return _MomentsTile(location, noise, shown)
        assert self.effective_draws is not None
        return _MonteCarloTile(location, noise, shown, self.effective_draws, queries)

    def _draws(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Locations about the centre, (S, n, D), and noise variances, (S or 1, n or 1, D), of some queries."""
        if self._held is not None and torch.equal(self._held[0], rows):
            return self._held[1], self._held[2]
        names, generator = self._shown.names, seeded_generator(self._seed, self.device)
        locations, noises = [], []
        for draw in self._given.draws(self._num_draws, generator, names):
            location = torch.cat([draw.location[name][rows].double() for name in names], dim=1)
            noise = [draw.noise_variance[name].double() for name in names]
            by_row = any(part.ndim == 2 for part in noise)
            noise = [part[rows] if part.ndim == 2 else part.expand(len(rows) if by_row else 1, -1) for part in noise]
            locations.append(location - self._shown.centre)
            noises.append(torch.cat(noise, dim=1))
        if all(torch.equal(part, noises[0]) for part in noises):
            noises = noises[:1]
        self._held = rows, torch.stack(locations), torch.stack(noises)
        return self._held[1], self._held[2]


class Candidates:
    """Some candidates as a tile of sampled scores sees them."""

    def __init__(self, shown: StackedFeatures, rows: Tensor, evidence: Tensor) -> None:
        self.values, self.evidence = shown.values[rows], evidence
        self.slot = shown.slot[rows]
        self.patterns = [(int(b), shown.columns(shown.patterns[b])) for b in torch.unique(self.slot)]
        self.widths = [part.stop - part.start for part in shown.slices]
        self.observed = shown.patterns[self.slot].double()

    def by_modality(self, features: Tensor) -> Tensor:
        """Sums over the features of each modality, (..., M), of (..., D)."""
        return torch.stack([part.sum(-1) for part in features.split(self.widths, dim=-1)], dim=-1)

    def size(self, noise: Tensor, location: Tensor) -> Tensor:
        """Squares, in noise variances, of which the candidates' densities are sums, (m,)."""
        largest = (location.square() / noise).sum(-1).max()
        return (self.values.square() / noise.amin((0, 1))).sum(1) + largest + 1


class _MonteCarloTile:
    def __init__(
        self, location: Tensor, noise: Tensor, shown: Candidates, effective_draws: Tensor, queries: Tensor
    ) -> None:
        self._location, self._noise, self._shown = location, noise, shown
        self._effective_draws, self._queries = effective_draws, queries

    def _densities(self, product: Callable[[Tensor, Tensor], Tensor]) -> Iterator[Tensor]:
        """For each draw log N(x; location, noise), from a product of (n, D) with (m, D) over the features."""
        shown = self._shown
        squares = shown.values.square()
        for s, location in enumerate(self._location):
            noise = self._noise[s if len(self._noise) > 1 else 0]
            own = shown.by_modality(location.square() / noise + (2 * math.pi * noise).log())
            linear, square = product(location / noise, shown.values), product(1 / noise, squares)
            yield linear - 0.5 * (product(own, shown.observed) + square)

    def block(self) -> Tensor:
        """All scores, shape (n, m)."""
        total: Tensor = reduce(torch.logaddexp, self._densities(lambda query, candidate: query @ candidate.mT))
        return total - math.log(len(self._location)) - self._shown.evidence

    def paired(self) -> Tensor:
        """The scores of query i with candidate i, shape (n,)."""
        densities = torch.stack(list(self._densities(lambda query, candidate: (query * candidate).sum(1))))
        total = densities.logsumexp(0)
        self._effective_draws[self._queries] = (2 * total - (2 * densities).logsumexp(0)).exp()
        return total - math.log(len(densities)) - self._shown.evidence

    def size(self, columns: Tensor) -> Tensor:
        """Size of the numbers behind the scores of each query with the candidates ``columns``, both (n, k)."""
        size: Tensor = self._shown.size(self._noise, self._location)[columns]
        return size


class _MomentsTile:
    def __init__(self, location: Tensor, noise: Tensor, shown: Candidates) -> None:
        self._mean, self._noise, self._shown = location.mean(0), noise.mean(0), shown
        self._deviation = (location - self._mean) / math.sqrt(max(1, len(location) - 1))

    def _fill(self, out: Tensor, paired: bool) -> Tensor:
        for pattern, columns in self._shown.patterns:
            members = (self._shown.slot == pattern).nonzero().squeeze(1)
            values = self._shown.values[members][:, columns]
            queries = members if paired else torch.arange(len(self._mean), device=members.device)
            width = max(1, _BATCH_NUMBERS // (values.shape[1] * (1 if paired else len(values)) + values.shape[1] ** 2))
            for part in torch.arange(len(queries), device=members.device).split(width):
                rows = queries[part]
                density = self._density(rows, columns, values[part][:, None] if paired else values)
                if paired:
                    out[rows] = density.squeeze(1)
                else:
                    out[rows[:, None], members] = density
        return out.sub_(self._shown.evidence)

    def _density(self, rows: Tensor, columns: Tensor, values: Tensor) -> Tensor:
        """log N(x; mean, deviation^T deviation + noise) of features ``columns``, (r, m), for (m, d) or (r, m, d)."""
        mean, deviation = self._mean[rows][:, columns], self._deviation[:, rows][:, :, columns].transpose(0, 1)
        noise = (self._noise if len(self._noise) == 1 else self._noise[rows])[:, columns]
        scale = noise.sqrt()
        deviation = deviation / scale[:, None]
        num_draws, width = deviation.shape[1:]
        few = num_draws < width
        factor = _factor(deviation @ deviation.mT if few else deviation.mT @ deviation)
        right = deviation if few else torch.eye(width, dtype=mean.dtype, device=mean.device).expand(len(rows), -1, -1)
        whitening = torch.linalg.solve_triangular(factor, right, upper=False) / scale[:, None]
        squares = (_products(whitening, values) - whitening @ mean[:, :, None]).square().sum(1)
        if few:  # (I + V^T V)^-1 = I - V^T (I + V V^T)^-1 V
            squares = ((values - mean[:, None]) / scale[:, None]).square().sum(2) - squares
        logdet = 2 * factor.diagonal(dim1=1, dim2=2).log().sum(1) + (2 * math.pi * noise).log().sum(1)
        density: Tensor = -0.5 * (squares + logdet[:, None])
        return density

    def block(self) -> Tensor:
        """All scores, shape (n, m)."""
        return self._fill(self._mean.new_empty(len(self._mean), len(self._shown.values)), paired=False)

    def paired(self) -> Tensor:
        """The scores of query i with candidate i, shape (n,)."""
        return self._fill(self._mean.new_empty(len(self._mean)), paired=True)

    def size(self, columns: Tensor) -> Tensor:
        """Size of the numbers behind the scores of each query with the candidates ``columns``, both (n, k)."""
        size: Tensor = self._shown.size(self._noise[None], self._mean[None])[columns]
        return size


def _products(matrices: Tensor, values: Tensor) -> Tensor:
    """A_r x for (r, k, d) matrices, (r, k, m): of (r, m, d) values, or of (m, d), the same for all, by one product."""
    product: Tensor = matrices @ values.mT if values.ndim == 3 else matrices.flatten(0, 1) @ values.mT
    return product if values.ndim == 3 else product.unflatten(0, matrices.shape[:2])


def _factor(gram: Tensor) -> Tensor:
    """Cholesky factors of I + gram, (r, k, k)."""
    factor: Tensor = torch.linalg.cholesky(gram + torch.eye(gram.shape[1], dtype=gram.dtype, device=gram.device))
    return factor


def _unit(vectors: Tensor) -> Tensor:
    lengths = torch.linalg.vector_norm(vectors, dim=1, keepdim=True)
    return torch.where(lengths > 0, vectors / lengths, 0.0)
