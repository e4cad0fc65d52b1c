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

from calmrl_prob.errors import ArgumentError, DataError, NumericalError
from calmrl_prob.linear_gaussian.acceleration import AndersonAccelerator
from calmrl_prob.linear_gaussian.blocks import FeatureBlocks, ObservedBlocks
from calmrl_prob.linear_gaussian.expectation import ExpectationStep, Moments
from calmrl_prob.linear_gaussian.forms import prepare
from calmrl_prob.linear_gaussian.loadings_prior import ARDLoadings, LoadingsPrior, NormalLoadings
from calmrl_prob.linear_gaussian.maximization import NoiseModel, maximize
from calmrl_prob.linear_gaussian.parameters import Parameters
from calmrl_prob.linear_gaussian.spectral import spectral_start
from calmrl_prob.linear_gaussian.statistics import SufficientStatistics
from calmrl_prob.linear_gaussian.structure import LinearGaussian

#: The gain still to come is judged from the gains of up to this many steps against as many before them: more than
#: Anderson's memory, because gains are small for a while after each time that it had to start anew.
_WINDOW = 12

_NOT_FINITE = (
    "data: the evidence is not finite. Look for features of very different scale (standardise them), raise "
    "noise_floor, or lower latent_dim."
)


@dataclass(frozen=True, repr=False)
class EMResult:
    """What EM found and how.

    Attributes:
        linear_gaussian: the fitted model.
        log_likelihood: (T,) float64, evidence of the data after each step that was kept, nats; the start's first.
        objective: (T,) float64, the same plus the log priors of noise variances and loadings: what never falls. Equal
            to ``log_likelihood`` without these priors.
        num_iterations: E-steps taken after the start's, those whose point was taken back included.
        converged: whether the criterion fell to the tolerance, or steps to what rounding takes from them; with float32
            data that may come first.
        criterion: the gain still to be expected when it stopped, in nats for each observed value; after "rounding",
            what the last step lost.
        tolerance: what the criterion was compared with.
        stop_reason: "converged", "rounding" (gains vanished in floating point) or "max_iterations".
        form: the form of the E-step: "modality", "pattern", "statistics" or "features".
        loadings_precision: for each modality alpha_mk, shape (K,), under a prior of the loadings: N(0, 1 / alpha_mk)
            is what it amounts to for w_dk / s_d. Under "ard" large where the modality does without the latent.
    """

    linear_gaussian: LinearGaussian
    log_likelihood: Tensor
    objective: Tensor
    num_iterations: int
    converged: bool
    criterion: float
    tolerance: float
    stop_reason: str
    form: str
    loadings_precision: Mapping[str, Tensor] | None = None

    def __repr__(self) -> str:
        """One line: how it ended."""
        return (
            f"EMResult({self.stop_reason} after {self.num_iterations} iterations by {self.form}, "
            f"log_likelihood={float(self.log_likelihood[-1]):.6g}, criterion={self.criterion:.1e})"
        )


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
            modality; ``loadings_prior.py``), or None for maximum likelihood. Both shrink w_dk / s_d, with s_d^2 the
            variance of the feature (isotropic noise: of the modality's features on average).
        loadings_precision: of the normal prior: w_dk / s_d ~ N(0, 1 / loadings_precision). K by default, which lets
            the latents together explain as much as there is.
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
    _check_options(step, latent_dim, noise, max_iterations, tolerance, noise_floor, noise_pseudo_count)
    covariance = prepared.covariance()
    scale = _scale(covariance.variance, step, noise == "isotropic")
    noise_model = NoiseModel(noise == "isotropic", noise_floor * scale, noise_pseudo_count, 0.5 * scale)
    prior = _loadings_prior(loadings_prior, loadings_precision, step, scale, latent_dim)
    if start is None:
        generator = torch.Generator().manual_seed(seed)
        parameters = spectral_start(covariance, step.shape, latent_dim, noise_model, generator)
    else:
        if start.dims != step.shape.dims or start.latent_dim != latent_dim:
            raise ArgumentError(
                f"start: expected modalities {dict(step.shape.dims)} and latent_dim {latent_dim}, got {start.dims} "
                f"and {start.latent_dim}."
            )
        parameters = Parameters.from_linear_gaussian(start.to(torch.float64, shift.device), shift)
    parameters = parameters.with_floor(noise_model.floor)
    if prior is not None:
        parameters = prior.turned(parameters, most_rounds=200)
    moments, value = _evaluate(step, parameters, noise_model, prior)
    if moments is None:
        raise NumericalError(_NOT_FINITE)
    evidence, objective = [moments.log_likelihood], [value]
    num_values = float(step.feature_count.sum())
    accelerator = AndersonAccelerator(anderson_memory) if anderson_memory else None
    num_iterations, criterion, stop_reason = 0, math.inf, "max_iterations"
    while num_iterations < max_iterations:
        image = maximize(step, moments, noise_model, expand=expand, loadings_prior=prior, current=parameters)
        turned = image if prior is None else prior.turned(image, most_rounds=1)
        if turned is not image and accelerator is not None:
            accelerator.reset()  # the past was about other axes
        proposal = image = turned
        if accelerator is not None:
            accelerated = accelerator.propose(parameters.flatten(), image.flatten())
            proposal = parameters.unflatten(accelerated).with_floor(noise_model.floor)
        candidate, value = _evaluate(step, proposal, noise_model, prior)
        num_iterations += 1
        if proposal is not image and not value >= objective[-1]:  # also where it is NaN
            if accelerator is not None:
                accelerator.reset()
            proposal = image
            candidate, value = _evaluate(step, image, noise_model, prior)
            num_iterations += 1
        if candidate is None:
            raise NumericalError(_NOT_FINITE)
        if value < objective[-1]:  # an EM step can only lose what rounding takes
            stop_reason, criterion = "rounding", (objective[-1] - value) / num_values
            break
        parameters, moments = proposal, candidate
        evidence.append(moments.log_likelihood)
        objective.append(value)
        if callback is not None:
            callback(num_iterations, moments.log_likelihood)
        criterion = _gain_to_come(objective) / num_values
        if criterion <= tolerance:
            stop_reason = "converged"
            break
    return EMResult(
        parameters.to_linear_gaussian(step.shape, shift, prior_mean, prior_covariance),
        torch.tensor(evidence, dtype=torch.float64),
        torch.tensor(objective, dtype=torch.float64),
        num_iterations,
        stop_reason != "max_iterations",
        criterion,
        tolerance,
        stop_reason,
        prepared.form,
        None if prior is None else dict(zip(step.shape.dims, prior.precision(parameters.loadings), strict=True)),
    )


def _scale(variance: Tensor, step: ExpectationStep, isotropic: bool) -> Tensor:
    """s_d^2, the variance of each feature, or of its modality's features on average; the unit where there is none."""
    typical = torch.cat([variance[part].mean().expand(part.stop - part.start) for part in step.shape.slices])
    typical = torch.where(typical > 0, typical, 1.0)
    return typical if isotropic else torch.maximum(variance, 1e-6 * typical)


def _loadings_prior(
    name: str | None, precision: float | None, step: ExpectationStep, scale: Tensor, latent_dim: int
) -> LoadingsPrior | None:
    if name not in (None, "normal", "ard"):
        raise ArgumentError(f"loadings_prior: expected 'normal', 'ard' or None, got {name!r}.")
    if precision is not None and name != "normal":
        raise ArgumentError(
            f"loadings_precision: it belongs to loadings_prior='normal', but that is {name!r}; leave it out."
        )
    if precision is not None and not 0 < precision < math.inf:
        raise ArgumentError(f"loadings_precision: expected a positive number, got {precision}.")
    if name == "normal":
        return NormalLoadings(step.shape, scale, float(latent_dim if precision is None else precision))
    return ARDLoadings(step.shape, scale) if name == "ard" else None


def _evaluate(
    step: ExpectationStep, parameters: Parameters, noise_model: NoiseModel, prior: LoadingsPrior | None
) -> tuple[Moments | None, float]:
    """Moments and objective; (None, NaN) where a guess has left the range of floating point."""
    try:
        moments = step(parameters)
    except NumericalError:
        return None, math.nan
    value = moments.log_likelihood + noise_model.log_prior(parameters.noise_variance, step.shape)
    if prior is not None:
        value += prior.log_density(parameters.loadings)
    return (moments, value) if math.isfinite(value) else (None, math.nan)


def _gain_to_come(objective: list[float]) -> float:
    """What an infinite number of further steps would add, if gains go on shrinking as they did."""
    window = min(_WINDOW, (len(objective) - 1) // 2)
    if window < 3:
        return math.inf
    recent = objective[-1] - objective[-1 - window]
    before = objective[-1 - window] - objective[-1 - 2 * window]
    ratio = min(recent / before, 1 - 1e-6) if before > 0 else 0.0
    return recent * max(ratio, 0.5) / (1 - max(ratio, 0.5))


def _check_options(
    step: ExpectationStep,
    latent_dim: int,
    noise: str,
    max_iterations: int,
    tolerance: float,
    noise_floor: float,
    pseudo_count: float,
) -> None:
    if not 1 <= latent_dim <= step.shape.total:
        raise ArgumentError(
            f"latent_dim: expected 1 to {step.shape.total} (the total number of features), got {latent_dim}."
        )
    if noise not in ("isotropic", "diagonal"):
        raise ArgumentError(f"noise: expected 'isotropic' or 'diagonal', got {noise!r}.")
    limits = {
        "max_iterations": (max_iterations, 0),
        "tolerance": (tolerance, 0),
        "noise_floor": (noise_floor, 1e-12),
        "noise_pseudo_count": (pseudo_count, 0),
    }
    for argument, (value, least) in limits.items():
        if not value >= least:
            raise ArgumentError(f"{argument}: expected at least {least}, got {value}.")
    broken = (~step.totals.square.isfinite()).nonzero().flatten().tolist()
    if broken:
        name = list(step.shape.dims)[int(step.shape.feature_modality[broken[0]])]
        raise NumericalError(
            f"data: modality '{name}' holds values that are not finite, or so large that their squares are not. "
            "Remove or replace the former; divide the modality by its scale for the latter."
        )
    empty = (step.totals.count == 0).nonzero().flatten().tolist()
    if empty:
        where = list(step.shape.dims)[empty[0]] if len(step.totals.count) == len(step.shape.dims) else empty[0]
        raise DataError(f"data: nothing of modality or feature {where!r} is observed in any row. Leave it out.")
