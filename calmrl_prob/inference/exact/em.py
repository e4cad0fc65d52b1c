"""Fitting by closed-form EM: the method "em" of ``calmrl_prob.fit``."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from calmrl_prob._support.arguments import described, keyword_options, real_number, require_known_options, whole_number
from calmrl_prob._support.progress import Callback
from calmrl_prob._support.warnings import warn_unreliable
from calmrl_prob.errors import ArgumentError, ArgumentTypeError
from calmrl_prob.inference.protocols import Fittable, HasLinearGaussian
from calmrl_prob.linear_gaussian import (
    EMOptions,
    EMResult,
    FeatureBlocks,
    FewLinks,
    LinearGaussian,
    ObservedBlocks,
    SufficientStatistics,
    fit_em,
)
from calmrl_prob.priors import NormalPrior

logger = logging.getLogger(__name__)

#: What ``fit`` settles itself; every other keyword of ``fit_em`` is an option of the method.
_SETTLED = ("noise", "noise_rank", "seed", "callback")
EM_OPTIONS = keyword_options(fit_em, _SETTLED, EMOptions)
#: Options that say where a fit starts or how its latents lie, so that it is not to be turned.
_AXES = ("start", "support", "prior_mean", "prior_covariance")
#: Options that are numbers, with a value that messages suggest, and those that count something.
_NUMBERS = {
    "tolerance": 1e-6,
    "noise_floor": 1e-4,
    "noise_pseudo_count": 1.0,
    "loadings_precision": 1.0,
    "pseudo_rows": 100.0,
    "pseudo_row_pooling": 1.0,
}
_COUNTS = ("max_iterations", "anderson_memory")


def run_em(
    model: Fittable,
    data: ObservedBlocks | FeatureBlocks | SufficientStatistics,
    seed: int,
    callback: Callback | None,
    **options: Any,
) -> EMResult[LinearGaussian]:
    """Fit a model in place.

    Raises:
        ArgumentError: an option that ``fit_em`` does not have, or one out of range.
        ArgumentTypeError: an option of another type.
    """
    require_known_options(options, EM_OPTIONS, "method 'em'")
    options = _checked(options, model.latent_dim)
    options |= {"noise": model.noise, "noise_rank": getattr(model, "noise_rank", None)}
    result = fit_em(data, model.latent_dim, seed=seed, callback=callback, **options)
    if not any(options.get(key) is not None for key in _AXES):
        result = _best_of_turns(result, data, seed, options)
    model.load_linear_gaussian(result.linear_gaussian)
    logger.info("EM: %d iterations, stopped: %s", result.num_iterations, result.stop_reason)
    return result


def _best_of_turns(
    first: EMResult[LinearGaussian],
    data: ObservedBlocks | FeatureBlocks | SufficientStatistics,
    seed: int,
    options: Mapping[str, Any],
) -> EMResult[LinearGaussian]:
    """The best of several fits where few rows link some modalities with the rest; the first one where many do.

    Warns:
        ReliabilityWarning: fits that are about as likely say otherwise how these modalities go together.
    """
    latent_dim = first.linear_gaussian.latent_dim
    few = FewLinks.of(data, latent_dim)
    if few is None:
        return first
    starts = few.starts(first.linear_gaussian, data, seed)
    found = [first, *(fit_em(data, latent_dim, seed=seed, **{**options, "start": start}) for start in starts)]
    found.sort(key=lambda result: -float(result.objective[-1]))
    warn_unreliable(
        f"few instances link some modalities: {said}; how they go together is not known, nor imputations of one from "
        "the other. Give more instances that have both"
        for said in few.undecided([(result.linear_gaussian, float(result.objective[-1])) for result in found])
    )
    return found[0]


def _checked(options: dict[str, Any], latent_dim: int) -> dict[str, Any]:
    """The options as ``fit_em`` takes them: a start as LinearGaussian, the prior in double precision.

    ``fit_em`` itself looks at the ranges of numbers and at how the start fits the data.
    """
    options = dict(options)
    if options.get("loadings_precision", 0) is None:  # None is its default, and settings in files spell it out
        del options["loadings_precision"]
    for argument, default in _NUMBERS.items():
        if argument in options:
            options[argument] = real_number(argument, options[argument], default)
    for argument in _COUNTS:
        if argument in options:
            options[argument] = whole_number(argument, options[argument])
    options |= _start(options.get("start")) | _prior(options, latent_dim)
    return options


def _start(start: object) -> dict[str, LinearGaussian]:
    if start is None:
        return {}
    if isinstance(start, LinearGaussian):
        return {"start": start}
    if isinstance(start, HasLinearGaussian) and not isinstance(start, type):
        return {"start": start.linear_gaussian().detach()}
    raise ArgumentTypeError(
        f"start: expected a LinearGaussian or a model that has one, got {described(start)}; leave it out to start "
        "from the data."
    )


def _prior(options: Mapping[str, Any], latent_dim: int) -> dict[str, Tensor]:
    mean, covariance = options.get("prior_mean"), options.get("prior_covariance")
    try:
        prior = NormalPrior(latent_dim, mean, covariance)
    except (ArgumentError, ArgumentTypeError) as error:
        raise type(error)(f"prior_{error}") from None  # the messages begin with "mean" or "covariance"
    given = {"prior_mean": mean, "prior_covariance": covariance}
    checked = {"prior_mean": prior.mean, "prior_covariance": prior.covariance}
    return {name: value for name, value in checked.items() if given[name] is not None}
