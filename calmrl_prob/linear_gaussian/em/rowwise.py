"""The E-step over rows: by modality, by pattern, and for single missing features.

Rows stand in the slots of a ``PatternLayout``, where all K-dimensional algebra is batched over patterns. The forms
differ only in how they get from the data to the slots (X A) and back (X^T Z), so that is all that each defines.
"""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor

from calmrl_prob.linear_gaussian.blocks import FeatureBlocks, ObservedBlocks
from calmrl_prob.linear_gaussian.em.expectation import ExpectationStep, Moments, Totals, augment
from calmrl_prob.linear_gaussian.em.parameters import Parameters, Shape
from calmrl_prob.linear_gaussian.layout import PatternLayout
from calmrl_prob.linear_gaussian.posterior import require_definite
from calmrl_prob.linear_gaussian.products import cross_product, project, project_into, row_chunks


class RowwiseStep(ExpectationStep):
    """Base class of the E-step's forms that go over the rows.

    Arrays with a row for each instance are kept from one call to the next: asking the system for fresh memory costs as
    much as the arithmetic done in it. The natural means h stand in columns and the latents z in rows, which is how the
    large products are fastest on both sides.

    Attributes:
        layout: where each instance stands.
        members: for each bucket of the layout (B, G + 1): which groups its patterns have and, last, a 1.
    """

    layout: PatternLayout
    members: tuple[Tensor, ...]

    def __init__(
        self, blocks: ObservedBlocks | FeatureBlocks, latent_dim: int, layout: PatternLayout | None = None
    ) -> None:
        self.shape = Shape.of(blocks.dims, blocks.device)
        self.grouping, patterns = blocks.grouping, blocks.group_patterns
        if layout is None:
            layout = PatternLayout(blocks.pattern_index, blocks.pattern_counts, latent_dim)
        self.layout = layout
        order = torch.cat([bucket.patterns for bucket in self.layout.buckets])
        every = patterns.new_ones(len(order), 1)
        # (P, G + 1): which groups a pattern has and, last, that it counts among all rows; in the order of the buckets
        members = torch.cat([patterns[order], every], dim=1).double()
        sizes = [len(bucket.patterns) for bucket in self.layout.buckets]
        self.members = members.split(sizes)
        self._weighted_members = (members * blocks.pattern_counts[order, None]).split(sizes)
        self._group_counts = torch.cat([weighted.sum(0, keepdim=True) for weighted in self._weighted_members]).sum(0)
        self._natural = self._group_counts.new_zeros(latent_dim, self.layout.num_slots)
        self._latents = self._group_counts.new_zeros(self.layout.num_slots, latent_dim)

    @abstractmethod
    def to_slots(self, weights: Tensor) -> Tensor:
        """(X A)^T in every slot, with zeros for what is missing and at the padding; shape (K, T)."""

    @abstractmethod
    def from_slots(self, latents: Tensor) -> Tensor:
        """The sum of x z^T for every feature, from z in the slots (T, K); shape (D, K)."""

    def __call__(self, parameters: Parameters) -> Moments:
        """Expected moments and evidence at ``parameters``."""
        latent_dim = parameters.loadings.shape[1]
        weights = parameters.weights
        precision, offset = self.group_precisions(weights, parameters)
        flat_precision = precision.reshape(len(precision), -1)
        identity = torch.eye(latent_dim, dtype=weights.dtype, device=weights.device).flatten()
        natural, latents = self.to_slots(weights), self._latents
        groups = self.members[0].shape[1]
        first, second = weights.new_zeros(groups, latent_dim), weights.new_zeros(groups, latent_dim**2)
        evidence = self.feature_log_density(parameters)
        failures = []
        for bucket, members, weighted in zip(self.layout.buckets, self.members, self._weighted_members, strict=True):
            size = len(members)
            h = natural[:, bucket.start : bucket.stop].view(latent_dim, size, bucket.capacity).permute(1, 2, 0)
            z = latents[bucket.start : bucket.stop].view(size, bucket.capacity, latent_dim)
            h.addcmul_(bucket.filled, (members[:, :-1] @ offset)[:, None], value=-1)
            inner = torch.addmm(identity, members[:, :-1], flat_precision).view(size, latent_dim, latent_dim)
            factor, failure = torch.linalg.cholesky_ex(inner)
            failures.append(failure)
            covariance = torch.cholesky_inverse(factor).mT  # symmetric; LAPACK leaves it in columns
            torch.bmm(h, covariance, out=z)
            square = torch.bmm(z.mT, z)
            # h^T V h = z^T P z, so the sum over rows needs the K x K moments alone
            evidence += 0.5 * torch.dot(inner.view(-1), square.view(-1))
            evidence -= weighted[:, -1] @ factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)
            first.addmm_(members.mT, z.sum(1))
            second.addmm_(members.mT, square.view(size, -1)).addmm_(weighted.mT, covariance.reshape(size, -1))
        require_definite(torch.cat(failures))
        return Moments(float(evidence), self.from_slots(latents), augment(first, second, self._group_counts))


