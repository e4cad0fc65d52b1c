"""Closed-form EM for the linear-Gaussian model with missing modalities.

Each iteration is an E-step (``expectation.py``), an M-step (``maximization.py``) and, where it pays, Anderson's guess
at the next point, taken only where it raises the evidence. So the trace of the evidence never falls (Liu et al.,
arXiv 2511.12034, Corollary 4).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from calmrl_prob.errors import ArgumentError
from calmrl_prob.linear_gaussian.acceleration import AndersonGuess
from calmrl_prob.linear_gaussian.blocks import FeatureBlocks, ObservedBlocks
from calmrl_prob.linear_gaussian.convergence import Ascent, Evaluation, ascend
from calmrl_prob.linear_gaussian.cost import choose_form
from calmrl_prob.linear_gaussian.expectation import ExpectationStep, Moments
from calmrl_prob.linear_gaussian.maximization import maximize
from calmrl_prob.linear_gaussian.parameters import Parameters
from calmrl_prob.linear_gaussian.preparation import (
    check_options,
    mean_variance,
    noise_model_for,
    require_same_shape,
    rowwise_step,
)
from calmrl_prob.linear_gaussian.spectral import PairwiseCovariance, spectral_start
from calmrl_prob.linear_gaussian.statistics import FromStatistics, SufficientStatistics
from calmrl_prob.linear_gaussian.structure import LinearGaussian


@dataclass(frozen=True, repr=False, kw_only=True)
class EMResult(Ascent):
    """What EM found and how.

    Attributes:
        linear_gaussian: the fitted model.
    """

    linear_gaussian: LinearGaussian


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
    expand: bool = True,
    anderson_memory: int = 10,
    seed: int = 0,
    callback: Callable[[int, float], None] | None = None,
) -> EMResult:
    """Fit loadings, intercepts and noise variances by maximum likelihood, or with a weak prior on the noise.

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
    step, shift, covariance, used_form = _prepare(data, latent_dim, form)
    check_options(step, latent_dim, noise, max_iterations, tolerance, noise_floor, noise_pseudo_count)
    noise_model = noise_model_for(covariance.variance, step, noise == "isotropic", noise_floor, noise_pseudo_count)
    if start is None:
        generator = torch.Generator().manual_seed(seed)
        parameters = spectral_start(covariance, step.shape, latent_dim, noise_model, generator)
    else:
        require_same_shape(start, step.shape, latent_dim)
        parameters = Parameters.from_linear_gaussian(start.to(torch.float64, shift.device), shift)

    def evaluate(point: Parameters) -> Evaluation[Parameters, Moments]:
        moments = step(point)
        log_prior = noise_model.log_prior(point.noise_variance, step.shape)
        return Evaluation(point, moments, moments.log_likelihood, moments.log_likelihood + log_prior)

    guess = AndersonGuess(
        anderson_memory, Parameters.flatten, lambda point, vector: point.unflatten(vector).with_floor(noise_model.floor)
    )
    last, ascent = ascend(
        parameters.with_floor(noise_model.floor),
        evaluate,
        lambda found: maximize(step, found.moments, noise_model, expand=expand),
        num_values=float(step.feature_count.sum()),
        max_iterations=max_iterations,
        tolerance=tolerance,
        form=used_form,
        callback=callback,
        guess=guess if anderson_memory else None,
    )
    fitted = last.point.to_linear_gaussian(step.shape, shift, prior_mean, prior_covariance)
    return EMResult(linear_gaussian=fitted, **vars(ascent))


def _prepare(
    data: ObservedBlocks | FeatureBlocks | SufficientStatistics, latent_dim: int, form: str
) -> tuple[ExpectationStep, Tensor, PairwiseCovariance, str]:
    """The E-step in the form asked for, the shift it works about, and the covariance for the start."""
    forms = ("auto", "modality", "pattern", "statistics")
    if form not in forms:
        raise ArgumentError(f"form: expected one of {forms}, got {form!r}.")
    if isinstance(data, ObservedBlocks):
        form = choose_form(data, latent_dim) if form == "auto" else form
        if form == "statistics":
            data = SufficientStatistics.from_blocks(data)
    if isinstance(data, SufficientStatistics):
        gathered = FromStatistics(data)
        shift = data.shift.to(gathered.totals.total.device)
        return gathered, shift, PairwiseCovariance.from_statistics(data), "statistics"
    step, shift, centred, form = rowwise_step(data, latent_dim, form)
    moments = mean_variance(step)
    if isinstance(centred, FeatureBlocks):
        return step, shift, PairwiseCovariance.from_features(centred, *moments), form
    return step, shift, PairwiseCovariance.from_blocks(centred, *moments), form
