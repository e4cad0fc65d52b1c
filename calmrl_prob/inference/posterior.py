"""The posterior of the latents of any model that can state a linear-Gaussian form."""

from __future__ import annotations

import sys
import warnings
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

import torch
from torch import Tensor

from calmrl_prob._arguments import checked_seed, described, whole_number
from calmrl_prob.data import MultimodalData
from calmrl_prob.errors import ArgumentError, ArgumentTypeError, UnfittedWarning
from calmrl_prob.linear_gaussian import LinearGaussian, Posterior
from calmrl_prob.linear_gaussian import posterior as exact_posterior


@runtime_checkable
class HasLinearGaussian(Protocol):
    """A model that can state its linear-Gaussian form, such as ``SharedLatentModel``."""

    def linear_gaussian(self) -> LinearGaussian:
        """The parameters, as a LinearGaussian."""
        ...


@runtime_checkable
class Fittable(HasLinearGaussian, Protocol):
    """A model that closed-form methods can fit, such as ``SharedLatentModel``."""

    dims: dict[str, int]
    latent_dim: int
    noise: Literal["isotropic", "diagonal"]

    def load_linear_gaussian(self, linear_gaussian: LinearGaussian) -> None:
        """Take over parameters."""
        ...


#: What every function that takes a model takes.
Model = LinearGaussian | HasLinearGaussian


@dataclass(frozen=True, eq=False, repr=False)
class PosteriorResult:
    """The posterior p(z_n | x_n) = N(mean_n, covariance_n) of N instances.

    Attributes:
        exact: what the engine computed, with natural parameters and patterns.
        route: how it was computed; "exact" is closed form, with no error but rounding.
    """

    exact: Posterior
    route: Literal["exact"] = "exact"

    @property
    def mean(self) -> Tensor:
        """E[z_n | x_n], shape (N, K), in units of the prior."""
        return self.exact.mean

    @property
    def covariance(self) -> Tensor:
        """Cov[z_n | x_n], shape (N, K, K), made when asked for: N K^2 numbers. ``pattern_covariance`` has P K^2."""
        return self.exact.covariance

    @property
    def pattern_covariance(self) -> Tensor:
        """The covariance of each missing pattern, shape (P, K, K): it depends on nothing else."""
        return self.exact.pattern_covariance

    @property
    def pattern_index(self) -> Tensor:
        """The missing pattern of each instance, shape (N,) int64."""
        return self.exact.pattern_index

    @property
    def log_marginal(self) -> Tensor:
        """log p(x_n) of what each instance has, shape (N,), nats."""
        return self.exact.log_marginal

    @property
    def linear_gaussian(self) -> LinearGaussian:
        """The model that it is the posterior of."""
        return self.exact.linear_gaussian

    def sample(self, num_draws: int, seed: int = 0) -> Tensor:
        """Independent draws of the latents, shape (S, N, K).

        Raises:
            ArgumentError: ``num_draws`` is below 1, or ``seed`` is negative.
            ArgumentTypeError: one of them is not a whole number.
        """
        return self.exact.sample(checked_draws(num_draws), seeded_generator(seed, self.mean.device))

    def __repr__(self) -> str:
        num_instances, latent_dim = self.mean.shape
        return f"PosteriorResult({num_instances} instances, {latent_dim} latents, route={self.route!r})"


