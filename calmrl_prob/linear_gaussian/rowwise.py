"""The E-step over rows: by modality, by pattern, and for single missing features.

Rows stand in the slots of a ``PatternLayout``, where all K-dimensional algebra is batched over patterns. The forms
differ only in how they get from the data to the slots (X A) and back (X^T Z), so that is all that each defines.
"""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor

from calmrl_prob.linear_gaussian.blocks import FeatureBlocks, ObservedBlocks
from calmrl_prob.linear_gaussian.expectation import ExpectationStep, Moments, Totals
from calmrl_prob.linear_gaussian.layout import PatternLayout
from calmrl_prob.linear_gaussian.parameters import Parameters, Shape
from calmrl_prob.linear_gaussian.posterior import factorize
from calmrl_prob.linear_gaussian.products import cross_product, project, row_chunks


class RowwiseStep(ExpectationStep):
    """What the forms that go over the rows share."""

    def __init__(self, blocks: ObservedBlocks | FeatureBlocks, latent_dim: int) -> None:
        self.shape = Shape.of(blocks.dims, blocks.device)
        self.feature_group = self.shape.feature_modality
        self.layout = PatternLayout(blocks.pattern_index, blocks.pattern_counts, latent_dim)
        order = torch.cat([bucket.patterns for bucket in self.layout.buckets])
        every = blocks.patterns.new_ones(len(order), 1)
        # (P, G + 1): which groups a pattern has and, last, that it counts among all rows; in the order of the buckets
        self._members = torch.cat([blocks.patterns[order], every], dim=1).double()

    @abstractmethod
    def _project(self, weights: Tensor) -> Tensor:
        """X A in every slot, with zeros for what is missing and at the padding; shape (T, K)."""

    @abstractmethod
    def _cross(self, latents: Tensor) -> Tensor:
        """sum x z^T for every feature, from z in the slots (T, K); shape (D, K)."""

    def __call__(self, parameters: Parameters) -> Moments:
        """Expected moments and evidence at ``parameters``."""
        latent_dim = parameters.loadings.shape[1]
        weights = parameters.loadings / parameters.noise_variance[:, None]
        precision, offset = self.group_precisions(weights, parameters)
        flat_precision = precision.reshape(len(precision), -1)
        offsets = self._members[:, :-1] @ offset
        identity = torch.eye(latent_dim, dtype=weights.dtype, device=weights.device).flatten()
        natural = self._project(weights)
        latents = torch.empty_like(natural)
        width = latent_dim + 1
        moments = natural.new_zeros(self._members.shape[1], width * width)
        half_logdet = natural.new_zeros(())
        first = 0
        for bucket in self.layout.buckets:
            members = self._members[first : first + len(bucket.patterns)]
            h, z = bucket.view(natural), bucket.view(latents)
            h -= offsets[first : first + len(bucket.patterns), None]
            if bucket.filled is not None:
                h *= bucket.filled
            first += len(bucket.patterns)
            inner = torch.addmm(identity, members[:, :-1], flat_precision).view(-1, latent_dim, latent_dim)
            factor = factorize(inner)
            half_logdet += bucket.counts @ factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)
            covariance = torch.cholesky_inverse(factor)
            torch.bmm(h, covariance, out=z)
            moment = natural.new_empty(len(members), width, width)
            moment[:, :-1, :-1] = torch.baddbmm(covariance * bucket.counts[:, None, None], z.mT, z)
            moment[:, -1, :-1] = moment[:, :-1, -1] = z.sum(1)
            moment[:, -1, -1] = bucket.counts
            moments.addmm_(members.mT, moment.view(len(members), -1))
        quadratic = torch.dot(natural.view(-1), latents.view(-1))
        evidence = self.feature_log_density(parameters) + 0.5 * quadratic - half_logdet
        return Moments(float(evidence), self._cross(latents), moments.view(-1, width, width))


