"""The posterior of the latents of any model that can state a linear-Gaussian form."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from typing import Any, Literal, Protocol, runtime_checkable

import torch

from calmrl_prob._support.arguments import described
from calmrl_prob._support.warnings import level_of_caller
from calmrl_prob.conjugacy import discover
from calmrl_prob.data import MultimodalData
from calmrl_prob.errors import ArgumentError, ArgumentTypeError, NotConjugateError, UnfittedWarning
from calmrl_prob.inference.approximate.nuts import nuts_posterior
from calmrl_prob.inference.approximate.svi import svi_posterior
from calmrl_prob.inference.exact.discovered import form_posterior, structure_posterior
from calmrl_prob.inference.exact.scale_mixture import scale_mixture_posterior
from calmrl_prob.linear_gaussian import LinearGaussian
from calmrl_prob.linear_gaussian.mixture.model import LinearGaussianMixture
from calmrl_prob.posteriors.posterior import PosteriorResult
from calmrl_prob.programs.bound import BoundModel, PyroModel


@runtime_checkable
class HasLinearGaussian(Protocol):
    """A model that can state its linear-Gaussian form, such as ``SharedLatentModel``."""

    def linear_gaussian(self) -> LinearGaussian:
        """The parameters, as a LinearGaussian."""
        ...


@runtime_checkable
class Fittable(Protocol):
    """A model that closed-form methods can fit, such as ``SharedLatentModel``.

    Its form is that of a ``LinearGaussian`` whose every parameter is free: it need only take over what was fitted.
    """

    dims: dict[str, int]
    latent_dim: int
    noise: Literal["isotropic", "diagonal"]

    def load_linear_gaussian(self, linear_gaussian: LinearGaussian) -> None:
        """Take over parameters."""
        ...


@runtime_checkable
class HasPosterior(Protocol):
    """A model with a route of its own, such as one whose latents are coupled between instances."""

    def posterior(self, data: MultimodalData, **options: Any) -> PosteriorResult:
        """The posterior of the latents of some instances."""
        ...


#: What every function that takes a model takes: a Pyro callable, or something that states its own form.
Model = LinearGaussian | LinearGaussianMixture | HasLinearGaussian | HasPosterior | PyroModel

#: Name -> function of (Pyro model, data, seed, **options) for models that have no exact posterior.
APPROXIMATE_ROUTES: dict[str, Callable[..., PosteriorResult]] = {"svi": svi_posterior, "nuts": nuts_posterior}


@torch.no_grad()
def posterior(
    model: Model, data: MultimodalData, method: str = "auto", *, seed: int = 0, **options: Any
) -> PosteriorResult:
    """The posterior of the latents of each instance, given the modalities that it has: exact where it can be.

    Of a Pyro model the linear-Gaussian form is discovered (:func:`calmrl_prob.discover`). With Omega_n the modalities
    that instance n has, W^m loadings, mu^m intercepts, Psi^m diagonal noise covariances and N(m0, S0) the prior:

        P_n = S0^-1 + sum_{m in Omega_n} W^mT Psi^m^-1 W^m
        h_n = S0^-1 m0 + sum_{m in Omega_n} W^mT Psi^m^-1 (x_n^m - mu^m)
        z_n | x_n ~ N(P_n^-1 h_n, P_n^-1)

    Where the form is a mixture, the posterior is one; where it varies by instance, so does the posterior. Models
    without such a form get an approximate route. ``route`` of the result says what was done.

    Source: Bishop, Pattern Recognition and Machine Learning (2006), section 12.2.

    Args:
        model: a ``SharedLatentModel``, a Pyro model (callable, PyroModule or torch module), a ``LinearGaussian``, or
            anything with a method ``linear_gaussian()`` or ``posterior(data)``.
        data: N instances. Modalities of the model that they do not have at all count as missing.
        method: "auto"; "exact" to refuse anything else; or the name of an approximate route.
        seed: of what a route draws.
        **options: of the route.

    Returns:
        Detached from the autograd graph; for gradients use :func:`calmrl_prob.linear_gaussian.posterior`.

    Raises:
        SchemaError: a modality that the model does not know, or one of another width.
        ArgumentTypeError: ``model`` or ``data`` is of another type.
        ArgumentError: they are on different devices, or an unknown method or option.
        ModelError: a Pyro model breaks the form that every route needs.
        NotConjugateError: with method "exact", it has no exact posterior; says why.

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
    known = ["auto", "exact", *APPROXIMATE_ROUTES]
    if not isinstance(method, str) or method not in known:
        raise ArgumentError(f"method: expected one of {known}, got {method!r}.")
    if not isinstance(data, MultimodalData):
        raise ArgumentTypeError(f"data: expected MultimodalData, got {described(data)}; wrap it in MultimodalData.")
    if isinstance(model, BoundModel):
        data = model.conform(data)
    if method in APPROXIMATE_ROUTES:
        return APPROXIMATE_ROUTES[method](model, data, seed=seed, **options)
    if isinstance(model, LinearGaussianMixture):
        return structure_posterior(model.detach(), data)
    if isinstance(model, HasPosterior) and not isinstance(model, type):
        return model.posterior(data, seed=seed, **options)
    if isinstance(model, LinearGaussian | HasLinearGaussian) or not callable(model):
        try:
            lg = as_linear_gaussian(model)
        except NotConjugateError:
            pass  # its class can state a form, but this prior of it has none: look at the Pyro model
        else:
            _refuse_options(options)
            return structure_posterior(lg, fitted_to(lg, data))
    assert callable(model)
    bound = model if isinstance(model, BoundModel) else BoundModel(model)
    try:
        form = discover(bound, data)
    except NotConjugateError as error:
        if method == "exact" or error.route not in APPROXIMATE_ROUTES:
            raise
        return APPROXIMATE_ROUTES[error.route](model, data, seed=seed, **options)
    if bound.drawn and bound.fitted_dims is None:
        warnings.warn(
            f"model: pyro.param {min(bound.drawn)!r} is what it was drawn to start from, so what the model says of the "
            "data means nothing; fit it with calmrl_prob.fit, and pass the result or its .model.",
            UnfittedWarning,
            stacklevel=level_of_caller(),
        )
    if form.degrees_of_freedom:
        if method == "exact":
            form.linear_gaussian()  # raises, naming the site
        found = scale_mixture_posterior(form, data, seed=seed, **options)
        return APPROXIMATE_ROUTES["svi"](model, data, seed=seed, **options) if found is None else found
    if form.globals and not set(form.globals) <= set(form.bound.values):
        raise NotConjugateError(
            form.globals[0],
            "global latents",
            "It stands outside the plate and has a prior of its own, so the posterior of the latents depends on it.",
            "collapsed: first cal.fit with method 'map', 'svi' or 'nuts', then the posterior of its result",
        )
    _refuse_options(options)
    return form_posterior(form, data)


def _refuse_options(options: Mapping[str, Any]) -> None:
    if options:
        raise ArgumentError(f"options: the exact routes have none, got {sorted(options)}.")


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
                stacklevel=level_of_caller(),
            )
        return model.linear_gaussian().detach()
    raise ArgumentTypeError(
        f"model: expected a SharedLatentModel or a LinearGaussian, got {described(model)}; "
        "or give your class a method linear_gaussian()."
    )


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
