"""Fitting a model to data: the checks before, the method, and the report after."""

from __future__ import annotations

import inspect
import time
import warnings
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from functools import partial
from types import MappingProxyType
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from calmrl_prob._support.arguments import checked_seed, described, keyword_options, require_known_options
from calmrl_prob._support.progress import Callback, progress_bar
from calmrl_prob.conjugacy import discover
from calmrl_prob.data import MultimodalData, require_fittable, warn_unidentifiable
from calmrl_prob.errors import (
    ArgumentError,
    ArgumentTypeError,
    ConvergenceWarning,
    DataError,
    NotConjugateError,
    SchemaError,
)
from calmrl_prob.inference.approximate.svi import run_svi
from calmrl_prob.inference.exact.em import run_em
from calmrl_prob.inference.exact.gradient import run_gradient
from calmrl_prob.inference.exact.mixture import has_closed_form, run_mixture_em
from calmrl_prob.inference.exact.scale_mixture_fit import fits, has_scale_form, run_scale_em, run_scale_mixture
from calmrl_prob.inference.parameters.map import run_map
from calmrl_prob.inference.parameters.nuts import run_nuts
from calmrl_prob.inference.parameters.svi import run_collapsed_svi
from calmrl_prob.inference.posterior import Fittable, HasLinearGaussian
from calmrl_prob.inference.result import FitReport, FitResult
from calmrl_prob.linear_gaussian import FeatureBlocks, ObservedBlocks, SufficientStatistics
from calmrl_prob.programs.bound import BoundModel, PyroModel

#: Name -> function of (model, data, seed, callback, **options), which fits the model in place and reports how that
#: went. The model is Fittable for "em", and a BoundModel for all others.
FIT_METHODS: dict[str, Callable[..., FitReport]] = {
    "em": run_em,
    "gradient": run_gradient,
    "mixture em": run_mixture_em,
    "scale em": run_scale_em,
    "scale mixture": run_scale_mixture,
    "map": run_map,
    "nuts": run_nuts,
    "collapsed svi": run_collapsed_svi,
    "svi": run_svi,
}


@runtime_checkable
class HasFit(Protocol):
    """A model with a way of its own to be fitted."""

    def fit_to(
        self, data: MultimodalData | SufficientStatistics, seed: int, callback: Callback | None, **options: Any
    ) -> FitReport:
        """Fit to data, in place."""
        ...


#: Rows looked at to rule out that a feature is constant, before all rows are.
_FIRST_ROWS = 256


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
    if not callable(model) and not isinstance(model, Fittable | HasFit):
        raise ArgumentTypeError(
            f"model: expected a SharedLatentModel or a Pyro model, got {described(model)}; or give your class dims, "
            "latent_dim, noise and load_linear_gaussian()."
        )
    if not isinstance(data, MultimodalData | SufficientStatistics):
        raise ArgumentTypeError(
            f"data: expected MultimodalData or SufficientStatistics, got {described(data)}; "
            "wrap arrays in MultimodalData."
        )
    seed = checked_seed(seed)
    known = ["auto", *FIT_METHODS]
    if not isinstance(method, str) or method not in known:
        raise ArgumentError(f"method: expected one of {known}, got {method!r}.")
    start = time.perf_counter()
    prepared: Any
    run: Callable[..., FitReport]
    if isinstance(model, HasFit) and not isinstance(model, type):
        method, run, prepared = "own", model.fit_to, data
    else:
        fitted, method = _resolve(model, data, method, seed)
        _require_options(method, options)
        model, run = fitted, partial(FIT_METHODS[method], fitted)
        prepared = _prepared(fitted, data) if method == "em" else data
    if isinstance(data, MultimodalData) and method != "em":
        require_fittable(data)
    bar = progress_bar(method, _most_steps(run, options)) if progress else nullcontext()
    with bar as callback:
        report = run(prepared, seed, callback, **options)
    if isinstance(model, BoundModel):
        model.fitted_dims = dict(data.dims)
    result = FitResult(
        model=model,
        log_likelihood=report.log_likelihood.detach().cpu().numpy(),
        objective=report.objective.detach().cpu().numpy(),
        num_iterations=report.num_iterations,
        converged=report.converged,
        stop_reason=report.stop_reason,
        criterion=report.criterion,
        tolerance=report.tolerance,
        form=report.form,
        seconds=time.perf_counter() - start,
        method=method,
        seed=seed,
        num_instances=data.num_instances,
        options=MappingProxyType(dict(options)),
        report=report,
    )
    if not result.converged and not getattr(report, "warned", False):
        warnings.warn(
            f"method {method!r} stopped before its criterion was met: {result.stop_reason}. Raise max_iterations, or "
            "raise tolerance if the log likelihood has levelled off (see log_likelihood of the result).",
            ConvergenceWarning,
            stacklevel=2,
        )
    return result


