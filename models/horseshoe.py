"""Factor analysis with sparse loadings, each feature for itself: the regularised horseshoe; by collapsed inference.

    tau_m ~ HalfCauchy(global_scale),  lambda_dk ~ HalfCauchy(1),  c_m^2 ~ InverseGamma(2, 2)
    w_dk  = scale u_dk tau_m lambda~_dk,   u_dk ~ N(0, 1),   lambda~^2 = c^2 lambda^2 / (c^2 + tau^2 lambda^2)
    mu_d  ~ N(0, (10 scale)^2),   sigma_d ~ LogNormal(log(scale / 2), 1)          noise by feature
    z_n   ~ N(0, I)                                       K latents, shared by all modalities of instance n
    x_nd  ~ N(w_d^T z_n + mu_d, sigma_d^2)                for the features d of each modality that n has

Loadings near zero are pulled to zero, large ones are left alone: a latent shows which features it is about. The
unknowns outside the plate are inferred with z integrated out exactly, at a cost free of N: ``cal.fit`` with method
"map" (the default), "svi" or "nuts".

Source: Piironen & Vehtari, Sparsity information and regularization in the horseshoe and other shrinkage priors (2017).
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from calmrl_prob.data import MultimodalData
from calmrl_prob.priors.loadings import HorseshoeLoadings


class Horseshoe:
    """Factor analysis with a regularised horseshoe on the loadings.

    Args:
        dims: number of features D_m of each modality.
        latent_dim: K.
        scale: the size of features about their mean; 1 for data standardised by modality.
        global_scale: the guess of the overall shrinkage tau.

    Example:
        >>> import calmrl_prob as cal
        >>> generator = torch.Generator().manual_seed(0)
        >>> z, loadings = torch.randn(200, 1, generator=generator), torch.tensor([[2.0, -2.0, 0.0, 0.0, 0.0]])
        >>> x = {name: z @ loadings + 0.5 * torch.randn(200, 5, generator=generator) for name in ("image", "text")}
        >>> data = cal.MultimodalData(x)
        >>> result = cal.fit(Horseshoe(data.dims, latent_dim=1), data)
        >>> cal.discover(result.model, data).linear_gaussian().loadings["image"].squeeze(1).abs().round().tolist()
        [2.0, 2.0, 0.0, 0.0, 0.0]
    """

    def __init__(
        self, dims: Mapping[str, int], latent_dim: int = 16, scale: float = 1.0, global_scale: float = 0.05
    ) -> None:
        self.dims, self.latent_dim, self.scale = dict(dims), latent_dim, scale
        self.prior = HorseshoeLoadings(global_scale, scale=scale)

    def __call__(self, data: MultimodalData) -> Tensor:
        """The generative process: what all instances share first, then the plate."""
        loadings = self.prior.sample_all(self.dims, self.latent_dim)
        zero = torch.zeros((), dtype=torch.float64)
        intercepts, sigma = {}, {}
        for name, width in self.dims.items():
            wide = dist.Normal(zero.expand(width), 10 * self.scale).to_event(1)
            intercepts[name] = pyro.sample(f"intercepts_{name}", wide)
            typical = dist.LogNormal(zero.expand(width) + math.log(self.scale / 2), 1.0).to_event(1)
            sigma[name] = pyro.sample(f"sigma_{name}", typical)
        with pyro.plate("instances", len(data)):
            z: Tensor = pyro.sample("z", dist.Normal(zero.expand(self.latent_dim), 1.0).to_event(1))
            for name in data.names:
                features = dist.Normal(z @ loadings[name].mT + intercepts[name], sigma[name]).to_event(1)
                pyro.sample(name, features.mask(data.observed(name)), obs=data.filled(name).double())
        return z
