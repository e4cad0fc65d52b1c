"""Modes that are none: a scale that runs to zero with all that it scales, while the joint density rises without bound.

With tau a scale that has a prior and w_1 .. w_n ~ N(m, tau^2), the density of (tau, w) along the ray w = m + tau u, u
held fixed, goes as tau^-n: as tau goes to 0 it exceeds everything, whatever the data say, unless the prior of tau
vanishes at 0 faster than any power (InverseGamma does, LogNormal barely; HalfNormal, HalfCauchy and Gamma do not). Such
a model may still have a local mode of sensible size, and its posterior is proper: mass is finite where height is not.

The test is the ray itself. At a mode w, log tau is a maximum along it, and a step down loses what the likelihood had of
w; where an ascent ran away there is nothing left to lose, and every step gains.

Source: Neal, Slice sampling (2003), the funnel; Gelman, Carlin, Stern, Dunson, Vehtari & Rubin, Bayesian Data Analysis
(2013), section 13.1, on modes of hierarchical models.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from calmrl_prob.programs.sites import Site

if TYPE_CHECKING:
    from calmrl_prob.inference.parameters.collapsed import CollapsedModel

#: Steps along the ray, on the unconstrained scale: a positive site falls by e^-1, e^-2, e^-4.
_STEPS = (0.0, 1.0, 2.0, 4.0)
#: Nats for each unit of the ray that count as rising: n - 1 of them come with n values that shrink.
_RISES = 0.5
#: Change of a log variance that is more than rounding.
_CHANGES = 1e-6


@torch.no_grad()
def runaway_sites(model: CollapsedModel, theta: Tensor) -> tuple[str, ...]:
    """The sites that scale others, and which have run away with them at theta (n,); empty at a mode.

    Of a site with several entries the one that has gone farthest is tried. It costs one call of the model for each site
    and, for those that scale others, three densities.
    """
    priors = model.priors(model.values(theta))
    found = []
    for name, site in model.sites.items():
        moved = theta.clone()
        moved[site.place] += 1.0
        growth = _growth(model, theta, priors, model.priors(model.values(moved)))
        if not growth:
            continue
        way = -1.0 if sum(growth.values()) > 0 else 1.0
        ray = torch.zeros_like(theta)
        ray[site.place.start + int((way * theta[site.place]).argmax())] = way
        heights = [float(model.log_joint(_along(model, priors, theta + step * ray, growth))) for step in _STEPS]
        slopes = np.diff(heights) / np.diff(_STEPS)
        if slopes[0] > _RISES and not any(slope <= _RISES for slope in slopes):  # NaN, where numbers end, is not below
            found.append(name)
    return tuple(found)


def _along(model: CollapsedModel, priors: Mapping[str, Site], theta: Tensor, children: Iterable[str]) -> Tensor:
    """theta (n,) with sites moved so that, in units of their prior there, they are where they were."""
    after = model.priors(model.values(theta))
    for child in children:
        old, new = priors[child], after[child]
        value = new.fn.mean + (old.value - old.fn.mean) * (new.fn.variance / old.fn.variance).sqrt()
        theta[model.sites[child].place] = value.double().flatten()
    return theta


def advice(sites: Iterable[str], kept: bool) -> str:
    """Advice on scales that ran to zero.

    Args:
        sites: that ran away from some start.
        kept: whether a mode that did not run away was found and kept.
    """
    names = ", ".join(repr(name) for name in sites)
    outcome = (
        "the mode kept is a local one, of those that stay away from it"
        if kept
        else "the values found have run there and say nothing of the data"
    )
    return (
        f"site {names}: the joint density has no bound as it goes to where all that it scales shrinks to nothing, so "
        f"there is no joint mode; {outcome}. Use method 'svi' or 'nuts'; or give it a number, or a prior that keeps it "
        "away from zero, such as InverseGamma; or sample standard normals and multiply them by it (non-centred)"
    )


def _growth(
    model: CollapsedModel, theta: Tensor, before: Mapping[str, Site], after: Mapping[str, Site]
) -> dict[str, float]:
    """The real-valued sites whose prior variance has changed, and the mean of its logarithm's change."""
    found = {}
    for name, site in before.items():
        place = theta[model.sites[name].place]
        if site.value.numel() != len(place) or not torch.allclose(site.value.double().flatten(), place):
            continue  # not on the real line: it does not scale
        try:
            change = float((after[name].fn.variance / site.fn.variance).log().mean())
        except NotImplementedError:  # a distribution without a formula for it
            continue
        if math.isfinite(change) and abs(change) > _CHANGES:
            found[name] = change
    return found
