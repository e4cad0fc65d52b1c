"""Features that bend: an affine map plus a neural network for each modality, by the route "svi".

    z_n   ~ N(0, I)                                       K latents, shared by all modalities of instance n
    v^m   ~ N(0, weight_scale^2)                          each weight of the networks, taken at its mode
    x_n^m ~ N(s_m (W^m z_n + mu^m + f^m(z_n; v^m)), s_m^2 sigma_m^2 I)    for each modality m that n has

s_m is the size of modality m's features, so that all parameters are of size 1.

The last layers of the networks f start at zero, so that the model starts as ``calmrl.py``, whose posterior is exact:
``cal.fit`` first takes closed-form EM steps for W, mu and sigma, and goes on from there by stochastic variational
inference, as long as rows that it holds out get more likely. ``fit_to`` says so; without it the model would be taken
for the linear one that it starts as.

Source: Kingma & Welling, Auto-Encoding Variational Bayes (2014); with missing modalities Wu & Goodman, Multimodal
Generative Models for Scalable Weakly-Supervised Learning (2018).
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
from calmrl_prob.inference.approximate.svi import SVIResult, run_svi
from calmrl_prob.linear_gaussian import LinearGaussian
from calmrl_prob.programs.bound import BoundModel


class NeuralDecoder(nn.Module):
    """The paper's model, bent by a network with one hidden layer for each modality.

    Args:
        dims: number of features D_m of each modality.
        latent_dim: K.
        hidden: width of the hidden layers.
        weight_scale: standard deviation of the networks' weights under their prior.
        seed: of the small random loadings and the networks that it starts from.

    Example:
        >>> import calmrl_prob as cal
        >>> data = cal.datasets.make_synthetic(100, {"image": 4, "text": 3}, latent_dim=1, seed=0).data
        >>> result = cal.fit(NeuralDecoder(data.dims, latent_dim=1, hidden=8), data, tolerance=0.1, patience=1)
        >>> result.method, bool(result.objective[-1] >= result.objective[0])
        ('own', True)
    """

    noise = "isotropic"

    def __init__(
        self, dims: Mapping[str, int], latent_dim: int = 16, hidden: int = 64, weight_scale: float = 0.3, seed: int = 0
    ) -> None:
        super().__init__()
        self.dims, self.latent_dim, self.weight_scale = dict(dims), latent_dim, weight_scale
        generator, zero = torch.Generator().manual_seed(seed), torch.zeros((), dtype=torch.float64)
        start = {name: torch.randn(width, latent_dim, generator=generator).double() for name, width in dims.items()}
        first = {name: torch.randn(hidden, latent_dim, generator=generator).double() for name in dims}
        self.loadings = nn.ParameterDict({name: 0.1 * loadings for name, loadings in start.items()})
        self.intercepts = nn.ParameterDict({name: zero.repeat(width) for name, width in self.dims.items()})
        self.log_noise = nn.ParameterDict({name: zero.clone() for name in self.dims})
        self.log_size = nn.ParameterDict({name: nn.Parameter(zero.clone(), requires_grad=False) for name in self.dims})
        self.inner = nn.ParameterDict({name: weight / latent_dim**0.5 for name, weight in first.items()})
        self.offset = nn.ParameterDict({name: zero.repeat(hidden) for name in self.dims})
        self.outer = nn.ParameterDict({name: zero.repeat(width, hidden) for name, width in self.dims.items()})

    def decode(self, z: Tensor, name: str) -> Tensor:
        """E[x^m | z], (N, D_m)."""
        bent = torch.tanh(z @ self.inner[name].mT + self.offset[name]) @ self.outer[name].mT
        return self.log_size[name].exp() * (z @ self.loadings[name].mT + self.intercepts[name] + bent)

    def forward(self, data: MultimodalData) -> Tensor:
        """The generative process; the prior of the networks' weights is a factor, outside the plate."""
        weights = torch.cat([w.flatten() for group in (self.inner, self.outer) for w in group.values()])
        pyro.factor("weights", -0.5 * (weights / self.weight_scale).square().sum())
        with pyro.plate("instances", len(data)):
            z: Tensor = pyro.sample("z", dist.Normal(weights.new_zeros(self.latent_dim), 1.0).to_event(1))
            for name in data.names:
                scale = (0.5 * self.log_noise[name] + self.log_size[name]).exp()
                features = dist.Normal(self.decode(z, name), scale).to_event(1)
                pyro.sample(name, features.mask(data.observed(name)), obs=data.filled(name).to(z.dtype))
        return z

    def fit_to(self, data: MultimodalData, seed: int, callback: Callback | None, **options: Any) -> SVIResult:
        """Fit by SVI: options are the keywords of ``calmrl_prob.inference.approximate.svi.run_svi``."""
        return run_svi(BoundModel(self), data, seed, callback, **options)

    @torch.no_grad()
    def load_likelihood(self, linear_gaussian: LinearGaussian) -> None:
        """Become the linear model of these parameters."""
        for name in self.dims:
            loadings, noise = linear_gaussian.loadings[name], linear_gaussian.noise_variance[name][0]
            size = (loadings.square().sum(1).mean() + noise).sqrt()
            self.log_size[name].copy_(size.log())
            self.loadings[name].copy_(loadings / size)
            self.intercepts[name].copy_(linear_gaussian.intercepts[name] / size)
            self.log_noise[name].copy_((noise / size.square()).log())
            self.outer[name].zero_()
