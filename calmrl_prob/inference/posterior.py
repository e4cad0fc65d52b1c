"""The posterior of the latents of any model that can state a linear-Gaussian form."""

from __future__ import annotations

import sys
import warnings
from typing import Literal, Protocol, runtime_checkable

import torch

from calmrl_prob._arguments import described
from calmrl_prob.data import MultimodalData
from calmrl_prob.errors import ArgumentError, ArgumentTypeError, UnfittedWarning
from calmrl_prob.inference.exact import GaussianPosterior
from calmrl_prob.linear_gaussian import LinearGaussian
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


@torch.no_grad()
def posterior(model: Model, data: MultimodalData) -> GaussianPosterior:
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
    return GaussianPosterior(exact_posterior(lg, fitted_to(lg, data).blocks))


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
