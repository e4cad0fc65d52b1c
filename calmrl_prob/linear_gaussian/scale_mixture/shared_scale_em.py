"""Closed-form EM for the Student-t model of ``student_t.py``.

Given the weights w_n = (nu + D_n) / (nu + delta_n) of the instances, the E-step and the M-step are those of the
Gaussian model with every row weighted by w_n, except that the covariances V_n count once each:

    [W^m, mu^m] = (sum_n w_n x_n [mean_n; 1]^T) (sum_n (w_n [mean_n; 1] [mean_n; 1]^T + [V_n 0; 0 0]))^-1
    psi_d       = (sum_n w_n x_nd^2 - [W, mu]_d . sum_n w_n x_nd [mean_n; 1]) / n_m

Two things make it fast. nu is found on the likelihood itself, not on its expectation, from distances that the E-step
has anyway (ECME). And the scale is expanded along with the latent (PX-EM): all scales are divided by the mean weight,
which for the t distribution alone is the step of Kent, Tyler & Vardi. Neither ever lowers the likelihood.

Sources: Liu & Rubin, ML estimation of the t distribution using EM and its extensions, ECM and ECME (1995); Liu, Rubin &
Wu, Parameter expansion to accelerate EM: the PX-EM algorithm (1998).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from calmrl_prob.linear_gaussian.blocks import FeatureBlocks, ObservedBlocks
from calmrl_prob.linear_gaussian.em.acceleration import AndersonGuess
from calmrl_prob.linear_gaussian.em.convergence import Evaluation, ascend
from calmrl_prob.linear_gaussian.em.em import EMResult, gaussian_start
from calmrl_prob.linear_gaussian.em.maximization import maximize
from calmrl_prob.linear_gaussian.em.noise_model import NoiseModel
from calmrl_prob.linear_gaussian.em.parameters import Parameters
from calmrl_prob.linear_gaussian.em.preparation import (
    mean_variance,
    noise_model_for,
    require_same_shape,
    require_usable,
)
from calmrl_prob.linear_gaussian.scale_mixture.degrees_of_freedom import START_FREEDOM
from calmrl_prob.linear_gaussian.scale_mixture.options import StudentTEMOptions
from calmrl_prob.linear_gaussian.scale_mixture.shared_scale import StudentTModel
from calmrl_prob.linear_gaussian.scale_mixture.shared_scale_expectation import Point, StudentTStep, WeightedMoments
from calmrl_prob.linear_gaussian.structure import LinearGaussian


@torch.no_grad()
def fit_student_t_em(
    data: ObservedBlocks | FeatureBlocks,
    latent_dim: int,
    options: StudentTEMOptions | None = None,
    *,
    start: StudentTModel | LinearGaussian | None = None,
    prior_mean: Tensor | None = None,
    prior_covariance: Tensor | None = None,
    callback: Callable[[int, float], None] | None = None,
    **settings: Any,
) -> EMResult[StudentTModel]:
    """Fit loadings, intercepts, noise scales and degrees of freedom by maximum likelihood of the Student-t model.

    Args:
        data: the observed rows. Statistics by pattern do not suffice: the weights need the rows.
        latent_dim: K.
        options: the form of the noise, degrees of freedom, when to stop ...: :class:`StudentTEMOptions`; its defaults
            if not given.
        start: a model to start from; a short Gaussian fit by default.
        prior_mean: the latent's location (K,); zeros by default. It stays as it is, as does the covariance.
        prior_covariance: the latent's scale matrix (K, K); the identity by default.
        callback: called after each step with the number of E-steps so far and the evidence, nats.
        **settings: fields of the options by name, such as ``noise="diagonal"``, in place of those in ``options``.

    Returns:
        The ``StudentTModel`` and the trace.

    Raises:
        ArgumentError: there is no such option, one is out of range, or the start does not fit the data.
        NumericalError: the data or the start hold values that are not finite.

    Example:
        >>> import torch
        >>> from calmrl_prob.linear_gaussian import LinearGaussian, ObservedBlocks
        >>> lg = LinearGaussian({"x": torch.tensor([[2.0], [1.0], [-1.0]], dtype=torch.float64)},
        ...                     {"x": torch.zeros(3).double()}, {"x": torch.tensor(0.1).double()})
        >>> truth = StudentTModel(lg, torch.tensor(4.0))
        >>> _, x = truth.sample(2000, torch.Generator().manual_seed(0))
        >>> result = fit_student_t_em(ObservedBlocks.from_arrays(x, torch.ones(2000, 1, dtype=torch.bool)), 1)
        >>> bool((result.objective.diff() >= 0).all()), 3 < float(result.structure.degrees_of_freedom) < 5
        (True, True)
    """
    options = StudentTEMOptions.of(options, settings, "fit_student_t_em")
    fixed = options.degrees_of_freedom
    step = StudentTStep(data, latent_dim, options.form, options.isotropic, fixed is None)
    require_usable(step.rowwise, latent_dim)
    variance = mean_variance(step.rowwise)[1]
    noise_model = noise_model_for(
        variance, step.rowwise, options.isotropic, options.noise_floor, options.noise_pseudo_count
    )
    if start is None:
        start = gaussian_start(data, latent_dim, options, options.seed)
    model = start if isinstance(start, StudentTModel) else StudentTModel(start, torch.tensor(START_FREEDOM))
    require_same_shape(model.linear_gaussian, step.shape, latent_dim)
    parameters = Parameters.from_linear_gaussian(model.linear_gaussian.to(torch.float64, step.shift.device), step.shift)
    freedom = float(model.degrees_of_freedom if fixed is None else fixed)

    def evaluate(point: Point) -> Evaluation[Point, WeightedMoments]:
        found = step(point)
        log_prior = noise_model.log_prior(point[0].noise_variance)
        return replace(found, objective=found.log_likelihood + log_prior)

    last, trace = ascend(
        (parameters.with_floor(noise_model.floor), freedom),
        evaluate,
        lambda found: (_maximize(found.moments, noise_model), found.point[1]),
        num_values=float(step.rowwise.feature_count.sum()),
        max_iterations=options.max_iterations,
        tolerance=options.tolerance,
        form=step.form,
        callback=callback,
        guess=_guess(options.anderson_memory, noise_model.floor) if options.anderson_memory else None,
    )
    parameters, freedom = last.point
    fitted = parameters.to_linear_gaussian(step.shape, step.shift, prior_mean, prior_covariance)
    return EMResult(structure=StudentTModel(fitted, torch.tensor(freedom, dtype=torch.float64)), trace=trace)


def _maximize(moments: WeightedMoments, noise_model: NoiseModel) -> Parameters:
    """The M-step, with latent and scale expanded.

    Expanding the scale divides noise and latent covariance by the mean weight. A prior or floor of the noise would not
    let it raise the objective for certain, so where one is at work only the latent is expanded.
    """
    found = maximize(moments, moments.latent, noise_model, expand=True)
    noise = found.noise_variance / moments.mean_weight
    if noise_model.pseudo_count == 0 and bool((torch.minimum(noise, found.noise_variance) > noise_model.floor).all()):
        return Parameters(found.loadings, found.intercepts, noise)
    # ``maximize`` divides the latent's second moment by the sum of the weights; without expansion it is by their number
    return Parameters(found.loadings * math.sqrt(moments.mean_weight), found.intercepts, found.noise_variance)


def _guess(memory: int, floor: Tensor) -> AndersonGuess[Point]:
    """Anderson's guesses at the parameters; the degrees of freedom are found for each anew."""

    def unflatten(point: Point, vector: Tensor) -> Point:
        return point[0].unflatten(vector).with_floor(floor), point[1]

    return AndersonGuess(memory, lambda point: point[0].flatten(), unflatten)
