"""The posterior of the latents of any model: the first route that serves."""

from __future__ import annotations

from typing import Any

import torch

from calmrl_prob._support.arguments import checked_seed, described
from calmrl_prob._support.normal_mode import normal_mode
from calmrl_prob.data import MultimodalData
from calmrl_prob.data.stream import require_data
from calmrl_prob.errors import ArgumentError, ArgumentTypeError, NotConjugateError
from calmrl_prob.inference.feature_names import aligned, named
from calmrl_prob.inference.fingerprint import fingerprint
from calmrl_prob.inference.normal_mode import normal_data
from calmrl_prob.inference.protocols import HasLinearGaussian, Model
from calmrl_prob.inference.routes import NO_OWN_ROUTE, ROUTES, Route
from calmrl_prob.inference.seen import SampledRows
from calmrl_prob.inference.subject import Subject, warn_unfitted
from calmrl_prob.linear_gaussian import LinearGaussian
from calmrl_prob.posteriors.posterior import PosteriorResult
from calmrl_prob.programs.bound import BoundModel


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
        SchemaError: a modality that the model does not know, or one of another width or with other features by name.
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
    require_method(method)
    require_data(data)
    seed, model = checked_seed(seed), getattr(model, "answers_as", model)
    with normal_mode(), torch.no_grad():
        data = aligned(model, normal_data(data))
        return named(_by_route(model, data, method, seed, options), model, data)


def require_method(method: object) -> None:
    """Refuse what names no way to a posterior.

    Raises:
        ArgumentError: it does not.

    Example:
        >>> require_method("exact")
    """
    known = ["auto", "exact", *(route.name for route in ROUTES if route.approximate)]
    if not isinstance(method, str) or method not in known:
        raise ArgumentError(f"method: expected one of {known}, got {method!r}.")


def _by_route(model: Model, data: MultimodalData, method: str, seed: int, options: dict[str, Any]) -> PosteriorResult:
    """The posterior by the route that is asked for, or the first that serves, of checked arguments."""
    by_name = [route.name for route in ROUTES if route.approximate]
    if isinstance(model, BoundModel):
        data = model.conform(data)
    subject = Subject(model, data)
    if method in by_name:
        return _signed(_called(method).run(subject, seed=seed, **options), subject)
    refusals = []
    for route in ROUTES:
        if route.approximate or (method == "exact" and not route.exact):
            continue
        refusal = route.refuses(subject)
        if refusal is None:
            return _signed(route.run(subject, seed=seed, **options), subject)
        refusals.append(refusal)
    serving = [r.route for r in refusals if isinstance(r, NotConjugateError) and r.route in by_name]
    if method == "auto" and serving:
        return _signed(_called(serving[0]).run(subject, seed=seed, **options), subject)
    raise next(refusal for refusal in refusals if refusal is not NO_OWN_ROUTE)


def _signed(result: PosteriorResult, subject: Subject) -> PosteriorResult:
    """The result, which knows whose posterior it is, of model and instances."""
    stated = vars(subject).get("stated")  # found on the way, as model.linear_gaussian() would state it again
    same = isinstance(stated, LinearGaussian) and hasattr(subject.model, "linear_gaussian")
    if isinstance(result, PosteriorResult):  # a user's own route may return anything
        result.fingerprint = fingerprint(stated if same else subject.model)
        result.rows = SampledRows.of(subject.data) if isinstance(subject.data, MultimodalData) else None
    return result


def _called(name: str) -> Route:
    return next(route for route in ROUTES if route.name == name)


def as_linear_gaussian(model: Model) -> LinearGaussian:
    """The linear-Gaussian form of a model, cut off from the autograd graph.

    Raises:
        ArgumentTypeError: the model has none.
        NotConjugateError: its class states one, but not under its prior.

    Warns:
        UnfittedWarning: the model still has the random parameters that it started from.
    """
    if isinstance(model, LinearGaussian):
        return model.detach()
    if isinstance(model, HasLinearGaussian) and callable(model.linear_gaussian) and not isinstance(model, type):
        found = model.linear_gaussian().detach()
        warn_unfitted(model)
        return found
    raise ArgumentTypeError(
        f"model: expected a SharedLatentModel or a LinearGaussian, got {described(model)}; "
        "or give your class a method linear_gaussian()."
    )
