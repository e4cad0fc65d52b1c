"""Priors of the loadings, for use inside Pyro models. One file a prior; add a line to ``LOADINGS_PRIORS``."""

from __future__ import annotations

from calmrl_prob.priors.loadings.ard import ARDLoadings
from calmrl_prob.priors.loadings.horseshoe import HorseshoeLoadings
from calmrl_prob.priors.loadings.normal import NormalLoadings
from calmrl_prob.priors.loadings.prior import LoadingsPrior
from calmrl_prob.priors.loadings.spike_slab import SpikeSlabLoadings

#: Name -> class. Every class can be made without arguments.
LOADINGS_PRIORS: dict[str, type[LoadingsPrior]] = {
    prior.name: prior for prior in (NormalLoadings, ARDLoadings, HorseshoeLoadings, SpikeSlabLoadings)
}

__all__ = [
    "LOADINGS_PRIORS",
    "ARDLoadings",
    "HorseshoeLoadings",
    "LoadingsPrior",
    "NormalLoadings",
    "SpikeSlabLoadings",
]
