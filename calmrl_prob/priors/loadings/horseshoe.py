"""The regularised horseshoe: most loadings near zero, the others hardly shrunk, none without bound."""

from __future__ import annotations

from typing import ClassVar

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from calmrl_prob.priors.loadings.prior import LoadingsPrior, positive


class HorseshoeLoadings(LoadingsPrior):
    """Loadings that are sparse one by one, feature by feature.

        tau_m ~ HalfCauchy(global_scale)                       one for each modality
        lambda_dk ~ HalfCauchy(1)
        c_m^2 ~ InverseGamma(slab_freedom / 2, slab_freedom / 2)
        w_dk = scale u_dk tau_m lambda~_dk,   u_dk ~ N(0, 1),   lambda~^2 = c^2 lambda^2 / (c^2 + tau^2 lambda^2)

    A loading that is far from zero is as under N(0, scale^2 c^2); the others are shrunk by tau. It is written with u_dk
    as the site (non-centred), because with tau and lambda in its scale w_dk would have a posterior that no one step
    size fits.

    Source: Piironen & Vehtari, Sparsity information and regularization in the horseshoe and other shrinkage priors
    (2017).

    Args:
        global_scale: the guess of tau: about p / (1 - p) sqrt(psi / N) with p the share of loadings not zero, psi the
            noise variance in units of scale^2, N instances.
        slab_freedom: degrees of freedom of the slab, a Student-t.
        scale: of the slab, in the data's units for each unit of the latent.
        dtype: of the sites.

    Example:
        >>> with pyro.poutine.seed(rng_seed=0):
        ...     loadings = HorseshoeLoadings().sample("image", width=100, latent_dim=5)
        >>> bool(loadings.abs().median() < 0.1 * loadings.abs().max())
        True
    """

    name: ClassVar[str] = "horseshoe"

    def __init__(
        self,
        global_scale: float = 0.05,
        slab_freedom: float = 4.0,
        scale: float = 1.0,
        *,
        dtype: torch.dtype = torch.float64,
    ) -> None:
        super().__init__(scale, dtype=dtype)
        self.global_scale = positive("global_scale", global_scale)
        self.slab_freedom = positive("slab_freedom", slab_freedom)

    def sample(self, name: str, width: int, latent_dim: int) -> Tensor:
        """W^m, shape (D_m, K)."""
        site = f"loadings_{name}"
        half = self.full(self.slab_freedom / 2)
        shrinkage = pyro.sample(f"{site}_global", dist.HalfCauchy(self.full(self.global_scale)))
        slab = pyro.sample(f"{site}_slab", dist.InverseGamma(half, half))
        local = pyro.sample(f"{site}_local", dist.HalfCauchy(self.full(1.0, width, latent_dim)).to_event(2))
        normal = dist.Normal(self.full(0.0, width, latent_dim), self.full(1.0)).to_event(2)
        standard: Tensor = pyro.sample(f"{site}_standard", normal)
        wide = shrinkage * local
        return self.scale * standard * wide * (slab / (slab + wide.square())).sqrt()
