"""The spread of the latents of given data, where that is not what the prior says.

Of a fit by maximum likelihood the prior's covariance is that of the latents: the posteriors of the rows, averaged, have
it, or else loadings of another scale would be likelier. A prior of the loadings shrinks them, and the latents make up
for it by spreading more widely than the prior of z says, so that |w|^2 tells too little of what a latent explains. The
spread that goes with given loadings and noise is the likeliest one,

    S = argmax_S sum_n log p(x_n | W, mu, Psi, m, S),   where   S = 1/N sum_n V_n + (m_n - m)(m_n - m)^T

with N(m_n, V_n) the posterior of row n under N(m, S): EM repeats the right-hand side. Of independent latents S is kept
diagonal, as the M-step for a diagonal S is the diagonal of the same. Scaling W by A and S by A^-1 changes nothing.
Source: Dempster, Laird & Rubin, Maximum Likelihood from Incomplete Data via the EM Algorithm (1977).
"""

from __future__ import annotations

import warnings
from dataclasses import replace

import torch
from torch import Tensor

from calmrl_prob._support.warnings import level_of_caller
from calmrl_prob.data import MultimodalData
from calmrl_prob.errors import ArgumentError, ConvergenceWarning
from calmrl_prob.inference.posterior import posterior
from calmrl_prob.linear_gaussian import LinearGaussian
from calmrl_prob.posteriors.gaussian import GaussianPosterior

#: Steps of EM at most, and the change of a modality's share of explained variance below which it ends: a latent that
#: hardly explains anything has a spread that the data hardly tell, and no end of steps.
_STEPS, _CHANGE = 500, 1e-5


def with_spread_of(lg: LinearGaussian, data: MultimodalData, *, independent: bool) -> LinearGaussian:
    """The form under the prior of the latents that makes given data likeliest, all else as it is.

    Args:
        lg: the form, in double precision.
        data: N rows, with any modalities missing.
        independent: whether the latents stay uncorrelated under the prior.

    Raises:
        ArgumentError: fewer than two rows.
        SchemaError: the data are of other modalities.
        ArgumentTypeError: ``data`` is of another type.

    Warns:
        ConvergenceWarning: EM has not ended.

    Example:
        >>> lg = LinearGaussian({"x": torch.ones(2, 1)}, {"x": torch.zeros(2)}, {"x": torch.full((2,), 1e-6)})
        >>> data = MultimodalData({"x": torch.tensor([[-2.0, -2.0], [2.0, 2.0]])})
        >>> with_spread_of(lg.to(torch.float64), data.to(torch.float64), independent=True).prior_covariance.round()
        tensor([[4.]], dtype=torch.float64)
    """
    if len(data) < 2:
        raise ArgumentError("data: of fewer than two rows the spread of the latents is not known; give more.")
    for _ in range(_STEPS):
        found = posterior(lg, data)
        assert isinstance(found, GaussianPosterior)
        counts = found.pattern_index.bincount(minlength=len(found.pattern_covariance)).to(found.mean)
        mean = found.mean.mean(0)
        centred = found.mean - mean
        spread = torch.einsum("p,pij->ij", counts, found.pattern_covariance) + centred.mT @ centred
        spread = spread / len(centred)
        if independent:
            spread = spread.diagonal().diag()
        change = _share_moved(lg, (spread - lg.prior_covariance).diagonal().abs())
        lg = replace(lg, prior_mean=mean, prior_covariance=(spread + spread.mT) / 2)
        if change < _CHANGE:
            return lg
    warnings.warn(
        f"data: after {_STEPS} steps of EM shares still change by {change:.1g} in a step; fit fewer latents.",
        ConvergenceWarning,
        stacklevel=level_of_caller(),
    )
    return lg


def _share_moved(lg: LinearGaussian, moved: Tensor) -> float:
    """Share of a modality's variance, the largest of all, that variances (K,) of the latents which moved explain."""
    shares = []
    for name, weights in lg.loadings.items():
        by_latent = weights.square().sum(0)
        whole = (weights @ lg.prior_covariance * weights).sum() + lg.noise_variance[name].sum()
        shares.append(float(by_latent @ moved / whole))
    return max(shares)
