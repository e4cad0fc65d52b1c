"""Plots of data, fits, imputations and their uncertainty.

    import calmrl_prob as cal

    cal.plots.missingness_map(data)
    cal.plots.evidence_trace(fit)

Every function takes matplotlib axes as ``ax`` (or makes them), draws on them and returns them; none shows or saves a
figure, and none changes matplotlib's settings. Needs ``pip install 'calmrl-prob[plots]'``.
"""

from calmrl_prob.plots.acquisition import value_of_information
from calmrl_prob.plots.choice import choice
from calmrl_prob.plots.circle import anchor_shift_circle
from calmrl_prob.plots.evidence import evidence_trace
from calmrl_prob.plots.gallery import retrieval_gallery
from calmrl_prob.plots.imputed import imputed_against_true
from calmrl_prob.plots.latent_dim import latent_dim_choice
from calmrl_prob.plots.latents import latent_space
from calmrl_prob.plots.loadings import variance_explained
from calmrl_prob.plots.missing import missingness_map
from calmrl_prob.plots.priors import prior_against_posterior
from calmrl_prob.plots.risk import risk_coverage
from calmrl_prob.plots.stated_uncertainty import coverage, error_against_sd, pit
from calmrl_prob.plots.weights import top_weights

__all__ = [
    "anchor_shift_circle",
    "choice",
    "coverage",
    "error_against_sd",
    "evidence_trace",
    "imputed_against_true",
    "latent_dim_choice",
    "latent_space",
    "missingness_map",
    "pit",
    "prior_against_posterior",
    "retrieval_gallery",
    "risk_coverage",
    "top_weights",
    "value_of_information",
    "variance_explained",
]
