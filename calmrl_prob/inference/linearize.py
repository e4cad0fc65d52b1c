"""The linear-Gaussian model nearest to a program, as a start for what has to be found by gradients."""

from __future__ import annotations

import torch
from torch import Tensor

from calmrl_prob.data import MultimodalData
from calmrl_prob.errors import ModelError
from calmrl_prob.inference.instances import InstanceModel
from calmrl_prob.linear_gaussian import LinearGaussian

#: Draws that the prior's mean and covariance are estimated from.
_PRIOR_DRAWS = 4096


@torch.no_grad()
def linearize(model: InstanceModel, data: MultimodalData) -> LinearGaussian:
    """Replace a program by a linear-Gaussian one that agrees with it to first order about the prior's mean.

    With m0 and S0 the prior's moments (from draws) and s_k^2 the diagonal of S0:

        W[:, k] = (E[x | m0 + s_k e_k] - E[x | m0 - s_k e_k]) / (2 s_k),   mu = E[x | m0] - W m0,   psi = Var[x | m0]

    Of a linear-Gaussian program it is the program itself, but for the prior's moments; central differences over one
    standard deviation see the slope that matters where the program is bent. Programs that differ by instance are read
    at the first row that has the modality.

    Args:
        model: the program.
        data: what it is called with.
    """
    drawn = model.prior_draws(data.subset([0] * _PRIOR_DRAWS))
    mean = drawn.mean(dim=0)
    covariance = torch.atleast_2d(torch.cov(drawn.mT))
    if not bool(covariance.isfinite().all()):
        raise ModelError("model: draws of its prior are not finite; look for NaN in its parameters.")
    scale = covariance.diagonal().sqrt()
    steps = torch.diag(scale)
    points = torch.cat([mean[None], mean + steps, mean - steps])
    loadings, intercepts, noise = {}, {}, {}
    for name in model.dims:
        first = int(data.observed(name).nonzero()[0]) if bool(data.observed(name).any()) else 0
        location, variance = model.moments(data.subset([first] * len(points)), points, (name,))[name]
        loadings[name] = _finite((location[1 : len(scale) + 1] - location[len(scale) + 1 :]).mT / (2 * scale), 0.0)
        intercepts[name] = _finite(location[0] - loadings[name] @ mean, 0.0)
        noise[name] = _finite(variance[0], 1.0)  # that of a heavy-tailed site may be infinite
    return LinearGaussian(loadings, intercepts, noise, mean, covariance)


def _finite(values: Tensor, otherwise: float) -> Tensor:
    return torch.where(values.isfinite(), values, otherwise)
