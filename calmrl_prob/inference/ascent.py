"""Gradient ascent with L-BFGS: what all exact objectives are maximised by.

The steps are SciPy's, over all data at once. Source: Byrd, Lu, Nocedal & Zhu, A limited memory algorithm for bound
constrained optimization (1995).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import OptimizeResult, minimize
from torch import Tensor

from calmrl_prob._arguments import real_number, whole_number
from calmrl_prob.errors import ArgumentError, CalmrlError, NumericalError
from calmrl_prob.inference.progress import Callback

#: The gain still to come is judged from the gains of this many steps.
_WINDOW = 5
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


@dataclass(frozen=True, eq=False)
class AscentReport:
    """What a method of fitting reports that is one ascent.

    Attributes:
        log_likelihood: (T,) evidence after each step, nats; the start's first.
        objective: (T,) the same plus log priors: of global latents, or what the model states by ``pyro.factor``. It
            never falls.
        num_iterations: L-BFGS steps.
        converged, stop_reason, criterion: as :class:`Ascent` has them.
        tolerance: what the criterion was compared with.
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

    @classmethod
    def of(cls, found: Ascent, log_likelihood: Tensor, tolerance: float, form: str, **more: Any) -> Self:
        """From an ascent of the objective; ``more`` is for subclasses."""
        return cls(
            log_likelihood,
            found.trace,
            found.num_iterations,
            found.converged,
            found.stop_reason,
            found.criterion,
            tolerance,
            form,
            **more,
        )


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
    trace = [_finite(float(objective().detach()))]
    best = [unknown.detach().clone() for unknown in unknowns]
    wall = abs(trace[0]) + _WALL * num_values
    reached: list[str] = []

    def place(point: NDArray[np.float64]) -> None:
        start = 0
        with torch.no_grad():
            for unknown in unknowns:
                part = torch.from_numpy(point[start : start + unknown.numel()])
                unknown.copy_(part.view(unknown.shape))
                start += unknown.numel()

    def loss(point: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        place(point)
        for unknown in unknowns:
            unknown.grad = None
        try:
            value = -objective()
        except CalmrlError:  # a trial step out of all range
            return wall, np.zeros_like(point)
        if not bool(value.isfinite()):
            return wall, np.zeros_like(point)
        value.backward()
        zeros = [torch.zeros_like(unknown) if unknown.grad is None else unknown.grad for unknown in unknowns]
        return float(value.detach()), _flat(zeros)

    def after_step(intermediate_result: OptimizeResult) -> None:
        value = -float(intermediate_result.fun)
        if value > trace[-1]:
            place(intermediate_result.x)
            for kept, unknown in zip(best, unknowns, strict=True):
                kept.copy_(unknown.detach())
        trace.append(max(value, trace[-1]))
        if callback is not None:
            callback(len(trace) - 1, value)
        if len(trace) > _WINDOW and (trace[-1] - trace[-1 - _WINDOW]) / _WINDOW / num_values <= tolerance:
            reached.append("converged")
            raise StopIteration

    minimize(
        loss,
        _flat(unknowns),
        jac=True,
        method="L-BFGS-B",
        callback=after_step,
        # when to stop is decided above, in units that mean something
        options={"maxiter": max_iterations, "maxfun": 50 * max_iterations, "maxcor": 20, "ftol": 0.0, "gtol": 0.0},
    )
    with torch.no_grad():
        for unknown, kept in zip(unknowns, best, strict=True):
            unknown.copy_(kept)
            unknown.grad = None
    steps = len(trace) - 1
    stop_reason = reached[0] if reached else "max_iterations" if steps >= max_iterations else "rounding"
    window = min(_WINDOW, steps)
    criterion = (trace[-1] - trace[-1 - window]) / window / num_values if window else 0.0
    return Ascent(torch.tensor(trace, dtype=torch.float64), steps, stop_reason, criterion)


def _flat(tensors: Sequence[Tensor]) -> NDArray[np.float64]:
    flat: NDArray[np.float64] = torch.cat([t.detach().double().cpu().flatten() for t in tensors]).numpy()
    return flat.copy()


def _finite(value: float) -> float:
    if not math.isfinite(value):
        raise NumericalError(
            "model: the density of the data is not finite where the parameters stand. Start from others, bound scales "
            "away from zero, or look for features of very different scale."
        )
    return value
