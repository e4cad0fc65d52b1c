"""Laplace's approximation of the posterior of loadings, intercepts and noise variances about their best values.

    theta | x ~ N(theta_hat, J^-1),   theta = (W / sqrt(psi_hat), mu / sqrt(psi_hat), log psi)

with J the observed information of the evidence, latents integrated out, plus the curvature of the priors that EM was
given. A rotation of the latent changes no density, so J has K (K - 1) / 2 directions without curvature. Draws take no
step along them: what is drawn is the distribution on the quotient, each draw turned to where its loadings are nearest
to theta_hat's (to first order, in units of the noise). Nothing that a rotation leaves alone depends on that choice.

A unit-information prior of the loadings, w_dk / s_d ~ N(0, 1) with s_d^2 the variance of the feature, keeps draws
finite in directions that the data say nothing about; it weighs as much as one row.

Source: MacKay, Information Theory, Inference, and Learning Algorithms (2003), chapter 27; Kass & Wasserman, A reference
Bayesian test for nested hypotheses and its relationship to the Schwarz criterion (1995), for the prior.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from calmrl_prob.errors import ArgumentError, NumericalError
from calmrl_prob.linear_gaussian.blocks import FeatureBlocks, ObservedBlocks
from calmrl_prob.linear_gaussian.curvature.information import Coordinates, observed_information
from calmrl_prob.linear_gaussian.em.parameters import Parameters
from calmrl_prob.linear_gaussian.em.preparation import feature_scale
from calmrl_prob.linear_gaussian.em.pseudo_rows import require_prior_of_covariance
from calmrl_prob.linear_gaussian.em.spectral import PairwiseCovariance
from calmrl_prob.linear_gaussian.em.statistics import FromStatistics, SufficientStatistics
from calmrl_prob.linear_gaussian.structure import LinearGaussian, require_diagonal_noise

#: Unknowns up to which the matrix of second derivatives is made: 0.6 GB, and as much again to work with.
MOST_UNKNOWNS = 9_000


@torch.no_grad()
def laplace_draws(
    data: ObservedBlocks | SufficientStatistics,
    at: LinearGaussian,
    num_draws: int,
    generator: torch.Generator,
    *,
    isotropic: bool,
    noise_pseudo_count: float = 0.0,
    loadings_precision: float | None = None,
    pseudo_rows: float = 0.0,
    pseudo_row_pooling: float = 1.0,
) -> list[LinearGaussian]:
    """Draw models from Laplace's approximation.

    Args:
        data: what ``at`` was fitted to, or its sufficient statistics.
        at: the fitted model.
        num_draws: S.
        generator: source of randomness, on the processor.
        isotropic: whether there is one noise variance for each modality.
        noise_pseudo_count: as EM had it, and so the following.
        loadings_precision: of a normal prior of the loadings; the unit-information prior if None.
        pseudo_rows: weight of the prior of the joint covariance.
        pseudo_row_pooling: of its variances.

    Raises:
        ArgumentError: the data lack single features, or there are too many unknowns.
        NumericalError: the evidence has no maximum at ``at``, or a draw has left all range.

    Example:
        >>> truth = LinearGaussian({"x": torch.tensor([[2.0], [1.0]]).double()}, {"x": torch.zeros(2).double()},
        ...                        {"x": torch.tensor(0.1).double()})
        >>> _, x = truth.sample(500, torch.Generator().manual_seed(0))
        >>> blocks = ObservedBlocks.from_arrays(x, torch.ones(500, 1, dtype=torch.bool))
        >>> draws = laplace_draws(blocks, truth, 200, torch.Generator().manual_seed(1), isotropic=True)
        >>> loadings = torch.stack([draw.loadings["x"].squeeze(1) for draw in draws])
        >>> [round(float(spread), 2) for spread in loadings.std(0)]
        [0.07, 0.04]
    """
    require_diagonal_noise(at, "at")
    at = at.to(torch.float64)
    _require_feasible(data, at, isotropic)
    statistics = data if isinstance(data, SufficientStatistics) else SufficientStatistics.from_blocks(data)
    parameters = Parameters.from_linear_gaussian(at, statistics.shift)
    information, where = curvature(
        statistics,
        parameters,
        isotropic=isotropic,
        noise_pseudo_count=noise_pseudo_count,
        loadings_precision=1.0 if loadings_precision is None else loadings_precision,
        pseudo_rows=pseudo_rows,
        pseudo_row_pooling=pseudo_row_pooling,
    )
    steps = _draw_steps(information, where.rotations(parameters), num_draws, generator)
    prior = (at.prior_mean, at.prior_covariance)
    moved = (where.moved(parameters, each) for each in steps)
    return [each.to_linear_gaussian(where.shape, statistics.shift, *prior) for each in moved]


def curvature(
    statistics: SufficientStatistics,
    parameters: Parameters,
    *,
    isotropic: bool,
    noise_pseudo_count: float = 0.0,
    loadings_precision: float = 0.0,
    pseudo_rows: float = 0.0,
    pseudo_row_pooling: float = 1.0,
) -> tuple[Tensor, Coordinates]:
    """Minus the Hessian of log evidence plus log priors, (n, n), nats, and the coordinates that it is in.

    Args:
        statistics: of the data.
        parameters: where; intercepts about the shift of the statistics.
        isotropic: and the rest as :func:`laplace_draws` has them.
        noise_pseudo_count: of the prior of the noise variances.
        loadings_precision: alpha, of w_dk / s_d ~ N(0, 1 / alpha).
        pseudo_rows: of the prior of the joint covariance.
        pseudo_row_pooling: of its variances.
    """
    require_prior_of_covariance(pseudo_rows, pseudo_row_pooling)
    step = FromStatistics(statistics)
    covariance = PairwiseCovariance.from_statistics(statistics)
    own, pooled = (feature_scale(covariance.variance, step, whole) for whole in (False, True))
    if pseudo_rows > 0:
        variance = torch.lerp(own, pooled, pseudo_row_pooling)
        statistics = _with_pseudo_rows(statistics, pseudo_rows, covariance.mean, variance)
    information, where = observed_information(statistics, parameters, isotropic=isotropic)
    ratio = parameters.noise_variance / (pooled if isotropic else own)
    loadings, _, noise = information.diagonal().split(where.sizes)
    loadings += (loadings_precision * ratio)[:, None].expand(-1, where.latent_dim).flatten()
    noise += _noise_curvature(where, 0.25 * noise_pseudo_count / ratio)  # pseudo-observations of half the variance
    return information, where


def _require_feasible(data: ObservedBlocks | SufficientStatistics, at: LinearGaussian, isotropic: bool) -> None:
    total = sum(at.dims.values())
    unknowns = total * (at.latent_dim + 1) + (len(at.dims) if isotropic else total)
    if unknowns > MOST_UNKNOWNS:
        raise ArgumentError(
            f"method: 'laplace' takes a square matrix with a row for each of the model's unknowns, here {unknowns:,}; "
            f"it is offered for {MOST_UNKNOWNS:,} at most. Use method='bootstrap', or fewer latents."
        )
    if isinstance(data, FeatureBlocks):
        raise ArgumentError(
            "method: 'laplace' works from sufficient statistics, which data that lack single features do not have; "
            "use method='bootstrap'."
        )


def _noise_curvature(where: Coordinates, by_feature: Tensor) -> Tensor:
    """Of the log prior of the noise variances in their logarithms, nu s^2 / (2 psi), as the model has them."""
    if not where.isotropic:
        return by_feature
    return torch.stack([by_feature[part].sum() for part in where.shape.slices])


def _with_pseudo_rows(
    statistics: SufficientStatistics, count: float, mean: Tensor, variance: Tensor
) -> SufficientStatistics:
    """The statistics joined by complete rows without correlation, about the same shift."""
    scatter = torch.diag(torch.cat([variance, variance.new_zeros(1)]))
    column = torch.cat([mean, mean.new_ones(1)])
    scatter = count * (scatter + torch.outer(column, column))
    shift = statistics.shift.split(list(statistics.dims.values()))
    joined = statistics.shifted(dict(zip(statistics.dims, shift, strict=True)))
    complete = (True,) * len(statistics.dims)
    joined.scatters[complete] = joined.scatters.get(complete, 0) + scatter
    return joined


def _draw_steps(information: Tensor, rotations: Tensor, num_draws: int, generator: torch.Generator) -> Tensor:
    """S draws (S, n) from N(0, J^-1) within the complement of the rotations; ``information`` is overwritten."""
    stiff = float(information.diagonal().mean())
    information.addmm_(rotations, rotations.mT, alpha=stiff)
    factor, failed = torch.linalg.cholesky_ex(information)
    if int(failed):
        raise NumericalError(
            "model: the evidence does not curve downwards in all directions where the parameters are, so they are not "
            "at a maximum. Fit with a smaller tolerance or fewer latents, or use method='bootstrap'."
        )
    noise = torch.randn(num_draws, len(information), generator=generator, dtype=torch.float64).to(information.device)
    steps: Tensor = torch.linalg.solve_triangular(factor.mT, noise.mT, upper=True).mT
    steps -= (steps @ rotations) @ rotations.mT
    if not math.isfinite(float(steps.abs().max())):
        raise NumericalError("model: a draw has left all range; fit with fewer latents, or use method='bootstrap'.")
    return steps
