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
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from calmrl_prob.errors import ArgumentError
from calmrl_prob.linear_gaussian.blocks import FeatureBlocks, ObservedBlocks
from calmrl_prob.linear_gaussian.em.acceleration import AndersonGuess
from calmrl_prob.linear_gaussian.em.convergence import Ascent, Evaluation, ascend
from calmrl_prob.linear_gaussian.em.em import gaussian_start
from calmrl_prob.linear_gaussian.em.maximization import NoiseModel, maximize
from calmrl_prob.linear_gaussian.em.parameters import Parameters
from calmrl_prob.linear_gaussian.em.preparation import (
    check_options,
    mean_variance,
    noise_model_for,
    require_same_shape,
)
from calmrl_prob.linear_gaussian.scale_mixture.degrees_of_freedom import LEAST, MOST, START_FREEDOM
from calmrl_prob.linear_gaussian.scale_mixture.shared_scale import StudentTModel
from calmrl_prob.linear_gaussian.scale_mixture.shared_scale_expectation import Point, StudentTStep, WeightedMoments
from calmrl_prob.linear_gaussian.structure import LinearGaussian


@dataclass(frozen=True, repr=False, kw_only=True)
class StudentTEMResult(Ascent):
    """What EM found and how.

    Attributes:
        model: the fitted model.
    """

    model: StudentTModel


@torch.no_grad()
def fit_student_t_em(
    data: ObservedBlocks | FeatureBlocks,
    latent_dim: int,
    *,
    noise: str = "isotropic",
    degrees_of_freedom: float | None = None,
    start: StudentTModel | LinearGaussian | None = None,
    prior_mean: Tensor | None = None,
    prior_covariance: Tensor | None = None,
    form: str = "auto",
    max_iterations: int = 500,
    tolerance: float = 1e-6,
    noise_floor: float = 1e-4,
    noise_pseudo_count: float = 0.0,
    anderson_memory: int = 10,
    seed: int = 0,
    callback: Callable[[int, float], None] | None = None,
) -> StudentTEMResult:
    """Fit loadings, intercepts, noise scales and degrees of freedom by maximum likelihood of the Student-t model.

    Args:
        data: the observed rows. Statistics by pattern do not suffice: the weights need the rows.
        latent_dim: K.
        noise: "isotropic" (one scale for each modality) or "diagonal" (one for each feature).
        degrees_of_freedom: nu, if it is to stay as it is; learned by default, between 0.1 and 10^6.
        start: a model to start from; a short Gaussian fit by default.
        prior_mean: the latent's location (K,); zeros by default. It stays as it is, as does the covariance.
        prior_covariance: the latent's scale matrix (K, K); the identity by default.
        form: of the E-step: "modality", "pattern", or "auto" to choose by cost. Both give the same fit.
        max_iterations: E-steps at most.
        tolerance: stop when the gain still to be expected is below this, in nats for each observed value.
        noise_floor: least noise scale as a share of the feature's variance.
        noise_pseudo_count: weight, in observations of each feature, of an inverse-gamma prior whose variance is half
            of the feature's; 0 for none.
        anderson_memory: iterations that Anderson acceleration looks back on; 0 to switch it off.
        seed: for the random block of the default start.
        callback: called after each step with the number of E-steps so far and the evidence, nats.

    Raises:
        ArgumentError: an option is out of range, or the start does not fit the data.
        NumericalError: the data or the start hold values that are not finite.

    Example:
        >>> import torch
        >>> from calmrl_prob.linear_gaussian import LinearGaussian, ObservedBlocks
        >>> lg = LinearGaussian({"x": torch.tensor([[2.0], [1.0], [-1.0]], dtype=torch.float64)},
        ...                     {"x": torch.zeros(3).double()}, {"x": torch.tensor(0.1).double()})
        >>> truth = StudentTModel(lg, torch.tensor(4.0))
        >>> _, _, x = truth.sample(2000, torch.Generator().manual_seed(0))
        >>> result = fit_student_t_em(ObservedBlocks.from_arrays(x, torch.ones(2000, 1, dtype=torch.bool)), 1)
        >>> bool((result.objective.diff() >= 0).all()), 3 < float(result.model.degrees_of_freedom) < 5
        (True, True)
    """
    isotropic, learn = noise == "isotropic", degrees_of_freedom is None
    step = StudentTStep(data, latent_dim, form, isotropic, learn)
    check_options(step.rowwise, latent_dim, noise, max_iterations, tolerance, noise_floor, noise_pseudo_count)
    if degrees_of_freedom is not None and not LEAST <= degrees_of_freedom <= MOST:
        raise ArgumentError(f"degrees_of_freedom: expected {LEAST} to {MOST:.0e}, got {degrees_of_freedom}.")
    variance = mean_variance(step.rowwise)[1]
    noise_model = noise_model_for(variance, step.rowwise, isotropic, noise_floor, noise_pseudo_count)
    if start is None:
        start = gaussian_start(data, latent_dim, noise, noise_floor, noise_pseudo_count, seed)
    model = start if isinstance(start, StudentTModel) else StudentTModel(start, torch.tensor(START_FREEDOM))
    require_same_shape(model.linear_gaussian, step.shape, latent_dim)
    parameters = Parameters.from_linear_gaussian(model.linear_gaussian.to(torch.float64, step.shift.device), step.shift)
    freedom = float(model.degrees_of_freedom) if degrees_of_freedom is None else float(degrees_of_freedom)

    def evaluate(point: Point) -> Evaluation[Point, WeightedMoments]:
        found = step(point)
        log_prior = noise_model.log_prior(point[0].noise_variance)
        return replace(found, objective=found.log_likelihood + log_prior)

    last, ascent = ascend(
        (parameters.with_floor(noise_model.floor), freedom),
        evaluate,
        lambda found: (_maximize(found.moments, noise_model), found.point[1]),
        num_values=float(step.rowwise.feature_count.sum()),
        max_iterations=max_iterations,
        tolerance=tolerance,
        form=step.form,
        callback=callback,
        guess=_guess(anderson_memory, noise_model.floor) if anderson_memory else None,
    )
    parameters, freedom = last.point
    fitted = parameters.to_linear_gaussian(step.shape, step.shift, prior_mean, prior_covariance)
    found = StudentTModel(fitted, torch.tensor(freedom, dtype=torch.float64))
    return StudentTEMResult(model=found, **vars(ascent))


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
