"""Gradient ascent of the exact evidence: the method "gradient" of ``calmrl_prob.fit``.

For a conjugate model whose parameters have any form of their own, log p(x) is known exactly and so is its gradient,
which runs through the model's code to its parameters. Steps are L-BFGS with a strong-Wolfe line search (Nocedal &
Wright, Numerical Optimization, 2006, chapter 7), over all data at once: where the form is the same for all rows and
sufficient statistics serve, a step costs the same however many rows there are.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from calmrl_prob._arguments import real_number, whole_number
from calmrl_prob.conjugacy import ConjugateForm, discover
from calmrl_prob.data import MultimodalData
from calmrl_prob.errors import ArgumentError, ModelError, NotConjugateError, NumericalError
from calmrl_prob.inference.progress import Callback
from calmrl_prob.linear_gaussian import LinearGaussian, log_marginal
from calmrl_prob.linear_gaussian.evidence import Evidence
from calmrl_prob.linear_gaussian.mixture import LinearGaussianMixture, mixture_posterior
from calmrl_prob.tracing import BoundModel

#: The gain still to come is judged from the gains of this many steps.
_WINDOW = 5
#: Evaluations that a fit is expected to take, for choosing between rows and statistics.
_EVALUATIONS = 200


@dataclass(frozen=True)
class GradientReport:
    """How a fit by gradients went.

    Attributes:
        log_likelihood, objective: (T,) evidence after each step, nats; the start's first. The two are the same.
        num_iterations: L-BFGS steps.
        converged, stop_reason: "converged", "rounding" (no step raises the evidence any more) or "max_iterations".
        criterion: mean gain of the last steps, in nats for each observed value.
        tolerance: what it was compared with.
        form: the route of the evidence.
    """

    log_likelihood: Tensor
    objective: Tensor
    num_iterations: int
    converged: bool
    stop_reason: str
    criterion: float
    tolerance: float
    form: str


def run_gradient(
    bound: BoundModel,
    data: MultimodalData,
    seed: int,
    callback: Callback | None,
    *,
    max_iterations: int = 500,
    tolerance: float = 1e-6,
) -> GradientReport:
    """Maximise the exact evidence over a model's parameters, in place.

    Args:
        bound: the model.
        data: N instances.
        seed: not used; the ascent is deterministic from where the parameters stand.
        callback: called after each step with its number and the evidence, nats.
        max_iterations: steps at most.
        tolerance: stop when the mean gain of the last steps falls below this, in nats for each observed value.

    Raises:
        NotConjugateError: the model has no exact evidence; names the site.
        ModelError: it has no parameters.
        ArgumentError, ArgumentTypeError: an option is out of range or of another type.
        NumericalError: the evidence is not finite where the parameters stand.
    """
    max_iterations = whole_number("max_iterations", max_iterations, least=1)
    tolerance = real_number("tolerance", tolerance, 1e-6)
    if not tolerance >= 0:
        raise ArgumentError(f"tolerance: expected at least 0, got {tolerance}.")
    form = discover(bound, data)
    _require_fixed(form)
    evidence = form_evidence(form, data)
    parameters = [parameter for parameter in bound.parameters() if parameter.requires_grad]
    if not parameters:
        raise ModelError(
            "model: it has no parameters to fit. State them by pyro.param, or as torch.nn.Parameter of a module; "
            "with all of them known, calmrl_prob.posterior needs no fit."
        )
    num_values = float(sum(int(data.feature_mask(name).sum()) for name in data.names))
    optimiser = torch.optim.LBFGS(parameters, max_iter=1, history_size=20, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimiser.zero_grad()
        value = -evidence() / num_values
        value.backward()
        return value

    with torch.enable_grad():
        trace = [_finite(float(evidence().detach()))]
        stop_reason, criterion, step = "max_iterations", math.inf, 0
        for step in range(1, max_iterations + 1):
            optimiser.step(loss)
            trace.append(_finite(float(evidence().detach())))
            if callback is not None:
                callback(step, trace[-1])
            if trace[-1] <= trace[-2]:
                stop_reason, criterion = "rounding", (trace[-2] - trace[-1]) / num_values
                break
            recent = trace[-1 - min(_WINDOW, step) :]
            criterion = (recent[-1] - recent[0]) / (len(recent) - 1) / num_values
            if step >= _WINDOW and criterion <= tolerance:
                stop_reason = "converged"
                break
    values = torch.tensor(trace, dtype=torch.float64)
    converged = stop_reason != "max_iterations"
    return GradientReport(values, values, step, converged, stop_reason, criterion, tolerance, form.route)


def form_evidence(form: ConjugateForm, data: MultimodalData) -> Callable[[], Tensor]:
    """A function of nothing that gives the total evidence () at the model's present parameters, with its gradient.

    Args:
        form: of the model on these data.
        data: the instances.
    """
    if form.structure_index is None and form.offsets is None and isinstance(form.structures[0], LinearGaussian):
        blocks = data.conform(form.structures[0].dims).blocks
        whole = Evidence(blocks, form.structures[0].latent_dim, evaluations=_EVALUATIONS)
        return lambda: whole(form.linear_gaussian())
    index = torch.zeros(len(data), dtype=torch.int64) if form.structure_index is None else form.structure_index
    members = [(index == g).nonzero().squeeze(1) for g in range(len(form.structures))]

    def evidence() -> Tensor:
        structures, (offsets, _) = form.read(), form.read_offsets()
        given = data
        if offsets is not None:
            values = {name: data.filled(name).to(offset.dtype) - offset for name, offset in offsets.items()}
            given = data._derive(_values={**data._values, **values}, _nan_where_absent=set())
        total = torch.zeros((), dtype=torch.float64, device=data.device)
        for structure, rows in zip(structures, members, strict=True):
            blocks = given.subset(rows).conform(structure.dims).blocks
            if isinstance(structure, LinearGaussianMixture):
                total = total + mixture_posterior(structure, blocks).log_marginal.sum()
            else:
                total = total + log_marginal(structure, blocks).sum()
        return total

    return evidence


def _require_fixed(form: ConjugateForm) -> None:
    if form.degrees_of_freedom:
        form.linear_gaussian()  # raises, naming the site
    if form.globals and not set(form.globals) <= set(form.bound.values):
        raise NotConjugateError(
            form.globals[0],
            "global latents",
            "It stands outside the plate and has a prior of its own.",
            "collapsed, by cal.fit with method 'map', 'svi' or 'nuts'",
        )


def _finite(value: float) -> float:
    if not math.isfinite(value):
        raise NumericalError(
            "model: the evidence is not finite at its present parameters. Start from others, bound scales away from "
            "zero, or look for features of very different scale."
        )
    return value
