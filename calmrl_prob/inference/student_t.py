"""The Student-t route: latent and noise of an instance share one scale, and everything stays in closed form."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from scipy.special import stdtrit
from torch import Tensor

from calmrl_prob.data import MultimodalData
from calmrl_prob.inference.exact import GaussianPosterior, GaussianPredictive
from calmrl_prob.inference.predictive import Predictive
from calmrl_prob.inference.results import Draw, PosteriorResult
from calmrl_prob.linear_gaussian import StudentTModel, StudentTPosterior, student_t_posterior


class StudentTResult(PosteriorResult):
    """The posterior of N instances under a :class:`~calmrl_prob.linear_gaussian.StudentTModel`: multivariate t, exact.

    Args:
        exact: what the engine computed.

    Attributes:
        exact: the same.
    """

    route = "exact Student-t"

    def __init__(self, exact: StudentTPosterior) -> None:
        self.exact = exact
        self.dims = exact.model.linear_gaussian.dims

    @property
    def mean(self) -> Tensor:
        """E[z_n | x_n], shape (N, K), in units of the prior."""
        return self.exact.mean

    @property
    def covariance(self) -> Tensor:
        """Cov[z_n | x_n], shape (N, K, K); infinite where the posterior has 2 degrees of freedom or fewer."""
        return self.exact.covariance

    @property
    def log_marginal(self) -> Tensor:
        """log p(x_n) of what each instance has, shape (N,), nats."""
        return self.exact.log_marginal

    @property
    def weights(self) -> Tensor:
        """E[u_n | x_n], shape (N,): far below 1 for an outlier."""
        return self.exact.weights

    def predictive(self, name: str, dtype: torch.dtype | None = None) -> Predictive:
        """A t distribution for each feature, with nu + D_n degrees of freedom."""
        return StudentTPredictive(self.exact, name, self.mean.dtype if dtype is None else dtype)

    def log_density(self, latents: Tensor) -> Tensor:
        """log p(z_n | x_n) at ``latents`` (N, K), nats, shape (N,)."""
        normal = GaussianPosterior(self.exact.gaussian)
        log_det = normal.log_density(normal.mean)  # -1/2 logdet(2 pi V)
        distance = 2 * (log_det - normal.log_density(latents))
        freedom, count = self.exact.degrees_of_freedom, latents.shape[1]
        log_norm = torch.lgamma((freedom + count) / 2) - torch.lgamma(freedom / 2)
        log_norm = log_norm + count / 2 * (2 * self.exact.weights / freedom).log() + log_det
        return log_norm - (freedom + count) / 2 * torch.log1p(self.exact.weights * distance / freedom)

    def draws(self, num_draws: int, generator: torch.Generator, names: Sequence[str] = ()) -> Iterator[Draw]:
        """Joint draws: the scale of each instance first, then its latents; noise is divided by the scale too."""
        lg = self.exact.model.linear_gaussian
        scales = self.exact.sample_scales(num_draws, generator)
        for scale, latents in zip(scales, self.exact.sample_given(scales, generator), strict=True):
            location = {name: torch.addmm(lg.intercepts[name], latents, lg.loadings[name].mT) for name in names}
            noise = {name: lg.noise_variance[name] / scale[:, None] for name in names}
            yield Draw(latents, location, noise)


class StudentTPredictive(Predictive):
    """t distributions with nu + D_n degrees of freedom, feature by feature.

    Args:
        exact: the posterior of the latents.
        name: the modality.
        dtype: of the results.
    """

    def __init__(self, exact: StudentTPosterior, name: str, dtype: torch.dtype) -> None:
        self._normal = GaussianPredictive(exact.gaussian, name, dtype)
        self._freedom = exact.degrees_of_freedom[:, None].to(dtype)
        self._inflation = exact.inflation[:, None].to(dtype)
        self._weights = exact.weights[:, None].to(dtype)

    @property
    def mean(self) -> Tensor:
        """(N, D)."""
        return self._normal.mean

    @property
    def latent_variance(self) -> Tensor:
        """(N, D)."""
        return self._inflation * self._normal.latent_variance

    @property
    def noise_variance(self) -> Tensor:
        """(N, D)."""
        return self._inflation * self._normal.noise_variance

    @property
    def _scale(self) -> Tensor:
        return (self._normal.variance / self._weights).sqrt()

    def quantile(self, probability: float) -> Tensor:
        """The value that each feature stays below with this probability, (N, D)."""
        standard = stdtrit(self._freedom.double().cpu().numpy(), probability)
        return self.mean + torch.as_tensor(standard).to(self.mean) * self._scale

    def log_density(self, values: Tensor) -> Tensor:
        """log p(x_nd | x_n) at ``values`` (N, D), nats, shape (N, D)."""
        freedom, scale = self._freedom, self._scale
        constant = torch.lgamma((freedom + 1) / 2) - torch.lgamma(freedom / 2) - 0.5 * (freedom * math.pi).log()
        distance = ((values - self.mean) / scale).square()
        return constant - scale.log() - (freedom + 1) / 2 * torch.log1p(distance / freedom)


def student_t_result(model: StudentTModel, data: MultimodalData) -> StudentTResult:
    """The exact posterior of instances under a Student-t model.

    Args:
        model: the model.
        data: N instances. Modalities of the model that they do not have at all count as missing.

    Raises:
        SchemaError: a modality that the model does not know, or one of another width.
    """
    return StudentTResult(student_t_posterior(model, data.conform(model.linear_gaussian.dims).blocks))
