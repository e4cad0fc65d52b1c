"""Latents that died on the way, and the directions that they are set on instead.

While the noise variance is still too large, EM shrinks every latent whose direction varies less than that noise, by a
factor each step, until it is zero to rounding. Once the noise has come down there is nothing left to grow from: the fit
stands at a saddle, thousands of nats below its maximum, and no step tells. So where a fit ends with latents of no
loadings, these are set on the leading directions of what is left over,

    Psi^-1/2 (C - W W^T) Psi^-1/2,

as the spectral start has it, and the fit goes on if that raises the objective. A maximum where latents are zero by
right stays as it is, to the last bit.
"""

from __future__ import annotations

import torch

from calmrl_prob.linear_gaussian.em.noise_model import NoiseModel
from calmrl_prob.linear_gaussian.em.parameters import Parameters, Shape
from calmrl_prob.linear_gaussian.em.spectral import PairwiseCovariance, spectral_start

#: Eigenvalue of W^T Psi^-1 W, the signal of a direction of the latents in units of noise, below which it is dead:
#: chance alone gives one about sqrt(D / N).
_DEAD = 1e-3


def revived(
    point: Parameters, covariance: PairwiseCovariance, shape: Shape, noise_model: NoiseModel, generator: torch.Generator
) -> Parameters | None:
    """The same parameters with dead latents set on what is left over; None where all live.

    Args:
        point: where a fit ended; its noise is uncorrelated, its latents standard normal.
        covariance: of the data about the shift.
        shape: the stacked layout.
        noise_model: the form of the noise, and its floor.
        generator: for the random block that the subspace iteration starts from.
    """
    signal, axes = torch.linalg.eigh(point.loadings.mT @ point.weights)
    dead = int((signal < _DEAD).sum())
    if dead == 0:
        return None
    loadings = point.loadings @ axes  # turning standard normal latents changes nothing
    loadings[:, :dead] = 0
    rest = covariance.rest(loadings, torch.ones_like(point.noise_variance))
    found = spectral_start(rest, shape, dead, noise_model, generator)
    loadings[:, :dead] = found.loadings
    return Parameters(loadings, point.intercepts, found.noise_variance).with_floor(noise_model.floor)
