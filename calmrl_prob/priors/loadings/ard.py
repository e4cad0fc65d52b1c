"""Automatic relevance determination by modality: a latent can be switched off for a modality, all features at once."""

from __future__ import annotations

from typing import ClassVar

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from calmrl_prob.priors.loadings.prior import LoadingsPrior, positive


class ARDLoadings(LoadingsPrior):
    """alpha_mk ~ Gamma(shape, rate),   w_dk ~ N(0, scale^2 / alpha_mk) for the features d of modality m.

    The precision alpha_mk is shared by the features of a modality, so it is learned from all of them: group factor
    analysis. Where a modality does without latent k, alpha_mk grows large and the whole column goes to zero; so shared
    and private latents are told apart. What a small ``rate`` leaves of a column that is switched off is of size
    scale sqrt(2 rate / D_m).

    Sources: Virtanen, Klami, Khan & Kaski, Bayesian group factor analysis (2012); Klami, Virtanen, Leppaaho & Kaski,
    Group factor analysis (2015). They take shape and rate near 0, which is improper in the limit; the defaults here are
    proper and can be drawn from: the standard deviation scale / sqrt(alpha) then has a Cauchy tail.

    Args:
        shape, rate: of the gamma prior of the precisions.
        scale: unit of the loadings, in the data's units for each unit of the latent.
        dtype: of the sites.

    Example:
        >>> with pyro.poutine.trace() as trace, pyro.poutine.seed(rng_seed=0):
        ...     loadings = ARDLoadings().sample("image", width=3, latent_dim=4)
        >>> [name for name in trace.trace.nodes if "image" in name], tuple(loadings.shape)
        (['loadings_image_precision', 'loadings_image'], (3, 4))
    """

    name: ClassVar[str] = "ard"

    def __init__(
        self, shape: float = 0.5, rate: float = 1e-3, scale: float = 1.0, *, dtype: torch.dtype = torch.float64
    ) -> None:
        super().__init__(scale, dtype=dtype)
        self.shape, self.rate = positive("shape", shape), positive("rate", rate)

    def sample(self, name: str, width: int, latent_dim: int) -> Tensor:
        """W^m, shape (D_m, K)."""
        gamma = dist.Gamma(self.full(self.shape, latent_dim), self.full(self.rate))
        precision = pyro.sample(f"loadings_{name}_precision", gamma.to_event(1))
        # a gamma draw can underflow to zero; the floor keeps the scale finite there and changes nothing elsewhere
        deviation = self.scale * precision.clamp(min=torch.finfo(self.dtype).tiny).rsqrt()
        normal = dist.Normal(self.full(0.0, width, latent_dim), deviation.expand(width, latent_dim))
        loadings: Tensor = pyro.sample(f"loadings_{name}", normal.to_event(2))
        return loadings
