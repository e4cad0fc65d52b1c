"""The start of EM: leading directions of the noise-whitened covariance of what is observed together.

With C the covariance of all features, each entry over the rows that have both, and Psi the noise, the maximum of the
likelihood on complete data satisfies

    W = Psi^1/2 U (Lambda - I)^1/2,   U, Lambda the K leading eigenpairs of Psi^-1/2 C Psi^-1/2,   Psi = diag(C - W W^T)

(Joreskog, Some contributions to maximum likelihood factor analysis, 1967; Tipping & Bishop, 1999, for isotropic noise).
A few rounds of both, by subspace iteration, land close enough that EM needs tens of steps, not hundreds.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from calmrl_prob.linear_gaussian.blocks import FeatureBlocks, ObservedBlocks
from calmrl_prob.linear_gaussian.em.noise_model import NoiseModel
from calmrl_prob.linear_gaussian.em.parameters import Parameters, Shape
from calmrl_prob.linear_gaussian.em.statistics import SufficientStatistics
from calmrl_prob.linear_gaussian.em.support import Support
from calmrl_prob.linear_gaussian.products import cross_product, project


@dataclass(frozen=True)
class PairwiseCovariance:
    """The covariance C of features over the rows that have both, as far as the start needs it.

    Attributes:
        mean: (D,) mean of each feature.
        variance: (D,) diagonal of C.
        times: the map Y -> C Y for Y of shape (D, L).
    """

    mean: Tensor
    variance: Tensor
    times: Callable[[Tensor], Tensor]

    def rest(self, loadings: Tensor, inside: Tensor) -> PairwiseCovariance:
        """Residual covariance that loadings (D, K) leave of some features, (D,) bool; zero for all others."""

        def times(block: Tensor) -> Tensor:
            chosen = block * inside[:, None]
            return (self.times(chosen) - loadings @ (loadings.mT @ chosen)) * inside[:, None]

        return PairwiseCovariance(self.mean, (self.variance - loadings.square().sum(1)).clamp(min=0) * inside, times)

    @classmethod
    def from_statistics(cls, statistics: SufficientStatistics) -> PairwiseCovariance:
        """Exactly, from scatters by pattern."""
        mean, covariance = statistics.pairwise_covariance()
        return cls(mean, covariance.diagonal(), lambda block: covariance @ block)

    @classmethod
    def from_blocks(cls, blocks: ObservedBlocks, mean: Tensor, variance: Tensor) -> PairwiseCovariance:
        """From centred rows, without forming C.

        C_ij = X_i^T X_j / n_ij needs a weight for each pair; n_ij = n_i n_j / N, as if modalities went missing
        independently, makes it a weight for each modality and leaves two products for each application. The diagonal
        blocks, for which that is wrong, are put right.
        """
        shape = Shape.of(blocks.dims, blocks.device)
        total = float(blocks.num_instances)

        def times(block: Tensor) -> Tensor:
            scores = [
                project(values, block[part]) / max(len(values), 1)
                for values, part in zip(blocks.values.values(), shape.slices, strict=True)
            ]
            pooled = block.new_zeros(blocks.num_instances, block.shape[1])
            for rows, score in zip(blocks.rows.values(), scores, strict=True):
                pooled.index_add_(0, rows, score, alpha=total)
            out = []
            for (name, values), score in zip(blocks.values.items(), scores, strict=True):
                rows = blocks.rows[name]
                back = pooled.index_select(0, rows) / max(len(rows), 1) + (1 - total / max(len(rows), 1)) * score
                out.append(cross_product(values, back))
            return torch.cat(out)

        return cls(mean, variance, times)

    @classmethod
    def from_features(cls, blocks: FeatureBlocks, mean: Tensor, variance: Tensor) -> PairwiseCovariance:
        """From centred rows with single features missing: the same approximation, one weight for each feature."""
        count = blocks.feature_mask.sum(0).double().clamp(min=1)
        total = float(blocks.num_instances)

        def times(block: Tensor) -> Tensor:
            scaled = block / count[:, None]
            out = cross_product(blocks.values, project(blocks.values, scaled)) * (total / count)[:, None]
            return out + (1 - total / count)[:, None] * variance[:, None] * block

        return cls(mean, variance, times)


def spectral_start(
    covariance: PairwiseCovariance,
    shape: Shape,
    latent_dim: int,
    noise_model: NoiseModel,
    generator: torch.Generator,
    rounds: int = 3,
    products_per_round: int = 3,
) -> Parameters:
    """Loadings, intercepts and noise to start EM from.

    Args:
        covariance: of the data about the shift.
        shape: the stacked layout.
        latent_dim: K.
        noise_model: the form of the noise, and its floor.
        generator: for the random block that the subspace iteration starts from.
        rounds: how often the noise is estimated anew.
        products_per_round: applications of C for each.

    Returns:
        Parameters in float64.
    """
    size = shape.total
    oversampled = min(latent_dim + max(4, latent_dim // 4), size)
    block = torch.randn(size, oversampled, generator=generator, dtype=torch.float64).to(covariance.variance.device)
    pool = noise_model.pooler(shape)
    variance = torch.maximum(pool(covariance.variance), noise_model.floor)
    noise = 0.5 * variance
    loadings = block.new_zeros(size, latent_dim)
    for _ in range(rounds):
        scale = noise.sqrt()[:, None]
        for _ in range(products_per_round):
            basis = torch.linalg.qr(block).Q
            block = covariance.times(basis / scale) / scale
        small = basis.mT @ block
        eigenvalues, vectors = torch.linalg.eigh((small + small.mT) / 2)
        leading = eigenvalues.flip(0)[:latent_dim]
        gain = (leading - 1).clamp(min=0.05).sqrt()
        loadings = scale * (basis @ vectors.flip(1)[:, :latent_dim]) * gain
        explained = pool(loadings.square().sum(1))
        noise = torch.maximum(variance - explained, 0.02 * variance)
    return Parameters(loadings, covariance.mean.clone(), noise)


def supported_start(
    covariance: PairwiseCovariance, shape: Shape, support: Support, noise_model: NoiseModel, generator: torch.Generator
) -> Parameters:
    """The same for latents that serve chosen modalities: the most shared first, each kind from what is left to it."""
    loadings = covariance.mean.new_zeros(shape.total, support.mask.shape[1])
    for latents, serves in support.groups():
        inside = serves[shape.feature_modality]
        rest = covariance.rest(loadings, inside)
        found = spectral_start(rest, shape, len(latents), noise_model, generator).loadings
        loadings[:, latents] = found * inside[:, None]
    pool = noise_model.pooler(shape)
    variance = torch.maximum(pool(covariance.variance), noise_model.floor)
    noise = torch.maximum(variance - pool(loadings.square().sum(1)), 0.02 * variance)
    return Parameters(loadings, covariance.mean.clone(), noise)
