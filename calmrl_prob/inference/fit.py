"""Fitting a model to data: the checks before, the method, and the report after."""

from __future__ import annotations

import time
import warnings
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

from calmrl_prob._support.arguments import checked_seed, described, require_known_options
from calmrl_prob._support.arrays import own_array
from calmrl_prob._support.frozen import FrozenMapping
from calmrl_prob._support.normal_mode import normal_mode
from calmrl_prob._support.progress import progress_bar
from calmrl_prob.data import MultimodalData, require_fittable
from calmrl_prob.errors import ArgumentError, ArgumentTypeError, ConvergenceWarning
from calmrl_prob.inference.feature_names import aligned, remember, require_features
from calmrl_prob.inference.methods import METHODS, Method, most_steps
from calmrl_prob.inference.normal_mode import normal_data, require_trainable
from calmrl_prob.inference.protocols import FitReport, Fittable, HasFit, Loads
from calmrl_prob.inference.result import FitResult
from calmrl_prob.inference.seen import remember_rows
from calmrl_prob.inference.subject import Subject
from calmrl_prob.linear_gaussian import SufficientStatistics
from calmrl_prob.programs.bound import BoundModel, PyroModel


def fit(
    model: Fittable | HasFit | PyroModel,
    data: MultimodalData | SufficientStatistics,
    method: str = "auto",
    *,
    seed: int = 0,
    progress: bool = False,
    **options: Any,
) -> FitResult:
    """Fit a model to incomplete data, in place.

    Method "auto" takes the first of these that the model admits:

    - "em": closed-form EM steps from a spectral start, for ``SharedLatentModel`` and whatever can take over a
      ``LinearGaussian``. The log likelihood never falls (Liu et al., Calibrated Multimodal Representation Learning with
      Missing Modalities, 2025, Corollary 4). Options: keywords of :func:`calmrl_prob.linear_gaussian.fit_em`.
    - "mixture em": the same for ``SharedLatentModel`` with a ``MixturePrior`` or ``GroupPrior``. Options: keywords of
      :func:`calmrl_prob.linear_gaussian.fit_mixture_em`.
    - "scale em": the same for models with a ``StudentTPrior``, or with Student-t noise as ``models/robust.py`` has it.
      Options: keywords of :func:`calmrl_prob.linear_gaussian.fit_scale_em`.
    - "student-t em": the same where latent and noise of an instance share one scale, as in ``models/student_t.py``.
      Options: keywords of :func:`calmrl_prob.linear_gaussian.fit_student_t_em`.
    - "gradient": L-BFGS on the exact evidence, for any Pyro model that is conjugate and has parameters (``pyro.param``
      statements, or those of a module). Options: ``max_iterations``, ``tolerance``.
    - "scale mixture": the same for models with Student-t sites: on the evidence where an instance has one scale, on its
      lower bound where it has several. Options: ``max_iterations``, ``tolerance``.
    - "map": global latents (sites outside the plate) by their joint mode with the latents marginalised exactly; "svi"
      (or "collapsed svi") and "nuts" give their posterior instead, at a cost that does not grow with N where statistics
      serve. Options: keywords of :func:`calmrl_prob.inference.run_map`, such as ``num_starts``; of
      :func:`calmrl_prob.inference.run_collapsed_svi` (``guide``, ``num_steps``, ``num_draws``); of
      :func:`calmrl_prob.inference.run_nuts` (``num_draws``, ``num_warmup``, ``num_chains``, ``max_tree_depth``). "nuts"
      may take many minutes: ``progress=True`` shows how long.
    - "svi": stochastic variational inference with an amortised guide, for all other models. Options: keywords of
      :func:`calmrl_prob.inference.fit_svi`.

    Args:
        model: a ``SharedLatentModel``, anything like those in ``models/``, or any Pyro callable with a plate
            "instances". Its parameters are replaced, its prior is kept.
        data: N instances with exactly the modalities of the model, in any order; or, for "em", their sufficient
            statistics, for data that do not fit in memory, with the modalities in the model's order.
        method: "auto", or a method by name.
        seed: of whatever the method draws, and of what ``pyro.param(name, lambda: torch.randn(...))`` draws to start
            from; the same seed gives the same fit, several seeds several starts.
        progress: show a progress bar on standard error, with the time that is left at the present pace.
        **options: of the method, such as ``max_iterations`` and ``tolerance``.

    Returns:
        The trace of the log likelihood, the number of iterations, whether and why it stopped. ``model`` of the result
        is the fitted model: of a plain function, the function with the parameters found for it.

    Raises:
        ArgumentError: an unknown method or option, or more latents than the data can carry.
        ArgumentTypeError: ``model`` or ``data`` is of another type.
        SchemaError: the modalities or widths are not those of the model.
        DataError: fewer than 2 instances, a modality that no instance has, or features without spread whose noise
            variance would go to zero.
        ModelError: a Pyro model breaks the form that every route needs.
        NotConjugateError: the method needs a form that the model does not have; names the site and the reason.

    Warns:
        IdentifiabilityWarning: groups of modalities never meet in an instance.
        ConvergenceWarning: the method stopped before its criterion was met.

    Example:
        >>> import torch
        >>> generator = torch.Generator().manual_seed(0)
        >>> z = torch.randn(50, 1, generator=generator)
        >>> x = {name: z + 0.1 * torch.randn(50, 3, generator=generator) for name in ("image", "text")}
        >>> x["text"][:20] = torch.nan
        >>> data = MultimodalData(x)
        >>> from calmrl_prob.model import SharedLatentModel
        >>> model = SharedLatentModel(data.dims, latent_dim=1)
        >>> result = fit(model, data)
        >>> result.converged, bool((result.objective[1:] >= result.objective[:-1]).all())
        (True, True)
    """
    _require_types(model, data)
    require_trainable(model)
    with normal_mode():
        result = _fit(model, normal_data(data), method, seed, progress=progress, options=options)
    if not result.converged and not getattr(result.report, "warned", False):
        remedy = getattr(result.report, "remedy", "") or (
            "Raise max_iterations, or raise tolerance if the log likelihood has levelled off (see log_likelihood of "
            "the result)."
        )
        warnings.warn(
            f"method {result.method!r} stopped before its criterion was met: {result.stop_reason}. {remedy}",
            ConvergenceWarning,
            stacklevel=2,
        )
    return result


