"""Fitting a model whose latents are Gaussian processes, by maximum marginal likelihood.

A round of the fit chooses inducing points, takes a few closed-form EM steps of loadings, intercepts and noise variances
(given the joint posterior of all latents, their M-steps are those of factor analysis), and then a few quasi-Newton
steps of the kernels and nuggets on the evidence itself, in which loadings stand still. Quasi-Newton steps on everything
at once were several times slower on the bundled data.

It starts from the fit for independent instances, whose latents are free up to rotation: they are turned so that the
first varies most smoothly over the covariate, the next most smoothly of what is left, and so on (Switzer & Green,
Min/max autocorrelation factors for multivariate spatial imagery, 1984). Length scale and nugget of each then start from
the best of a grid.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from calmrl_prob._arguments import real_number, whole_number
from calmrl_prob.data import MultimodalData
from calmrl_prob.errors import ArgumentError, NumericalError
from calmrl_prob.inference.gaussian_process import places_of
from calmrl_prob.inference.progress import Callback
from calmrl_prob.linear_gaussian import EMResult, LinearGaussian, fit_em, posterior
from calmrl_prob.linear_gaussian.maximization import NoiseModel, maximize
from calmrl_prob.linear_gaussian.parameters import Parameters
from calmrl_prob.linear_gaussian.process import LowRankProcess, process_evidence
from calmrl_prob.linear_gaussian.process_em import SOLVED, ProcessStep
from calmrl_prob.priors.gaussian_process import GaussianProcessPrior, InducingPoints

logger = logging.getLogger(__name__)

#: EM steps, and quasi-Newton steps of the kernels, in a round.
_EM_STEPS, _KERNEL_STEPS = 4, 5
#: Rounds that the gain still to come is judged from.
_WINDOW = 3
#: Instances that the start is found from: a neighbourhood, since it needs their covariance in full.
_START_ROWS = 800
#: Length scales to start from, as multiples of the distance to the tenth neighbour; and nuggets.
_LENGTHSCALES = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0)
_NUGGETS = (0.02, 0.05, 0.1, 0.2, 0.35, 0.5, 0.65, 0.8, 0.9, 0.97)


@dataclass(frozen=True)
class GaussianProcessOptions:
    """Options of the fit, checked.

    Attributes:
        max_iterations: rounds at most.
        tolerance: stop when the gain still to be expected is below this, nats for each observed value.
        noise_floor: least noise variance as a share of the feature's variance.
        noise_pseudo_count: weight of the prior on noise variances, as in ``fit_em``.
        max_rank: the most inducing points for each latent while fitting. Too few favour long length scales, which need
            fewer.
    """

    max_iterations: int = 30
    tolerance: float = 1e-3
    noise_floor: float = 1e-4
    noise_pseudo_count: float = 0.0
    max_rank: int = 400

    @classmethod
    def of(cls, options: Mapping[str, Any]) -> GaussianProcessOptions:
        """The options that a user gave by name.

        Raises:
            ArgumentError: there is no such option, or one is out of range.
            ArgumentTypeError: one is of another type.
        """
        known = [field.name for field in fields(cls)]
        unknown = sorted(set(options) - set(known))
        if unknown:
            raise ArgumentError(f"options: the fit of Gaussian processes has no option {unknown[0]!r}; it has {known}.")
        return cls(**options)

    def __post_init__(self) -> None:
        whole_number("max_iterations", self.max_iterations)
        whole_number("max_rank", self.max_rank, least=1)
        for argument, least in (("tolerance", 0.0), ("noise_floor", 1e-12), ("noise_pseudo_count", 0.0)):
            value = real_number(argument, getattr(self, argument), 1e-3)
            if not least <= value < math.inf:
                raise ArgumentError(f"{argument}: expected a finite number of at least {least:g}, got {value}.")


def fit_gaussian_process(
    prior: GaussianProcessPrior,
    data: MultimodalData,
    *,
    noise: str = "isotropic",
    start: LinearGaussian | None = None,
    seed: int = 0,
    callback: Callback | None = None,
    options: GaussianProcessOptions | None = None,
) -> EMResult:
    """Fit loadings, intercepts and noise, and the kernels and nuggets of the prior, which it changes in place.

    Args:
        prior: the processes. Parameters of kernels that do not require a gradient stay as they are.
        data: N instances, with the prior's covariate.
        noise: "isotropic" or "diagonal".
        start: loadings, intercepts and noise to start from, and then the prior is started from as it is; by default
            all are started from the data.
        seed: of the spectral start.
        callback: called after each round with its number and the evidence.
        options: see there.

    Returns:
        The loadings, intercepts and noise, and the trace of the evidence: where there are fewer weights than the
        numerical rank of the kernels, of its lower bound.

    Raises:
        DataError: the data lack the covariate, or it is not finite.
        NumericalError: a precision is not positive definite.

    Example:
        >>> generator = torch.Generator().manual_seed(0)
        >>> time = torch.linspace(0, 10, 60, dtype=torch.float64)
        >>> x = torch.sin(time)[:, None] * torch.ones(3) + 0.1 * torch.randn(60, 3, generator=generator).double()
        >>> data = MultimodalData({"x": x}, covariates={"time": time})
        >>> prior = GaussianProcessPrior(1)
        >>> result = fit_gaussian_process(prior, data)
        >>> bool((result.objective.diff() >= 0).all()), bool(prior.nugget < 0.05)
        (True, True)
    """
    options = GaussianProcessOptions() if options is None else options
    places = places_of(data, prior)
    blocks, shift = data.blocks.centred()
    step = ProcessStep(blocks)
    scale = _scale(step, noise == "isotropic")
    noise_model = NoiseModel(noise == "isotropic", options.noise_floor * scale, options.noise_pseudo_count, 0.5 * scale)
    if start is None:
        start = _start(prior, data, places, noise, seed, options)
    parameters = Parameters.from_linear_gaussian(start.to(torch.float64), shift).with_floor(noise_model.floor)
    inducing, value = None, -math.inf
    evidence: list[float] = []
    objective: list[float] = []
    num_values = float(step.feature_count.sum())
    criterion, stop_reason = math.inf, "max_iterations"
    for iteration in range(options.max_iterations + 1):
        inducing, value = _choose_points(step, parameters, prior, places, inducing, value, options)
        penalty = noise_model.log_prior(parameters.noise_variance, step.shape)
        evidence.append(value)
        objective.append(value + penalty)
        if callback is not None and iteration:
            callback(iteration, value)
        criterion = _gain_to_come(objective) / num_values
        if criterion <= options.tolerance:
            stop_reason = "converged"
            break
        if iteration == options.max_iterations:
            break
        for _ in range(_EM_STEPS):
            parameters = maximize(step, step(parameters), noise_model, expand=False)
        value = _raise_kernels(step, parameters, prior, places, inducing)
        logger.info("round %d: evidence %.2f with %d weights", iteration, value, len(torch.cat(list(inducing.places))))
    return EMResult(
        linear_gaussian=parameters.to_linear_gaussian(step.shape, shift),
        log_likelihood=torch.tensor(evidence, dtype=torch.float64),
        objective=torch.tensor(objective, dtype=torch.float64),
        num_iterations=len(objective) - 1,
        converged=stop_reason == "converged",
        criterion=criterion,
        tolerance=options.tolerance,
        stop_reason=stop_reason,
        form="gaussian process",
    )


@torch.no_grad()
def _choose_points(
    step: ProcessStep,
    parameters: Parameters,
    prior: GaussianProcessPrior,
    places: Tensor,
    old: InducingPoints | None,
    value: float,
    options: GaussianProcessOptions,
) -> tuple[InducingPoints, float]:
    """New inducing points for the step, unless the old ones make the tighter bound; and that bound."""
    step.nugget = prior.nugget
    likelihood = step.likelihood(parameters).marginalize(step.nugget).likelihood
    tolerance = 1e-2  # nats: far below what a round gains before it counts as converged
    inducing, process = prior.factorize(
        places, likelihood.precision_diagonal, tolerance=tolerance, max_rank=options.max_rank
    )
    found = float(process_evidence(likelihood, process, solved=SOLVED))
    if old is not None and found < value:
        inducing, process, found = old, _detached(prior.differentiable(places, old)), value
    step.process = process
    return inducing, found


def _raise_kernels(
    step: ProcessStep,
    parameters: Parameters,
    prior: GaussianProcessPrior,
    places: Tensor,
    inducing: InducingPoints,
) -> float:
    """A few L-BFGS steps of kernels and nuggets on the evidence, at fixed loadings and inducing points; its value."""
    with torch.no_grad():
        likelihood = step.likelihood(parameters)
    free = [parameter for parameter in prior.parameters() if parameter.requires_grad]

    def bound() -> Tensor:
        outer = likelihood.marginalize(prior.nugget).likelihood
        return process_evidence(outer, prior.differentiable(places, inducing), solved=SOLVED)

    best = [parameter.detach().clone() for parameter in free]
    with torch.no_grad():
        value = float(bound())
    if not free:
        return value
    optimizer = torch.optim.LBFGS(
        free, max_iter=_KERNEL_STEPS, max_eval=2 * _KERNEL_STEPS, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        nonlocal value, best
        optimizer.zero_grad()
        loss = -bound()
        loss.backward()
        reached = -float(loss.detach())
        if reached > value and all(bool(parameter.isfinite().all()) for parameter in free):
            value, best = reached, [parameter.detach().clone() for parameter in free]
        return loss

    try:
        optimizer.step(closure)
    except NumericalError:
        logger.info("a step of the kernels left the range of floating point and was taken back")
    with torch.no_grad():
        for parameter, kept in zip(free, best, strict=True):
            parameter.copy_(kept)
            parameter.grad = None
    return value


def _detached(process: LowRankProcess) -> LowRankProcess:
    return LowRankProcess([factor.detach() for factor in process.factors], process.residual.detach())


def _gain_to_come(objective: list[float]) -> float:
    """What an infinite number of further rounds would add, if gains go on shrinking as they did."""
    if len(objective) <= 2 * _WINDOW:
        return math.inf
    recent = objective[-1] - objective[-1 - _WINDOW]
    before = objective[-1 - _WINDOW] - objective[-1 - 2 * _WINDOW]
    ratio = min(max(recent / before, 0.5), 1 - 1e-6) if before > 0 else 0.5
    return recent * ratio / (1 - ratio)


def _scale(step: ProcessStep, isotropic: bool) -> Tensor:
    """The variance of each feature, or of its modality's on average; the unit where there is none."""
    count = step.feature_count.clamp(min=1)
    variance = (step.totals.square / count - (step.totals.total / count).square()).clamp(min=0)
    typical = torch.cat([variance[part].mean().expand(part.stop - part.start) for part in step.shape.slices])
    typical = torch.where(typical > 0, typical, 1.0)
    return typical if isotropic else torch.maximum(variance, 1e-6 * typical)


