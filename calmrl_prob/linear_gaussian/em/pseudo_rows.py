"""A prior of the joint covariance of all features, as rows that were never seen: what ridge regression assumes.

nu complete rows with mean m, variances t_d and no correlation at all add to the log likelihood of a model with
mean mu and covariance Sigma = W W^T + Psi

    -nu/2 (log |Sigma| + tr(Sigma^-1 (diag(t) + (m - mu)(m - mu)^T)))

which is the log density, up to a constant, of a normal-inverse-Wishart prior. Where all rows are complete and K is
large enough for Sigma to be free, its maximum is Sigma = (n S + nu diag(t)) / (n + nu), with S the covariance of the n
rows, and the prediction of modality j from modality i is ridge regression with penalty nu t_i:
S_ji (S_ii + nu/n diag(t_i))^-1. Loadings and noise are shrunk together, so that the signal fades in favour of noise of
the right size; a prior of either alone leaves the other to overfit.

Source: Chen, Bayesian inference for a normal dispersion matrix and its application to stochastic multiple regression
analysis (1979); Schneider, Analysis of incomplete climate data (2001), for ridge regression within EM.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from calmrl_prob.errors import ArgumentError
from calmrl_prob.linear_gaussian.em.expectation import ExpectationStep, Moments, Totals, augment
from calmrl_prob.linear_gaussian.em.parameters import Parameters
from calmrl_prob.linear_gaussian.posterior import factorize


@dataclass(frozen=True)
class PseudoRows:
    """Complete rows whose features are uncorrelated, as far as EM needs them.

    Attributes:
        count: nu, how many; need not be a whole number.
        mean: m, shape (D,), about the shift of the data.
        variance: t, shape (D,).
    """

    count: float
    mean: Tensor
    variance: Tensor

    def moments(self, parameters: Parameters, num_groups: int) -> Moments:
        """Expected moments at ``parameters``; ``log_likelihood`` is the log density of the prior up to a constant.

        With A = Psi^-1 W, d = m - mu and V = (I + A^T W)^-1, sums over the rows are nu times
        E[z] = V A^T d, E[zz^T] = V + V A^T (diag(t) + d d^T) A V and x E[z]^T = (diag(t) + m d^T) A V.
        """
        loadings, noise = parameters.loadings, parameters.noise_variance
        weights = parameters.weights
        identity = torch.eye(loadings.shape[1], dtype=loadings.dtype, device=loadings.device)
        factor = factorize(identity + weights.mT @ loadings)
        covariance = torch.cholesky_inverse(factor)
        deviation = self.mean - parameters.intercepts
        spread = self.variance[:, None] * weights
        natural = deviation @ weights
        scatter = weights.mT @ spread + torch.outer(natural, natural)
        cross = (spread + torch.outer(self.mean, natural)) @ covariance
        first, second = covariance @ natural, covariance + covariance @ scatter @ covariance
        if parameters.noise_factor is None:
            own, log_noise = ((self.variance + deviation.square()) / noise).sum(), noise.log()
        else:
            inverse = torch.cat([part.inverse_diagonal() for part in parameters.noises])
            own = inverse @ self.variance + deviation @ parameters.solve(deviation[:, None]).squeeze(1)
            log_noise = torch.stack([part.log_determinant() for part in parameters.noises]).sum() / len(noise)
        squares = own - (scatter * covariance).sum()
        half_logdet = factor.diagonal().log().sum()
        constant = 0.5 * (math.log(2 * math.pi) + log_noise.expand_as(noise)).sum()
        latent = augment(
            self.count * first.expand(num_groups, -1),
            self.count * second.flatten().expand(num_groups, -1),
            first.new_full((num_groups,), self.count),
        )
        return Moments(-self.count * float(constant + half_logdet + 0.5 * squares), self.count * cross, latent)


class WithPseudoRows(ExpectationStep):
    """An E-step over the data and the pseudo-rows together.

    Args:
        step: over the data.
        pseudo_rows: what to add.
    """

    def __init__(self, step: ExpectationStep, pseudo_rows: PseudoRows) -> None:
        self.step, self.pseudo_rows = step, pseudo_rows
        self.shape, self.grouping = step.shape, step.grouping
        nu, mean = pseudo_rows.count, pseudo_rows.mean
        self.totals = Totals(
            step.totals.count + nu,
            step.totals.total + nu * mean,
            step.totals.square + nu * (pseudo_rows.variance + mean.square()),
            None
            if step.totals.scatters is None
            else tuple(
                scatter.plus(nu * mean[part, None], mean[part, None], nu * pseudo_rows.variance[part])
                for part, scatter in zip(step.shape.slices, step.totals.scatters, strict=True)
            ),
        )

    def __call__(self, parameters: Parameters) -> Moments:
        """Expected moments of both; the log likelihood is that of the data, the prior's is ``log_prior``."""
        data = self.step(parameters)
        prior = self.pseudo_rows.moments(parameters, len(data.latent))
        return Moments(data.log_likelihood, data.cross + prior.cross, data.latent + prior.latent, prior.log_likelihood)


def require_prior_of_covariance(count: float, pooling: float) -> None:
    """Refuse weights that cannot be used.

    Raises:
        ArgumentError: naming the option.
    """
    if not 0 <= count < math.inf:
        raise ArgumentError(f"pseudo_rows: expected a number of rows from 0 up, got {count}.")
    if not 0 <= pooling <= 1:
        raise ArgumentError(f"pseudo_row_pooling: expected a share from 0 to 1, got {pooling}.")
