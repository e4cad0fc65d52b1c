"""The variant that chooses nothing: what a user gets by the defaults of the package."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from typing import Any

import calmrl_prob as cal
from calmrl_prob import selection
from calmrl_prob.inference import FitResult
from experiments.comparison.fitted_variant import FittedVariant
from experiments.comparison.fitting import FittedModel, ModelFitter, Setting, collected_warnings, trace_table
from experiments.comparison.standardisation import Standardisation
from experiments.comparison.variants import AllRows, Choice, Task

#: Stands for what ``cal.fit`` chooses: the K that it found is put there; it has no prior of the noise alone.
_OPEN = Setting(0, math.nan)


class Defaults(AllRows):
    """``cal.SharedLatentModel(dims)`` and ``cal.fit``, which choose K, noise and prior on the training rows alone.

    The validation rows choose nothing here, and are training rows like others. Each seed's fit makes its own choice.

    Args:
        label: what tables and figures call it.
        model: as for every variant; nothing of it is taken.
        options: of ``cal.fit``, such as ``criterion: retrieval``.
    """

    def __init__(self, label: str, model: ModelFitter, options: Mapping[str, Any] | None = None) -> None:
        super().__init__(label, model)
        self.options = dict(options or {})

    def choose(self, tasks: Sequence[Task]) -> Choice:
        """Nothing."""
        return Choice(_OPEN)

    def calibrate(self, task: Task, choice: Choice) -> FittedVariant:
        """Fit to all training rows, with all that is open chosen by the fit."""
        return self._fitted(task, cal.SharedLatentModel(task.incomplete.dims), **self.options)

    def calibrate_again(self, task: Task, choice: Choice, first: FittedVariant) -> FittedVariant:
        """Fit with what the first fit chose, as all variants keep their settings there."""
        found = _choice(first.model.model)
        rank = found.setting.noise_rank
        model = cal.SharedLatentModel(task.incomplete.dims, found.latent_dim, found.noise, noise_rank=rank)
        return self._fitted(task, model, **found.options)

    def _fitted(self, task: Task, model: cal.SharedLatentModel, **options: Any) -> FittedVariant:
        data, started = task.incomplete, time.perf_counter()
        with collected_warnings() as messages:
            result = cal.fit(model, data, seed=task.seed, progress=False, **options)
        seconds = time.perf_counter() - started
        trace = trace_table(result.log_likelihood, result.objective, len(data))
        units = Standardisation.own(data)
        fitted = FittedModel(result, trace, result.stop_reason, seconds, units, "em", warnings=tuple(messages))
        return FittedVariant(fitted, Setting(model.latent_dim, math.nan), seconds, task.retriever)


def _choice(model: object) -> selection.Choice:
    assert isinstance(model, FitResult)
    assert isinstance(model.choice, selection.Choice)
    return model.choice
