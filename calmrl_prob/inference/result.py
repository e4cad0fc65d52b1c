"""Result of a fit."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from calmrl_prob._support.frozen import FrozenMapping
from calmrl_prob.data import MultimodalData
from calmrl_prob.inference.feature_names import aligned, named
from calmrl_prob.inference.posterior import as_linear_gaussian, posterior
from calmrl_prob.inference.protocols import HasPosterior
from calmrl_prob.linear_gaussian import LinearGaussian
from calmrl_prob.posteriors.posterior import PosteriorResult
from calmrl_prob.programs.bound import BoundModel


@dataclass(frozen=True, eq=False, repr=False)
class FitResult:
    """Result of a fit. The parameters are in the model, which the fit changed.

    It can be given to ``posterior``, ``impute``, ``retrieve`` and ``to_arviz`` in place of a model: it stands for all
    that was learned, draws of parameters and guides included.

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
        form: how the evidence was computed: "modality", "pattern", "statistics" or "features", or the route.
        seconds: wall-clock time.
        method, seed, options: what was asked for.
        num_instances: N, of the data.
        report: what the method itself returned.
        choice: the settings that were tried and the one chosen, a :class:`calmrl_prob.selection.Choice`; None where
            all were given.
        intervals: what ``cal.impute`` puts the stated uncertainty right by, a
            :class:`calmrl_prob.selection.HeldOutIntervals`; None where nothing was held out.
        rows_of_fit: what the rows that it was fitted to are known by, a :class:`calmrl_prob.inference.seen.SeenRows`;
            None of statistics.
    """

    model: Any
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
    options: Mapping[str, Any] = field(default_factory=FrozenMapping)
    report: Any = None
    choice: Any = None
    intervals: Any = None
    rows_of_fit: Any = None

    @property
    def diagnostics(self) -> Mapping[str, Any]:
        """Diagnostics of the method: R-hat, divergences, k-hat ...; empty if it has none."""
        found: Mapping[str, Any] = getattr(self.report, "diagnostics", {})
        return found

    @property
    def answers_as(self) -> Any:  # noqa: ANN401 - the fit, or whatever was fitted
        """The model, where all that was learned is in it; the fit itself where it has more, such as draws."""
        return self if isinstance(self.report, HasPosterior) or isinstance(self.model, BoundModel) else self.model

    def posterior(self, data: MultimodalData, **options: Any) -> PosteriorResult:
        """The posterior of the latents of some instances, under what was learned."""
        if isinstance(self.model, BoundModel):
            data = self.model.conform(data)
        if isinstance(self.report, HasPosterior):
            data = aligned(self.model, data)
            return named(self.report.posterior(data, **options), self.model, data)
        return posterior(self.model, data, **options)

    def linear_gaussian(self) -> LinearGaussian:
        """The fitted model's one linear-Gaussian form, if it states one."""
        return as_linear_gaussian(self.model)

    def __repr__(self) -> str:
        last = self.log_likelihood[-1] if len(self.log_likelihood) else float("nan")
        state = "converged" if self.converged else "did NOT converge"
        settings = ", ".join([f"seed={self.seed}", *(f"{key}={value!r}" for key, value in self.options.items())])
        return (
            f"FitResult: {self.method}({settings}), {state} in {self.num_iterations} iterations, {self.seconds:.2f} s\n"
            f"  log likelihood {last:,.3f} nats, {last / self.num_instances:,.3f} per instance\n"
            f"  stopped: {self.stop_reason}; expected gain {self.criterion:.1e} nats per value "
            f"(tolerance {self.tolerance:.1e})" + (f"\n  {self.choice!r}" if self.choice is not None else "")
        )
