"""Instances of several kinds: a mixture-of-Gaussians prior, by the route "exact mixture".

    c_n       ~ Categorical(pi)                           C kinds
    z_n | c_n ~ N(m_c, S_c)                               K latents, shared by all modalities of instance n
    x_n^m     ~ N(W^m z_n + mu^m, sigma_m^2 I)            D_m features, for each modality m that n has

With c_n summed out, the posterior of z_n is a mixture of C Gaussians. ``cal.fit`` follows the exact gradient of this
model, and ends in the optimum that is nearest to where it starts, which from random loadings may be poor. So start
as the example does: from closed-form EM steps, which ``SharedLatentModel`` takes from clusters of the data, and change
then what is to be your own.

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
from calmrl_prob.model import SharedLatentModel
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
        >>> start = cal.SharedLatentModel(data.dims, 2, "isotropic", MixturePrior(2, num_components=2))
        >>> report = cal.fit(start, data, tolerance=1e-3)
        >>> model = Mixture(data.dims, latent_dim=2, num_components=2)
        >>> model.load_start(start)
        >>> result = cal.fit(model, data, tolerance=1e-3)
        >>> bool(result.log_likelihood[-1] > report.log_likelihood[-1] - 1)
        True
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
    def load_start(self, fitted: SharedLatentModel) -> None:
        """Take over the parameters of a fitted model with a ``MixturePrior`` of as many components."""
        self.load_likelihood(fitted.structure().components[0])  # the components share them
        self.prior.load_state_dict(fitted.prior.state_dict())

    @torch.no_grad()
    def load_likelihood(self, linear_gaussian: LinearGaussian) -> None:
        """Take over fitted loadings, intercepts and noise."""
        for name in self.dims:
            self.loadings[name].copy_(linear_gaussian.loadings[name])
            self.intercepts[name].copy_(linear_gaussian.intercepts[name])
            self.log_noise[name].copy_(linear_gaussian.noise_variance[name][0].log())
