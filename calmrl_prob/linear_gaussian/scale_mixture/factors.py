"""The factors of a Gaussian scale mixture (``scale_mixture.py``), as a chunk of instances has them.

A factor f, the prior of some latents or the likelihood of a modality, says of each instance, given its scales u,

    log f(z_n) = -1/2 u (z_n^T A z_n - 2 g_n^T z_n + s_n) + const          A = W^T Psi^-1 W,  g = W^T Psi^-1 (x - mu)

or a sum of such terms, one for each feature with a scale of its own.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from calmrl_prob.linear_gaussian.blocks import FeatureBlocks, ObservedBlocks


@dataclass(frozen=True)
class Whole:
    """A factor with one scale for each instance.

    Attributes:
        freedom: nu, shape (); None for a Gaussian factor, whose scale is 1.
        gram: A, (K, K).
        natural: g, (n, K), 0 where the instance lacks it.
        squares: s = (x - mu)^T Psi^-1 (x - mu), (n,).
        count: D_f, (n,), 0 where the instance lacks it.
    """

    freedom: Tensor | None
    gram: Tensor
    natural: Tensor
    squares: Tensor
    count: Tensor

    def precision(self, scale: Tensor) -> Tensor:
        """u A, (n, K, K)."""
        return (scale * (self.count > 0))[:, None, None] * self.gram

    def weighted(self, scale: Tensor) -> tuple[Tensor, Tensor]:
        """u g, (n, K), and u s, (n,)."""
        return scale[:, None] * self.natural, scale * self.squares

    def distance(self, mean: Tensor) -> Tensor:
        """(x - W z - mu)^T Psi^-1 (x - W z - mu) at z = mean, (n,)."""
        inner = ((mean @ self.gram) * mean).sum(1) * (self.count > 0)
        return self.squares - 2 * (self.natural * mean).sum(1) + inner

    def spread(self, covariance: Tensor) -> Tensor:
        """tr(A V), (n,)."""
        return (covariance.flatten(1) @ self.gram.flatten()) * (self.count > 0)


@dataclass(frozen=True)
class Entries:
    """A factor with a scale for each feature, or with features missing.

    Attributes:
        freedom: nu, shape () or (F,); None for a Gaussian factor.
        loadings: W, (F, K).
        noise: psi, (F,).
        centred: x - mu, (n, F), 0 where missing.
        mask: (n, F) float, 1 where present.
        tied: one scale for all features of an instance.
    """

    freedom: Tensor | None
    loadings: Tensor
    noise: Tensor
    centred: Tensor
    mask: Tensor
    tied: bool

    @property
    def count(self) -> Tensor:
        """Features to each scale: (n, F), or (n,) if tied."""
        return self.mask.sum(1) if self.tied else self.mask

    def _weights(self, scale: Tensor) -> Tensor:
        return self.mask * (scale[:, None] if self.tied else scale) / self.noise

    def _pooled(self, values: Tensor) -> Tensor:
        return values.sum(1) if self.tied else values

    def _outer(self) -> Tensor:
        return (self.loadings[:, :, None] * self.loadings[:, None, :]).flatten(1)

    def precision(self, scale: Tensor) -> Tensor:
        """sum_d u_d w_d w_d^T / psi_d, (n, K, K)."""
        latent_dim = self.loadings.shape[1]
        return (self._weights(scale) @ self._outer()).view(-1, latent_dim, latent_dim)

    def weighted(self, scale: Tensor) -> tuple[Tensor, Tensor]:
        """sum_d u_d w_d (x_d - mu_d) / psi_d, (n, K), and sum_d u_d (x_d - mu_d)^2 / psi_d, (n,)."""
        terms = self._weights(scale) * self.centred
        return terms @ self.loadings, (terms * self.centred).sum(1)

    def distance(self, mean: Tensor) -> Tensor:
        """(x_d - w_d^T z - mu_d)^2 / psi_d at z = mean, in the shape of ``count``."""
        return self._pooled(self.mask * (self.centred - mean @ self.loadings.mT).square() / self.noise)

    def spread(self, covariance: Tensor) -> Tensor:
        """w_d^T V w_d / psi_d, in the shape of ``count``."""
        return self._pooled(self.mask * (covariance.flatten(1) @ self._outer().mT) / self.noise)


Factor = Whole | Entries


def observed_part(blocks: ObservedBlocks | FeatureBlocks, name: str, chunk: slice) -> tuple[Tensor, Tensor, Tensor]:
    """Observed part of a modality of the instances of a chunk.

    Returns:
        Their row numbers (n',), the values (n', D_m), and which of them are present (n', D_m) bool.
    """
    if isinstance(blocks, ObservedBlocks):
        ends = torch.tensor([chunk.start, chunk.stop], device=blocks.device)
        first, last = torch.searchsorted(blocks.rows[name], ends).tolist()
        values = blocks.values[name][first:last]
        return blocks.rows[name][first:last], values, torch.ones_like(values, dtype=torch.bool)
    start = 0
    for other, width in blocks.dims.items():
        if other == name:
            break
        start += width
    part = slice(start, start + blocks.dims[name])
    mask = blocks.feature_mask[chunk, part]
    rows = mask.any(1).nonzero().squeeze(1)
    return rows + chunk.start, blocks.values[chunk, part][rows], mask[rows]