@torch.no_grad()
def _start(
    prior: GaussianProcessPrior,
    data: MultimodalData,
    places: Tensor,
    noise: str,
    seed: int,
    options: GaussianProcessOptions,
) -> LinearGaussian:
    """The fit for independent instances, turned to smooth latents; sets the prior's nuggets, and default kernels."""
    independent = fit_em(
        data.blocks,
        prior.latent_dim,
        noise=noise,
        seed=seed,
        tolerance=1e-4,
        noise_floor=options.noise_floor,
        noise_pseudo_count=options.noise_pseudo_count,
    ).linear_gaussian
    latents = posterior(independent, data.blocks).mean
    centre = (places - places.median(dim=0).values).square().sum(1)
    near = centre.argsort()[:_START_ROWS]
    places, latents = places[near], latents[near] - latents[near].mean(0)
    typical = _neighbour_distance(places)
    rotation = torch.empty(prior.latent_dim, 0, dtype=latents.dtype)
    rest = torch.eye(prior.latent_dim, dtype=latents.dtype)
    matrix: Tensor | None = None
    for k in range(prior.latent_dim):
        if prior.default_kernel:
            prior.set_lengthscale(k, typical)
        if matrix is None or not prior.default_kernel:
            matrix = _correlation(prior, k, places)
        part = latents @ rest
        direction = torch.linalg.eigh(part.mT @ (matrix @ part - part)).eigenvectors[:, -1]
        column = rest @ direction
        rotation = torch.cat([rotation, column[:, None]], dim=1)
        complement = torch.linalg.qr(rotation, mode="complete").Q[:, k + 1 :]
        rest = complement
    turned = latents @ rotation
    _start_kernels(prior, places, turned / turned.square().mean(0).sqrt().clamp(min=1e-12), typical)
    loadings = {name: weights @ rotation for name, weights in independent.loadings.items()}
    return LinearGaussian(loadings, independent.intercepts, independent.noise_variance)


