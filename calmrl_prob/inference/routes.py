"""The routes of ``calmrl_prob.posterior``, in the order in which "auto" tries them, each with what it refuses."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from calmrl_prob.data import MultimodalData
from calmrl_prob.errors import ArgumentError, ArgumentTypeError, CalmrlError, NotConjugateError
from calmrl_prob.inference.approximate.nuts import nuts_posterior
from calmrl_prob.inference.approximate.svi import svi_posterior
from calmrl_prob.inference.exact.discovered import form_posterior, on_device, stated_posterior
from calmrl_prob.inference.exact.scale_mixture import scale_mixture_of, scale_mixture_posterior
from calmrl_prob.inference.protocols import HasPosterior
from calmrl_prob.inference.subject import Subject
from calmrl_prob.linear_gaussian import ScaleMixture
from calmrl_prob.posteriors.posterior import PosteriorResult


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


#: Of models without a route of their own, which nobody asks for by name.
NO_OWN_ROUTE = ArgumentTypeError("model: it has no method posterior(data) of its own.")


def _refuse_own(subject: Subject) -> CalmrlError | None:
    # results have their posterior as an attribute
    own = isinstance(subject.model, HasPosterior) and callable(subject.model.posterior)
    own = own and not isinstance(subject.model, type)
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


def _refuse_options(options: Mapping[str, Any]) -> None:
    if options:
        raise ArgumentError(f"options: the exact routes have none, got {sorted(options)}.")


#: In the order in which "auto" tries them.
ROUTES = (
    Route("own", _run_own, _refuse_own, exact=True),
    Route("exact", _run_exact, _refuse_exact, exact=True),
    Route("scale mixture", _run_scales, _refuse_scales),
    Route("svi", _run_svi, _serves, approximate=True),
    Route("nuts", _run_nuts, _serves, approximate=True),
)
