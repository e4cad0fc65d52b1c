"""Group factor analysis: latents that switch themselves off, modality by modality; by collapsed inference.

    alpha_mk ~ Gamma(1/2, rate)                           precision of latent k's loadings on modality m
    w_dk     ~ N(0, scale^2 / alpha_mk)                   for the features d of modality m
    mu_d     ~ N(0, (10 scale)^2),   sigma_m ~ LogNormal(log(scale / 2), 1)
    z_n      ~ N(0, I)                                    K latents; more than needed do no harm
    x_n^m    ~ N(W^m z_n + mu^m, sigma_m^2 I)             for each modality m that n has

A latent whose alpha_mk is large on all modalities but one is private to that one; large on all, it is not used. The
unknowns outside the plate are inferred with z integrated out exactly, at a cost free of N: ``cal.fit`` with method
"map" (the default), "svi" or "nuts". For ARD at the speed of EM: ``cal.fit(CalMRL(...), data, loadings_prior="ard")``.

Source: Virtanen, Klami, Khan & Kaski, Bayesian group factor analysis (2012); Klami, Virtanen, Leppaaho & Kaski, Group
factor analysis (2015).
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from calmrl_prob.data import MultimodalData
from calmrl_prob.priors.loadings import ARDLoadings


class GroupARD:
    """Factor analysis in which each modality chooses its latents.

    Args:
        dims: number of features D_m of each modality.
        latent_dim: K, an upper bound.
        scale: the size of features about their mean; 1 for data standardised by modality.
        rate: of the gamma prior; smaller switches off more sharply.

    Example:
        >>> import calmrl_prob as cal
        >>> generator = torch.Generator().manual_seed(0)
        >>> shared = torch.randn(200, 1, generator=generator)
        >>> x = {name: shared + 0.3 * torch.randn(200, 5, generator=generator) for name in ("image", "text")}
        >>> data = cal.MultimodalData(x)
        >>> result = cal.fit(GroupARD(data.dims, latent_dim=3), data)
        >>> precisions = result.model.values["loadings_image_precision"]
        >>> sorted((precisions < 100).tolist())  # one latent is enough
        [False, False, True]
    """

    def __init__(self, dims: Mapping[str, int], latent_dim: int = 16, scale: float = 1.0, rate: float = 1e-3) -> None:
        self.dims, self.latent_dim, self.scale = dict(dims), latent_dim, scale
        self.prior = ARDLoadings(rate=rate, scale=scale)

    def __call__(self, data: MultimodalData) -> Tensor:
        """The generative process: what all instances share first, then the plate."""
        loadings = self.prior.sample_all(self.dims, self.latent_dim)
        zero = torch.zeros((), dtype=torch.float64)
        intercepts, sigma = {}, {}
        for name, width in self.dims.items():
            wide = dist.Normal(zero.expand(width), 10 * self.scale).to_event(1)
            intercepts[name] = pyro.sample(f"intercepts_{name}", wide)
            sigma[name] = pyro.sample(f"sigma_{name}", dist.LogNormal(zero + math.log(self.scale / 2), 1.0))
        with pyro.plate("instances", len(data)):
            z: Tensor = pyro.sample("z", dist.Normal(zero.expand(self.latent_dim), 1.0).to_event(1))
            for name in data.names:
                features = dist.Normal(z @ loadings[name].mT + intercepts[name], sigma[name]).to_event(1)
                pyro.sample(name, features.mask(data.observed(name)), obs=data.filled(name).double())
        return z
