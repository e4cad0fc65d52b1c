"""Latents of any shape: a normalizing-flow prior, by the route "svi" (with "nuts" to check it on a few instances).

    z_n   = f(u_n),   u_n ~ N(0, I)                       K latents, shared by all modalities of instance n
    x_n^m ~ N(W^m z_n + mu^m, sigma_m^2 I)                D_m features, for each modality m that n has

f is an invertible network that starts as the identity, so that the model starts as ``calmrl.py``: ``cal.fit`` first
takes closed-form EM steps for W, mu and sigma, and goes on from there by stochastic variational inference.

Source: Durkan, Bekasov, Murray & Papamakarios, Neural Spline Flows (2019); needs the extra "flow".
"""

from __future__ import annotations

from collections.abc import Mapping

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from calmrl_prob.data import MultimodalData
from calmrl_prob.linear_gaussian import LinearGaussian
from calmrl_prob.priors import FlowPrior


class Flow(nn.Module):
    """The paper's model with a flow as the prior of its latents.

    Args:
        dims: number of features D_m of each modality.
        latent_dim: K.
        num_transforms: length of the flow.
        seed: of the small random loadings that it starts from, and of the flow's networks.

    Example:
        >>> import calmrl_prob as cal
        >>> data = MultimodalData({"image": torch.randn(50, 4), "text": torch.randn(50, 3)})
        >>> result = cal.fit(Flow(data.dims, latent_dim=2, num_transforms=1), data, tolerance=0.1, patience=1)
        >>> cal.posterior(result, data)
        PosteriorResult(50 instances, 2 latents, route='svi', approximate: by weighted draws from a normal guide)
    """

    noise = "isotropic"

    def __init__(self, dims: Mapping[str, int], latent_dim: int = 16, num_transforms: int = 3, seed: int = 0) -> None:
        super().__init__()
        self.dims, self.latent_dim = dict(dims), latent_dim
        self.prior = FlowPrior(latent_dim, num_transforms, seed=seed)
        generator, zero = torch.Generator().manual_seed(seed), torch.zeros((), dtype=torch.float64)
        start = {name: torch.randn(width, latent_dim, generator=generator).double() for name, width in dims.items()}
        self.loadings = nn.ParameterDict({name: 0.1 * loadings for name, loadings in start.items()})
        self.intercepts = nn.ParameterDict({name: zero.repeat(width) for name, width in self.dims.items()})
        self.log_noise = nn.ParameterDict({name: zero.clone() for name in self.dims})

    def forward(self, data: MultimodalData) -> Tensor:
        """The generative process; ``filled`` before ``mask`` keeps gradients finite where modalities are missing."""
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