class ModalityStep(RowwiseStep):
    """Two products for each modality, over the rows that have it: best when patterns are many."""

    def __init__(self, blocks: ObservedBlocks, latent_dim: int, layout: PatternLayout | None = None) -> None:
        super().__init__(blocks, latent_dim, layout)
        self.totals = block_totals(blocks)
        self._values = list(blocks.values.values())
        # the rows of all modalities one after the other: one scatter and one gather serve them all
        self._slots = torch.cat([self.layout.slot[rows] for rows in blocks.rows.values()])
        self._row_counts = [len(values) for values in self._values]
        self._scores = self._natural.new_empty(latent_dim, len(self._slots))
        self._gathered = self._natural.new_empty(len(self._slots), latent_dim)

    def to_slots(self, weights: Tensor) -> Tensor:
        """(X A)^T in every slot, (K, T)."""
        scores = self._scores.split(self._row_counts, dim=1)
        for values, part, out in zip(self._values, self.shape.slices, scores, strict=True):
            project_into(out, values, weights[part])
        self._natural.zero_().index_add_(1, self._slots, self._scores)
        return self._natural

    def from_slots(self, latents: Tensor) -> Tensor:
        """sum x z^T, (D, K)."""
        torch.index_select(latents, 0, self._slots, out=self._gathered)
        gathered = self._gathered.split(self._row_counts)
        return torch.cat([cross_product(*pair) for pair in zip(self._values, gathered, strict=True)])


class PatternStep(RowwiseStep):
    """Two products for each pattern, over its stacked modalities: best when patterns are few."""

    def __init__(self, blocks: ObservedBlocks, latent_dim: int, layout: PatternLayout | None = None) -> None:
        super().__init__(blocks, latent_dim, layout)
        self.totals = block_totals(blocks)
        self._parts = []
        for bucket in self.layout.buckets:
            for place, pattern in enumerate(bucket.patterns.tolist()):
                features = blocks.patterns[pattern][self.shape.feature_modality].nonzero().squeeze(1)
                values = blocks.stacked(pattern, blocks.pattern_rows[pattern])
                start = bucket.start + place * bucket.capacity
                self._parts.append((values, features, slice(start, start + len(values))))

    def to_slots(self, weights: Tensor) -> Tensor:
        """(X A)^T in every slot, (K, T)."""
        for values, features, slots in self._parts:
            project_into(self._natural[:, slots], values, weights[features])
        return self._natural

    def from_slots(self, latents: Tensor) -> Tensor:
        """sum x z^T, (D, K)."""
        out = latents.new_zeros(self.shape.total, latents.shape[1])
        for values, features, slots in self._parts:
            out.index_add_(0, features, cross_product(values, latents[slots]))
        return out


class FeatureStep(RowwiseStep):
    """For data in which single features are missing: two products over all rows, and as many M-steps as groups."""

    def __init__(self, blocks: FeatureBlocks, latent_dim: int, layout: PatternLayout | None = None) -> None:
        super().__init__(blocks, latent_dim, layout)
        self._values = blocks.values
        self.totals = Totals(
            blocks.feature_mask.sum(0).double()[self.grouping.first],
            blocks.values.double().sum(0),
            blocks.values.double().square().sum(0),
        )

    def to_slots(self, weights: Tensor) -> Tensor:
        """(X A)^T in every slot, (K, T)."""
        self._natural.zero_().index_copy_(1, self.layout.slot, project(self._values, weights).mT)
        return self._natural

    def from_slots(self, latents: Tensor) -> Tensor:
        """sum x z^T, (D, K)."""
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
    return Totals(count, torch.cat(totals), torch.cat(squares))
