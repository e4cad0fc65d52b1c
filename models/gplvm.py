"""Bayesian Gaussian-process latent variable model: the decoder of each modality is a Gaussian process.

    z_n   ~ N(0, I)                                        K latents, shared by all modalities of instance n
    f_md  ~ GP(linear, s_md^2 k_m)                         a function of z for each feature, one kernel per modality
    x_n^m ~ N(f_m(z_n), sigma_m^2 I)                       D_m features, for each modality m that n has

Not conjugate: fitted by mini-batches on the lower bound, with q(z | x) an amortised guide that takes any missing
pattern and q(f) sparse (route "svi"); it starts as the linear model, whose posterior is exact, and learns what bends
away from it. While it is fitted, f enters by its expected log density; after, by its predictive variance.

Source: Titsias & Lawrence, Bayesian Gaussian Process Latent Variable Model (2010); Lalchand, Ravuri & Lawrence,
Generalised GPLVM with Stochastic Variational Inference (2022); one kernel per modality: Damianou, Ek, Titsias &
Lawrence, Manifold Relevance Determination (2012).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from calmrl_prob._support.progress import Callback
from calmrl_prob.data import MultimodalData
from calmrl_prob.decoders import ProcessDecoder
from calmrl_prob.inference.approximate.svi import SVIResult, fit_svi
from calmrl_prob.linear_gaussian import fit_em, posterior


class GPLVM(nn.Module):
    """A shared latent seen through Gaussian-process decoders.

    Args:
        dims: number of features D_m of each modality.
        latent_dim: K.
        num_inducing: inducing points of each decoder.
        linear: whether decoders have a linear part; without, they are processes about a constant.
        seed: of what it starts from.

    Example:
        >>> import calmrl_prob as cal
        >>> generator = torch.Generator().manual_seed(0)
        >>> z = torch.randn(80, 1, generator=generator, dtype=torch.float64)
        >>> x = {"image": torch.cat([z, z.sin()], dim=1), "text": z * torch.ones(3)}
        >>> x = {name: v + 0.3 * torch.randn(v.shape, generator=generator) for name, v in x.items()}
        >>> x["text"][:20] = torch.nan
        >>> data = MultimodalData(x)
        >>> model = GPLVM(data.dims, latent_dim=1, num_inducing=8)
        >>> result = cal.fit(model, data, max_iterations=3, patience=1, tolerance=1.0)
        >>> post = cal.posterior(result, data)
        >>> post.route, tuple(post.mean.shape)
        ('svi', (80, 1))
    """

    def __init__(
        self, dims: Mapping[str, int], latent_dim: int = 8, num_inducing: int = 50, linear: bool = True, seed: int = 0
    ) -> None:
        super().__init__()
        self.dims, self.latent_dim, self.num_inducing = dict(dims), latent_dim, num_inducing
        decoders = {n: ProcessDecoder(d, latent_dim, num_inducing, linear=linear, seed=seed) for n, d in dims.items()}
        self.decoders = nn.ModuleDict(decoders)
        self.eval()

    def forward(self, data: MultimodalData) -> Tensor:
        """The generative process, with the functions integrated out under q(f)."""
        if self.training:
            pyro.factor("divergence", -sum(decoder.divergence() for decoder in self.decoders.values()))
        with pyro.plate("instances", len(data)):
            like = next(self.parameters())
            z: Tensor = pyro.sample("z", dist.Normal(like.new_zeros(self.latent_dim), 1.0).to_event(1))
            for name in data.names:
                decoder = self.decoders[name]
                mean, spread = decoder(z)
                noise = decoder.noise_variance
                variance = noise + (0 if self.training else 1) * spread
                features = dist.Normal(mean, variance.sqrt()).to_event(1)
                pyro.sample(name, features.mask(data.observed(name)), obs=data.filled(name).to(mean.dtype))
                if self.training:
                    pyro.factor(f"{name} spread", -0.5 * (spread * data.feature_mask(name)).sum(1) / noise)
        return z

    def fit_to(
        self, data: MultimodalData, seed: int = 0, callback: Callback | None = None, **options: Any
    ) -> SVIResult:
        """Fit decoders and guide, in place; options are those of ``calmrl_prob.inference.approximate.svi.fit_svi``."""
        data.require_schema(self.dims)
        data = data.conform(self.dims)
        linear = fit_em(data.blocks, self.latent_dim, seed=seed, tolerance=1e-4, noise_pseudo_count=100).linear_gaussian
        latents = posterior(linear, data.blocks).mean
        generator = torch.Generator().manual_seed(seed)
        for name, decoder in self.decoders.items():
            chosen = torch.randint(len(latents), (self.num_inducing,), generator=generator)
            decoder.start(
                linear.loadings[name], linear.intercepts[name], linear.noise_variance[name][0], latents[chosen]
            )
        self.train()
        try:
            return fit_svi(self, data, seed=seed, callback=callback, **{"guide": "amortized", **options})
        finally:
            self.eval()
