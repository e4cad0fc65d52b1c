"""The exact linear-Gaussian engine: torch alone, nothing of Pyro."""

from calmrl_prob.linear_gaussian.blocks import ObservedBlocks
from calmrl_prob.linear_gaussian.structure import LinearGaussian

__all__ = ["LinearGaussian", "ObservedBlocks"]
