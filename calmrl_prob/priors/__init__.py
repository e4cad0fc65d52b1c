"""Priors of the shared latent. One file a prior; add a line to ``PRIORS`` and it can be named, saved and loaded."""

from __future__ import annotations

from calmrl_prob.priors.gaussian_process import GaussianProcessPrior
from calmrl_prob.priors.normal import NormalPrior
from calmrl_prob.priors.prior import Prior

#: Name -> class. The name is what a saved model states.
PRIORS: dict[str, type[Prior]] = {NormalPrior.name: NormalPrior}

__all__ = ["PRIORS", "GaussianProcessPrior", "NormalPrior", "Prior"]
