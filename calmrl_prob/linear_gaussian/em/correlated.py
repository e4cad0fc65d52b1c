"""The M-step of noise that is correlated within a modality: a full covariance, or low rank plus diagonal.

With the residual covariance of modality m over the n rows that have it, at its new loadings and intercepts
J = [W, mu], and with C and r the moments of z~ = [z; 1] and of x z~^T,

    R = (S - J r^T - r J^T + J C J^T + nu diag(s^2)) / (n + nu)

the noise maximises -(logdet Psi + tr(Psi^-1 R)) / 2:

    full        Psi = R; where that is below the floor diag(f), R with its eigenvalues, in units of f, raised to 1
    low rank    Psi = B B^T + diag(psi): a few steps of factor analysis of R from where B and psi are,
                G = Psi^-1 B,  E = I - B^T G + G^T R G,  B <- R G E^-1,  psi <- max(diag(R - B G^T R), f)

the latter with its latents' covariance expanded and absorbed, B <- B E^1/2, as in PX-EM. nu pseudo-observations are the
weak prior that ``NoiseModel`` has. A full Psi is stored as B B^T + diag(f), with B its Cholesky factor less the floor.

Sources: Bach & Jordan, A probabilistic interpretation of canonical correlation analysis (2005); Rubin & Thayer, EM
algorithms for ML factor analysis (1982); Liu, Rubin & Wu (1998) for the expansion.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from calmrl_prob.linear_gaussian.em.expectation import Moments
from calmrl_prob.linear_gaussian.em.noise_model import NoiseModel
from calmrl_prob.linear_gaussian.em.parameters import Parameters, Shape
from calmrl_prob.linear_gaussian.em.scatter import Scatter
from calmrl_prob.linear_gaussian.noise import CorrelatedNoise

#: Steps of factor analysis in one M-step.
_INNER_STEPS = 3


@dataclass(frozen=True)
class CorrelatedNoiseModel(NoiseModel):
    """Model of noise that is correlated within a modality.

    Attributes:
        ranks: R_m of each modality; None where Psi^m is a full covariance.
    """

    ranks: tuple[int, ...] | None = None

    def log_prior_at(self, parameters: Parameters) -> float:
        """-nu/2 sum_m (logdet Psi^m + tr(Psi^m^-1 diag(s^2))), nats."""
        if self.pseudo_count == 0:
            return 0.0
        parts = self.pseudo_variance.split([len(noise.specific) for noise in parameters.noises])
        terms = [
            noise.log_determinant() + (noise.inverse_diagonal() * variance).sum()
            for noise, variance in zip(parameters.noises, parts, strict=True)
        ]
        return -0.5 * self.pseudo_count * float(torch.stack(terms).sum())

    def fitted(self, covariance: Scatter, part: slice, current: CorrelatedNoise) -> CorrelatedNoise:
        """The noise that a residual covariance R of one modality asks for, from where it is."""
        if self.ranks is None:
            return full_noise(covariance.dense(), self.floor[part])
        if current.factor.shape[1] == 0:
            return CorrelatedNoise(torch.maximum(covariance.diagonal, self.floor[part]), current.factor)
        for _ in range(_INNER_STEPS):
            current = _factor_step(covariance, self.floor[part], current)
        return current


def full_noise(covariance: Tensor, floor: Tensor) -> CorrelatedNoise:
    """A full covariance (D, D) no lower than diag(floor), as B B^T + diag(floor) with B lower triangular."""
    covariance = (covariance + covariance.mT) / 2
    factor, failure = torch.linalg.cholesky_ex(covariance - torch.diag(floor))
    if not bool(failure):
        return CorrelatedNoise(floor, factor)
    unit = floor.sqrt()
    values, vectors = torch.linalg.eigh(covariance / unit[:, None] / unit)
    root = unit[:, None] * vectors * (values - 1).clamp(min=0).sqrt()
    lower = torch.linalg.qr(root.mT).R.mT  # triangular again, so that points can be combined
    return CorrelatedNoise(floor, lower * torch.where(lower.diagonal() < 0, -1.0, 1.0))


def _factor_step(covariance: Scatter, floor: Tensor, current: CorrelatedNoise) -> CorrelatedNoise:
    """One step of factor analysis; none where R is no covariance, as what the loadings of a start leave may be."""
    solved = current.solve(current.factor)
    cross = covariance.times(solved)
    identity = torch.eye(solved.shape[1], dtype=solved.dtype, device=solved.device)
    second = identity - current.factor.mT @ solved + solved.mT @ cross
    lower, failure = torch.linalg.cholesky_ex((second + second.mT) / 2)
    if bool(failure):
        return current
    factor = torch.cholesky_solve(cross.mT, lower).mT
    specific = torch.maximum(covariance.diagonal - (factor * cross).sum(1), floor)
    return CorrelatedNoise(specific, factor @ lower)


def maximize_correlated(
    shape: Shape,
    scatters: tuple[Scatter, ...],
    moments: Moments,
    joint: Tensor,
    right: Tensor,
    model: CorrelatedNoiseModel,
    current: Parameters,
) -> list[CorrelatedNoise]:
    """The noise of each modality.

    Args:
        shape: the stacked layout.
        scatters: S of each modality.
        moments: C, over the rows that have each modality.
        joint: J, (D, K + 1).
        right: r, (D, K + 1).
        model: of the noise.
        current: the parameters that the moments were taken at.
    """
    found = []
    nu = model.pseudo_count
    for m, (part, scatter) in enumerate(zip(shape.slices, scatters, strict=True)):
        inner = moments.latent[m]
        weights = joint[part]
        # J C J^T - J r^T - r J^T = (J L^T + L J^T) / 2 with L = J C - 2 r
        left = weights @ inner - 2 * right[part]
        prior = nu * model.pseudo_variance[part] if nu else None
        residual = scatter.plus(left, weights, prior).over(inner[-1, -1] + nu)
        found.append(model.fitted(residual, part, current.noises[m]))
    return found


def penalised_joint(factor: Tensor, right: Tensor, precision: Tensor, scale: Tensor, noise: CorrelatedNoise) -> Tensor:
    """[W, mu] of one modality under a normal prior of the loadings, (D, K + 1): J C + Psi T^-1 J A = r.

    With X such that X^T C X = I and X^T A X = diag(sigma), J = V X^T has columns v_k = T (T + sigma_k Psi)^-1 (r X)_k.

    Args:
        factor: Cholesky factor of C, (K + 1, K + 1).
        right: r, (D, K + 1).
        precision: alpha, (K,); A = diag(alpha, 0).
        scale: T = diag(s^2), (D,).
        noise: Psi.
    """
    root = torch.diag(torch.cat([precision.sqrt(), precision.new_zeros(1)]))
    half = torch.linalg.solve_triangular(factor, root, upper=False)
    sigma, vectors = torch.linalg.eigh(half @ half.mT)
    basis = torch.linalg.solve_triangular(factor.mT, vectors, upper=True)
    turned, sigma = right @ basis, sigma.clamp(min=0)
    if noise.dense:
        unit = scale.rsqrt()
        values, axes = torch.linalg.eigh(noise.covariance() * unit[:, None] * unit)
        inner = axes.mT @ (turned * unit[:, None]) / (1 + values[:, None] * sigma)
        found: Tensor = ((axes @ inner) / unit[:, None]) @ basis.mT
        return found
    columns = [
        scale * CorrelatedNoise(scale + s * noise.specific, s.sqrt() * noise.factor).solve(column[:, None]).squeeze(1)
        for s, column in zip(sigma, turned.mT, strict=True)
    ]
    joint: Tensor = torch.stack(columns, dim=1) @ basis.mT
    return joint
