"""Robust to modalities that are spoilt: the noise of each modality is Student-t; by the route "scale mixture".

    z_n   ~ N(0, I)                                       K latents, shared by all modalities of instance n
    x_n^m ~ t_nu_m(W^m z_n + mu^m, sigma_m^2 I)           multivariate t, for each modality m that n has

The t is a Gaussian whose scale is random, one for each instance and modality, so that a modality that does not go with
the others is believed less, there and not elsewhere; nu_m, learned, says how often that happens in modality m. Given
the scales all is Gaussian: ``cal.fit`` takes closed-form steps, the posterior is by draws of the scales alone. In
``models/student_t.py`` the whole instance shares one scale, and no approximation is needed.

Source: Tipping & Lawrence, Variational inference for Student-t models (2005); Archambeau, Delannay & Verleysen, Robust
probabilistic projections (2006).
"""

from __future__ import annotations

from collections.abc import Mapping

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from calmrl_prob.data import MultimodalData
from calmrl_prob.linear_gaussian import LinearGaussian, ScaleMixture


class Robust(nn.Module):
    """The paper's model with heavy-tailed noise in each modality.

    Args:
        dims: number of features D_m of each modality.
        latent_dim: K.
        seed: of the small random loadings it starts from.

    Example:
        >>> import calmrl_prob as cal
        >>> data = MultimodalData({"image": torch.randn(50, 4), "text": torch.randn(50, 3)})
        >>> model = Robust(data.dims, latent_dim=2)
        >>> result = cal.fit(model, data, tolerance=1e-3)
        >>> cal.posterior(model, data)
        PosteriorResult(50 instances, 2 latents, route='scale mixture', approximate: by weighted draws)
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
        self.log_freedom = nn.ParameterDict({name: zero.clone() + 2.0 for name in self.dims})

    def forward(self, data: MultimodalData) -> Tensor:
        """The generative process."""
        with pyro.plate("instances", len(data)):
            origin = next(self.parameters()).new_zeros(self.latent_dim)
            z: Tensor = pyro.sample("z", dist.Normal(origin, 1.0).to_event(1))
            for name in data.names:
                mean = z @ self.loadings[name].mT + self.intercepts[name]
                scale = (0.5 * self.log_noise[name]).exp() * torch.eye(self.dims[name], dtype=mean.dtype)
                features = dist.MultivariateStudentT(self.log_freedom[name].exp(), mean, scale)
                pyro.sample(name, features.mask(data.observed(name)), obs=data.filled(name).to(mean.dtype))
        return z

    def structure(self, data: MultimodalData | None = None) -> ScaleMixture:
        """The closed form given the scales, so that ``cal.fit`` and ``cal.posterior`` need not call the model."""
        del data
        normal = LinearGaussian(
            {name: self.loadings[name] for name in self.dims},
            {name: self.intercepts[name] for name in self.dims},
            {name: self.log_noise[name].exp() for name in self.dims},
        )
        return ScaleMixture(normal, {name: self.log_freedom[name].exp() for name in self.dims})

    @torch.no_grad()
    def load(self, structure: ScaleMixture) -> None:
        """Take over what was fitted."""
        for name in self.dims:
            self.loadings[name].copy_(structure.linear_gaussian.loadings[name])
            self.intercepts[name].copy_(structure.linear_gaussian.intercepts[name])
            self.log_noise[name].copy_(structure.linear_gaussian.noise_variance[name][0].log())
            self.log_freedom[name].copy_(structure.degrees_of_freedom[name].log())