@torch.no_grad()
def posterior(model: Model, data: MultimodalData) -> PosteriorResult:
    """The posterior of the latents of each instance, given the modalities that it has.

    With Omega_n those modalities, W^m loadings, mu^m intercepts, Psi^m diagonal noise covariances and N(m0, S0) the
    prior:

        P_n = S0^-1 + sum_{m in Omega_n} W^mT Psi^m^-1 W^m
        h_n = S0^-1 m0 + sum_{m in Omega_n} W^mT Psi^m^-1 (x_n^m - mu^m)
        z_n | x_n ~ N(P_n^-1 h_n, P_n^-1)

    Source: Bishop, Pattern Recognition and Machine Learning (2006), section 12.2.

    Args:
        model: a ``SharedLatentModel``, a ``LinearGaussian``, or anything with a method ``linear_gaussian()``.
        data: N instances. Modalities of the model that they do not have at all count as missing.

    Returns:
        Detached from the autograd graph; for gradients use :func:`calmrl_prob.linear_gaussian.posterior`.

    Raises:
        SchemaError: a modality that the model does not know, or one of another width.
        ArgumentTypeError: ``model`` or ``data`` is of another type.
        ArgumentError: they are on different devices.

    Warns:
        UnfittedWarning: the model still has the random parameters that it started from.

    Example:
        >>> lg = LinearGaussian({"x": torch.ones(1, 1)}, {"x": torch.zeros(1)}, {"x": torch.tensor(1.0)})
        >>> result = posterior(lg, MultimodalData({"x": torch.tensor([[2.0], [4.0]])}))
        >>> result
        PosteriorResult(2 instances, 1 latents, route='exact')
        >>> result.mean.squeeze(1).tolist(), result.covariance.flatten().tolist()
        ([1.0, 2.0], [0.5, 0.5])
    """
    lg = as_linear_gaussian(model)
    return PosteriorResult(exact_posterior(lg, fitted_to(lg, data).blocks))


def as_linear_gaussian(model: Model) -> LinearGaussian:
    """The linear-Gaussian form of a model, cut off from the autograd graph.

    Raises:
        ArgumentTypeError: the model has none.

    Warns:
        UnfittedWarning: the model still has the random parameters that it started from.
    """
    if isinstance(model, LinearGaussian):
        return model.detach()
    if isinstance(model, HasLinearGaussian) and not isinstance(model, type):
        if getattr(model, "unfitted", False):
            warnings.warn(
                "model: it still has the random loadings that it started from, so what it says of the data means "
                "nothing; fit it with calmrl_prob.fit, or load parameters.",
                UnfittedWarning,
                stacklevel=_level_of_caller(),
            )
        return model.linear_gaussian().detach()
    raise ArgumentTypeError(
        f"model: expected a SharedLatentModel or a LinearGaussian, got {described(model)}; "
        "or give your class a method linear_gaussian()."
    )


def _level_of_caller() -> int:
    """The ``stacklevel`` at which a warning of the function that calls this points out of calmrl_prob and torch."""
    level, frame = 1, sys._getframe(1)
    while frame.f_back is not None and frame.f_globals.get("__name__", "").split(".")[0] in ("calmrl_prob", "torch"):
        level, frame = level + 1, frame.f_back
    return level


def fitted_to(linear_gaussian: LinearGaussian, data: MultimodalData) -> MultimodalData:
    """The data with the modalities of a model, in its order.

    Raises:
        SchemaError: a modality that the model does not know, or one of another width.
        ArgumentTypeError: ``data`` is not MultimodalData.
        ArgumentError: data and model are on different devices.
    """
    if not isinstance(data, MultimodalData):
        raise ArgumentTypeError(f"data: expected MultimodalData, got {described(data)}; wrap it in MultimodalData.")
    if data.device != linear_gaussian.device:
        raise ArgumentError(
            f"data: it is on {data.device}, the model on {linear_gaussian.device}; move one with .to(device=...)."
        )
    return data.conform(linear_gaussian.dims)


def checked_draws(num_draws: int) -> int:
    """A number of draws, if it is one.

    Raises:
        ArgumentError: it is below 1.
        ArgumentTypeError: it is not a number.
    """
    return whole_number("num_draws", num_draws, least=1)


def seeded_generator(seed: int, device: torch.device) -> torch.Generator:
    """A generator on a device, at the start of the stream that ``seed`` names.

    Raises:
        ArgumentError: the seed is negative or too large.
        ArgumentTypeError: it is not a whole number.
    """
    return torch.Generator(device=device).manual_seed(checked_seed(seed))
