"""The M-step: loadings, intercepts and noise variances from expected moments, each in closed form.

For each group g (a modality, or features of one that are always missing together), over the rows that have it and with
z~ = [z; 1]:

    [W^g, mu^g] = (sum x E[z~]^T) (sum E[z~ z~^T])^-1
    psi_d       = (sum x_d^2 - [W, mu]_d . sum x_d E[z~] + nu s_d^2) / (n_g + nu)

and, for isotropic noise, psi averaged over the modality's features. nu pseudo-observations with mean square s_d^2 make
the weak inverse-gamma prior on the noise variance; nu = 0 is maximum likelihood.

With a prior of the loadings (``penalties.py``) the moments are joined by psi_d / s_d^2 diag(alpha, 0), psi as it
was before the step; the objective, evidence plus log prior, still never falls (Meng & Rubin, Maximum likelihood
estimation via the ECM algorithm, 1993).

Parameter expansion (Liu, Rubin & Wu, Parameter expansion to accelerate EM: the PX-EM algorithm, 1998): let the latent
have a free mean eta and covariance Phi, estimate them too, and absorb them, W <- W Phi^1/2, mu <- mu + W eta. Each step
still never lowers the evidence, and there are about a third as many.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from calmrl_prob.linear_gaussian.em.correlated import (
    CorrelatedNoiseModel,
    maximize_correlated,
    penalised_joint,
)
from calmrl_prob.linear_gaussian.em.expectation import Moments, Totals
from calmrl_prob.linear_gaussian.em.noise_model import NoiseModel
from calmrl_prob.linear_gaussian.em.parameters import Parameters, Shape
from calmrl_prob.linear_gaussian.em.penalties import LoadingsPenalty
from calmrl_prob.linear_gaussian.em.support import Support
from calmrl_prob.linear_gaussian.grouping import Grouping
from calmrl_prob.linear_gaussian.noise import CorrelatedNoise
from calmrl_prob.linear_gaussian.posterior import factorize


class Summary(Protocol):
    """Protocol of the data's own totals that the M-step reads; every ``ExpectationStep`` has them.

    Attributes:
        shape: the stacked layout.
        totals: sums over the rows, weighted where rows have weights.
        feature_count: (D,) rows that have each feature.
        grouping: the group of each feature.
    """

    @property
    def shape(self) -> Shape: ...  # noqa: D102
    @property
    def totals(self) -> Totals: ...  # noqa: D102
    @property
    def feature_count(self) -> Tensor: ...  # noqa: D102
    @property
    def grouping(self) -> Grouping: ...  # noqa: D102


def maximize(
    step: Summary,
    moments: Moments,
    noise_model: NoiseModel,
    *,
    expand: bool,
    loadings_prior: LoadingsPenalty | None = None,
    current: Parameters | None = None,
    support: Support | None = None,
) -> Parameters:
    """The parameters that the moments ask for.

    Args:
        step: the layout and the constants of the data, such as the E-step that the moments come from.
        moments: from ``step``.
        noise_model: the form of the noise.
        expand: whether to expand parameters (PX-EM).
        loadings_prior: penalises loadings; None for maximum likelihood.
        current: the parameters that the moments were taken at; needed with ``loadings_prior``.
        support: which latents serve which modality; all serve all if None.
    """
    if support is not None:
        moments = support.restrict(step.shape, step.grouping, moments)
    right = torch.cat([moments.cross, step.totals.total[:, None]], dim=1)
    factor = factorize(moments.latent[:-1])
    penalty = None
    if loadings_prior is not None and current is not None:
        penalty = PenalisedStep.at(loadings_prior, current)
        joint = penalty.solve(step, factor, right)
    else:
        joint = step.grouping.solve(factor, right)
    count = step.feature_count.clamp(min=1)
    loadings, intercepts = joint[:, :-1], joint[:, -1]
    if support is not None:  # a penalised step leaves what rounding makes of 0
        loadings = loadings * support.mask[step.shape.feature_modality]
    factors = None
    if isinstance(noise_model, CorrelatedNoiseModel):
        assert step.totals.scatters is not None
        assert current is not None
        found = maximize_correlated(step.shape, step.totals.scatters, moments, joint, right, noise_model, current)
        noise, factors = torch.cat([part.specific for part in found]), tuple(part.factor for part in found)
    else:
        residual = step.totals.square - (joint * right).sum(1)
        if penalty is not None:
            residual = residual - penalty.pull(loadings)
        nu = noise_model.pseudo_count
        noise = noise_model.maximum(step.shape, residual + nu * noise_model.pseudo_variance, count + nu)
    if expand:
        every = moments.latent[-1] / moments.latent[-1, -1, -1]
        mean = every[-1, :-1]
        covariance = every[:-1, :-1] - torch.outer(mean, mean)
        if support is not None:
            covariance = covariance * support.interchangeable
        intercepts = intercepts + loadings @ mean
        if penalty is None:
            loadings = loadings @ factorize(covariance)
        else:
            loadings = loadings * penalty.expansion(loadings, covariance.diagonal(), moments.latent[-1, -1, -1])
    return Parameters(loadings, intercepts, noise, factors).with_floor(noise_model.floor)


@dataclass(frozen=True)
class PenalisedStep:
    """A normal prior of the loadings in one M-step: (W, mu) for the noise as it was, then the noise.

    Attributes:
        precision: (D, K), alpha_dk of w_dk / s_d.
        ratio: (D,), psi_d / s_d^2.
        scale: (D,), s_d^2.
        noises: of each modality, where noise is correlated within; then ``ratio`` is not used.
    """

    precision: Tensor
    ratio: Tensor
    scale: Tensor
    noises: tuple[CorrelatedNoise, ...] = ()

    @classmethod
    def at(cls, prior: LoadingsPenalty, current: Parameters) -> PenalisedStep:
        """The normal prior that touches ``prior`` at the loadings as they are."""
        precision = prior.precision(current.loadings)[prior.shape.feature_modality]
        return cls(precision, current.noise_variance / prior.scale, prior.scale, current.noises)

    def solve(self, step: Summary, factor: Tensor, right: Tensor) -> Tensor:
        """[W, mu], shape (D, K + 1): rows b_d (C + r_d A)^-1 with C = L L^T the moments of z~ and A = diag(alpha, 0).

        L^-1 A L^-T = U S U^T, found once for each group, leaves a division for each feature: with X = L^-T U,
        (C + r A)^-1 = X (I + r S)^-1 X^T.
        """
        if self.noises:
            return self._solve_correlated(step, factor, right)
        grouping = step.grouping
        per_group = self.precision[grouping.first]
        root = torch.diag_embed(torch.cat([per_group.sqrt(), per_group.new_zeros(len(per_group), 1)], dim=1))
        half = torch.linalg.solve_triangular(factor, root, upper=False)
        eigenvalues, vectors = torch.linalg.eigh(half @ half.mT)
        basis = torch.linalg.solve_triangular(factor.mT, vectors, upper=True)
        shrink = 1 + self.ratio[:, None] * eigenvalues.clamp(min=0)[grouping.feature_group]
        return grouping.times(grouping.times(right, basis) / shrink, basis.mT)

    def _solve_correlated(self, step: Summary, factor: Tensor, right: Tensor) -> Tensor:
        """The same where noise is correlated within modalities, which couples their features."""
        parts = zip(step.shape.slices, factor, self.noises, strict=True)
        return torch.cat(
            [
                penalised_joint(lower, right[part], self.precision[part.start], self.scale[part], noise)
                for part, lower, noise in parts
            ]
        )

    def pull(self, loadings: Tensor) -> Tensor:
        """r_d w_d^T A w_d, shape (D,): what w^T C w falls short of w^T b, since (C + r A) w = b."""
        return self.ratio * (self.precision * loadings.square()).sum(1)

    def expansion(self, loadings: Tensor, variance: Tensor, count: Tensor) -> Tensor:
        """The factor sqrt(phi_k) that expanding the latent's variances puts on each column, shape (K,).

        The maximum of -N/2 log phi - N v/(2 phi) - c phi/2, with c = sum_d alpha_dk w_dk^2 / s_d^2 the prior's price:
        the root of c phi^2 + N phi - N v = 0. Without a prior phi = v. Rotations are left out, since they would turn
        the axes that the prior is about.
        """
        price = (self.precision * loadings.square() / self.scale[:, None]).sum(0)
        discriminant = (count.square() + 4 * price * count * variance).sqrt()
        return (2 * count * variance / (count + discriminant)).sqrt()


def expected_residual(step: Summary, moments: Moments, joint: Tensor) -> tuple[Tensor, Tensor]:
    """Expected residual that [W, mu], shape (D, K + 1), leaves unexplained, over the rows that have each feature.

    Returns:
        sum E[(x - w~^T z~) z~^T], shape (D, K + 1), and sum E[(x - w~^T z~)^2], shape (D,).
    """
    right = torch.cat([moments.cross, step.totals.total[:, None]], dim=1)
    explained = step.grouping.times(joint, moments.latent[:-1])
    return right - explained, step.totals.square + (joint * (explained - 2 * right)).sum(1)


def likelihood_gradient(step: Summary, parameters: Parameters, moments: Moments) -> tuple[Tensor, Tensor, Tensor]:
    """Gradient of the evidence by loadings (D, K), intercepts (D,) and noise variances (D,), by Fisher's identity."""
    joint = torch.cat([parameters.loadings, parameters.intercepts[:, None]], dim=1)
    score, square = expected_residual(step, moments, joint)
    noise = parameters.noise_variance
    score = score / noise[:, None]
    return score[:, :-1], score[:, -1], 0.5 * (square / noise - step.feature_count) / noise
