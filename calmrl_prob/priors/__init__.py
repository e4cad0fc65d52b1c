"""Priors of the shared latent. One file a prior; add a line to ``PRIORS`` and it can be named, saved and loaded."""

from __future__ import annotations

from calmrl_prob.priors.flow import FlowPrior
from calmrl_prob.priors.gaussian_process import GaussianProcessPrior
from calmrl_prob.priors.group import GroupPrior
from calmrl_prob.priors.mixture import MixturePrior
from calmrl_prob.priors.normal import NormalPrior
from calmrl_prob.priors.prior import Prior
from calmrl_prob.priors.student_t import StudentTPrior

#: Name -> class. The name is what a saved model states.
PRIORS: dict[str, type[Prior]] = {
    prior.name: prior for prior in (NormalPrior, MixturePrior, StudentTPrior, GroupPrior, FlowPrior)
}

__all__ = [
    "PRIORS",
    "FlowPrior",
    "GaussianProcessPrior",
    "GroupPrior",
    "MixturePrior",
    "NormalPrior",
    "Prior",
    "StudentTPrior",
]