class ByModality(RowwiseStep):
    """Two products for each modality, over the rows that have it: best when patterns are many."""

    def __init__(self, blocks: ObservedBlocks, latent_dim: int) -> None:
        super().__init__(blocks, latent_dim)
        self.totals = block_totals(blocks)
        self._values = list(blocks.values.values())
        self._slots = [self.layout.slot[rows] for rows in blocks.rows.values()]

    def _project(self, weights: Tensor) -> Tensor:
        out = weights.new_zeros(self.layout.num_slots, weights.shape[1])
        for values, slots, part in zip(self._values, self._slots, self.shape.slices, strict=True):
            out.index_add_(0, slots, project(values, weights[part]))
        return out

    def _cross(self, latents: Tensor) -> Tensor:
        return torch.cat(
            [
                cross_product(values, latents.index_select(0, slots))
                for values, slots in zip(self._values, self._slots, strict=True)
            ]
        )


class ByPattern(RowwiseStep):
    """Two products for each pattern, over its stacked modalities: best when patterns are few."""

    def __init__(self, blocks: ObservedBlocks, latent_dim: int) -> None:
        super().__init__(blocks, latent_dim)
        self.totals = block_totals(blocks)
        starts = [
            (int(pattern), bucket.start + place * bucket.capacity)
            for bucket in self.layout.buckets
            for place, pattern in enumerate(bucket.patterns)
        ]
        self._parts = []
        for pattern, start in starts:
            features = blocks.patterns[pattern][self.shape.feature_modality].nonzero().squeeze(1)
            values = blocks.stacked(pattern, blocks.pattern_rows[pattern])
            self._parts.append((values, features, slice(start, start + len(values))))

    def _project(self, weights: Tensor) -> Tensor:
        out = weights.new_zeros(self.layout.num_slots, weights.shape[1])
        for values, features, slots in self._parts:
            out[slots] = project(values, weights[features])
        return out

    def _cross(self, latents: Tensor) -> Tensor:
        out = latents.new_zeros(self.shape.total, latents.shape[1])
        for values, features, slots in self._parts:
            out.index_add_(0, features, cross_product(values, latents[slots]))
        return out


class ByFeature(RowwiseStep):
    """For data in which single features are missing: every feature is a group of its own, so M-steps are one each."""

    def __init__(self, blocks: FeatureBlocks, latent_dim: int) -> None:
        super().__init__(blocks, latent_dim)
        self.feature_group = torch.arange(self.shape.total, device=blocks.device)
        self._values = blocks.values
        self.totals = Totals(
            blocks.feature_mask.sum(0).double(),
            blocks.values.double().sum(0),
            blocks.values.double().square().sum(0),
            blocks.num_instances,
        )

    def group_precisions(self, weights: Tensor, parameters: Parameters) -> tuple[Tensor, Tensor]:
        """A^T W, shape (D, K, K), and A^T mu, shape (D, K): one outer product for each feature."""
        return weights[:, :, None] * parameters.loadings[:, None, :], weights * parameters.intercepts[:, None]

    def _project(self, weights: Tensor) -> Tensor:
        out = weights.new_zeros(self.layout.num_slots, weights.shape[1])
        return out.index_copy_(0, self.layout.slot, project(self._values, weights))

    def _cross(self, latents: Tensor) -> Tensor:
        return cross_product(self._values, latents.index_select(0, self.layout.slot))


def block_totals(blocks: ObservedBlocks) -> Totals:
    """Counts, sums and sums of squares over the observed rows, accumulated in float64 chunk by chunk."""
    totals, squares = [], []
    for values in blocks.values.values():
        total = torch.zeros(values.shape[1], dtype=torch.float64, device=values.device)
        square = torch.zeros_like(total)
        for chunk in row_chunks(len(values), values.shape[1]):
            total += values[chunk].sum(0)
            square += values[chunk].square().sum(0)
        totals.append(total)
        squares.append(square)
    count = blocks.pattern_counts.double() @ blocks.patterns.double()
    return Totals(count, torch.cat(totals), torch.cat(squares), blocks.num_instances)
