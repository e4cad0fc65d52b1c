"""The posterior of the latents of any model: the first route that serves."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from calmrl_prob._support.arguments import described
from calmrl_prob.data import MultimodalData
from calmrl_prob.errors import ArgumentError, ArgumentTypeError, CalmrlError, NotConjugateError
from calmrl_prob.inference.approximate.nuts import nuts_posterior
from calmrl_prob.inference.approximate.svi import svi_posterior
from calmrl_prob.inference.exact.discovered import form_posterior, on_device, stated_posterior
from calmrl_prob.inference.exact.scale_mixture import scale_mixture_of, scale_mixture_posterior
from calmrl_prob.inference.protocols import HasLinearGaussian, HasPosterior, Model
from calmrl_prob.inference.subject import Subject, warn_unfitted
from calmrl_prob.linear_gaussian import LinearGaussian, ScaleMixture
from calmrl_prob.posteriors.posterior import PosteriorResult
from calmrl_prob.programs.bound import BoundModel


@dataclass(frozen=True)
class Route:
    """A way to a posterior.

    Attributes:
        name: of the route; "auto" tries them in the order of :data:`ROUTES`.
        run: from (subject, seed=, options) to the result.
        refuses: why it does not serve a subject, as the error that asking for it raises; None if it does.
        exact: whether method "exact" may take it.
        approximate: whether it can be asked for by name, and is taken by itself only where a refusal names it.
    """

    name: str
    run: Callable[..., PosteriorResult]
    refuses: Callable[[Subject], CalmrlError | None]
    exact: bool = False
    approximate: bool = False


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
    named = [route.name for route in ROUTES if route.approximate]
    known = ["auto", "exact", *named]
    if not isinstance(method, str) or method not in known:
        raise ArgumentError(f"method: expected one of {known}, got {method!r}.")
    if not isinstance(data, MultimodalData):
        raise ArgumentTypeError(f"data: expected MultimodalData, got {described(data)}; wrap it in MultimodalData.")
    if isinstance(model, BoundModel):
        data = model.conform(data)
    subject = Subject(model, data)
    if method in named:
        return _called(method).run(subject, seed=seed, **options)
    refusals = []
    for route in ROUTES:
        if route.approximate or (method == "exact" and not route.exact):
            continue
        refusal = route.refuses(subject)
        if refusal is None:
            return route.run(subject, seed=seed, **options)
        refusals.append(refusal)
    serving = [r.route for r in refusals if isinstance(r, NotConjugateError) and r.route in named]
    if method == "auto" and serving:
        return _called(serving[0]).run(subject, seed=seed, **options)
    raise next(refusal for refusal in refusals if refusal is not NO_OWN_ROUTE)


#: Of models without a route of their own, which nobody asks for by name.
NO_OWN_ROUTE = ArgumentTypeError("model: it has no method posterior(data) of its own.")


def _refuse_own(subject: Subject) -> CalmrlError | None:
    own = isinstance(subject.model, HasPosterior) and not isinstance(subject.model, type)
    return None if own else NO_OWN_ROUTE


def _run_own(subject: Subject, **options: Any) -> PosteriorResult:
    return subject.model.posterior(subject.data, **options)  # type: ignore[no-any-return]


def _refuse_exact(subject: Subject) -> CalmrlError | None:
    if isinstance(subject.stated, ScaleMixture):
        freedom = subject.stated.degrees_of_freedom
        return _needs_scales(next(iter(freedom), "z"), latent=not freedom)
    if subject.stated is not None:
        return None
    if subject.program_refusal is not None:
        return subject.program_refusal
    form = subject.form
    if form is None:
        return subject.form_refusal
    if form.degrees_of_freedom:
        name = next(iter(form.degrees_of_freedom))
        return _needs_scales(name, latent=name in form.latents)
    if form.globals and not set(form.globals) <= set(form.bound.values):
        return NotConjugateError(
            form.globals[0],
            "global latents",
            "It stands outside the plate and has a prior of its own, so the posterior of the latents depends on it.",
            "collapsed: first cal.fit with method 'map', 'svi' or 'nuts', then the posterior of its result",
        )
    return None


def _needs_scales(name: str, *, latent: bool) -> NotConjugateError:
    condition = "non-gaussian prior" if latent else "non-gaussian likelihood"
    return NotConjugateError(
        name, condition, "A Student-t is Gaussian only given its scale.", "scale mixture, by cal.posterior"
    )


def _run_exact(subject: Subject, *, seed: int = 0, **options: Any) -> PosteriorResult:
    del seed
    _refuse_options(options)
    subject.warn_unfitted()
    if subject.stated is None:
        assert subject.form is not None
        assert isinstance(subject.data, MultimodalData)
        return form_posterior(subject.form, subject.data)
    assert not isinstance(subject.stated, ScaleMixture)
    assert isinstance(subject.data, MultimodalData)
    return stated_posterior(subject.stated, subject.data)


def _refuse_scales(subject: Subject) -> CalmrlError | None:
    if isinstance(subject.stated, ScaleMixture):
        return None
    if subject.stated is not None or subject.program_refusal is not None:
        return subject.program_refusal
    form = subject.form
    if form is None:
        return subject.form_refusal
    if not form.degrees_of_freedom:
        return NotConjugateError("z", "no Student-t site", "All sites are Gaussian.", "exact, by cal.posterior")
    if scale_mixture_of(form) is None:
        return NotConjugateError(
            next(iter(form.degrees_of_freedom)),
            "Student-t site",
            "Closed forms for Student-t sites need one structure for all instances.",
            "svi",
        )
    return None


def _run_scales(subject: Subject, *, seed: int = 0, **options: Any) -> PosteriorResult:
    subject.warn_unfitted()
    assert isinstance(subject.data, MultimodalData)
    if isinstance(subject.stated, ScaleMixture):
        data, model = on_device(subject.stated, subject.data), subject.stated.detach()
        program = subject.bound if callable(subject.model) else None
        return scale_mixture_posterior(model, program, None, data, seed=seed, **options)
    assert subject.form is not None
    found = scale_mixture_of(subject.form)
    assert found is not None
    return scale_mixture_posterior(found, subject.form.bound, subject.form.latents, subject.data, seed=seed, **options)


def _serves(subject: Subject) -> None:
    del subject


def _run_svi(subject: Subject, **options: Any) -> PosteriorResult:
    return svi_posterior(subject.model, subject.data, **options)  # type: ignore[arg-type]


def _run_nuts(subject: Subject, **options: Any) -> PosteriorResult:
    return nuts_posterior(subject.model, subject.data, **options)  # type: ignore[arg-type]


#: In the order in which "auto" tries them.
ROUTES = (
    Route("own", _run_own, _refuse_own, exact=True),
    Route("exact", _run_exact, _refuse_exact, exact=True),
    Route("scale mixture", _run_scales, _refuse_scales),
    Route("svi", _run_svi, _serves, approximate=True),
    Route("nuts", _run_nuts, _serves, approximate=True),
)


def _called(name: str) -> Route:
    return next(route for route in ROUTES if route.name == name)


def _refuse_options(options: Mapping[str, Any]) -> None:
    if options:
        raise ArgumentError(f"options: the exact routes have none, got {sorted(options)}.")


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
    if isinstance(model, HasLinearGaussian) and not isinstance(model, type):
        found = model.linear_gaussian().detach()
        warn_unfitted(model)
        return found
    raise ArgumentTypeError(
        f"model: expected a SharedLatentModel or a LinearGaussian, got {described(model)}; "
        "or give your class a method linear_gaussian()."
    )
