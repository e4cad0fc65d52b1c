"""Latents that vary smoothly over time, place or another covariate of the instances (Gaussian-process factor analysis).

    f_k   ~ GP(0, (1 - nu_k) kernel_k)                    K processes over the covariate t, independent
    z_n   ~ N(f(t_n), diag(nu))                           K latents, shared by all modalities of instance n
    x_n^m ~ N(W^m z_n + mu^m, sigma_m^2 I)                D_m features, for each modality m that n has

so what an instance lacks, or an instance that has nothing but its t, is predicted from its neighbours too. Given
parameters everything is Gaussian: the joint posterior of all instances, and the evidence that kernels are fitted by,
are exact, by the route "gaussian process".

Source: Yu et al., Gaussian-process factor analysis for low-dimensional single-trial analysis of neural population
activity (2009); missing modalities drop out as in Liu et al., arXiv 2511.12034 (2025).
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
from calmrl_prob.inference.exact.process import GaussianProcessPosterior, gaussian_process_posterior
from calmrl_prob.inference.exact.process_fit import GaussianProcessOptions, fit_gaussian_process
from calmrl_prob.inference.exact.process_places import places_of
from calmrl_prob.linear_gaussian import EMResult, LinearGaussian
from calmrl_prob.priors import GaussianProcessPrior


class GaussianProcessModel(nn.Module):
    """Smooth latents seen through one affine map per modality.

    Args:
        dims: number of features D_m of each modality.
        latent_dim: K.
        covariate: which entry of the data's covariates holds t: numbers, (N,) or (N, d).
        kernel: a GPyTorch kernel for all latents, or one for each; Matern-5/2 by default.
        nugget: nu, the share of each latent that an instance has to itself, to start from; 0 for none.
        seed: of the small random loadings it starts from.

    Example:
        >>> import calmrl_prob as cal
        >>> generator, time = torch.Generator().manual_seed(0), torch.arange(80) / 10
        >>> course = torch.stack([time.sin(), time.cos()], dim=1)
        >>> x = {name: course @ torch.randn(2, 4, generator=generator) for name in ("image", "text")}
        >>> x = {name: values + 0.1 * torch.randn(80, 4, generator=generator) for name, values in x.items()}
        >>> x["text"][20:30] = torch.nan
        >>> data = MultimodalData(x, covariates={"time": time})
        >>> model = GaussianProcessModel(data.dims, latent_dim=2)
        >>> result = cal.fit(model, data, tolerance=0.01)
        >>> post = cal.posterior(model, data)
        >>> post.route, tuple(post.mean.shape)
        ('gaussian process', (80, 2))
        >>> tuple(post.predict({"time": [7.95, 8.0, 8.05]}).predictive("image").mean.shape)
        (3, 4)
    """

    noise = "isotropic"

    def __init__(
        self,
        dims: Mapping[str, int],
        latent_dim: int = 8,
        covariate: str = "time",
        kernel: Any = None,  # noqa: ANN401 - gpytorch, which has no annotations, may not be there
        nugget: float = 0.1,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.dims, self.latent_dim = dict(dims), latent_dim
        self.prior = GaussianProcessPrior(latent_dim, kernel, covariate, nugget)
        generator = torch.Generator().manual_seed(seed)

        def start(width: int) -> Tensor:
            return 0.1 * torch.randn(width, latent_dim, generator=generator, dtype=torch.float64)

        zero = torch.zeros((), dtype=torch.float64)
        self.loadings = nn.ParameterDict({name: start(width) for name, width in self.dims.items()})
        self.intercepts = nn.ParameterDict({name: zero.repeat(width) for name, width in self.dims.items()})
        self.log_noise = nn.ParameterDict({name: zero.clone() for name in self.dims})

    def forward(self, data: MultimodalData) -> Tensor:
        """The generative process; a process is a sum of smooth functions with standard normal weights."""
        process = self.prior.process(places_of(data, self.prior))
        weights = pyro.sample("weights", dist.Normal(self.prior.nugget.new_zeros(sum(process.ranks)), 1.0).to_event(1))
        f = process.evaluate(weights)
        with pyro.plate("instances", len(data)):
            own = bool((self.prior.nugget > 0).all())
            z: Tensor = pyro.sample("z", dist.Normal(f, self.prior.nugget.sqrt()).to_event(1)) if own else f
            for name in data.names:
                mean = z @ self.loadings[name].mT + self.intercepts[name]
                features = dist.Normal(mean, (0.5 * self.log_noise[name]).exp()).to_event(1)
                pyro.sample(name, features.mask(data.observed(name)), obs=data.filled(name).to(mean.dtype))
        return z

    def structure(self) -> LinearGaussian:
        """Loadings, intercepts and noise; the prior, which couples instances, is apart."""
        return LinearGaussian(
            {name: self.loadings[name] for name in self.dims},
            {name: self.intercepts[name] for name in self.dims},
            {name: self.log_noise[name].exp() for name in self.dims},
        )

    def posterior(self, data: MultimodalData, *, seed: int = 0, **options: Any) -> GaussianProcessPosterior:
        """The joint posterior of all instances; ``given=`` more instances, it is conditioned on those as well."""
        return gaussian_process_posterior(self.structure(), self.prior, data, **options)

    def fit_to(self, data: MultimodalData, seed: int = 0, callback: Callback | None = None, **options: Any) -> EMResult:
        """Fit loadings, noise, kernels and nuggets by marginal likelihood, in place."""
        checked = GaussianProcessOptions.of(options)
        data.require_schema(self.dims)
        result = fit_gaussian_process(
            self.prior, data.conform(self.dims), noise=self.noise, seed=seed, callback=callback, options=checked
        )
        with torch.no_grad():
            for name in self.dims:
                self.loadings[name].copy_(result.linear_gaussian.loadings[name])
                self.intercepts[name].copy_(result.linear_gaussian.intercepts[name])
                self.log_noise[name].copy_(result.linear_gaussian.noise_variance[name][0].log())
        return result
