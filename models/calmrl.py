"""The generative model of CalMRL, by the exact route.

    z_n   ~ N(0, I)                                       K latents, shared by all modalities of instance n
    x_n^m ~ N(W^m z_n + mu^m, sigma_m^2 I)                D_m features, for each modality m that n has

Its posterior is found from ``forward`` alone; ``load_linear_gaussian`` is for the closed-form EM of ``cal.fit``.

Source: Liu et al., Calibrated Multimodal Representation Learning with Missing Modalities, arXiv 2511.12034 (2025).
"""

from __future__ import annotations

from collections.abc import Mapping

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from calmrl_prob.data import MultimodalData
from calmrl_prob.linear_gaussian import LinearGaussian


class CalMRL(nn.Module):
    """The paper's model: one noise variance per modality.

    Args:
        dims: number of features D_m of each modality.
        latent_dim: K.
        seed: of the small random loadings it starts from.

    Example:
        >>> import calmrl_prob as cal
        >>> data = MultimodalData({"image": torch.randn(50, 4), "text": torch.randn(50, 3)})
        >>> model = CalMRL(data.dims, latent_dim=2)
        >>> result = cal.fit(model, data, tolerance=1e-3)
        >>> cal.posterior(model, data)
        PosteriorResult(50 instances, 2 latents, route='exact')
    """

    noise = "isotropic"

    def __init__(self, dims: Mapping[str, int], latent_dim: int = 16, seed: int = 0) -> None:
        super().__init__()
        self.dims, self.latent_dim = dict(dims), latent_dim
        generator, zero = torch.Generator().manual_seed(seed), torch.zeros((), dtype=torch.float64)
        start = {name: torch.randn(width, latent_dim, generator=generator).double() for name, width in dims.items()}
        self.loadings = nn.ParameterDict({name: 0.1 * loadings for name, loadings in start.items()})
        self.intercepts = nn.ParameterDict({name: zero.repeat(width) for name, width in self.dims.items()})
        self.log_noise = nn.ParameterDict({name: zero.clone() for name in self.dims})

    def forward(self, data: MultimodalData) -> Tensor:
        """The generative process; ``filled`` before ``mask`` keeps gradients finite where modalities are missing."""
        with pyro.plate("instances", len(data)):
            origin = next(self.parameters()).new_zeros(self.latent_dim)
            z: Tensor = pyro.sample("z", dist.Normal(origin, 1.0).to_event(1))
            for name in data.names:
                mean = z @ self.loadings[name].mT + self.intercepts[name]
                features = dist.Normal(mean, (0.5 * self.log_noise[name]).exp()).to_event(1)
                pyro.sample(name, features.mask(data.observed(name)), obs=data.filled(name).to(mean.dtype))
        return z

    @torch.no_grad()
    def load_linear_gaussian(self, linear_gaussian: LinearGaussian) -> None:
        """Take over fitted parameters (with a standard normal prior)."""
        for name in self.dims:
            self.loadings[name].copy_(linear_gaussian.loadings[name])
            self.intercepts[name].copy_(linear_gaussian.intercepts[name])
            self.log_noise[name].copy_(linear_gaussian.noise_variance[name][0].log())
