"""The exact linear-Gaussian engine: torch alone, nothing of Pyro."""

from calmrl_prob.linear_gaussian.blocks import ObservedBlocks
from calmrl_prob.linear_gaussian.posterior import Posterior, Predictive, log_marginal, posterior, predict
from calmrl_prob.linear_gaussian.structure import LinearGaussian

__all__ = ["LinearGaussian", "ObservedBlocks", "Posterior", "Predictive", "log_marginal", "posterior", "predict"]