def _resolve(model: Any, data: MultimodalData | SufficientStatistics, method: str, seed: int) -> tuple[Any, str]:  # noqa: ANN401
    """The model as the method takes it, and the method that "auto" stands for."""
    if isinstance(model, Fittable) and not isinstance(model, type) and method in ("auto", "em"):
        try:
            if isinstance(model, HasLinearGaussian):
                model.linear_gaussian()
        except NotConjugateError:
            if method == "em":
                raise
        else:
            return model, "em"
    if has_closed_form(model) and method in ("auto", "mixture em"):
        return model, "mixture em"
    if method == "mixture em":
        raise ArgumentTypeError(
            f"model: method 'mixture em' needs a SharedLatentModel with a MixturePrior or GroupPrior, got "
            f"{described(model)}."
        )
    if has_scale_form(model) and method in ("auto", "scale em") and not _lacks_features(data):
        return model, "scale em"
    if method == "scale em":
        raise ArgumentTypeError(
            f"model: method 'scale em' needs a SharedLatentModel with a StudentTPrior, or a model with student_t, "
            f"load_likelihood() and load_degrees_of_freedom(), and data with whole modalities; got {described(model)}."
        )
    if method == "em":
        raise ArgumentTypeError(
            f"model: method 'em' needs dims, latent_dim, noise and load_linear_gaussian(), which "
            f"{described(model)} lacks; use another method, or 'auto'."
        )
    if not isinstance(data, MultimodalData):
        raise ArgumentTypeError(
            f"data: method {method!r} calls the model on instances and needs MultimodalData, got {described(data)}."
        )
    bound = model if isinstance(model, BoundModel) else BoundModel(model, seed)
    bound.fitted_dims = None  # a fit may meet modalities that the last one did not know
    if method not in ("auto", "svi"):
        return bound, method
    try:
        form = discover(bound, data, generic=True)
    except NotConjugateError:
        return bound, "svi"
    if method == "svi":
        return bound, "collapsed svi" if form.globals and not form.degrees_of_freedom else "svi"
    if form.degrees_of_freedom:
        return bound, "scale mixture" if fits(form, data) is None else "svi"
    return bound, "map" if form.globals else "gradient"


def _most_steps(run: Callable[..., FitReport], options: Mapping[str, Any]) -> int | None:
    """How often a method calls back at most, from its options and their defaults; None where it does not say."""
    settings = {name: known.default for name, known in inspect.signature(run).parameters.items()} | dict(options)
    if "num_chains" in settings:
        wanted = [settings[name] for name in ("num_draws", "num_warmup", "num_chains")]
        # what is no number the method itself refuses
        return (wanted[0] + wanted[1]) * wanted[2] if all(isinstance(count, int) for count in wanted) else None
    total = settings.get("num_steps", settings.get("max_iterations"))
    return total if isinstance(total, int) else None


def _require_options(method: str, options: Mapping[str, Any]) -> None:
    """Refuse options that a method does not have; those that hand on what they are given see to it themselves."""
    run = FIT_METHODS[method]
    if all(p.kind is not inspect.Parameter.VAR_KEYWORD for p in inspect.signature(run).parameters.values()):
        require_known_options(options, keyword_options(run, ()), f"method {method!r}")


def _lacks_features(data: MultimodalData | SufficientStatistics) -> bool:
    return not isinstance(data, MultimodalData) or data.has_partial_rows


def _prepared(
    model: Fittable, data: MultimodalData | SufficientStatistics
) -> ObservedBlocks | FeatureBlocks | SufficientStatistics:
    """What closed-form steps work on, checked to be enough for the model.

    Raises:
        SchemaError, DataError, ArgumentError: as ``fit`` does.
    """
    if isinstance(data, MultimodalData):
        data.require_schema(model.dims)
        require_fittable(data)
        _require_spread(model, data)
        blocks: ObservedBlocks | FeatureBlocks | SufficientStatistics = data.conform(model.dims).blocks
    else:
        if list(data.dims.items()) != list(model.dims.items()):
            raise SchemaError(f"data: expected statistics of {dict(model.dims)} in this order, got {data.dims}.")
        if data.num_instances < 2:
            raise DataError(f"data: expected statistics of at least 2 instances, got {data.num_instances}.")
        warn_unidentifiable(data)
        blocks = data
    _require_carried(model, blocks.num_instances)
    return blocks


def _require_carried(model: Fittable, num_instances: int) -> None:
    """Refuse more latents than the centred data have dimensions."""
    total = sum(model.dims.values())
    largest = min(total, num_instances) - 1
    if model.latent_dim > largest:
        raise ArgumentError(
            f"latent_dim: {model.latent_dim} latents are more than {num_instances} instances of {total} features in "
            f"all can carry; the largest that they can is {largest}."
        )


def _require_spread(model: Fittable, data: MultimodalData) -> None:
    """Refuse features without spread where the likelihood would grow without bound as their noise goes to zero."""
    first_rows = data.subset(slice(0, _FIRST_ROWS))
    for name, width in data.dims.items():
        columns = _constant(first_rows[name]).nonzero().squeeze(1)
        if len(columns):
            columns = columns[_constant(data[name][:, columns])]
        if len(columns) == width:
            raise DataError(
                f"modality {name!r}: {_sameness(data, name)}, so there is nothing to learn; "
                "leave it out with data.select."
            )
        if len(columns) and model.noise == "diagonal":
            first = int(columns[0])
            which = f"feature {first} is" if len(columns) == 1 else f"{len(columns)} features, first {first}, are"
            raise DataError(
                f"modality {name!r}: {which} constant, so that noise variances would go to zero; leave constant "
                "features out, or use noise='isotropic'."
            )


def _sameness(data: MultimodalData, name: str) -> str:
    count = int(data.observed(name).sum())
    return "only 1 instance has it" if count == 1 else f"all of the {count} rows that it has are the same"


def _constant(values: Tensor) -> Tensor:
    """Which columns of (N, D) hold at most one distinct number besides NaN, (D,) bool."""
    low = values.nan_to_num(nan=torch.inf).amin(dim=0)
    high = values.nan_to_num(nan=-torch.inf).amax(dim=0)
    return low >= high
