"""The M-step: loadings, intercepts and noise variances from expected moments, each in closed form.

For each group g (a modality, or a feature where single features may be missing), over the rows that have it and with
z~ = [z; 1]:

    [W^g, mu^g] = (sum x E[z~]^T) (sum E[z~ z~^T])^-1
    psi_d       = (sum x_d^2 - [W, mu]_d . sum x_d E[z~] + nu s_d^2) / (n_g + nu)

and, for isotropic noise, psi averaged over the modality's features. nu pseudo-observations with mean square s_d^2 make
the weak inverse-gamma prior on the noise variance; nu = 0 is maximum likelihood.

Parameter expansion (Liu, Rubin & Wu, Parameter expansion to accelerate EM: the PX-EM algorithm, 1998): let the latent
have a free mean eta and covariance Phi, estimate them too, and absorb them, W <- W Phi^1/2, mu <- mu + W eta. Each step
still never lowers the evidence, and there are about a third as many.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from calmrl_prob.linear_gaussian.expectation import Moments, Totals
from calmrl_prob.linear_gaussian.parameters import Parameters, Shape
from calmrl_prob.linear_gaussian.posterior import factorize


@dataclass(frozen=True)
class NoiseModel:
    """What is asked of the noise variances.

    Attributes:
        isotropic: one variance for each modality, or one for each feature.
        floor: (D,) the least noise variance allowed.
        pseudo_count: nu, the weight of the prior in observations of each feature; 0 for none.
        pseudo_variance: (D,) s_d^2, the variance that those observations had.
    """

    isotropic: bool
    floor: Tensor
    pseudo_count: float
    pseudo_variance: Tensor

    def pooler(self, shape: Shape) -> Callable[[Tensor], Tensor]:
        """The map from a variance for each feature to the variances that the model allows."""
        if not self.isotropic:
            return lambda variance: variance

        def pool(variance: Tensor) -> Tensor:
            return torch.cat([variance[part].mean().expand(part.stop - part.start) for part in shape.slices])

        return pool

    def log_prior(self, noise_variance: Tensor, shape: Shape) -> float:
        """Log density of the noise variances under the prior, up to a constant; nats."""
        if self.pseudo_count == 0:
            return 0.0
        terms = -0.5 * self.pseudo_count * (noise_variance.log() + self.pseudo_variance / noise_variance)
        return float(terms.sum())


class Summary(Protocol):
    """What the M-step reads of the data itself; every ``ExpectationStep`` has it.

    Attributes:
        shape: the stacked layout.
        totals: sums over the rows, weighted where rows have weights.
        feature_count: (D,) rows that have each feature.
    """

    @property
    def shape(self) -> Shape: ...  # noqa: D102
    @property
    def totals(self) -> Totals: ...  # noqa: D102
    @property
    def feature_count(self) -> Tensor: ...  # noqa: D102


def maximize(step: Summary, moments: Moments, noise_model: NoiseModel, *, expand: bool) -> Parameters:
    """The parameters that the moments ask for.

    Args:
        step: the layout and the constants of the data, such as the E-step that the moments come from.
        moments: from ``step``.
        noise_model: the form of the noise.
        expand: whether to expand parameters (PX-EM).
    """
    right = torch.cat([moments.cross, step.totals.total[:, None]], dim=1)
    factor = factorize(moments.latent[:-1])
    if len(factor) == len(right):
        joint = torch.cholesky_solve(right[:, :, None], factor).squeeze(2)
    else:
        parts = zip(step.shape.slices, factor, strict=True)
        joint = torch.cat([torch.cholesky_solve(right[part].mT, lower).mT for part, lower in parts])
    count = step.feature_count.clamp(min=1)
    residual = step.totals.square - (joint * right).sum(1)
    nu = noise_model.pseudo_count
    pool = noise_model.pooler(step.shape)
    noise = pool((residual + nu * noise_model.pseudo_variance) / (count + nu))
    loadings, intercepts = joint[:, :-1], joint[:, -1]
    if expand:
        every = moments.latent[-1] / moments.latent[-1, -1, -1]
        mean = every[-1, :-1]
        scale = factorize(every[:-1, :-1] - torch.outer(mean, mean))
        intercepts = intercepts + loadings @ mean
        loadings = loadings @ scale
    return Parameters(loadings, intercepts, noise).with_floor(noise_model.floor)
