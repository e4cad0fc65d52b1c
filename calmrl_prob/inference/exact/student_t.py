"""Closed-form ECM of the Student-t model: the method "student-t em" of ``calmrl_prob.fit``."""

from __future__ import annotations

from typing import Any

from calmrl_prob._support.arguments import keyword_options, require_known_options
from calmrl_prob._support.progress import Callback
from calmrl_prob.data import MultimodalData
from calmrl_prob.inference.protocols import Loads
from calmrl_prob.linear_gaussian import EMResult, StudentTEMOptions, StudentTModel, fit_student_t_em

#: What the fit settles itself; every other keyword of ``fit_student_t_em`` is an option.
_SETTLED = ("noise", "seed", "callback")
_OPTIONS = keyword_options(fit_student_t_em, _SETTLED, StudentTEMOptions)


def run_student_t_em(
    model: Loads, data: MultimodalData, seed: int, callback: Callback | None, **options: Any
) -> EMResult[StudentTModel]:
    """Fit a model whose latent and noise share one scale for each instance, in place.

    Args:
        model: takes over what was found.
        data: N instances.
        seed: of the start.
        callback: called after each step with the number of E-steps so far and the evidence, nats.
        **options: keywords of :func:`calmrl_prob.linear_gaussian.fit_student_t_em`.

    Raises:
        ArgumentError: an unknown option, or one out of range.
    """
    require_known_options(options, _OPTIONS, "method 'student-t em'")
    blocks = data.conform(model.dims).blocks
    found = fit_student_t_em(blocks, model.latent_dim, noise=model.noise, seed=seed, callback=callback, **options)
    model.load(found.structure)
    return found
