"""Gradient ascent with L-BFGS: what all exact objectives are maximised by.

The steps are SciPy's, over all data at once, in legs. For each leg the unknowns are measured anew in units in which the
curvature is about one: u_b = (mean of (H v)^2 over b)^(-1/4) or so for each tensor b, with H v from differences of
gradients at random signs v. Loadings of features of size 0.1 and of size 10 have curvatures 10^4 apart, on which
L-BFGS would crawl. Sources: Byrd, Lu, Nocedal & Zhu, A limited memory algorithm for bound constrained optimization
(1995); Dauphin, de Vries & Bengio, Equilibrated adaptive learning rates for non-convex optimization (2015).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from calmrl_prob._support.arguments import real_number, whole_number
from calmrl_prob._support.progress import Callback
from calmrl_prob.errors import ArgumentError, CalmrlError, NumericalError
from calmrl_prob.linear_gaussian.em.convergence import Trace, Traced, gain_to_come

if TYPE_CHECKING:
    from scipy.optimize import OptimizeResult

#: The gain still to come is judged from the gains of this many steps, or of this share of all where that is more,
#: against those of as many before them: where the ascent passes a saddle, a few steps may gain little.
_WINDOW = 10
_SHARE = 4
#: Steps of the first leg; each is twice as long as the one before, as curvatures settle.
_LEG = 30
#: Rounds of measuring units, directions in each, and how far they go, as root mean square.
_ROUNDS, _PROBES, _STEP = 2, 2, 1e-4
#: Curvatures below this share of the largest count as this: nothing moves there.
_FLAT = 1e-12
#: What stands for the loss where the objective is not finite, so that a line search turns back: nats for each value.
_WALL = 1e6


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class ModeReport(Traced):
    """Trace of an ascent to a mode: of the evidence, or of the joint density with global latents.

    The values found are in the model.

    Attributes:
        trace: the course of the ascent, of the start that won; ``objective`` is the evidence plus log priors: of global
            latents, or what the model states by ``pyro.factor``. It never falls.
        theta: the mode of the global latents, (n,), unconstrained; None where there are none.
        diagnostics: of global latents "log_joint_by_start", where each start ended, and "runaway_by_start", the sites
            that ran to where the density has no bound: none if it is a mode.
        warned: whether a warning has said so.
    """

    trace: Trace
    theta: Tensor | None = None
    diagnostics: Mapping[str, Any] = field(default_factory=dict)
    warned: bool = False


@torch.enable_grad()
def lbfgs_ascent(
    objective: Callable[[], Tensor],
    unknowns: Sequence[Tensor],
    num_values: float,
    *,
    max_iterations: int = 500,
    tolerance: float = 1e-6,
    callback: Callback | None = None,
    form: str = "gradient",
) -> Trace:
    """Maximise an objective over tensors, in place, by L-BFGS.

    Args:
        objective: the value at the present unknowns, (), nats, with its gradient.
        unknowns: leaves that require gradients.
        num_values: how many numbers are observed.
        max_iterations: steps at most.
        tolerance: stop when the gain still to be expected, extrapolated from the decay of the last gains, falls below
            this, in nats for each observed value.
        callback: called after each step with its number and the objective, nats.
        form: how the objective is computed, for the trace.

    Returns:
        The trace. Its log likelihood is the objective too: what the part of priors is, the caller knows.

    Raises:
        ArgumentError, ArgumentTypeError: an option is out of range or of another type.
        NumericalError: the objective is not finite at the start.

    Example:
        >>> x = torch.zeros(2, dtype=torch.float64, requires_grad=True)
        >>> lbfgs_ascent(lambda: -(x - 3).square().sum(), [x], num_values=1.0).stop_reason, x.tolist()
        ('rounding', [3.0, 3.0])
    """
    max_iterations = whole_number("max_iterations", max_iterations, least=1)
    tolerance = real_number("tolerance", tolerance, 1e-6)
    if not tolerance >= 0:
        raise ArgumentError(f"tolerance: expected at least 0, got {tolerance}.")
    climb = _Climb(objective, unknowns, num_values, tolerance, callback)
    length, stop_reason = _LEG, "max_iterations"
    while climb.num_steps < max_iterations:
        before = climb.num_steps
        ended = climb.leg(min(length, max_iterations - before))
        # a line search that found nothing in old units may find something in new ones
        if ended == "converged" or (ended == "rounding" and climb.num_steps - before < _WINDOW):
            stop_reason = ended
            break
        length *= 2
    climb.settle()
    window = _WINDOW if stop_reason == "rounding" else max(_WINDOW, climb.num_steps // _SHARE)
    objectives = torch.tensor(climb.trace, dtype=torch.float64)
    return Trace(
        log_likelihood=objectives,
        objective=objectives,
        num_iterations=climb.num_steps,
        converged=stop_reason != "max_iterations",
        criterion=climb.to_come(window),
        tolerance=tolerance,
        stop_reason=stop_reason,
        form=form,
    )


class _Climb:
    """The legs of one ascent: in each, L-BFGS in units in which the curvature along every unknown is about one."""

    def __init__(
        self,
        objective: Callable[[], Tensor],
        unknowns: Sequence[Tensor],
        num_values: float,
        tolerance: float,
        callback: Callback | None,
    ) -> None:
        self._objective, self._unknowns, self._num_values = objective, unknowns, num_values
        self._tolerance, self._callback = tolerance, callback
        self.trace = [_finite(float(objective().detach()))]
        self._best = _flat(unknowns)
        self._wall = abs(self.trace[0]) + _WALL * num_values

    @property
    def num_steps(self) -> int:
        """Steps so far."""
        return len(self.trace) - 1

    def to_come(self, window: int) -> float:
        """The gain still to be expected, in nats for each observed value; after very few steps, what they gained."""
        expected = gain_to_come(self.trace, window)
        return (expected if math.isfinite(expected) else self.trace[-1] - self.trace[0]) / self._num_values

    def leg(self, most: int) -> str:
        """At most this many steps from the best point so far; "steps", "converged" or "rounding"."""
        from scipy.optimize import minimize

        units, first = self._units(self._best), self.num_steps
        reached = False

        def loss(point: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
            value, gradient = self._loss(point * units)
            return value, gradient * units

        def after_step(intermediate_result: OptimizeResult) -> None:
            nonlocal reached
            value = -float(intermediate_result.fun)
            if value > self.trace[-1]:
                self._best = intermediate_result.x * units
            self.trace.append(max(value, self.trace[-1]))
            if self._callback is not None:
                self._callback(self.num_steps, value)
            window = max(_WINDOW, self.num_steps // _SHARE)
            if self.num_steps >= 2 * window and self.to_come(window) <= self._tolerance:
                reached = True
                raise StopIteration

        minimize(
            loss,
            self._best / units,
            jac=True,
            method="L-BFGS-B",
            callback=after_step,
            # when to stop is decided above, in units that mean something
            options={"maxiter": most, "maxfun": 50 * most, "maxcor": 20, "ftol": 0.0, "gtol": 0.0},
        )
        return "converged" if reached else "steps" if self.num_steps - first >= most else "rounding"

    def settle(self) -> None:
        """The unknowns at the best point."""
        self._place(self._best)
        for unknown in self._unknowns:
            unknown.grad = None

    def _units(self, point: NDArray[np.float64]) -> NDArray[np.float64]:
        """Units of the unknowns by curvature: one number for each tensor, so that noise averages out."""
        generator = np.random.default_rng(0)
        splits = np.cumsum([unknown.numel() for unknown in self._unknowns])[:-1]
        units = np.ones(len(point))
        for _ in range(_ROUNDS):
            squares = np.zeros(len(point))
            for _ in range(_PROBES):
                direction = units * generator.choice([-1.0, 1.0], len(point))
                step = _STEP / max(float(np.sqrt(np.mean(direction**2))), 1e-300)
                ahead, behind = (self._loss(point + sign * step * direction)[1] for sign in (1, -1))
                squares += ((ahead - behind) / (2 * step) * units) ** 2 / _PROBES
            curvature = np.concatenate([np.full(len(p), np.sqrt(p.mean())) for p in np.split(squares, splits)])
            if not (np.isfinite(curvature).all() and curvature.max() > 0):  # at a wall, or nothing bends
                break
            units = units / np.sqrt(np.maximum(curvature, _FLAT * curvature.max()))
        return units

    def _place(self, point: NDArray[np.float64]) -> None:
        start = 0
        with torch.no_grad():
            for unknown in self._unknowns:
                part = torch.from_numpy(point[start : start + unknown.numel()])
                unknown.copy_(part.view(unknown.shape))
                start += unknown.numel()

    def _loss(self, point: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        self._place(point)
        for unknown in self._unknowns:
            unknown.grad = None
        try:
            value = -self._objective()
        except CalmrlError:  # a trial step out of all range
            return self._wall, np.zeros_like(point)
        if not bool(value.isfinite()):
            return self._wall, np.zeros_like(point)
        value.backward()
        zeros = [torch.zeros_like(unknown) if unknown.grad is None else unknown.grad for unknown in self._unknowns]
        return float(value.detach()), _flat(zeros)


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
