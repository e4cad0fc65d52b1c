"""The E-step of the Student-t model (``student_t.py``): moments of the latent with every row weighted.

    w_n = (nu + D_n) / (nu + delta_n)          delta_n: squared distance of x_n, D_n: features that it has

nu is found on the likelihood itself on the way, from the distances that the step has anyway.
"""

from __future__ import annotations

import math
from copy import copy
from dataclasses import dataclass

import torch
from torch import Tensor

from calmrl_prob.linear_gaussian.blocks import FeatureBlocks, ObservedBlocks
from calmrl_prob.linear_gaussian.em.convergence import Evaluation
from calmrl_prob.linear_gaussian.em.expectation import Moments, Totals, augment
from calmrl_prob.linear_gaussian.em.forms import ROW_FORMS, prepare
from calmrl_prob.linear_gaussian.em.parameters import Parameters, Shape
from calmrl_prob.linear_gaussian.em.statistics import SufficientStatistics
from calmrl_prob.linear_gaussian.grouping import Grouping
from calmrl_prob.linear_gaussian.posterior import factorize
from calmrl_prob.linear_gaussian.scale_mixture.degrees_of_freedom import from_distances
from calmrl_prob.linear_gaussian.scale_mixture.shared_scale import count_features

#: Parameters and degrees of freedom.
Point = tuple[Parameters, float]


@dataclass(frozen=True)
class WeightedMoments:
    """Statistics for the M-step: moments and totals with every row weighted, and counts of rows that are not."""

    shape: Shape
    totals: Totals
    feature_count: Tensor
    grouping: Grouping
    latent: Moments
    mean_weight: float


