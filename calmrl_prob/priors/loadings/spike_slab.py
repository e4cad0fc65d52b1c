"""Spike and slab, relaxed: each loading is switched by a gate between 0 and 1 that gradients can move."""

from __future__ import annotations

from typing import ClassVar

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from calmrl_prob.errors import ArgumentError
from calmrl_prob.priors.loadings.prior import LoadingsPrior, positive


class SpikeSlabLoadings(LoadingsPrior):
    """Loadings that are exactly in or nearly out, one by one.

        pi_mk ~ Beta(a, b)                                     the share of features of m that latent k serves
        g_dk  ~ RelaxedBernoulli(temperature, pi_mk)           a gate in (0, 1), at its ends most of the time
        w_dk  = scale g_dk u_dk,   u_dk ~ N(0, 1)

    As the temperature goes to 0 the gates become binary and this becomes the spike-and-slab prior (Mitchell &
    Beauchamp, Bayesian variable selection in linear regression, 1988), by modality and latent as in MOFA (Argelaguet et
    al., Multi-Omics Factor Analysis, 2018). Relaxed, it has gradients, at the price of a spike with some width.

    Source of the relaxation: Maddison, Mnih & Teh, The Concrete distribution (2017).

    Args:
        inclusion: (a, b) of the beta prior; its mean a / (a + b) is the share of loadings expected in.
        temperature: of the gates; from 0.1 (nearly binary, hard to move) to 1.
        scale: of the slab, in the data's units for each unit of the latent.
        dtype: of the sites.

    Example:
        >>> with pyro.poutine.seed(rng_seed=0):
        ...     loadings = SpikeSlabLoadings(inclusion=(2.0, 8.0)).sample("image", width=200, latent_dim=5)
        >>> 0.6 < float((loadings.abs() < 0.05).double().mean()) < 0.9  # the share that is out
        True
    """

    name: ClassVar[str] = "spike_slab"

    def __init__(
        self,
        inclusion: tuple[float, float] = (1.0, 1.0),
        temperature: float = 0.3,
        scale: float = 1.0,
        *,
        dtype: torch.dtype = torch.float64,
    ) -> None:
        super().__init__(scale, dtype=dtype)
        if not isinstance(inclusion, tuple | list) or len(inclusion) != 2:
            raise ArgumentError(f"inclusion: expected the two parameters of a beta distribution, got {inclusion!r}.")
        self.inclusion = (positive("inclusion[0]", inclusion[0]), positive("inclusion[1]", inclusion[1]))
        self.temperature = positive("temperature", temperature)

    def sample(self, name: str, width: int, latent_dim: int) -> Tensor:
        """W^m, shape (D_m, K)."""
        site = f"loadings_{name}"
        beta = dist.Beta(self.full(self.inclusion[0], latent_dim), self.full(self.inclusion[1]))
        share = pyro.sample(f"{site}_share", beta.to_event(1))
        tiny = torch.finfo(self.dtype).eps
        logits = torch.logit(share.clamp(tiny, 1 - tiny)).expand(width, latent_dim)
        # the gate by its logit, a logistic variable over the temperature: the density of a gate that rounds to 0 or 1
        # is infinite, that of its logit never is
        base = dist.Logistic(self.full(0.0, width, latent_dim), self.full(1.0)).to_event(2)
        gate = torch.sigmoid((logits + pyro.sample(f"{site}_gate", base)) / self.temperature)
        normal = dist.Normal(self.full(0.0, width, latent_dim), self.full(1.0)).to_event(2)
        standard: Tensor = pyro.sample(f"{site}_standard", normal)
        return self.scale * gate * standard
