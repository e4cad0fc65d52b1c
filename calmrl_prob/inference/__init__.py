"""Fitting, and the posterior of the latents, each behind one call and one type of result."""

from __future__ import annotations

from calmrl_prob.inference.fit import FIT_METHODS, fit
from calmrl_prob.inference.posterior import Fittable, HasLinearGaussian, PosteriorResult, as_linear_gaussian, posterior
from calmrl_prob.inference.result import FitResult

__all__ = [
    "FIT_METHODS",
    "FitResult",
    "Fittable",
    "HasLinearGaussian",
    "PosteriorResult",
    "as_linear_gaussian",
    "fit",
    "posterior",
]