def _fit(
    model: Fittable | HasFit | PyroModel,
    data: MultimodalData | SufficientStatistics,
    method: str,
    seed: int,
    *,
    progress: bool,
    options: dict[str, Any],
) -> FitResult:
    seed = checked_seed(seed)
    named = [known.name for known in METHODS if known.name != "own"]
    if not isinstance(method, str) or method not in ("auto", *named):
        raise ArgumentError(f"method: expected one of {['auto', *named]}, got {method!r}.")
    start = time.perf_counter()
    if isinstance(data, MultimodalData):
        data = aligned(model, data)
    else:
        require_features(model, data)
    subject = Subject(model, data, seed, generic=True)
    chosen = _chosen(subject, method)
    if chosen.options is not None:
        require_known_options(options, chosen.options, f"method {chosen.name!r}")
    if isinstance(data, MultimodalData) and chosen.name != "em":
        require_fittable(data)
    bar = progress_bar(chosen.name, most_steps(chosen, options)) if progress else nullcontext()
    with bar as callback:
        report = chosen.run(subject, seed, callback, **options)
    fitted: Any = subject.bound if chosen.of_program else model
    if isinstance(fitted, BoundModel):
        fitted.fitted_dims = data.dims if isinstance(data, MultimodalData) else dict(data.dims)
    remember(fitted, data)
    result = _result(report, fitted, chosen.name, seed, data.num_instances, options, time.perf_counter() - start)
    return replace(result, rows_of_fit=remember_rows(fitted, data))


def _require_types(model: object, data: object) -> None:
    if not callable(model) and not isinstance(model, Fittable | Loads | HasFit):
        raise ArgumentTypeError(
            f"model: expected a SharedLatentModel or a Pyro model, got {described(model)}; or give your class dims, "
            "latent_dim, noise and load_linear_gaussian()."
        )
    if not isinstance(data, MultimodalData | SufficientStatistics):
        raise ArgumentTypeError(
            f"data: expected MultimodalData or SufficientStatistics, got {described(data)}; "
            "wrap arrays in MultimodalData."
        )


def _chosen(subject: Subject, name: str) -> Method:
    """The method of a name; for "auto" the first that does not refuse. A model's own goes before all names."""
    own, *others = METHODS
    if own.refuses(subject, name) is None:
        return own
    if name == "auto":
        return next(method for method in others if method.auto and method.refuses(subject, name) is None)
    method = next(method for method in others if method.name == name)
    if (refusal := method.refuses(subject, name)) is not None:
        raise refusal
    if method.instead is not None:
        other = next(found for found in others if found.name == method.instead)
        if other.serves_instead is not None and other.serves_instead(subject):
            return other
    return method


def _result(
    report: FitReport,
    model: Any,  # noqa: ANN401 - whatever was fitted
    method: str,
    seed: int,
    num_instances: int,
    options: Mapping[str, Any],
    seconds: float,
) -> FitResult:
    return FitResult(
        model=model,
        log_likelihood=own_array(report.log_likelihood),
        objective=own_array(report.objective),
        num_iterations=report.num_iterations,
        converged=report.converged,
        stop_reason=report.stop_reason,
        criterion=report.criterion,
        tolerance=report.tolerance,
        form=report.form,
        seconds=seconds,
        method=method,
        seed=seed,
        num_instances=num_instances,
        options=FrozenMapping(dict(options)),
        report=report,
    )
