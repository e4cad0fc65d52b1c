"""Modalities that bend: an affine map plus a small network; approximate, by the route "svi".

    z_n   ~ N(0, I)                                       K latents, shared by all modalities of instance n
    x_n^m ~ N(W^m z_n + mu^m + g^m(z_n), sigma_m^2 I)     D_m features, for each modality m that n has

g^m is a network with one hidden layer whose last layer starts at zero: at the start this is the linear model, exactly,
and what the network adds has to earn its place. ``cal.fit`` trains all maps and an amortised guide together, from where
closed-form EM ends.

Source: Kingma & Welling, Auto-Encoding Variational Bayes (2014); missing modalities as in Wu & Goodman, Multimodal
Generative Models for Scalable Weakly-Supervised Learning (2018).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from calmrl_prob.data import MultimodalData
from calmrl_prob.inference.progress import Callback
from calmrl_prob.inference.svi import SVIResult
from calmrl_prob.inference.svi_from_em import fit_svi_from_em
from calmrl_prob.linear_gaussian import LinearGaussian


class NeuralDecoder(nn.Module):
    """The paper's model with decoders that may bend.

    Args:
        dims: number of features D_m of each modality.
        latent_dim: K.
        hidden: width of each network's hidden layer.
        seed: of the networks and the small random loadings it starts from.

    Example:
        >>> import calmrl_prob as cal
        >>> data = MultimodalData({"image": torch.randn(60, 4), "text": torch.randn(60, 3)})
        >>> model = NeuralDecoder(data.dims, latent_dim=2, hidden=8)
        >>> cal.posterior(model, data).route  # before it is trained, it is the linear model
        'exact'
        >>> result = cal.fit(model, data, max_iterations=20, tolerance=10.0, patience=1)
        >>> cal.posterior(result, data).route
        'svi'
    """

    noise = "isotropic"

    def __init__(self, dims: Mapping[str, int], latent_dim: int = 16, hidden: int = 64, seed: int = 0) -> None:
        super().__init__()
        self.dims, self.latent_dim = dict(dims), latent_dim
        generator, zero = torch.Generator().manual_seed(seed), torch.zeros((), dtype=torch.float64)

        def start(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator, dtype=torch.float64)

        self.loadings = nn.ParameterDict({name: 0.1 * start(width, latent_dim) for name, width in dims.items()})
        self.intercepts = nn.ParameterDict({name: zero.repeat(width) for name, width in self.dims.items()})
        self.log_noise = nn.ParameterDict({name: zero.clone() for name in self.dims})
        self.inner = nn.ParameterDict({name: start(hidden, latent_dim) / latent_dim**0.5 for name in self.dims})
        self.outer = nn.ParameterDict({name: zero.repeat(width, hidden) for name, width in self.dims.items()})

    def forward(self, data: MultimodalData) -> Tensor:
        """The generative process."""
        with pyro.plate("instances", len(data)):
            origin = next(self.parameters()).new_zeros(self.latent_dim)
            z: Tensor = pyro.sample("z", dist.Normal(origin, 1.0).to_event(1))
            for name in data.names:
                bend = torch.tanh(z @ self.inner[name].mT) @ self.outer[name].mT
                mean = z @ self.loadings[name].mT + self.intercepts[name] + bend
                features = dist.Normal(mean, (0.5 * self.log_noise[name]).exp()).to_event(1)
                pyro.sample(name, features.mask(data.observed(name)), obs=data.filled(name).to(mean.dtype))
        return z

    def fit_to(
        self, data: MultimodalData, seed: int = 0, callback: Callback | None = None, **options: Any
    ) -> SVIResult:
        """SVI from where closed-form EM ends, in place."""
        return fit_svi_from_em(self, data, seed, callback, **options)

    @torch.no_grad()
    def load_linear_gaussian(self, linear_gaussian: LinearGaussian) -> None:
        """Take over loadings, intercepts and noise; the networks stay."""
        for name in self.dims:
            self.loadings[name].copy_(linear_gaussian.loadings[name])
            self.intercepts[name].copy_(linear_gaussian.intercepts[name])
            self.log_noise[name].copy_(linear_gaussian.noise_variance[name][0].log())
