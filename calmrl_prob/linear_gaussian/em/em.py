"""Closed-form EM for the linear-Gaussian model with missing modalities.

Each iteration is an E-step (``expectation.py``), an M-step (``maximization.py``) and, where it pays, Anderson's guess
at the next point, taken only where it raises the evidence. So the trace of the evidence never falls (Liu et al.,
arXiv 2511.12034, Corollary 4).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from calmrl_prob.errors import ArgumentError
from calmrl_prob.linear_gaussian.blocks import FeatureBlocks, ObservedBlocks
from calmrl_prob.linear_gaussian.em.acceleration import AndersonGuess
from calmrl_prob.linear_gaussian.em.convergence import Ascent, Evaluation, ascend
from calmrl_prob.linear_gaussian.em.expectation import ExpectationStep, Moments
from calmrl_prob.linear_gaussian.em.forms import prepare
from calmrl_prob.linear_gaussian.em.maximization import NoiseModel, maximize
from calmrl_prob.linear_gaussian.em.parameters import Parameters
from calmrl_prob.linear_gaussian.em.penalties import ARDPenalty, LoadingsPenalty, NormalPenalty
from calmrl_prob.linear_gaussian.em.preparation import check_options, feature_scale, require_same_shape
from calmrl_prob.linear_gaussian.em.pseudo_rows import PseudoRows, WithPseudoRows, require_prior_of_covariance
from calmrl_prob.linear_gaussian.em.spectral import spectral_start, supported_start
from calmrl_prob.linear_gaussian.em.statistics import SufficientStatistics
from calmrl_prob.linear_gaussian.em.support import Support
from calmrl_prob.linear_gaussian.structure import LinearGaussian

#: Iterations of a fit that another one starts from.
_START_ITERATIONS = 30
#: Rounds of turning latents, at most, before the first step of a prior that cares; each step has one more.
_START_ROUNDS = 30


@dataclass(frozen=True, repr=False, kw_only=True)
class EMResult(Ascent):
    """What EM found and how.

    Attributes:
        linear_gaussian: the fitted model.
        loadings_precision: for each modality alpha_mk, shape (K,), under a prior of the loadings: N(0, 1 / alpha_mk)
            is what it amounts to for w_dk / s_d. Under "ard" large where the modality does without the latent.
    """

    linear_gaussian: LinearGaussian
    loadings_precision: Mapping[str, Tensor] | None = None


@torch.no_grad()
def fit_em(
    data: ObservedBlocks | FeatureBlocks | SufficientStatistics,
    latent_dim: int,
    *,
    noise: str = "isotropic",
    start: LinearGaussian | None = None,
    prior_mean: Tensor | None = None,
    prior_covariance: Tensor | None = None,
    form: str = "auto",
    max_iterations: int = 1000,
    tolerance: float = 1e-6,
    noise_floor: float = 1e-4,
    noise_pseudo_count: float = 0.0,
    loadings_prior: str | None = None,
    loadings_precision: float | None = None,
    pseudo_rows: float = 0.0,
    pseudo_row_pooling: float = 1.0,
    support: Tensor | None = None,
    expand: bool = True,
    anderson_memory: int = 10,
    seed: int = 0,
    callback: Callable[[int, float], None] | None = None,
) -> EMResult:
    """Fit loadings, intercepts and noise variances by maximum likelihood, or with priors on noise and loadings.

    Args:
        data: the observed rows, or their sufficient statistics.
        latent_dim: K, at most the total number of features.
        noise: "isotropic" (one variance for each modality) or "diagonal" (one for each feature).
        start: a model to start from; a spectral start from the data by default.
        prior_mean: the latent's prior mean (K,); zeros by default. It stays as it is, as does the covariance.
        prior_covariance: the latent's prior covariance (K, K); the identity by default.
        form: of the E-step: "modality", "pattern", "statistics", or "auto" to choose by cost. All give the same fit.
        max_iterations: E-steps at most, and one more if the last of them was a guess that had to be taken back.
        tolerance: stop when the gain in evidence still to be expected is below this, in nats for each observed
            value. It is extrapolated from the decay of the last gains, so that a slow crawl is not taken for arrival.
        noise_floor: least noise variance as a share of the feature's variance; keeps the evidence bounded.
        noise_pseudo_count: weight, in observations of each feature, of an inverse-gamma prior whose variance is half
            of the feature's; 0 for none.
        loadings_prior: "normal", "ard" (automatic relevance determination: a latent can be switched off for a
            modality; ``penalties.py``), or None for maximum likelihood. Both shrink w_dk / s_d, with s_d^2 the
            variance of the feature (isotropic noise: of the modality's features on average).
        loadings_precision: of the normal prior: w_dk / s_d ~ N(0, 1 / loadings_precision). K by default, which lets
            the latents together explain as much as there is.
        pseudo_rows: weight, in rows, of a prior of the joint covariance of all features, under which they
            are uncorrelated: ridge regression's own (``pseudo_rows.py``). For data of few rows; 0 for none.
        pseudo_row_pooling: how far the variances of that prior are pooled, from 0 (each feature has its own, so that
            units of features do not matter) to 1 (the modality's features have their average, as in ridge regression:
            directions of little variance are trusted less).
        support: (M, K) bool, True = the modality may load on the latent: columns of ones are shared latents, columns
            with a single one private ones. All may load on all by default. For a standard normal latent.
        expand: expand parameters (PX-EM).
        anderson_memory: iterations that Anderson acceleration looks back on; 0 to switch it off.
        seed: for the random block of the spectral start.
        callback: called after each step with the number of E-steps so far and the evidence, nats.

    Raises:
        ArgumentError: an option is out of range.
        NumericalError: the data or the start hold values that are not finite.

    Example:
        >>> import torch
        >>> from calmrl_prob.linear_gaussian import LinearGaussian, ObservedBlocks, fit_em
        >>> truth = LinearGaussian({"x": torch.tensor([[2.0], [1.0], [-1.0]], dtype=torch.float64)},
        ...                        {"x": torch.zeros(3).double()}, {"x": torch.tensor(0.1).double()})
        >>> _, x = truth.sample(500, torch.Generator().manual_seed(0))
        >>> result = fit_em(ObservedBlocks.from_arrays(x, torch.ones(500, 1, dtype=torch.bool)), latent_dim=1)
        >>> result.converged, bool((result.log_likelihood.diff() >= 0).all())
        (True, True)
        >>> round(float(result.linear_gaussian.noise_variance["x"][0]), 1)
        0.1
    """
    prepared = prepare(data, latent_dim, form)
    step, shift = prepared.step, prepared.shift
    check_options(step, latent_dim, noise, max_iterations, tolerance, noise_floor, noise_pseudo_count)
    covariance = prepared.covariance()
    own, pooled = (feature_scale(covariance.variance, step, isotropic) for isotropic in (False, True))
    scale = pooled if noise == "isotropic" else own
    noise_model = NoiseModel(noise == "isotropic", noise_floor * scale, noise_pseudo_count, 0.5 * scale)
    prior = _loadings_prior(loadings_prior, loadings_precision, step, scale, latent_dim)
    require_prior_of_covariance(pseudo_rows, pseudo_row_pooling)
    num_values = float(step.feature_count.sum())
    if pseudo_rows > 0:
        variance = torch.lerp(own, pooled, pseudo_row_pooling)
        step = WithPseudoRows(step, PseudoRows(pseudo_rows, covariance.mean, variance))
    served = None if support is None else Support.of(support, step.shape, latent_dim)
    if served is not None and (loadings_prior == "ard" or prior_covariance is not None):
        other = "loadings_prior='ard'" if loadings_prior == "ard" else "prior_covariance"
        raise ArgumentError(f"support: it fixes the axes of the latent, which {other} would turn; leave one out.")
    generator = torch.Generator().manual_seed(seed)
    if start is not None:
        require_same_shape(start, step.shape, latent_dim)
        parameters = Parameters.from_linear_gaussian(start.to(torch.float64, shift.device), shift)
        if served is not None:
            served.require_zeros(parameters.loadings, step.shape)
    elif served is not None:
        parameters = supported_start(covariance, step.shape, served, noise_model, generator)
    else:
        parameters = spectral_start(covariance, step.shape, latent_dim, noise_model, generator)
    parameters = parameters.with_floor(noise_model.floor)
    if prior is not None:
        parameters = prior.turned(parameters, most_rounds=_START_ROUNDS)
    guess = AndersonGuess(
        anderson_memory, Parameters.flatten, lambda point, vector: point.unflatten(vector).with_floor(noise_model.floor)
    )

    def evaluate(point: Parameters) -> Evaluation[Parameters, Moments]:
        moments = step(point)
        objective = moments.log_likelihood + moments.log_prior + noise_model.log_prior(point.noise_variance)
        if prior is not None:
            objective += prior.log_density(point.loadings)
        return Evaluation(point, moments, moments.log_likelihood, objective)

    def improve(found: Evaluation[Parameters, Moments]) -> Parameters:
        image = maximize(
            step,
            found.moments,
            noise_model,
            expand=expand,
            loadings_prior=prior,
            current=found.point,
            support=served,
        )
        turned = image if prior is None else prior.turned(image, most_rounds=1)
        if turned is not image:
            guess.reset()  # the past was about other axes
        return turned

    last, ascent = ascend(
        parameters,
        evaluate,
        improve,
        num_values=num_values,
        max_iterations=max_iterations,
        tolerance=tolerance,
        form=prepared.form,
        callback=callback,
        guess=guess if anderson_memory else None,
    )
    precision = None if prior is None else prior.precision(last.point.loadings)
    return EMResult(
        linear_gaussian=last.point.to_linear_gaussian(step.shape, shift, prior_mean, prior_covariance),
        loadings_precision=None if precision is None else dict(zip(step.shape.dims, precision, strict=True)),
        **vars(ascent),
    )


def gaussian_start(
    data: ObservedBlocks | FeatureBlocks,
    latent_dim: int,
    noise: str,
    noise_floor: float,
    noise_pseudo_count: float,
    seed: int,
) -> LinearGaussian:
    """A short fit, where those of models with heavier tails start from; arguments as in :func:`fit_em`."""
    return fit_em(
        data,
        latent_dim,
        noise=noise,
        max_iterations=_START_ITERATIONS,
        noise_floor=noise_floor,
        noise_pseudo_count=noise_pseudo_count,
        seed=seed,
    ).linear_gaussian


def _loadings_prior(
    name: str | None, precision: float | None, step: ExpectationStep, scale: Tensor, latent_dim: int
) -> LoadingsPenalty | None:
    if name not in (None, "normal", "ard"):
        raise ArgumentError(f"loadings_prior: expected 'normal', 'ard' or None, got {name!r}.")
    if precision is not None and name != "normal":
        raise ArgumentError(
            f"loadings_precision: it belongs to loadings_prior='normal', but that is {name!r}; leave it out."
        )
    if precision is not None and not 0 < precision < math.inf:
        raise ArgumentError(f"loadings_precision: expected a positive number, got {precision}.")
    if name == "normal":
        return NormalPenalty(step.shape, scale, float(latent_dim if precision is None else precision))
    return ARDPenalty(step.shape, scale) if name == "ard" else None
