"""The Student-t route: latent and noise of an instance share one random scale, and everything stays in closed form."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property

import torch
from torch import Tensor
from torch.distributions import StudentT

from calmrl_prob.linear_gaussian.scale_mixture.shared_scale import StudentTPosterior
from calmrl_prob.posteriors.gaussian import GaussianPredictive
from calmrl_prob.posteriors.posterior import Draw, PosteriorResult
from calmrl_prob.posteriors.predictive import Predictive


class StudentTResult(PosteriorResult):
    """The posterior of the latents of N instances, multivariate t with nu + D_n degrees of freedom; exact.

    Args:
        exact: what the engine computed.

    Attributes:
        exact: the same; its ``weights`` (N,) are small for outliers.
    """

    route = "exact student-t"

    def __init__(self, exact: StudentTPosterior) -> None:
        self.exact = exact
        self.dims = exact.model.linear_gaussian.dims

    @property
    def mean(self) -> Tensor:
        """E[z_n | x_n], shape (N, K), in units of the prior."""
        return self.exact.mean

    @property
    def covariance(self) -> Tensor:
        """Cov[z_n | x_n], shape (N, K, K): that of the t, wider than its scale matrix."""
        return self.exact.covariance

    @property
    def log_marginal(self) -> Tensor:
        """log p(x_n) of what each instance has, shape (N,), nats."""
        return self.exact.log_marginal

    def predictive(self, name: str, dtype: torch.dtype | None = None) -> Predictive:
        """A t with nu + D_n degrees of freedom for each feature."""
        kind = self.mean.dtype if dtype is None else dtype
        return StudentTPredictive(GaussianPredictive(self.exact.gaussian, name, kind), self.exact)

    def draws(self, num_draws: int, generator: torch.Generator, names: Sequence[str] = ()) -> Iterator[Draw]:
        """Joint draws: the scale of each instance first; given it, latents and noise are normal."""
        lg = self.exact.model.linear_gaussian
        scales = self.exact.sample_scales(num_draws, generator)
        for scale, latents in zip(scales, self.exact.sample_given(scales, generator), strict=True):
            location = {name: torch.addmm(lg.intercepts[name], latents, lg.loadings[name].mT) for name in names}
            yield Draw(latents, location, {name: lg.noise_variance[name] / scale[:, None] for name in names})


class StudentTPredictive(Predictive):
    """A t for each feature: location and scale of the Gaussian model's predictive, the scale divided by the weight.

    Args:
        gaussian: that predictive.
        exact: the posterior, for weights and degrees of freedom.
    """

    normal = False

    def __init__(self, gaussian: Predictive, exact: StudentTPosterior) -> None:
        self._gaussian = gaussian
        like = gaussian.mean
        self._freedom = exact.degrees_of_freedom.to(like)[:, None]
        self._weight = exact.weights.to(like)[:, None]

    @property
    def mean(self) -> Tensor:
        """(N, D)."""
        return self._gaussian.mean

    @cached_property
    def _inflation(self) -> Tensor:
        freedom = self._freedom
        return torch.where(freedom > 2, freedom / (freedom - 2), torch.inf) / self._weight

    @cached_property
    def latent_variance(self) -> Tensor:
        """(N, D)."""
        return self._gaussian.latent_variance * self._inflation

    @cached_property
    def noise_variance(self) -> Tensor:
        """(N, D)."""
        return self._gaussian.noise_variance * self._inflation

    @cached_property
    def _scale(self) -> Tensor:
        return (self._gaussian.variance / self._weight).sqrt()

    def quantile(self, probability: float) -> Tensor:
        """(N, D)."""
        from scipy import stats

        standard = stats.t.ppf(probability, self._freedom.double().cpu().numpy())
        return self.mean + torch.as_tensor(standard).to(self.mean) * self._scale

    def log_density(self, values: Tensor) -> Tensor:
        """(N, D), nats."""
        density: Tensor = StudentT(self._freedom, self.mean, self._scale, validate_args=False).log_prob(values)
        return density

    def cdf(self, values: Tensor) -> Tensor:
        """P(x_nd below ``values``), (N, D)."""
        from scipy import stats

        standard = ((values - self.mean) / self._scale).double().cpu().numpy()
        return torch.as_tensor(stats.t.cdf(standard, self._freedom.double().cpu().numpy())).to(self.mean)
