"""Robust to outliers: latent and noise of an instance share one random scale; exact, by the route "exact student-t".

    u_n              ~ Gamma(nu / 2, nu / 2)              one scale for each instance
    z_n | u_n        ~ N(0, I / u_n)                      K latents, shared by all modalities of instance n
    x_n^m | z_n, u_n ~ N(W^m z_n + mu^m, sigma_m^2 I / u_n)      D_m features, for each modality m that n has

With u_n integrated out everything is multivariate t with nu degrees of freedom, and nu is learned: instances far out
count less in the fit, and get wider intervals. ``posterior`` and ``fit_to`` hand the closed forms to ``calmrl_prob``;
from ``forward`` alone, which is not Gaussian, it would take the route "svi".

Source: Liu & Rubin, ML estimation of the t distribution using EM and its extensions, ECM and ECME (1995); Zhao & Jiang,
Probabilistic PCA for t distributions (2006).
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
from calmrl_prob.linear_gaussian import EMResult, LinearGaussian
from calmrl_prob.linear_gaussian.scale_mixture.shared_scale import StudentTModel, student_t_posterior
from calmrl_prob.linear_gaussian.scale_mixture.shared_scale_em import fit_student_t_em
from calmrl_prob.posteriors.student_t import StudentTResult


class StudentT(nn.Module):
    """The paper's model with heavy tails.

    Args:
        dims: number of features D_m of each modality.
        latent_dim: K.
        seed: of the small random loadings it starts from.

    Example:
        >>> import calmrl_prob as cal
        >>> data = MultimodalData({"image": torch.randn(50, 4), "text": torch.randn(50, 3)})
        >>> model = StudentT(data.dims, latent_dim=2)
        >>> result = cal.fit(model, data, tolerance=1e-3)
        >>> cal.posterior(model, data)
        PosteriorResult(50 instances, 2 latents, route='exact student-t')
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
        self.log_freedom = nn.Parameter(torch.tensor(10.0, dtype=torch.float64).log())

    def forward(self, data: MultimodalData) -> Tensor:
        """The generative process."""
        half = 0.5 * self.log_freedom.exp()
        with pyro.plate("instances", len(data)):
            width = pyro.sample("scale", dist.Gamma(half, half)).rsqrt()[..., None]
            origin = self.log_freedom.new_zeros(self.latent_dim)
            z: Tensor = pyro.sample("z", dist.Normal(origin, width).to_event(1))
            for name in data.names:
                mean = z @ self.loadings[name].mT + self.intercepts[name]
                features = dist.Normal(mean, (0.5 * self.log_noise[name]).exp() * width).to_event(1)
                pyro.sample(name, features.mask(data.observed(name)), obs=data.filled(name).to(mean.dtype))
        return z

    def closed_form(self) -> StudentTModel:
        """The parameters as the engine takes them, cut off from the autograd graph."""
        lg = LinearGaussian(
            {name: self.loadings[name] for name in self.dims},
            {name: self.intercepts[name] for name in self.dims},
            {name: self.log_noise[name].exp() for name in self.dims},
        )
        return StudentTModel(lg.detach(), self.log_freedom.detach().exp())

    def posterior(self, data: MultimodalData, **_: Any) -> StudentTResult:
        """The exact posterior."""
        return StudentTResult(student_t_posterior(self.closed_form(), data.conform(self.dims).blocks))

    @torch.no_grad()
    def fit_to(
        self, data: MultimodalData, seed: int = 0, callback: Callback | None = None, **options: Any
    ) -> EMResult[StudentTModel]:
        """Closed-form ECM steps, in place."""
        blocks = data.conform(self.dims).blocks
        found = fit_student_t_em(blocks, self.latent_dim, noise=self.noise, seed=seed, callback=callback, **options)
        lg = found.structure.linear_gaussian
        for name in self.dims:
            self.loadings[name].copy_(lg.loadings[name])
            self.intercepts[name].copy_(lg.intercepts[name])
            self.log_noise[name].copy_(lg.noise_variance[name][0].log())
        self.log_freedom.copy_(found.structure.degrees_of_freedom.log())
        return found
