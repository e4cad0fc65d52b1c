"""The linear-Gaussian model nearest to a Pyro model, as a start for what has to be found by gradients."""

from __future__ import annotations

import torch
from torch import Tensor

from calmrl_prob.conjugacy.gaussian_sites import Gaussian, read_site
from calmrl_prob.data import MultimodalData
from calmrl_prob.errors import ModelError
from calmrl_prob.linear_gaussian import LinearGaussian
from calmrl_prob.posteriors.instances import InstanceModel

#: Draws that the moments of a prior that is not Gaussian are estimated from.
_PRIOR_DRAWS = 4096


@torch.no_grad()
def linearize(model: InstanceModel, data: MultimodalData) -> LinearGaussian:
    """Replace a model by a linear-Gaussian one that agrees with it to first order about the prior's mean.

    With m0 and S0 the prior's moments, read off or from draws, and s_k^2 the diagonal of S0:

        W[:, k] = (E[x | m0 + s_k e_k] - E[x | m0 - s_k e_k]) / (2 s_k),   mu = E[x | m0] - W m0,   psi = Var[x | m0]

    Of a linear-Gaussian model this is the model itself; of others, differences over one standard deviation see the
    slope that matters. A model that differs by instance is read at the first row that has the modality.

    Args:
        model: the model.
        data: what it is called with.

    Raises:
        ModelError: draws of the prior are not finite.
    """
    mean, covariance = _prior_moments(model, data)
    scale = covariance.diagonal().sqrt()
    steps = torch.diag(scale)
    points = torch.cat([mean[None], mean + steps, mean - steps])
    loadings, intercepts, noise = {}, {}, {}
    for name in model.dims:
        present = data.observed(name).nonzero()
        first = int(present[0]) if len(present) else 0
        location, variance = model.moments(data.subset([first] * len(points)), points, (name,))[name]
        ahead, behind = location[1:].chunk(2)
        loadings[name] = _finite((ahead - behind).mT / (2 * scale), 0.0)
        intercepts[name] = _finite(location[0] - loadings[name] @ mean, 0.0)
        noise[name] = _finite(variance[0], 1.0)  # that of a heavy-tailed site may be infinite
    return LinearGaussian(loadings, intercepts, noise, mean, covariance)


def _prior_moments(model: InstanceModel, data: MultimodalData) -> tuple[Tensor, Tensor]:
    """Mean (K,) and covariance (K, K) of the stretched latents."""
    call = model.bound.call(data.subset([0] * _PRIOR_DRAWS))
    means, covariances = [], []
    for block in model.blocks:
        read = read_site(call.latents[block.site.name]) if block.is_free else None
        if not isinstance(read, Gaussian) or read.degrees_of_freedom is not None or not _same_in_every_row(read):
            break
        covariance = torch.diag(read.diagonal[0])
        covariances.append(covariance if read.factor is None else covariance + read.factor[0] @ read.factor[0].mT)
        means.append(read.mean[0])
    else:
        return torch.cat(means), torch.block_diag(*covariances)
    drawn = torch.cat([block.stretched(call.latents[block.site.name].value) for block in model.blocks], dim=1)
    if not bool(drawn.isfinite().all()):
        raise ModelError("model: draws of its prior are not finite; look for NaN in its parameters.")
    return drawn.mean(dim=0), torch.atleast_2d(torch.cov(drawn.mT))


def _same_in_every_row(read: Gaussian) -> bool:
    """Whether the latent depends on no other, which would have drawn another value for each row."""
    parts = [part for part in (read.mean, read.diagonal, read.factor) if part is not None]
    return all(bool((part == part[:1]).all()) for part in parts)


def _finite(values: Tensor, otherwise: float) -> Tensor:
    return torch.where(values.isfinite(), values, otherwise)
