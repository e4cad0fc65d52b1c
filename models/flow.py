"""A prior of any shape, learned as a normalizing flow; approximate, by the route "svi".

    z_n = f(e_n),  e_n ~ N(0, I)                          K latents, shared by all modalities; f an invertible network
    x_n^m ~ N(W^m z_n + mu^m, sigma_m^2 I)                D_m features, for each modality m that n has

The likelihood is linear, the prior is not Gaussian: ``cal.fit`` trains flow, loadings and an amortised guide together,
from where closed-form EM ends, and ``k_hat`` of the posterior's diagnostics says how far to trust it.

Source: Papamakarios, Pavlakou & Murray, Masked autoregressive flow for density estimation (2017).
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
from calmrl_prob.priors.flow import FlowPrior


class Flow(nn.Module):
    """The paper's model under a flow prior.

    Args:
        dims: number of features D_m of each modality.
        latent_dim: K.
        num_transforms, hidden: of the flow.
        seed: of the networks and the small random loadings it starts from.

    Example:
        >>> import calmrl_prob as cal
        >>> data = MultimodalData({"image": torch.randn(60, 4), "text": torch.randn(60, 3)})
        >>> model = Flow(data.dims, latent_dim=2, num_transforms=1, hidden=8)
        >>> result = cal.fit(model, data, max_iterations=20, tolerance=10.0, patience=1)
        >>> result.method
        'own'
    """

    noise = "isotropic"

    def __init__(
        self, dims: Mapping[str, int], latent_dim: int = 16, num_transforms: int = 3, hidden: int = 64, seed: int = 0
    ) -> None:
        super().__init__()
        self.dims, self.latent_dim = dict(dims), latent_dim
        self.prior = FlowPrior(latent_dim, num_transforms, hidden, seed)
        generator, zero = torch.Generator().manual_seed(seed), torch.zeros((), dtype=torch.float64)
        start = {name: torch.randn(width, latent_dim, generator=generator).double() for name, width in dims.items()}
        self.loadings = nn.ParameterDict({name: 0.1 * loadings for name, loadings in start.items()})
        self.intercepts = nn.ParameterDict({name: zero.repeat(width) for name, width in self.dims.items()})
        self.log_noise = nn.ParameterDict({name: zero.clone() for name in self.dims})

    def forward(self, data: MultimodalData) -> Tensor:
        """The generative process."""
        with pyro.plate("instances", len(data)):
            z: Tensor = pyro.sample("z", self.prior.distribution())
            for name in data.names:
                mean = z @ self.loadings[name].mT + self.intercepts[name]
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
        """Take over loadings, intercepts and noise."""
        for name in self.dims:
            self.loadings[name].copy_(linear_gaussian.loadings[name])
            self.intercepts[name].copy_(linear_gaussian.intercepts[name])
            self.log_noise[name].copy_(linear_gaussian.noise_variance[name][0].log())