class StudentTStep:
    """The E-step over rows, with the degrees of freedom found on the way.

    Args:
        data: the observed rows.
        latent_dim: K.
        form: "modality", "pattern" or "auto".
        isotropic: whether sums of squares are needed by modality only.
        learn: whether the degrees of freedom are learned.
    """

    def __init__(
        self, data: ObservedBlocks | FeatureBlocks, latent_dim: int, form: str, isotropic: bool, learn: bool
    ) -> None:
        # one latent more: its column of loadings gives x^T Psi^-1 mu on the way there, and sum w x on the way back
        prepared = prepare(data, latent_dim + 1, form, forms=ROW_FORMS)
        self.rowwise, self.shift, self.form = prepared.rows(), prepared.shift, prepared.form
        blocks = prepared.data
        assert not isinstance(blocks, SufficientStatistics)
        self.shape = self.rowwise.shape
        squares = _squares(blocks, isotropic)
        self._pooled = squares.dims != blocks.dims
        self._squares = type(self.rowwise)(squares, 1, self.rowwise.layout)
        self._learn = learn
        features = count_features(blocks)
        layout = self.rowwise.layout
        self._slot = layout.slot
        self._num_features = features.new_zeros(layout.num_slots).index_copy_(0, layout.slot, features)
        self._filled = features.new_zeros(layout.num_slots).index_fill_(0, layout.slot, 1.0)

    def __call__(self, point: Point) -> Evaluation[Point, WeightedMoments]:
        """Weighted moments and evidence, at the degrees of freedom that are best for these parameters."""
        (parameters, freedom), rowwise = point, self.rowwise
        latent_dim = parameters.loadings.shape[1]
        weights = parameters.loadings / parameters.noise_variance[:, None]
        precision, offset = rowwise.group_precisions(weights, parameters)
        scaled = parameters.intercepts / parameters.noise_variance
        natural = rowwise.to_slots(torch.cat([weights, scaled[:, None]], dim=1))
        squares = self._squares.to_slots(self._by_square(1 / parameters.noise_variance)[:, None])[0]
        constants = self._group_constants(parameters, scaled)
        identity = torch.eye(latent_dim, dtype=weights.dtype, device=weights.device).flatten()
        latents = natural.new_zeros(natural.shape[1], latent_dim)
        distance = natural.new_zeros(natural.shape[1])
        half_logdet = torch.zeros_like(distance)
        groups = rowwise.members[0].shape[1]
        first, second = weights.new_zeros(groups, latent_dim), weights.new_zeros(groups, latent_dim**2)
        for bucket, members in zip(rowwise.layout.buckets, rowwise.members, strict=True):
            slots, size = slice(bucket.start, bucket.stop), len(members)
            columns = natural[:, slots].view(latent_dim + 1, size, bucket.capacity)
            h = columns[:-1].permute(1, 2, 0) - (members[:, :-1] @ offset)[:, None]
            inner = torch.addmm(identity, members[:, :-1], precision.reshape(len(precision), -1))
            factor = factorize(inner.view(size, latent_dim, latent_dim))
            covariance = torch.cholesky_inverse(factor)
            z = (h @ covariance) * bucket.filled
            latents[slots] = z.view(-1, latent_dim)
            mean_square, half_noise = (members[:, :-1] @ constants).unbind(1)
            deviation = squares[slots].view(size, -1) - 2 * columns[-1] + mean_square[:, None]
            distance[slots] = (deviation - (h * z).sum(-1)).flatten()
            logdet = factor.diagonal(dim1=-2, dim2=-1).log().sum(-1) + half_noise
            half_logdet[slots] = logdet.repeat_interleave(bucket.capacity)
            rows = bucket.filled.sum(1)
            second.addmm_((members * rows).mT, covariance.reshape(size, -1))
        rows_distance = distance[self._slot].clamp(min=0)
        features = self._num_features[self._slot]
        if self._learn:
            freedom = from_distances(rows_distance, features, freedom)
        evidence = _log_density(rows_distance, features, half_logdet[self._slot], freedom)
        scale = (freedom + self._num_features) / (freedom + distance.clamp(min=0)) * self._filled
        weighted = latents * scale[:, None]
        total = weights.new_zeros(groups)
        for bucket, members in zip(rowwise.layout.buckets, rowwise.members, strict=True):
            slots, size = slice(bucket.start, bucket.stop), len(members)
            z, wz = (part[slots].view(size, bucket.capacity, latent_dim) for part in (latents, weighted))
            first.addmm_(members.mT, wz.sum(1))
            second.addmm_(members.mT, (wz.mT @ z).view(size, -1))
            total.addmv_(members.mT, scale[slots].view(size, -1).sum(1))
        cross = rowwise.from_slots(torch.cat([weighted, scale[:, None]], dim=1))
        square = self._by_feature(self._squares.from_slots(scale[:, None])[:, 0])
        moments = WeightedMoments(
            self.shape,
            Totals(rowwise.totals.count, cross[:, -1], square),
            rowwise.feature_count,
            rowwise.grouping,
            Moments(evidence, cross[:, :-1], augment(first, second, total)),
            float(total[-1]) / len(self._slot),
        )
        return Evaluation((parameters, freedom), moments, evidence, evidence)

    def _group_constants(self, parameters: Parameters, scaled: Tensor) -> Tensor:
        """mu^T Psi^-1 mu and half of logdet Psi, of each group, (G, 2)."""
        terms = torch.stack([parameters.intercepts * scaled, 0.5 * parameters.noise_variance.log()], dim=1)
        grouping = self.rowwise.grouping
        return terms.new_zeros(len(grouping), 2).index_add_(0, grouping.feature_group, terms)

    def _by_square(self, values: Tensor) -> Tensor:
        """From a number for each feature, equal within a modality where squares are pooled, to one for each square."""
        return torch.stack([values[part.start] for part in self.shape.slices]) if self._pooled else values

    def _by_feature(self, sums: Tensor) -> Tensor:
        """From a sum for each square to one for each feature, shared out evenly within a modality where pooled."""
        if not self._pooled:
            return sums
        widths = [part.stop - part.start for part in self.shape.slices]
        return torch.cat([(total / width).expand(width) for total, width in zip(sums, widths, strict=True)])


def _log_density(distance: Tensor, num_features: Tensor, half_logdet: Tensor, freedom: float) -> float:
    """log p(x_n) summed over instances, nats."""
    half = (freedom + num_features) / 2
    constant = torch.lgamma(half) - math.lgamma(freedom / 2) - num_features / 2 * math.log(freedom * math.pi)
    return float((constant - half_logdet - half * torch.log1p(distance / freedom)).sum())


def _squares(blocks: ObservedBlocks | FeatureBlocks, isotropic: bool) -> ObservedBlocks | FeatureBlocks:
    """The squares of the data; their sums over each modality where that is all that is needed."""
    if isinstance(blocks, FeatureBlocks):
        features = copy(blocks)
        features.values = blocks.values.double().square()
        return features
    squared = copy(blocks)
    if isotropic:
        squared.values = {n: v.square().sum(1, keepdim=True, dtype=torch.float64) for n, v in blocks.values.items()}
    else:
        squared.values = {name: values.square() for name, values in blocks.values.items()}
    return squared
