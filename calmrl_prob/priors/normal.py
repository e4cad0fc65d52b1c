"""The normal prior: z ~ N(mean, covariance)."""

from __future__ import annotations

from typing import Any, ClassVar

import pyro.distributions as dist
import torch
from torch import Tensor

from calmrl_prob._support.arguments import checked_dtype, described, whole_number
from calmrl_prob.data import MultimodalData
from calmrl_prob.errors import ArgumentError, ArgumentTypeError
from calmrl_prob.priors.prior import Prior


class NormalPrior(Prior):
    """z ~ N(m0, S0), fixed; the standard normal N(0, I) unless told otherwise.

    With standard normal latents this is the prior of probabilistic PCA (Tipping & Bishop, Probabilistic Principal
    Component Analysis, 1999). Another m0 and S0 describe the same family of densities of the data, since loadings and
    intercepts can take them up; they set the coordinates in which z is reported.

    Args:
        latent_dim: K.
        mean: m0, shape (K,); zeros if not given.
        covariance: S0, shape (K, K), symmetric and positive definite; the identity if not given.
        dtype: of both.

    Raises:
        ArgumentTypeError: K is not a number, a mean or covariance not of numbers, or ``dtype`` not a torch.dtype.
        ArgumentError: K is below 1, a shape does not fit, or the covariance is not symmetric and positive definite.

    Example:
        >>> prior = NormalPrior(2, covariance=torch.tensor([[2.0, 0.5], [0.5, 1.0]]))
        >>> prior
        NormalPrior(latent_dim=2, standard=False)
        >>> prior.distribution().event_shape
        torch.Size([2])
    """

    name: ClassVar[str] = "normal"
    mean: Tensor
    covariance: Tensor

    def __init__(
        self,
        latent_dim: int,
        mean: Tensor | None = None,
        covariance: Tensor | None = None,
        dtype: torch.dtype = torch.float64,
    ) -> None:
        latent_dim, dtype = whole_number("latent_dim", latent_dim, least=1), checked_dtype(dtype)
        super().__init__(latent_dim)
        mean = torch.zeros(latent_dim) if mean is None else _numbers(mean, "mean")
        covariance = torch.eye(latent_dim) if covariance is None else _numbers(covariance, "covariance")
        if mean.shape != (latent_dim,):
            raise ArgumentError(f"mean: expected shape ({latent_dim},), got {tuple(mean.shape)}.")
        if covariance.shape != (latent_dim, latent_dim):
            raise ArgumentError(
                f"covariance: expected shape ({latent_dim}, {latent_dim}), got {tuple(covariance.shape)}."
            )
        mean, covariance = mean.detach().to(dtype).clone(), covariance.detach().to(dtype).clone()
        if not bool(mean.isfinite().all()):
            raise ArgumentError("mean: expected finite numbers; replace the NaN or infinite ones.")
        symmetric = torch.allclose(covariance, covariance.mT)
        if not symmetric or int(torch.linalg.cholesky_ex(covariance).info) > 0:
            raise ArgumentError(
                "covariance: expected a symmetric positive-definite matrix, got one that is not; "
                "A @ A.T plus a small multiple of the identity always is."
            )
        self.register_buffer("mean", mean)
        self.register_buffer("covariance", covariance)

    def distribution(self, data: MultimodalData | None = None) -> dist.MultivariateNormal:
        """N(m0, S0), the same for all instances."""
        del data
        return dist.MultivariateNormal(self.mean, covariance_matrix=self.covariance)

    def gaussian(self) -> tuple[Tensor, Tensor]:
        """m0 (K,) and S0 (K, K)."""
        return self.mean, self.covariance

    @classmethod
    def least_numbers(cls, latent_dim: int, **config: Any) -> int:
        """K + K^2: m0 and S0."""
        del config
        return latent_dim + latent_dim**2

    def __repr__(self) -> str:
        """One line."""
        standard = not bool(self.mean.any()) and torch.equal(self.covariance, torch.eye(self.latent_dim).to(self.mean))
        return f"NormalPrior(latent_dim={self.latent_dim}, standard={standard})"


def _numbers(values: object, argument: str) -> Tensor:
    try:
        return torch.as_tensor(values)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ArgumentTypeError(f"{argument}: expected numbers in an array, got {described(values)}.") from error
