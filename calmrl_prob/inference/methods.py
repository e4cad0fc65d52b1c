"""The methods of ``calmrl_prob.fit``, in the order in which "auto" tries them, each with what it refuses."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from calmrl_prob._support.arguments import described, keyword_options
from calmrl_prob.batch_effects import BatchEffects
from calmrl_prob.data import MultimodalData
from calmrl_prob.errors import ArgumentTypeError, CalmrlError, NotConjugateError
from calmrl_prob.inference.approximate.svi import run_svi
from calmrl_prob.inference.exact.batch_em import run_batch_em
from calmrl_prob.inference.exact.em import run_em
from calmrl_prob.inference.exact.gradient import run_gradient
from calmrl_prob.inference.exact.mixture import run_mixture_em
from calmrl_prob.inference.exact.preparation import checked_blocks
from calmrl_prob.inference.exact.scale_mixture_fit import (
    run_scale_em,
    run_scale_mixture,
    site_beyond_scale_mixtures,
)
from calmrl_prob.inference.exact.student_t import run_student_t_em
from calmrl_prob.inference.parameters.map import run_map
from calmrl_prob.inference.parameters.nuts import run_nuts
from calmrl_prob.inference.parameters.svi import run_collapsed_svi
from calmrl_prob.inference.protocols import FitReport, Fittable, HasFit, HasLinearGaussian, HasStructure, Loads
from calmrl_prob.inference.subject import Subject
from calmrl_prob.linear_gaussian import (
    LinearGaussian,
    LinearGaussianMixture,
    ScaleMixture,
    StructuresByInstance,
    StudentTModel,
)


@dataclass(frozen=True)
class Method:
    """A way to fit a model.

    Attributes:
        name: of the method.
        run: from (subject, seed, callback, **options) to the report; it fits the model in place.
        refuses: from (subject, the name asked for) to why it does not serve, as the error that asking for it raises;
            None if it does.
        function: what does the work; its signature tells the options and the number of steps.
        auto: whether "auto" may take it.
        of_program: whether it fits the model as a Pyro program.
        instead: a method that serves in its place where that can, and whose name is then reported.
        serves_instead: whether it does, as such a method.
    """

    name: str
    run: Callable[..., FitReport]
    refuses: Callable[[Subject, str], CalmrlError | None]
    function: Callable[..., Any] | None = None
    auto: bool = True
    of_program: bool = False
    instead: str | None = None
    serves_instead: Callable[[Subject], bool] | None = None

    @property
    def options(self) -> tuple[str, ...] | None:
        """The names of its options; None where what does the work checks them itself."""
        if self.function is None:
            return None
        kinds = [parameter.kind for parameter in inspect.signature(self.function).parameters.values()]
        return None if inspect.Parameter.VAR_KEYWORD in kinds else keyword_options(self.function, ("form",))


def most_steps(method: Method, options: Mapping[str, Any]) -> int | None:
    """Largest number of calls back of a method, from its options and their defaults; None where it does not say."""
    if method.function is None:
        return None
    defaults = {name: known.default for name, known in inspect.signature(method.function).parameters.items()}
    settings = defaults | dict(options)
    if "num_chains" in settings:
        wanted = [settings[name] for name in ("num_draws", "num_warmup", "num_chains")]
        # what is no number the method itself refuses
        return (wanted[0] + wanted[1]) * wanted[2] if all(isinstance(count, int) for count in wanted) else None
    total = settings.get("num_steps", settings.get("max_iterations"))
    return total if isinstance(total, int) else None


def _refuse_own(subject: Subject, asked: str) -> CalmrlError | None:
    del asked
    if isinstance(subject.model, HasFit) and not isinstance(subject.model, type):
        return None
    return ArgumentTypeError("model: it has no method fit_to(data, seed, callback) of its own.")


def _run_own(subject: Subject, *arguments: Any, **options: Any) -> FitReport:
    report: FitReport = subject.model.fit_to(subject.data, *arguments, **options)
    return report


def _refuse_em(subject: Subject, asked: str) -> CalmrlError | None:
    del asked
    model = subject.model
    if not isinstance(model, Fittable) or isinstance(model, type):
        return ArgumentTypeError(
            f"model: method 'em' needs dims, latent_dim, noise and load_linear_gaussian(), which "
            f"{described(model)} lacks; use another method, or 'auto'."
        )
    if _batches(model) is not None:  # before it is asked what it states: it may be fitted to batches of others
        return None
    if isinstance(subject.stated, LinearGaussian) or not isinstance(model, HasStructure | HasLinearGaussian):
        return None
    try:
        assert isinstance(model, HasLinearGaussian)
        model.linear_gaussian()
    except NotConjugateError as error:  # its own words
        return error
    return None


def _batches(model: object) -> BatchEffects | None:
    found = getattr(model, "batch", None)
    return found if isinstance(found, BatchEffects) else None


def _run_em(subject: Subject, *arguments: Any, **options: Any) -> FitReport:
    if (effects := _batches(subject.model)) is not None:
        return run_batch_em(subject.model, effects, subject.data, *arguments, **options)
    return run_em(subject.model, checked_blocks(subject.model, subject.data), *arguments, **options)


def _states(
    method: str, families: tuple[type, ...], needs: str, *, whole_rows: bool = False
) -> Callable[[Subject, str], CalmrlError | None]:
    """Refusals of a method for models that state a structure of some families, and load it, on instances."""

    def refuses(subject: Subject, asked: str) -> CalmrlError | None:
        del asked
        serves = isinstance(subject.data, MultimodalData) and not (whole_rows and subject.data.has_partial_rows)
        if serves and isinstance(subject.model, Loads) and isinstance(subject.stated, families):
            return None
        return ArgumentTypeError(f"model: method {method!r} needs {needs}; got {described(subject.model)}.")

    return refuses


def _run_mixture(subject: Subject, *arguments: Any, **options: Any) -> FitReport:
    return run_mixture_em(subject.model, subject.stated, subject.data, *arguments, **options)  # type: ignore[arg-type]


def _run_scales(subject: Subject, *arguments: Any, **options: Any) -> FitReport:
    return run_scale_em(subject.model, subject.stated, subject.data, *arguments, **options)  # type: ignore[arg-type]


def _run_student_t(subject: Subject, *arguments: Any, **options: Any) -> FitReport:
    return run_student_t_em(subject.model, subject.data, *arguments, **options)  # type: ignore[arg-type]


_refuse_mixture = _states(
    "mixture em",
    (LinearGaussianMixture, StructuresByInstance),
    "a SharedLatentModel with a MixturePrior or GroupPrior, and MultimodalData",
)
_refuse_scales = _states(
    "scale em",
    (ScaleMixture,),
    "a SharedLatentModel with a StudentTPrior, or a model with structure() and load() of a ScaleMixture, and data with "
    "whole modalities",
    whole_rows=True,
)
_refuse_student_t = _states(
    "student-t em",
    (StudentTModel,),
    "a model with structure() and load() of a StudentTModel, as models/student_t.py has them, and MultimodalData",
)


def _refuse_program(subject: Subject, asked: str) -> CalmrlError | None:
    """Of a method that calls the model: data that are no instances; all else it says itself."""
    if isinstance(subject.data, MultimodalData):
        subject.bound.fitted_dims = None  # a fit may meet modalities that the last one did not know
        return None
    return ArgumentTypeError(
        f"data: method {asked!r} calls the model on instances and needs MultimodalData, got {described(subject.data)}."
    )


def _with_form(serves: Callable[[Subject], bool]) -> Callable[[Subject, str], CalmrlError | None]:
    """Refusals of a method that "auto" takes where the form is such; asked for by name, it says itself why not."""

    def refuses(subject: Subject, asked: str) -> CalmrlError | None:
        refusal = _refuse_program(subject, asked)
        if refusal is not None:
            if asked == "auto":
                raise refusal  # no other method takes statistics either
            return refusal
        if asked != "auto" or serves(subject):
            return None
        return subject.form_refusal or NotConjugateError("z", "another form", "Another method serves.", "auto")

    return refuses


def _has_scales(subject: Subject) -> bool:
    form = subject.form
    if form is None or not form.degrees_of_freedom:
        return False
    assert isinstance(subject.data, MultimodalData)
    return site_beyond_scale_mixtures(form, subject.data) is None


def _has_globals(subject: Subject) -> bool:
    form = subject.form
    return form is not None and bool(form.globals) and not form.degrees_of_freedom


def _has_parameters_only(subject: Subject) -> bool:
    form = subject.form
    return form is not None and not form.globals and not form.degrees_of_freedom


def _on_form(function: Callable[..., FitReport]) -> Callable[..., FitReport]:
    """The run of a method that works on the discovered form, which it discovers itself if there is none."""

    def run(subject: Subject, *arguments: Any, **options: Any) -> FitReport:
        if subject.form_refusal is not None:
            raise subject.form_refusal
        return function(subject.bound, subject.data, *arguments, form=subject.form, **options)

    return run


def _on_program(function: Callable[..., FitReport]) -> Callable[..., FitReport]:
    def run(subject: Subject, *arguments: Any, **options: Any) -> FitReport:
        return function(subject.bound, subject.data, *arguments, **options)

    return run


def _of_program(
    name: str, function: Callable[..., Any], serves: Callable[[Subject], bool] | None, **more: Any
) -> Method:
    refuses = _refuse_program if serves is None else _with_form(serves)
    on = _on_form if function in (run_gradient, run_scale_mixture) else _on_program
    return Method(name, on(function), refuses, function, auto=serves is not None, of_program=True, **more)


#: The model's own goes before all; then in the order in which "auto" tries them.
METHODS = (
    Method("own", _run_own, _refuse_own),
    Method("em", _run_em, _refuse_em, run_em),
    Method("mixture em", _run_mixture, _refuse_mixture, run_mixture_em),
    Method("scale em", _run_scales, _refuse_scales, run_scale_em),
    Method("student-t em", _run_student_t, _refuse_student_t, run_student_t_em),
    _of_program("scale mixture", run_scale_mixture, _has_scales),
    _of_program("map", run_map, _has_globals),
    _of_program("gradient", run_gradient, _has_parameters_only),
    _of_program("nuts", run_nuts, None),
    _of_program("collapsed svi", run_collapsed_svi, None, serves_instead=_has_globals),
    _of_program("svi", run_svi, lambda _: True, instead="collapsed svi"),
)
