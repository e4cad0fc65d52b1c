"""Fitting a model to data: the checks before, the method, and the report after."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from calmrl_prob._arguments import checked_seed, described
from calmrl_prob.data import MultimodalData, require_fittable, warn_unidentifiable
from calmrl_prob.errors import ArgumentError, ArgumentTypeError, ConvergenceWarning, DataError, SchemaError
from calmrl_prob.inference.em import run_em
from calmrl_prob.inference.posterior import Fittable
from calmrl_prob.inference.progress import progress_bar
from calmrl_prob.inference.result import FitResult
from calmrl_prob.linear_gaussian import EMResult, FeatureBlocks, ObservedBlocks, SufficientStatistics

#: Name -> function of (model, blocks or statistics, seed, callback, **options), which fits the model in place and
#: reports how that went.
FIT_METHODS: dict[str, Callable[..., EMResult]] = {"em": run_em}

#: Rows looked at to rule out that a feature is constant, before all rows are.
_FIRST_ROWS = 256


def fit(
    model: Fittable,
    data: MultimodalData | SufficientStatistics,
    method: str = "em",
    *,
    seed: int = 0,
    progress: bool = False,
    **options: Any,
) -> FitResult:
    """Fit a model to incomplete data, in place, by maximum likelihood of what was observed.

    Method "em" maximises sum_n log p(x_n) in closed-form steps from a spectral start; the log likelihood never falls
    (Liu et al., Calibrated Multimodal Representation Learning with Missing Modalities, 2025, Corollary 4). Its options
    are the keywords of :func:`calmrl_prob.linear_gaussian.fit_em`.

    Args:
        model: a ``SharedLatentModel``, or anything like those in ``models/``. Its parameters are replaced, its prior
            is kept.
        data: N instances with exactly the modalities of the model, in any order; or their sufficient statistics, for
            data that do not fit in memory, with the modalities in the model's order.
        method: "em".
        seed: of whatever the method draws; the same seed gives the same fit.
        progress: show a progress bar on standard error.
        **options: of the method, such as ``max_iterations`` and ``tolerance``.

    Returns:
        The trace of the log likelihood, the number of iterations, whether and why it stopped.

    Raises:
        ArgumentError: an unknown method or option, or more latents than the data can carry.
        ArgumentTypeError: ``model`` or ``data`` is of another type.
        SchemaError: the modalities or widths are not those of the model.
        DataError: fewer than 2 instances, a modality that no instance has, or features without spread whose noise
            variance would go to zero.

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
    if not isinstance(model, Fittable):
        raise ArgumentTypeError(
            f"model: expected a SharedLatentModel, got {described(model)}; or give your class dims, "
            "latent_dim, noise, linear_gaussian() and load_linear_gaussian()."
        )
    if not isinstance(data, MultimodalData | SufficientStatistics):
        raise ArgumentTypeError(
            f"data: expected MultimodalData or SufficientStatistics, got {described(data)}; "
            "wrap arrays in MultimodalData."
        )
    seed = checked_seed(seed)
    if not isinstance(method, str) or method not in FIT_METHODS:
        raise ArgumentError(f"method: expected one of {list(FIT_METHODS)}, got {method!r}.")
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
    num_instances = blocks.num_instances
    _require_carried(model, num_instances)
    start = time.perf_counter()
    total = options.get("max_iterations")  # what it is instead of a number, the method refuses
    bar = progress_bar(method, total if isinstance(total, int) else None) if progress else nullcontext()
    with bar as callback:
        report = FIT_METHODS[method](model, blocks, seed, callback, **options)
    result = FitResult(
        model=model,
        log_likelihood=report.log_likelihood.numpy(),
        objective=report.objective.numpy(),
        num_iterations=report.num_iterations,
        converged=report.converged,
        stop_reason=report.stop_reason,
        criterion=report.criterion,
        tolerance=report.tolerance,
        form=report.form,
        seconds=time.perf_counter() - start,
        method=method,
        seed=seed,
        num_instances=num_instances,
        options=MappingProxyType(dict(options)),
    )
    if not result.converged:
        warnings.warn(
            f"method {method!r} stopped before its criterion was met: {result.stop_reason}. Raise max_iterations, or "
            "raise tolerance if the log likelihood has levelled off (see log_likelihood of the result).",
            ConvergenceWarning,
            stacklevel=2,
        )
    return result


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
