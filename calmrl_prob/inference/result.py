"""What a fit reports."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from calmrl_prob.inference.posterior import Fittable


@dataclass(frozen=True, eq=False, repr=False)
class FitResult:
    """How a fit went. The parameters are in the model, which the fit changed.

    Attributes:
        model: the fitted model.
        log_likelihood: the total log marginal likelihood of the data after each step that was kept, the start's first,
            shape (T,), nats.
        objective: what the method raises, shape (T,), nats: the log likelihood, plus the log priors of noise variances
            and loadings if they were asked for. It never falls.
        num_iterations: steps tried after the start, those that were taken back included.
        converged: whether the method's own criterion was met.
        stop_reason: why it stopped.
        criterion: the gain still to be expected when it stopped, in nats for each observed value.
        tolerance: what the criterion was compared with.
        form: the form of the E-step that was used: "modality", "pattern", "statistics" or "features".
        seconds: wall-clock time.
        method, seed, options: what was asked for.
        num_instances: N, of the data.
    """

    model: Fittable
    log_likelihood: NDArray[np.float64]
    objective: NDArray[np.float64]
    num_iterations: int
    converged: bool
    stop_reason: str
    criterion: float
    tolerance: float
    form: str
    seconds: float
    method: str
    seed: int
    num_instances: int
    options: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))

    def __repr__(self) -> str:
        last = self.log_likelihood[-1] if len(self.log_likelihood) else float("nan")
        state = "converged" if self.converged else "did NOT converge"
        settings = ", ".join([f"seed={self.seed}", *(f"{key}={value!r}" for key, value in self.options.items())])
        return (
            f"FitResult: {self.method}({settings}), {state} in {self.num_iterations} iterations, {self.seconds:.2f} s\n"
            f"  log likelihood {last:,.3f} nats, {last / self.num_instances:,.3f} per instance\n"
            f"  stopped: {self.stop_reason}; expected gain {self.criterion:.1e} nats per value "
            f"(tolerance {self.tolerance:.1e})"
        )
