"""The joint mode of global latents, latents of instances integrated out: the method "map" of ``calmrl_prob.fit``.

The mode of log p(theta, x) by L-BFGS, from EM's loadings and from others. Parameters of the model (``pyro.param``, or
those of a module) are maximised along with it.

A mode depends on the coordinates: here those that the model is written in, on the unconstrained scale with Jacobians
counted in. That is enough for a noise scale, which the data keep away from zero, but not for a scale of other global
latents, such as tau in w ~ N(0, tau^2): unless its prior forbids it, the density rises without bound as tau and w go to
zero together (:mod:`calmrl_prob.inference.parameters.unbounded`). Where an ascent ran there, the best of the modes that
stay away is kept, and a warning says so.

Sites are not moved to non-centred coordinates behind the user's back, w = tau u with the mode of (tau, u): that density
is bounded, but then the likelihood alone sets tau u, u shrinks as tau grows, and it is only tau's own prior that stops
it; ARD would switch nothing off. Whoever wants that mode writes the model that way, as ``HorseshoeLoadings`` does.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from calmrl_prob._support.arguments import whole_number
from calmrl_prob._support.progress import Callback
from calmrl_prob._support.warnings import warn_unreliable
from calmrl_prob.data import MultimodalData
from calmrl_prob.errors import NumericalError
from calmrl_prob.inference.optimisers.ascent import ModeReport, lbfgs_ascent
from calmrl_prob.inference.parameters.collapsed import CollapsedModel, marginalize
from calmrl_prob.inference.parameters.starts import starting_points
from calmrl_prob.inference.parameters.unbounded import advice, runaway_sites
from calmrl_prob.linear_gaussian import Trace
from calmrl_prob.programs.bound import BoundModel


def run_map(
    bound: BoundModel,
    data: MultimodalData,
    seed: int,
    callback: Callback | None,
    *,
    num_starts: int = 2,
    max_iterations: int = 500,
    tolerance: float = 1e-6,
) -> ModeReport:
    """Find the joint mode of the global latents, and keep it in the model.

    Args:
        bound: a model that is conjugate given its global latents.
        data: N instances.
        seed: of the starts.
        callback: called after each step with its number and the log joint density, nats.
        num_starts: from EM's fit, EM's fit with ARD, then draws from the prior; the best mode is kept.
        max_iterations: steps from each start at most.
        tolerance: stop when the gain still to be expected, extrapolated from the last steps, falls below this, in nats
            for each observed value.

    Raises:
        NotConjugateError, ModelError: as :func:`~calmrl_prob.inference.parameters.collapsed.marginalize` does.
        ArgumentError, ArgumentTypeError: an option is out of range or of another type.
        NumericalError: the density is finite at no start.

    Warns:
        ReliabilityWarning: a scale ran to zero with all that it scales, where the density has no bound.
    """
    num_starts = whole_number("num_starts", num_starts, least=1)
    model = marginalize(bound, data)
    ends = []
    for start in starting_points(model, num_starts, seed):
        try:
            ends.append(climb(model, start, max_iterations=max_iterations, tolerance=tolerance, callback=callback))
        except NumericalError:  # a draw from a prior with heavy tails
            continue
    if not ends:
        raise NumericalError(
            "model: the density of the data is finite at none of the starts. Bring the data to the scale that the "
            "priors expect, or raise num_starts."
        )
    best = max(ends, key=lambda end: (not end.runaway, float(end.trace.objective[-1])))  # what has no bound is no mode
    runaway = dict.fromkeys(name for end in ends for name in end.runaway)
    problems = [advice(runaway, kept=not best.runaway)] if runaway else []
    warn_unreliable(problems)
    with torch.no_grad():
        for parameter, value in zip(_parameters(bound), best.parameters, strict=True):
            parameter.copy_(value)
        bound.values = model.values(best.theta)
    trace = replace(best.trace, converged=False, stop_reason=problems[0]) if best.runaway else best.trace
    return ModeReport(
        trace=trace,
        theta=best.theta,
        diagnostics={
            "log_joint_by_start": [float(end.trace.objective[-1]) for end in ends],
            "runaway_by_start": [end.runaway for end in ends],
        },
        warned=bool(problems),
    )


@dataclass(frozen=True, eq=False)
class End:
    """End of an ascent.

    Attributes:
        theta: (n,).
        parameters: of the model.
        trace: the course of the ascent.
        runaway: the sites that ran to where the density has no bound; none if it is a mode.
    """

    theta: Tensor
    parameters: list[Tensor]
    trace: Trace
    runaway: tuple[str, ...]


def climb(
    model: CollapsedModel,
    start: Tensor,
    *,
    max_iterations: int = 500,
    tolerance: float = 1e-6,
    callback: Callback | None = None,
) -> End:
    """Climb from one start; the model's parameters are as before afterwards.

    Raises:
        NumericalError: the density is not finite at the start.
    """
    parameters = _parameters(model.bound)
    before = [parameter.detach().clone() for parameter in parameters]
    theta = start.detach().clone().requires_grad_()
    latest: list[float] = []
    evidence: list[float] = []

    def objective() -> Tensor:
        terms = model.terms(theta)
        latest[:] = [float(terms.evidence.detach())]
        evidence[:] = evidence or latest
        return terms.log_joint

    def after_step(step: int, value: float) -> None:
        evidence.append(latest[0])
        if callback is not None:
            callback(step, value)

    try:
        trace = lbfgs_ascent(
            objective,
            [theta, *parameters],
            model.num_values,
            max_iterations=max_iterations,
            tolerance=tolerance,
            callback=after_step,
            form=model.form.route,
        )
        found = [parameter.detach().clone() for parameter in parameters]
        runaway = runaway_sites(model, theta.detach())
    finally:
        with torch.no_grad():
            for parameter, value in zip(parameters, before, strict=True):
                parameter.copy_(value)
    trace = replace(trace, log_likelihood=torch.tensor(evidence, dtype=torch.float64))
    return End(theta.detach(), found, trace, runaway)


def _parameters(bound: BoundModel) -> list[torch.nn.Parameter]:
    return [parameter for parameter in bound.parameters() if parameter.requires_grad]
