"""Fitting by closed-form EM: the method "em" of ``calmrl_prob.fit``."""

from __future__ import annotations

import inspect
import logging
from typing import Any

from calmrl_prob.errors import ArgumentError
from calmrl_prob.inference.posterior import Fittable
from calmrl_prob.inference.progress import Callback
from calmrl_prob.linear_gaussian import EMResult, FeatureBlocks, ObservedBlocks, SufficientStatistics, fit_em

logger = logging.getLogger(__name__)

#: What ``fit`` settles itself; every other keyword of ``fit_em`` is an option of the method.
_SETTLED = ("latent_dim", "noise", "seed", "callback")
EM_OPTIONS = tuple(
    name
    for name, parameter in inspect.signature(fit_em).parameters.items()
    if parameter.kind is inspect.Parameter.KEYWORD_ONLY and name not in _SETTLED
)


def run_em(
    model: Fittable,
    data: ObservedBlocks | FeatureBlocks | SufficientStatistics,
    seed: int,
    callback: Callback | None,
    **options: Any,
) -> EMResult:
    """Fit a model in place.

    Raises:
        ArgumentError: an option that ``fit_em`` does not have.
    """
    unknown = sorted(set(options) - set(EM_OPTIONS))
    if unknown:
        raise ArgumentError(f"options: method 'em' has no option {unknown[0]!r}; it has {list(EM_OPTIONS)}.")
    result = fit_em(data, model.latent_dim, noise=model.noise, seed=seed, callback=callback, **options)
    model.load_linear_gaussian(result.linear_gaussian)
    logger.info("EM: %d iterations, stopped: %s", result.num_iterations, result.stop_reason)
    return result
