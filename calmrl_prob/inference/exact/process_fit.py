"""Fitting a model whose latents are Gaussian processes, by maximum marginal likelihood.

A round of the fit chooses inducing points, takes a few closed-form EM steps of loadings, intercepts and noise variances
(given the joint posterior of all latents, their M-steps are those of factor analysis), and then a few quasi-Newton
steps of the kernels and nuggets on the evidence itself, in which loadings stand still. Quasi-Newton steps on everything
at once were several times slower on the bundled data.

Where it starts from: ``gaussian_process_start.py``.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from calmrl_prob._support.arguments import real_number, require_known_options, whole_number
from calmrl_prob._support.progress import Callback
from calmrl_prob.data import MultimodalData
from calmrl_prob.errors import ArgumentError, NumericalError
from calmrl_prob.inference.exact.process_places import places_of
from calmrl_prob.inference.exact.process_start import smooth_start
from calmrl_prob.linear_gaussian import EMResult, LinearGaussian, Trace
from calmrl_prob.linear_gaussian.em.convergence import gain_to_come
from calmrl_prob.linear_gaussian.em.maximization import maximize
from calmrl_prob.linear_gaussian.em.parameters import Parameters
from calmrl_prob.linear_gaussian.em.preparation import mean_variance, noise_model_for
from calmrl_prob.linear_gaussian.process.expectation import SOLVED, ProcessStep
from calmrl_prob.linear_gaussian.process.posterior import LowRankProcess, process_evidence
from calmrl_prob.priors.gaussian_process import GaussianProcessPrior, InducingPoints

logger = logging.getLogger(__name__)

#: EM steps, and quasi-Newton steps of the kernels, in a round.
_EM_STEPS, _KERNEL_STEPS = 4, 5
#: Rounds that the gain still to come is judged from.
_WINDOW = 3


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
        require_known_options(options, [field.name for field in fields(cls)], "the fit of Gaussian processes")
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
) -> EMResult[LinearGaussian]:
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
    variance = mean_variance(step)[1]
    noise_model = noise_model_for(variance, step, noise == "isotropic", options.noise_floor, options.noise_pseudo_count)
    if start is None:
        start = smooth_start(
            prior,
            data,
            places,
            noise=noise,
            seed=seed,
            noise_floor=options.noise_floor,
            noise_pseudo_count=options.noise_pseudo_count,
        )
    parameters = Parameters.from_linear_gaussian(start.to(torch.float64), shift).with_floor(noise_model.floor)
    inducing, value = None, -math.inf
    evidence: list[float] = []
    objective: list[float] = []
    num_values = float(step.feature_count.sum())
    criterion, stop_reason = math.inf, "max_iterations"
    for iteration in range(options.max_iterations + 1):
        inducing, value = _choose_points(step, parameters, prior, places, inducing, value, options)
        penalty = noise_model.log_prior(parameters.noise_variance)
        evidence.append(value)
        objective.append(value + penalty)
        if callback is not None and iteration:
            callback(iteration, value)
        criterion = gain_to_come(objective, most=_WINDOW) / num_values
        if criterion <= options.tolerance:
            stop_reason = "converged"
            break
        if iteration == options.max_iterations:
            break
        for _ in range(_EM_STEPS):
            parameters = maximize(step, step(parameters), noise_model, expand=False)
        value = _raise_kernels(step, parameters, prior, places, inducing)
        logger.info("round %d: evidence %.2f with %d weights", iteration, value, len(torch.cat(list(inducing.places))))
    trace = Trace(
        log_likelihood=torch.tensor(evidence, dtype=torch.float64),
        objective=torch.tensor(objective, dtype=torch.float64),
        num_iterations=len(objective) - 1,
        converged=stop_reason == "converged",
        criterion=criterion,
        tolerance=options.tolerance,
        stop_reason=stop_reason,
        form="gaussian process",
    )
    return EMResult(structure=parameters.to_linear_gaussian(step.shape, shift), trace=trace)


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
