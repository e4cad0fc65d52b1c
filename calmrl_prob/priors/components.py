"""Several Gaussians with parameters of their own: what mixture and group priors share."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from calmrl_prob.errors import ArgumentError


class Components(nn.Module):
    """C Gaussians N(m_c, S_c) of K latents; S_c by the logarithms of its Cholesky factor's diagonal and what is below.

    Args:
        count: C.
        latent_dim: K.
        spread: standard deviation of the means that they start from, drawn by ``seed``; covariances start at I.
        seed: of these.
        dtype: of all.

    Attributes:
        means: (C, K).
    """

    def __init__(self, count: int, latent_dim: int, spread: float, seed: int, dtype: torch.dtype) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        start = spread * torch.randn(count, latent_dim, generator=generator, dtype=torch.float64)
        self.means = nn.Parameter(start.to(dtype))
        self.below = nn.Parameter(torch.zeros(count, latent_dim, latent_dim, dtype=dtype))
        self.log_diagonal = nn.Parameter(torch.zeros(count, latent_dim, dtype=dtype))

    @staticmethod
    def numbers(count: int, latent_dim: int) -> int:
        """Count of the numbers that C Gaussians of K latents are."""
        return count * latent_dim * (latent_dim + 2)

    def scale_tril(self) -> Tensor:
        """Lower Cholesky factors of the covariances, (C, K, K)."""
        return self.below.tril(-1) + torch.diag_embed(self.log_diagonal.exp())

    def covariances(self) -> Tensor:
        """S_c, (C, K, K)."""
        factor = self.scale_tril()
        return factor @ factor.mT

    @torch.no_grad()
    def set(self, means: Tensor, covariances: Tensor) -> None:
        """Take over means (C, K) and covariances (C, K, K), positive definite.

        Raises:
            ArgumentError: a shape does not fit, or a covariance is not positive definite.
        """
        if means.shape != self.means.shape or covariances.shape != self.below.shape:
            raise ArgumentError(
                f"means, covariances: expected shapes {tuple(self.means.shape)} and {tuple(self.below.shape)}, got "
                f"{tuple(means.shape)} and {tuple(covariances.shape)}."
            )
        factor, failures = torch.linalg.cholesky_ex(covariances.double())
        if bool(failures.any()):
            raise ArgumentError(
                f"covariances: number {int(failures.nonzero()[0])} is not positive definite; add a small multiple of "
                "the identity."
            )
        self.means.copy_(means)
        self.below.copy_(factor.tril(-1))
        self.log_diagonal.copy_(factor.diagonal(dim1=-2, dim2=-1).log())
