"""The Student-t model: latent and noise of an instance share one random scale, and the posterior stays in closed form.

    u_n ~ Gamma(nu / 2, nu / 2)                                    one for each instance; mean 1
    z_n | u_n ~ N(m0, S0 / u_n)
    x_n^m | z_n, u_n ~ N(W^m z_n + mu^m, Psi^m / u_n)

With u integrated out, everything is multivariate t with nu degrees of freedom. Let mean_n, V_n and delta_n be the
posterior mean and covariance and the squared Mahalanobis distance of the Gaussian model (``posterior.py``), Sigma_n the
covariance that it gives x_n, and D_n the number of features that instance n has:

    log p(x_n) = lgamma((nu + D_n) / 2) - lgamma(nu / 2) - D_n / 2 log(nu pi) - 1/2 logdet Sigma_n
                 - (nu + D_n) / 2 log(1 + delta_n / nu)
    u_n | x_n ~ Gamma((nu + D_n) / 2, (nu + delta_n) / 2),      w_n = E[u_n | x_n] = (nu + D_n) / (nu + delta_n)
    z_n | x_n ~ t with nu + D_n degrees of freedom, location mean_n and scale matrix V_n / w_n

An outlier has a large delta_n, so a small weight w_n, and a wide posterior.

Sources: Liu & Rubin, ML estimation of the t distribution using EM and its extensions, ECM and ECME (1995); Zhao &
Jiang, Probabilistic PCA for t distributions (2006); missing blocks as in Liu et al., arXiv 2511.12034 (2025).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from calmrl_prob.errors import ArgumentError
from calmrl_prob.linear_gaussian.blocks import FeatureBlocks, ObservedBlocks
from calmrl_prob.linear_gaussian.posterior import Posterior, posterior
from calmrl_prob.linear_gaussian.structure import AboutGaussian, LinearGaussian, Sample, require_diagonal_noise


@dataclass(frozen=True, eq=False, repr=False)
class StudentTModel(AboutGaussian):
    """The model above.

    Args:
        linear_gaussian: W, mu, Psi, m0 and S0. Psi and S0 are scales, not variances: those are nu / (nu - 2) times as
            large where nu > 2, and infinite where it is not.
        degrees_of_freedom: nu, a positive number, shape (). The smaller, the heavier the tails.

    Raises:
        ArgumentError: nu is not a positive finite number.

    Example:
        >>> import torch
        >>> lg = LinearGaussian({"x": torch.ones(2, 1)}, {"x": torch.zeros(2)}, {"x": torch.tensor(0.5)})
        >>> StudentTModel(lg, torch.tensor(4.0))
        StudentTModel(x: 2; latent_dim=1, degrees_of_freedom=4, dtype=torch.float32)
    """

    linear_gaussian: LinearGaussian
    degrees_of_freedom: Tensor

    def __post_init__(self) -> None:
        """Check the degrees of freedom, and that noise is diagonal."""
        require_diagonal_noise(self.linear_gaussian, "linear_gaussian")
        value = self.degrees_of_freedom
        if value.shape != () or not 0 < float(value.detach()) < math.inf:
            raise ArgumentError(
                f"degrees_of_freedom: expected one positive finite number, got {value.tolist()}; a large one, such as "
                "1e6, is as good as Gaussian."
            )
        object.__setattr__(self, "degrees_of_freedom", value.to(self.linear_gaussian.prior_mean))

    def __repr__(self) -> str:
        """One line: modalities with their widths, K, nu and dtype."""
        lg = self.linear_gaussian
        widths = ", ".join(f"{name}: {width}" for name, width in lg.dims.items())
        nu = f"degrees_of_freedom={float(self.degrees_of_freedom):.4g}"
        return f"StudentTModel({widths}; latent_dim={lg.latent_dim}, {nu}, dtype={lg.dtype})"

    def to(self, dtype: torch.dtype | None = None, device: torch.device | str | None = None) -> StudentTModel:
        """A copy in another floating-point type, on another device, or both."""
        return StudentTModel(self.linear_gaussian.to(dtype, device), self.degrees_of_freedom)

    def detach(self) -> StudentTModel:
        """A copy cut off from the autograd graph."""
        return StudentTModel(self.linear_gaussian.detach(), self.degrees_of_freedom.detach())

    def select(self, names: Sequence[str]) -> StudentTModel:
        """The model of some of its modalities.

        Raises:
            SchemaError: a name is not a modality of the model.
        """
        return StudentTModel(self.linear_gaussian.select(names), self.degrees_of_freedom)

    def sample(self, num_instances: int, generator: torch.Generator | None = None) -> Sample:
        """N instances drawn: scale, latent, all modalities.

        Args:
            num_instances: N, how many.
            generator: source of randomness; torch's global one if not given.

        Raises:
            ArgumentError: they take more than the memory of the machine.
        """
        lg = self.linear_gaussian
        lg.require_room(num_instances)
        scales = sample_gamma(self.degrees_of_freedom.expand(num_instances), generator)
        latents, features = lg.sample(num_instances, generator)
        root = scales.rsqrt()[:, None]
        wide = lg.prior_mean + (latents - lg.prior_mean) * root
        spread = {
            name: wide @ loadings.mT + lg.intercepts[name] + root * (features[name] - _location(lg, name, latents))
            for name, loadings in lg.loadings.items()
        }
        return Sample(wide, spread, scales=scales)


def _location(lg: LinearGaussian, name: str, latents: Tensor) -> Tensor:
    return latents @ lg.loadings[name].mT + lg.intercepts[name]


class StudentTPosterior:
    """The posterior of the latent of each of N instances: multivariate t.

    Attributes:
        model: the model it belongs to.
        gaussian: the posterior of the Gaussian model, of which this has the location and, scaled, the covariance.
        num_features: D_n, shape (N,): how many features each instance has.
        log_marginal: log p(x_n), shape (N,), nats.
    """

    def __init__(self, model: StudentTModel, gaussian: Posterior, num_features: Tensor) -> None:
        self.model = model
        self.gaussian = gaussian
        self.num_features = num_features
        nu, delta = model.degrees_of_freedom, gaussian.mahalanobis
        half_logdet = -gaussian.log_marginal - 0.5 * (delta + num_features * math.log(2 * math.pi))
        constant = (
            torch.lgamma((nu + num_features) / 2) - torch.lgamma(nu / 2) - num_features / 2 * (nu * math.pi).log()
        )
        self.log_marginal = constant - half_logdet - (nu + num_features) / 2 * torch.log1p(delta / nu)

    @property
    def mean(self) -> Tensor:
        """E[z_n | x_n], shape (N, K), latent units; where nu + D_n > 1."""
        return self.gaussian.mean

    @property
    def degrees_of_freedom(self) -> Tensor:
        """nu + D_n of the posterior, shape (N,)."""
        return self.model.degrees_of_freedom + self.num_features

    @cached_property
    def weights(self) -> Tensor:
        """w_n = E[u_n | x_n], shape (N,): far below 1 for an outlier."""
        return self.degrees_of_freedom / (self.model.degrees_of_freedom + self.gaussian.mahalanobis)

    @cached_property
    def inflation(self) -> Tensor:
        """E[1 / u_n | x_n] = (nu + delta_n) / (nu + D_n - 2), shape (N,): variances are these times the Gaussian ones.

        Infinite where nu + D_n is 2 or less.
        """
        freedom = self.degrees_of_freedom
        finite = freedom > 2
        safe = torch.where(finite, freedom - 2, 1.0)
        return torch.where(finite, (self.model.degrees_of_freedom + self.gaussian.mahalanobis) / safe, torch.inf)

    @property
    def covariance(self) -> Tensor:
        """Cov[z_n | x_n], shape (N, K, K): N K^2 numbers, made when asked for."""
        return self.inflation[:, None, None] * self.gaussian.covariance

    def sample(self, num_draws: int, generator: torch.Generator | None = None) -> Tensor:
        """Draw latents.

        Returns:
            Shape (S, N, K); draws are independent.
        """
        return self.sample_given(self.sample_scales(num_draws, generator), generator)

    def sample_scales(self, num_draws: int, generator: torch.Generator | None = None) -> Tensor:
        """Draw u_n given x_n, shape (S, N)."""
        freedom = self.degrees_of_freedom.detach()
        return self.weights.detach() * sample_gamma(freedom.expand(num_draws, -1), generator)

    def sample_given(self, scales: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Draw latents given scales (S, N), shape (S, N, K)."""
        draws = self.gaussian.sample(len(scales), generator)
        return self.mean + (draws - self.mean) * scales.rsqrt()[:, :, None]


