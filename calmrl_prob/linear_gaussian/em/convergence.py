"""The loop that every closed-form fit shares: step, guess further where it pays, stop, report."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Generic, Protocol, TypeVar

import torch
from torch import Tensor

from calmrl_prob.errors import NumericalError
from calmrl_prob.linear_gaussian.em.preparation import NOT_FINITE

#: The gain still to come is judged from the gains of up to this many steps against as many before them: more than
#: Anderson's memory, because gains are small for a while after each time that it had to start anew.
_WINDOW = 12
#: Loss of a step, in nats for each observed value, that rounding takes near a maximum, whatever the tolerance.
_ROUNDING = 1e-4
#: Of fewer steps than this nothing is extrapolated.
_LEAST_WINDOW = 3

Point = TypeVar("Point")
Moments = TypeVar("Moments")


@dataclass(frozen=True, repr=False, kw_only=True)
class Trace:
    """Course of an iteration that raises an objective, and how it ended.

    Attributes:
        log_likelihood: (T,) float64, evidence of the data after each step that was kept, nats; the start's first.
        objective: (T,) float64, the same plus the log densities of whatever has a prior: what never falls. Equal to
            ``log_likelihood`` without any.
        num_iterations: E-steps taken after the start's, those whose point was taken back included; steps, of other
            methods.
        converged: whether the criterion fell to the tolerance, or steps to what rounding takes from them; with float32
            data that may come first.
        criterion: the gain still to be expected when it stopped, in nats for each observed value; after "rounding",
            what the last step lost.
        tolerance: what the criterion was compared with.
        stop_reason: "converged", "rounding" (gains vanished in floating point) or "max_iterations".
        form: how the evidence was computed; in EM the form of the E-step: "modality", "pattern", "statistics" or
            "features".
    """

    log_likelihood: Tensor
    objective: Tensor
    num_iterations: int
    converged: bool
    criterion: float
    tolerance: float
    stop_reason: str
    form: str

    @property
    def ending(self) -> str:
        """Ending, for one line of a report."""
        return (
            f"{self.stop_reason} after {self.num_iterations} iterations by {self.form}, "
            f"log_likelihood={float(self.log_likelihood[-1]):.6g}, criterion={self.criterion:.1e}"
        )

    def __repr__(self) -> str:
        """One line: how it ended."""
        return f"Trace({self.ending})"

    def then(self, further: Trace) -> Trace:
        """The course of this iteration and of one that went on from a better point than its last."""
        return replace(
            further,
            log_likelihood=torch.cat([self.log_likelihood, further.log_likelihood]),
            objective=torch.cat([self.objective, further.objective]),
            num_iterations=self.num_iterations + further.num_iterations + 1,
        )


class Traced:
    """Base class of reports that hold a trace: its attributes read through.

    Attributes:
        trace: the course of the fit.
    """

    trace: Trace

    @property
    def log_likelihood(self) -> Tensor:
        """Evidence after each step, (T,), nats."""
        return self.trace.log_likelihood

    @property
    def objective(self) -> Tensor:
        """The same plus log priors, (T,), nats."""
        return self.trace.objective

    @property
    def num_iterations(self) -> int:
        """Steps tried."""
        return self.trace.num_iterations

    @property
    def converged(self) -> bool:
        """Whether the criterion was met."""
        return self.trace.converged

    @property
    def stop_reason(self) -> str:
        """Why it stopped."""
        return self.trace.stop_reason

    @property
    def criterion(self) -> float:
        """Last value of the criterion."""
        return self.trace.criterion

    @property
    def tolerance(self) -> float:
        """Tolerance that the criterion was compared with."""
        return self.trace.tolerance

    @property
    def form(self) -> str:
        """Form by which the evidence was computed."""
        return self.trace.form

    def __repr__(self) -> str:
        """One line: how it ended."""
        return f"{type(self).__name__}({self.trace.ending})"


@dataclass(frozen=True)
class Evaluation(Generic[Point, Moments]):
    """A point, and what was computed there.

    Attributes:
        point: the parameters; those that were asked about, or better ones that came at no further cost.
        moments: what the next step needs.
        log_likelihood: evidence of the data, nats.
        objective: the same plus log priors: what an ascent never lowers.
    """

    point: Point
    moments: Moments
    log_likelihood: float
    objective: float


class Guesser(Protocol[Point]):
    """Guesses the next point from the last ones; its guesses are taken only where they raise the objective."""

    def __call__(self, point: Point, image: Point) -> Point:
        """The guess, given a point and where the iteration would go from it."""

    def reset(self) -> None:
        """Forget the past: the last guess was not taken."""


def ascend(
    start: Point,
    evaluate: Callable[[Point], Evaluation[Point, Moments]],
    improve: Callable[[Evaluation[Point, Moments]], Point],
    *,
    num_values: float,
    max_iterations: int,
    tolerance: float,
    form: str,
    callback: Callable[[int, float], None] | None = None,
    guess: Guesser[Point] | None = None,
) -> tuple[Evaluation[Point, Moments], Trace]:
    """Iterate ``improve`` until what is still to be gained is below a tolerance.

    Args:
        start: where to begin.
        evaluate: the E-step; may raise NumericalError.
        improve: the M-step: a point whose objective is no lower but for rounding.
        num_values: observed values that gains are divided by.
        max_iterations: evaluations at most, and one more if the last of them was a guess that had to be taken back.
        tolerance: on the gain still to be expected, in nats for each observed value; it is extrapolated from the decay
            of the last gains, so that a slow crawl is not taken for arrival.
        form: the form of the E-step, for the report.
        callback: called after each step with the number of evaluations so far and the evidence, nats.
        guess: proposes points further on.

    Returns:
        The last point that was kept, with its moments, and the trace.

    Raises:
        NumericalError: the evidence at the start, or after a step, is not finite.
    """
    current = _finite(evaluate, start)
    if current is None:
        raise NumericalError(NOT_FINITE)
    evidence, objective = [current.log_likelihood], [current.objective]
    num_iterations, criterion, stop_reason = 0, math.inf, "max_iterations"
    while num_iterations < max_iterations:
        image = improve(current)
        proposal = _guessed(guess, current.point, image)
        candidate = _finite(evaluate, proposal)
        num_iterations += 1
        if proposal is not image and (candidate is None or candidate.objective < objective[-1]):
            if guess is not None:
                guess.reset()
            candidate = _finite(evaluate, image)
            num_iterations += 1
        if candidate is None:
            raise NumericalError(NOT_FINITE)
        if candidate.objective < objective[-1]:  # a step can only lose what rounding takes
            stop_reason, criterion = "rounding", (objective[-1] - candidate.objective) / num_values
            break
        current = candidate
        evidence.append(current.log_likelihood)
        objective.append(current.objective)
        if callback is not None:
            callback(num_iterations, current.log_likelihood)
        criterion = gain_to_come(objective) / num_values
        if criterion <= tolerance:
            stop_reason = "converged"
            break
    return current, Trace(
        log_likelihood=torch.tensor(evidence, dtype=torch.float64),
        objective=torch.tensor(objective, dtype=torch.float64),
        num_iterations=num_iterations,
        # a loss beyond what is asked for tells of noise that hides the way up, not of arrival
        converged=stop_reason == "converged" or (stop_reason == "rounding" and criterion <= max(tolerance, _ROUNDING)),
        criterion=criterion,
        tolerance=tolerance,
        stop_reason=stop_reason,
        form=form,
    )


def _guessed(guess: Guesser[Point] | None, point: Point, image: Point) -> Point:
    """The guess, or the image where there is none or where it has left the range of floating point."""
    if guess is None:
        return image
    try:
        return guess(point, image)
    except NumericalError:
        guess.reset()
        return image


def _finite(evaluate: Callable[[Point], Evaluation[Point, Moments]], point: Point) -> Evaluation[Point, Moments] | None:
    """Evaluation at a point, or None where that has left the range of floating point."""
    try:
        found = evaluate(point)
    except NumericalError:
        return None
    return found if math.isfinite(found.objective) else None


def gain_to_come(objective: list[float], most: int = _WINDOW) -> float:
    """Gain that infinitely many further steps would add, if gains go on shrinking as they did.

    Judged from the gains of ``most`` steps against those of as many before them; of fewer while there are no more.
    """
    window = min(most, (len(objective) - 1) // 2)
    if window < _LEAST_WINDOW:
        return math.inf
    recent = objective[-1] - objective[-1 - window]
    before = objective[-1 - window] - objective[-1 - 2 * window]
    ratio = min(recent / before, 1 - 1e-6) if before > 0 else 0.0
    return recent * max(ratio, 0.5) / (1 - max(ratio, 0.5))
