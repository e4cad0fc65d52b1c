"""Gradient ascent of the exact evidence: the method "gradient" of ``calmrl_prob.fit``.

For a conjugate model whose parameters have any form of their own, log p(x) is known exactly and so is its gradient,
which runs through the model's code to its parameters. Steps are those of L-BFGS (``ascent.py``); where the form is the
same for all rows and sufficient statistics serve, a step costs the same however many rows there are. Factors outside
the plate, which no latent moves, count as log priors of the parameters.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import Parameter

from calmrl_prob._support.progress import Callback
from calmrl_prob.conjugacy import ConjugateForm, discover
from calmrl_prob.data import MultimodalData
from calmrl_prob.errors import ModelError, NotConjugateError
from calmrl_prob.inference.exact.evidence import FormEvidence
from calmrl_prob.inference.optimisers.ascent import ModeReport, lbfgs_ascent
from calmrl_prob.programs.bound import BoundModel

#: Evaluations that a fit is expected to take, for choosing between rows and statistics.
_EVALUATIONS = 200


def run_gradient(
    bound: BoundModel,
    data: MultimodalData,
    seed: int,
    callback: Callback | None,
    *,
    max_iterations: int = 500,
    tolerance: float = 1e-6,
    form: ConjugateForm | None = None,
) -> ModeReport:
    """Maximise the exact evidence over a model's parameters, in place.

    Args:
        bound: the model.
        data: N instances.
        seed: not used; the ascent is deterministic from where the parameters stand.
        callback: called after each step with its number and the evidence, nats.
        max_iterations: steps at most.
        tolerance: stop when the gain still to be expected, extrapolated from the last steps, falls below this, in nats
            for each observed value.
        form: of the model on the data, generic, if it was discovered before.

    Raises:
        NotConjugateError: the model has no exact evidence; names the site.
        ModelError: it has no parameters.
        ArgumentError, ArgumentTypeError: an option is out of range or of another type.
        NumericalError: the evidence is not finite where the parameters stand.
    """
    form = discover(bound, data, generic=True) if form is None else form
    _require_fixed(form)
    evidence = FormEvidence(form, data, _EVALUATIONS)
    parameters = trained_parameters(bound)

    def terms() -> tuple[Tensor, Tensor]:
        structures, penalty = form.read_with_prior({})
        return evidence.of(structures), penalty

    return ascend_evidence(parameters, data, terms, callback, max_iterations, tolerance, form.route)


def ascend_evidence(
    parameters: Sequence[Parameter],
    data: MultimodalData,
    terms: Callable[[], tuple[Tensor, Tensor]],
    callback: Callback | None,
    max_iterations: int,
    tolerance: float,
    route: str,
) -> ModeReport:
    """L-BFGS over a model's parameters, in place.

    Args:
        parameters: of the model, those to be fitted.
        data: N instances.
        terms: the evidence, and what the model states of its parameters outside the plate, nats; their sum is raised.
        callback: called after each step with its number and that sum.
        max_iterations: steps at most.
        tolerance: stop when the gain still to be expected, extrapolated from the last steps, falls below this, in nats
            for each observed value.
        route: of the evidence, for the report.
    """
    penalties: dict[float, float] = {}

    def objective() -> Tensor:
        evidence, penalty = terms()
        total = evidence + penalty
        penalties[float(total.detach())] = float(penalty.detach())
        return total

    num_values = float(sum(int(data.feature_mask(name).sum()) for name in data.names))
    found = lbfgs_ascent(
        objective,
        parameters,
        num_values,
        max_iterations=max_iterations,
        tolerance=tolerance,
        callback=callback,
        form=route,
    )
    penalty = torch.tensor([penalties[value] for value in found.objective.tolist()], dtype=torch.float64)
    return ModeReport(trace=replace(found, log_likelihood=found.objective - penalty))


def trained_parameters(bound: BoundModel) -> list[Parameter]:
    """The parameters of a model that are to be fitted.

    Raises:
        ModelError: there are none.
    """
    parameters = [parameter for parameter in bound.parameters() if parameter.requires_grad]
    if not parameters:
        raise ModelError(
            "model: it has no parameters to fit. State them by pyro.param, or as torch.nn.Parameter of a module; "
            "with all of them known, calmrl_prob.posterior needs no fit."
        )
    return parameters


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
