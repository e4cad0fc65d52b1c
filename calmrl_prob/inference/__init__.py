"""Fitting, and the posterior of the latents, each behind one call and one type of result."""

from __future__ import annotations

from calmrl_prob.inference.approximate.svi import fit_svi
from calmrl_prob.inference.fit import fit
from calmrl_prob.inference.methods import METHODS, Method
from calmrl_prob.inference.parameters.collapsed import CollapsedModel, marginalize
from calmrl_prob.inference.parameters.map import run_map
from calmrl_prob.inference.parameters.nuts import run_nuts
from calmrl_prob.inference.parameters.parameter_draws import ParameterDraws
from calmrl_prob.inference.parameters.svi import run_collapsed_svi
from calmrl_prob.inference.posterior import as_linear_gaussian, posterior
from calmrl_prob.inference.protocols import Fittable, HasLinearGaussian, HasStructure, Loads
from calmrl_prob.inference.result import FitResult
from calmrl_prob.inference.routes import ROUTES, Route
from calmrl_prob.posteriors.posterior import PosteriorResult
from calmrl_prob.posteriors.predictive import MixturePredictive, NormalPredictive, Predictive

__all__ = [
    "METHODS",
    "ROUTES",
    "CollapsedModel",
    "FitResult",
    "Fittable",
    "HasLinearGaussian",
    "HasStructure",
    "Loads",
    "Method",
    "MixturePredictive",
    "NormalPredictive",
    "ParameterDraws",
    "PosteriorResult",
    "Predictive",
    "Route",
    "as_linear_gaussian",
    "fit",
    "fit_svi",
    "marginalize",
    "posterior",
    "run_collapsed_svi",
    "run_map",
    "run_nuts",
]