@torch.no_grad()
def _start_kernels(prior: GaussianProcessPrior, places: Tensor, latents: Tensor, typical: float) -> None:
    """Length scale and nugget of each latent that make its estimated course likeliest, out of a grid."""
    learned = prior.nugget_logit.requires_grad
    nuggets = [float(prior.nugget[0])] if not learned else list(_NUGGETS)
    best = torch.full((prior.latent_dim,), -math.inf, dtype=latents.dtype)
    chosen: list[tuple[float, float]] = [(typical, nuggets[0])] * prior.latent_dim
    for scale in [multiple * typical for multiple in _LENGTHSCALES] if prior.default_kernel else [typical]:
        values, vectors = torch.empty(0), torch.empty(0)
        for k in range(prior.latent_dim):
            if prior.default_kernel:
                prior.set_lengthscale(k, scale)
            if k == 0 or not prior.default_kernel:
                values, vectors = torch.linalg.eigh(_correlation(prior, k, places))
            square = (vectors.mT @ latents[:, k]).square()
            for nugget in nuggets:
                variance = (1 - nugget) * values.clamp(min=0) + max(nugget, 0.02)
                evidence = float(-0.5 * (square / variance + variance.log()).sum())
                if evidence > best[k]:
                    best[k], chosen[k] = evidence, (scale, nugget)
    for k, (scale, nugget) in enumerate(chosen):
        if prior.default_kernel:
            prior.set_lengthscale(k, scale)
        if learned:
            prior.nugget_logit[k] = math.log(nugget / (1 - nugget))


def _correlation(prior: GaussianProcessPrior, latent: int, places: Tensor) -> Tensor:
    """The kernel's matrix with a unit diagonal, (n, n)."""
    spread = prior.variance(latent, places).clamp(min=1e-300).rsqrt()
    return prior.covariance(latent, places, places) * spread[:, None] * spread


def _neighbour_distance(places: Tensor) -> float:
    """The median distance to the tenth neighbour: a scale on which instances could be alike."""
    distances = torch.cdist(places, places).sort(dim=1).values[:, min(10, len(places) - 1)]
    positive = distances[distances > 0]
    return float(positive.median()) if len(positive) else 1.0
