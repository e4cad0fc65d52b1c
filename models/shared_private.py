"""Latents that all modalities share, and latents of each modality's own (inter-battery factor analysis); exact.

    z_n   ~ N(0, I)                                       K latents, shared by all modalities of instance n
    v_n^m ~ N(0, I)                                       K_m latents that serve modality m alone
    x_n^m ~ N(W^m z_n + V^m v_n^m + mu^m, sigma_m^2 I)    D_m features, for each modality m that n has

What features of one modality have in common and no other modality shares goes into v instead of z, which is left with
what can be told across modalities. All latents together are one latent of K + sum K_m with zeros in its loadings: the
route is "exact", found from ``forward`` alone. ``fit_to`` is closed-form EM that keeps the zeros.

Source: Klami, Virtanen & Kaski, Bayesian canonical correlation analysis (2013); Tucker, An inter-battery method of
factor analysis (1958).
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
from calmrl_prob.linear_gaussian import EMResult, fit_em


class SharedPrivate(nn.Module):
    """The paper's model with private latents.

    Args:
        dims: number of features D_m of each modality.
        latent_dim: K, shared.
        private_dim: K_m, of each modality.
        seed: of the small random loadings it starts from.

    Example:
        >>> import calmrl_prob as cal
        >>> data = MultimodalData({"image": torch.randn(50, 4), "text": torch.randn(50, 3)})
        >>> model = SharedPrivate(data.dims, latent_dim=2, private_dim=1)
        >>> result = cal.fit(model, data, tolerance=1e-3)
        >>> cal.posterior(model, data)  # z, then v of each modality
        PosteriorResult(50 instances, 4 latents, route='exact')
    """

    noise = "isotropic"

    def __init__(self, dims: Mapping[str, int], latent_dim: int = 16, private_dim: int = 4, seed: int = 0) -> None:
        super().__init__()
        self.dims, self.latent_dim, self.private_dim = dict(dims), latent_dim, private_dim
        generator, zero = torch.Generator().manual_seed(seed), torch.zeros((), dtype=torch.float64)

        def start(width: int, count: int) -> Tensor:
            return 0.1 * torch.randn(width, count, generator=generator, dtype=torch.float64)

        self.shared = nn.ParameterDict({name: start(width, latent_dim) for name, width in self.dims.items()})
        self.private = nn.ParameterDict({name: start(width, private_dim) for name, width in self.dims.items()})
        self.intercepts = nn.ParameterDict({name: zero.repeat(width) for name, width in self.dims.items()})
        self.log_noise = nn.ParameterDict({name: zero.clone() for name in self.dims})

    def forward(self, data: MultimodalData) -> Tensor:
        """The generative process: one latent site that all share, and one for each modality."""
        zeros = next(self.parameters()).new_zeros
        with pyro.plate("instances", len(data)):
            z: Tensor = pyro.sample("z", dist.Normal(zeros(self.latent_dim), 1.0).to_event(1))
            for name in data.names:
                own = pyro.sample(f"private_{name}", dist.Normal(zeros(self.private_dim), 1.0).to_event(1))
                mean = z @ self.shared[name].mT + own @ self.private[name].mT + self.intercepts[name]
                features = dist.Normal(mean, (0.5 * self.log_noise[name]).exp()).to_event(1)
                pyro.sample(name, features.mask(data.observed(name)), obs=data.filled(name).to(mean.dtype))
        return z

    @torch.no_grad()
    def fit_to(self, data: MultimodalData, seed: int = 0, callback: Callback | None = None, **options: Any) -> EMResult:
        """Closed-form EM steps over all latents at once, in place."""
        own = torch.eye(len(self.dims), dtype=torch.bool).repeat_interleave(self.private_dim, dim=1)
        support = torch.cat([torch.ones(len(self.dims), self.latent_dim, dtype=torch.bool), own], dim=1)
        found = fit_em(
            data.conform(self.dims).blocks, support.shape[1], support=support, seed=seed, callback=callback, **options
        )
        lg = found.linear_gaussian
        for m, name in enumerate(self.dims):
            first = self.latent_dim + m * self.private_dim
            self.shared[name].copy_(lg.loadings[name][:, : self.latent_dim])
            self.private[name].copy_(lg.loadings[name][:, first : first + self.private_dim])
            self.intercepts[name].copy_(lg.intercepts[name])
            self.log_noise[name].copy_(lg.noise_variance[name][0].log())
        return found