def student_t_posterior(model: StudentTModel, blocks: ObservedBlocks | FeatureBlocks) -> StudentTPosterior:
    """The exact posterior: that of the Gaussian model, and K-dimensional algebra on top.

    Differentiable in all parameters.

    Args:
        model: in the floating-point type that the K-dimensional algebra is to use.
        blocks: N instances with any modalities, or any features, missing; modalities as in the model.

    Raises:
        NumericalError: a precision is not positive definite, or the evidence of an instance is not finite.

    Example:
        >>> import torch
        >>> from calmrl_prob.linear_gaussian import LinearGaussian, ObservedBlocks
        >>> lg = LinearGaussian({"x": torch.ones(1, 1)}, {"x": torch.zeros(1)}, {"x": torch.tensor(1.0)})
        >>> data = ObservedBlocks.from_arrays({"x": torch.tensor([[1.0], [10.0]])}, torch.ones(2, 1).bool())
        >>> given = student_t_posterior(StudentTModel(lg, torch.tensor(3.0)), data)
        >>> [round(weight, 4) for weight in given.weights.tolist()]  # 4 / (3 + x^2 / 2)
        [1.1429, 0.0755]
    """
    gaussian = posterior(model.linear_gaussian, blocks)
    return StudentTPosterior(model, gaussian, count_features(blocks).to(gaussian.mean))


def count_features(blocks: ObservedBlocks | FeatureBlocks) -> Tensor:
    """Number of features of each instance, shape (N,) float64."""
    if isinstance(blocks, FeatureBlocks):
        per_pattern = blocks.patterns.sum(1).double()
    else:
        widths = torch.tensor(list(blocks.dims.values()), dtype=torch.float64, device=blocks.device)
        per_pattern = blocks.patterns.double() @ widths
    return per_pattern[blocks.pattern_index]


def sample_gamma(degrees_of_freedom: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Draws of Gamma(nu / 2, nu / 2), of mean 1, in the shape of ``degrees_of_freedom``."""
    shape = degrees_of_freedom / 2
    draws = torch._standard_gamma(shape, generator)  # torch.distributions has no way to hand on a generator
    return draws.clamp(min=torch.finfo(shape.dtype).tiny) / shape
