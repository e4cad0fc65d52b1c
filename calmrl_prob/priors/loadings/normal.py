"""The normal prior of loadings: w_dk ~ N(0, scale^2)."""

from __future__ import annotations

from typing import ClassVar

import pyro
import pyro.distributions as dist
from torch import Tensor

from calmrl_prob.priors.loadings.prior import LoadingsPrior


class NormalLoadings(LoadingsPrior):
    """w_dk ~ N(0, scale^2), independent: ridge regression of the features on the latent.

    Source: Bishop, Bayesian PCA (1999), with one precision for all.

    Args:
        scale: the standard deviation of a loading, in the data's units for each unit of the latent.
        dtype: of the sites.

    Example:
        >>> import torch
        >>> with pyro.poutine.seed(rng_seed=0):
        ...     loadings = NormalLoadings(scale=2.0).sample_all({"image": 3, "text": 2}, latent_dim=4)
        >>> tuple(loadings["image"].shape), tuple(loadings["text"].shape)
        ((3, 4), (2, 4))
    """

    name: ClassVar[str] = "normal"

    def sample(self, name: str, width: int, latent_dim: int) -> Tensor:
        """W^m, shape (D_m, K)."""
        normal = dist.Normal(self.full(0.0, width, latent_dim), self.full(self.scale))
        loadings: Tensor = pyro.sample(f"loadings_{name}", normal.to_event(2))
        return loadings
