"""Fitting by closed-form EM: the method "em" of ``calmrl_prob.fit``."""

from __future__ import annotations

import inspect
import logging
from typing import Any

import numpy as np
from numpy.typing import NDArray

from calmrl_prob.data import MultimodalData
from calmrl_prob.errors import ArgumentError
from calmrl_prob.inference.posterior import Fittable
from calmrl_prob.inference.progress import Callback
from calmrl_prob.linear_gaussian.em import fit_em

logger = logging.getLogger(__name__)

#: What the model and ``fit`` settle; every other keyword of ``fit_em`` is an option of the method.
_SETTLED = ("noise", "prior_mean", "prior_covariance", "seed", "callback")
EM_OPTIONS = tuple(
    name
    for name, parameter in inspect.signature(fit_em).parameters.items()
    if parameter.kind is inspect.Parameter.KEYWORD_ONLY and name not in _SETTLED
)


def run_em(
    model: Fittable, data: MultimodalData, seed: int, callback: Callback | None, **options: Any
) -> tuple[NDArray[np.float64], int, bool, str]:
    """Fit a model in place.

    Returns:
        The log likelihood of each iteration (T,), their number, whether it converged, and why it stopped.

    Raises:
        ArgumentError: an option that ``fit_em`` does not have.
    """
    unknown = sorted(set(options) - set(EM_OPTIONS))
    if unknown:
        raise ArgumentError(f"options: method 'em' has no option {unknown[0]!r}; it has {list(EM_OPTIONS)}.")
    result = fit_em(data.blocks, model.latent_dim, noise=model.noise, seed=seed, callback=callback, **options)
    # The evidence is the same under any normal prior, so the fit is made with the standard one and then moved.
    model.load_linear_gaussian(result.linear_gaussian)
    logger.info("EM: %d iterations, stopped: %s", result.num_iterations, result.stop_reason)
    trace = result.log_likelihood.detach().double().cpu().numpy()
    return trace, result.num_iterations, result.converged, result.stop_reason
