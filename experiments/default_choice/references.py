"""References that a default is measured against, and itself: each fits a task and is scored on its test rows."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import calmrl_prob as cal
from experiments.default_choice.default_fit import CRITERIA, fit_again, fit_default
from experiments.default_choice.measures import Scores, score_model
from experiments.default_choice.mofa import fit_mofa
from experiments.default_choice.removal import Task
from experiments.default_choice.ridge import RidgeOfPairs, score_ridge

T = TypeVar("T")

#: Latents of the fit that a tutorial would show.
PLAIN_LATENTS = 32


@dataclass(frozen=True)
class Measured:
    """One method on one task.

    Attributes:
        scores: of the test rows.
        seconds: of CPU, to choose and fit.
        setting: what was chosen, as text.
        plain_seconds: of CPU, of one fit with the settings given; None where nothing was chosen by a model.
    """

    scores: Scores
    seconds: float
    setting: str = ""
    plain_seconds: float | None = None

    @property
    def row(self) -> dict[str, Any]:
        """As columns of a table."""
        return {
            **self.scores.row,
            "seconds": self.seconds,
            "plain seconds": self.plain_seconds,
            "setting": self.setting,
        }


def measure_default(task: Task, criterion: str) -> Measured:
    """What a user gets who chooses nothing.

    Args:
        task: rows.
        criterion: what the default is to choose by, see ``default_fit.CRITERIA``.
    """
    found, seconds = timed(lambda: fit_default(task.train, criterion))
    plain = timed(lambda: fit_again(found, task.train))[1] if criterion == CRITERIA[0] else None
    return Measured(score_model(found.model, task.test, task.centre), seconds, found.setting, plain)


def measure_plain(task: Task) -> Measured:
    """Maximum likelihood with 32 latents, or as many as there are features or rows."""
    latent_dim = min(PLAIN_LATENTS, len(task.train) - 1, sum(task.train.dims.values()) - 1)
    model = cal.SharedLatentModel(task.train.dims, latent_dim)
    _, seconds = timed(lambda: cal.fit(model, task.train))
    return Measured(score_model(model, task.test, task.centre), seconds, f"K={latent_dim}", seconds)


def measure_ridge(task: Task) -> Measured:
    """Ridge regression of each pair of modalities."""
    ridge, seconds = timed(lambda: RidgeOfPairs.fit(task.train))
    return Measured(score_ridge(ridge, task.test), seconds, "penalties by 5-fold cross-validation")


def measure_mean(task: Task) -> Measured:
    """The mean of the training rows, which ranks no candidate before another."""
    nothing = dict.fromkeys(task.test.names, 0.0)
    return Measured(Scores(nothing, nothing, 0.0), 0.0)


def measure_mofa(task: Task) -> Measured:
    """mofapy2 with its defaults, by this package's predictive."""
    model, seconds = timed(lambda: fit_mofa(task.train))
    return Measured(score_model(model, task.test, task.centre), seconds, f"{model.latent_dim} factors")


def timed(work: Callable[[], T]) -> tuple[T, float]:
    """What ``work`` returns, and the CPU seconds that it took, of all threads."""
    started = time.process_time()
    found = work()
    return found, time.process_time() - started
