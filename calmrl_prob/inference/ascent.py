"""Gradient ascent with L-BFGS: the loop that all exact objectives share.

Steps take a strong-Wolfe line search over all data at once. Source: Nocedal & Wright, Numerical Optimization (2006),
chapter 7.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from calmrl_prob._arguments import real_number, whole_number
from calmrl_prob.errors import ArgumentError, CalmrlError, NumericalError
from calmrl_prob.inference.progress import Callback

#: The gain still to come is judged from the gains of this many steps.
_WINDOW = 5
#: Evaluations that a line search may take.
_TRIALS = 30
#: What stands for the loss where the objective is not finite, so that a line search turns back: nats for each value.
_WALL = 1e6


@dataclass(frozen=True)
class Ascent:
    """How it went.

    Attributes:
        trace: (T,) the objective after each step, nats; the start's first.
        num_iterations: steps.
        stop_reason: "converged", "rounding" (no step raises the objective any more) or "max_iterations".
        criterion: mean gain of the last steps, in nats for each observed value.
    """

    trace: Tensor
    num_iterations: int
    stop_reason: str
    criterion: float

    @property
    def converged(self) -> bool:
        """Whether it did not just run out of steps."""
        return self.stop_reason != "max_iterations"


@torch.enable_grad()
def ascend(
    objective: Callable[[], Tensor],
    unknowns: Sequence[Tensor],
    num_values: float,
    *,
    max_iterations: int = 500,
    tolerance: float = 1e-6,
    callback: Callback | None = None,
) -> Ascent:
    """Maximise an objective over tensors, in place.

    Args:
        objective: the value at the present unknowns, (), nats, with its gradient.
        unknowns: leaves that require gradients.
        num_values: how many numbers are observed.
        max_iterations: steps at most.
        tolerance: stop when the mean gain of the last steps falls below this, in nats for each observed value.
        callback: called after each step with its number and the objective, nats.

    Raises:
        ArgumentError, ArgumentTypeError: an option is out of range or of another type.
        NumericalError: the objective is not finite at the start.

    Example:
        >>> x = torch.zeros(2, dtype=torch.float64, requires_grad=True)
        >>> ascend(lambda: -(x - 3).square().sum(), [x], num_values=1.0).stop_reason, x.tolist()
        ('rounding', [3.0, 3.0])
    """
    max_iterations = whole_number("max_iterations", max_iterations, least=1)
    tolerance = real_number("tolerance", tolerance, 1e-6)
    if not tolerance >= 0:
        raise ArgumentError(f"tolerance: expected at least 0, got {tolerance}.")
    # torch's default for max_eval would leave the line search of a single step one trial; the end is judged below
    optimiser = torch.optim.LBFGS(
        list(unknowns),
        max_iter=1,
        max_eval=_TRIALS,
        tolerance_grad=0,
        tolerance_change=0,
        history_size=20,
        line_search_fn="strong_wolfe",
    )

    def loss() -> Tensor:
        optimiser.zero_grad()
        try:
            value = -objective() / num_values
        except CalmrlError:  # a trial step out of all range
            return unknowns[0].new_tensor(_WALL)
        if not bool(value.isfinite()):
            return unknowns[0].new_tensor(_WALL)
        value.backward()
        return value

    trace = [_finite(float(objective().detach()))]
    stop_reason, criterion, step = "max_iterations", math.inf, 0
    for step in range(1, max_iterations + 1):
        before = [unknown.detach().clone() for unknown in unknowns]
        optimiser.step(loss)
        value = _value(objective)
        if not value > trace[-1]:  # NaN too
            for unknown, kept in zip(unknowns, before, strict=True):
                unknown.data.copy_(kept)
            stop_reason, criterion = "rounding", max(0.0, trace[-1] - value) / num_values
            break
        trace.append(value)
        if callback is not None:
            callback(step, value)
        recent = trace[-1 - min(_WINDOW, step) :]
        criterion = (recent[-1] - recent[0]) / (len(recent) - 1) / num_values
        if step >= _WINDOW and criterion <= tolerance:
            stop_reason = "converged"
            break
    return Ascent(torch.tensor(trace, dtype=torch.float64), step, stop_reason, criterion)


def _value(objective: Callable[[], Tensor]) -> float:
    try:
        return float(objective().detach())
    except CalmrlError:
        return math.nan


def _finite(value: float) -> float:
    if not math.isfinite(value):
        raise NumericalError(
            "model: the density of the data is not finite where the parameters stand. Start from others, bound scales "
            "away from zero, or look for features of very different scale."
        )
    return value
