"""Instances of several kinds: a mixture-of-Gaussians prior, by the route "exact mixture".

    c_n       ~ Categorical(pi)                           C kinds
    z_n | c_n ~ N(m_c, S_c)                               K latents, shared by all modalities of instance n
    x_n^m     ~ N(W^m z_n + mu^m, sigma_m^2 I)            D_m features, for each modality m that n has

With c_n summed out, the posterior of z_n is a mixture of C Gaussians. ``cal.fit`` takes closed-form EM steps from
clusters of the data, since the prior is one that it knows; with a prior of your own it follows the exact gradient.

Source: Ghahramani & Hinton, The EM algorithm for mixtures of factor analyzers (1996), with one set of loadings.
"""

from __future__ import annotations

from collections.abc import Mapping

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from calmrl_prob.data import MultimodalData
from calmrl_prob.linear_gaussian import LinearGaussian
from calmrl_prob.priors import MixturePrior


class Mixture(nn.Module):
    """The paper's model with C kinds of instances.

    Args:
        dims: number of features D_m of each modality.
        latent_dim: K.
        num_components: C.
        seed: of the small random loadings it starts from.

    Example:
        >>> import calmrl_prob as cal
        >>> data = MultimodalData({"image": torch.randn(50, 4), "text": torch.randn(50, 3)})
        >>> result = cal.fit(Mixture(data.dims, latent_dim=2, num_components=2), data, tolerance=1e-3)
        >>> cal.posterior(result, data)
        PosteriorResult(50 instances, 2 latents, route='exact mixture')
    """

    noise = "isotropic"

    def __init__(self, dims: Mapping[str, int], latent_dim: int = 16, num_components: int = 4, seed: int = 0) -> None:
        super().__init__()
        self.dims, self.latent_dim = dict(dims), latent_dim
        self.prior = MixturePrior(latent_dim, num_components, seed)
        generator, zero = torch.Generator().manual_seed(seed), torch.zeros((), dtype=torch.float64)
        start = {name: torch.randn(width, latent_dim, generator=generator).double() for name, width in dims.items()}
        self.loadings = nn.ParameterDict({name: 0.1 * loadings for name, loadings in start.items()})
        self.intercepts = nn.ParameterDict({name: zero.repeat(width) for name, width in self.dims.items()})
        self.log_noise = nn.ParameterDict({name: zero.clone() for name in self.dims})

    def forward(self, data: MultimodalData) -> Tensor:
        """The generative process, the kind of each instance summed out."""
        with pyro.plate("instances", len(data)):
            z: Tensor = pyro.sample("z", self.prior.distribution())
            for name in data.names:
                mean = z @ self.loadings[name].mT + self.intercepts[name]
                features = dist.Normal(mean, (0.5 * self.log_noise[name]).exp()).to_event(1)
                pyro.sample(name, features.mask(data.observed(name)), obs=data.filled(name).to(mean.dtype))
        return z

    @torch.no_grad()
    def load_likelihood(self, linear_gaussian: LinearGaussian) -> None:
        """Take over fitted loadings, intercepts and noise."""
        for name in self.dims:
            self.loadings[name].copy_(linear_gaussian.loadings[name])
            self.intercepts[name].copy_(linear_gaussian.intercepts[name])
            self.log_noise[name].copy_(linear_gaussian.noise_variance[name][0].log())
