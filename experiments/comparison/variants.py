"""The calibration variants: what the generative model is fitted to, and how missing modalities are filled in.

A variant answers one question, :meth:`Variant.prepare`; all the rest (choosing, fitting, retrieving, imputing) is the
same for all, so that differences in the table come from the calibration alone.

Every variant, the oracle too, chooses the number of latents K and the weight of the noise prior on a validation part of
the training rows, with what the missingness left of them: the model is fitted to the other training rows, and the
highest R@1 wins, over the pairs of modalities that the validation rows have, averaged over the seeds (the validation
rows of one are too few to tell neighbouring settings apart). The weight is chosen first, at the middle K, and then K,
at that weight; the whole grid would take several times as long, since large models need the more iterations the weaker
the prior. The winner is fitted again to all training rows. Test rows take no part.
"""

from __future__ import annotations

import copy
import math
import time
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from calmrl_prob.data import MultimodalData
from calmrl_prob.errors import ArgumentError, DataError
from experiments.comparison.fitted_variant import FittedVariant, direct_recall, recall_at_1, standard_error
from experiments.comparison.fitting import ModelFitter, Retriever, Setting
from experiments.comparison.imputers import Imputer
from experiments.comparison.measures import impute_all, nll

Rows = NDArray[np.int64]

#: Settings this close to the best are not told apart: about the 95% interval of one R@1.
_STANDARD_ERRORS = 2.0


@dataclass(frozen=True)
class Task:
    """Data that a variant may learn from.

    Attributes:
        incomplete: training rows with modalities removed.
        complete: the same rows before removal; for the oracle alone.
        fit_rows, validation_rows: row numbers, a partition of the training rows.
        retriever: how recall is measured.
        seed: decides what is random in a fit.
    """

    incomplete: MultimodalData
    complete: MultimodalData
    fit_rows: Rows
    validation_rows: Rows
    retriever: Retriever
    seed: int


@dataclass(frozen=True)
class Prepared:
    """Training data made ready.

    Attributes:
        data: what the generative model is fitted to.
        imputer: the rule that filled it in, if one did.
        seconds: wall-clock time of learning and applying the rule.
    """

    data: MultimodalData
    imputer: Imputer | None = None
    seconds: float = 0.0


@dataclass(frozen=True)
class Choice:
    """Choice that validation made.

    Attributes:
        setting: of the model.
        direct: retrieve by the imputer's own predictions.
        warnings: what a reader of the table must know about the choice.
    """

    setting: Setting
    direct: bool = False
    warnings: tuple[str, ...] = field(default=(), compare=False)

    @classmethod
    def best(cls, recall: Mapping[Setting, float], direct: float = math.nan) -> Choice:
        """The highest R@1 on validation rows; of equals the fewest latents, then the weakest prior.

        Args:
            recall: R@1 of each setting tried; NaN, which is never the highest, where it could not be measured.
            direct: R@1 of the imputer's own predictions; NaN where they are no option.

        Example:
            >>> Choice.best({Setting(64, 100): 0.4, Setting(32, 100): 0.4, Setting(96, 100): 0.3}).setting.latent_dim
            32
        """
        setting = min(recall, key=lambda tried: (math.inf if math.isnan(recall[tried]) else -recall[tried], tried))
        return cls(setting, direct > recall[setting])


class Variant(ABC):
    """One way to deal with missing modalities.

    Args:
        label: what tables and figures call it.
        model: fits the generative model. Where it names a file, that model is for :class:`ModelInFocus`, and all other
            variants take its baseline.
        noise, noise_pseudo_counts: override those of ``model``, for a variant that is defined by them.
    """

    def __init__(
        self,
        label: str,
        model: ModelFitter,
        noise: Literal["isotropic", "diagonal"] | None = None,
        noise_pseudo_counts: Sequence[float] | None = None,
    ) -> None:
        self.label = label
        model = model.for_baselines()
        self.model = replace(
            model,
            noise=model.noise if noise is None else noise,
            noise_pseudo_counts=model.noise_pseudo_counts if noise_pseudo_counts is None else noise_pseudo_counts,
        )

    @abstractmethod
    def prepare(self, task: Task, rows: Rows) -> Prepared:
        """Data that the generative model is fitted to, of the training rows ``rows``.

        Raises:
            DataError: nothing is left to fit to, such as no complete row.
        """

    def validation_data(self, task: Task) -> MultimodalData:
        """The validation rows as this variant may see them."""
        return task.incomplete.subset(task.validation_rows)

    def choose(self, tasks: Sequence[Task]) -> Choice:
        """Choose the weight of the noise prior at the middle K, then K at that weight, on validation rows.

        Raises:
            DataError: one of the tasks leaves nothing to fit to.
        """
        trials = [(task, self.prepare(task, task.fit_rows), self.validation_data(task)) for task in tasks]

        errors: dict[Setting, float] = {}

        def judged(settings: Iterable[Setting]) -> dict[Setting, float]:
            found = {}
            for setting in settings:
                fitted = ((self._fit(task, part, setting), data) for task, part, data in trials)
                found[setting], errors[setting] = self.judge(fitted)
            return found

        latent_dims = self.model.feasible(*(part.data for _, part, _ in trials))
        weights = self.model.weights(trials[0][1].data.dims)
        middle = latent_dims[len(latent_dims) // 2]
        found = judged(Setting(middle, weight) for weight in weights)
        weight = Choice.best(found).setting.noise_pseudo_count
        found |= judged(Setting(latent_dim, weight) for latent_dim in latent_dims if latent_dim != middle)
        choice = Choice.best(found, _mean(self.direct_recall(part, data) for _, part, data in trials))
        return replace(choice, warnings=(*self._unasked(latent_dims), *_undecided(found, errors[choice.setting])))

    def judge(self, fitted: Iterable[tuple[FittedVariant, MultimodalData]]) -> tuple[float, float]:
        """Criterion of the settings, higher being better, with its standard error: mean R@1 on validation rows."""
        tables = [calibrated.recall(data) for calibrated, data in fitted]
        return _mean(map(recall_at_1, tables)), standard_error(tables)

    def _unasked(self, latent_dims: Sequence[int]) -> Iterable[str]:
        """Says so where none of the numbers of latents that were asked for could be tried."""
        if not set(latent_dims) & set(self.model.latent_dims):
            yield (
                f"none of model.latent_dims {list(self.model.latent_dims)} is below both the number of rows fitted to "
                f"and that of features; K = {latent_dims[0]}, the largest that is, was used instead."
            )

    def direct_recall(self, prepared: Prepared, data: MultimodalData) -> float:
        """R@1 of retrieval without the model, in [0, 1]; NaN for a variant that always retrieves by the model."""
        return math.nan

    def calibrate(self, task: Task, choice: Choice) -> FittedVariant:
        """Fit to all training rows."""
        fitted = self._fit(task, self.prepare(task, np.arange(len(task.incomplete))), choice.setting)
        return replace(fitted, direct=choice.direct)

    def calibrate_again(self, task: Task, choice: Choice, first: FittedVariant) -> FittedVariant:
        """Fit to the same training rows with another share missing, by settings that were chosen for the table.

        Args:
            task: the rows.
            choice: the settings.
            first: this variant as it was fitted for the table.
        """
        return self.calibrate(task, choice)

    def _fit(self, task: Task, prepared: Prepared, setting: Setting) -> FittedVariant:
        model = self.model.fit(prepared.data, setting, task.seed)
        return FittedVariant(model, setting, prepared.seconds + model.seconds, task.retriever, prepared.imputer)


class AllRows(Variant):
    """CalMRL: the model takes all rows as they are, by its exact likelihood."""

    def prepare(self, task: Task, rows: Rows) -> Prepared:
        """All rows, with what they have."""
        return Prepared(task.incomplete.subset(rows))


class ModelInFocus(AllRows):
    """The model from ``model.file``, fitted to all rows as they are.

    Args:
        model: fits it; without a file, the shared-latent model.
        label: what tables and figures call it; the name of the model by default.
        select_by: what K is chosen by on validation rows: "R@1", as for all variants, or "NLL".
    """

    def __init__(self, model: ModelFitter, label: str | None = None, select_by: Literal["R@1", "NLL"] = "R@1") -> None:
        super().__init__(label or model.name, model)
        if select_by not in ("R@1", "NLL"):
            raise ArgumentError(f"select_by: expected 'R@1' or 'NLL', got {select_by!r}.")
        self.model, self.select_by = model, select_by

    def choose(self, tasks: Sequence[Task]) -> Choice:
        """The one setting, if there is one; else as every variant does."""
        parts = [task.incomplete.subset(task.fit_rows) for task in tasks]
        latent_dims, weights = self.model.feasible(*parts), self.model.weights(parts[0].dims)
        if len(latent_dims) * len(weights) > 1:
            return super().choose(tasks)
        return Choice(Setting(latent_dims[0], weights[0]), warnings=tuple(self._unasked(latent_dims)))

    def judge(self, fitted: Iterable[tuple[FittedVariant, MultimodalData]]) -> tuple[float, float]:
        """Mean R@1, or the mean log density of each feature given the row's other modalities."""
        if self.select_by == "R@1":
            return super().judge(fitted)
        densities = [-nll(impute_all(calibrated, data), data) for calibrated, data in fitted]
        return _mean(densities), 0.0


class CompleteRows(Variant):
    """Only the training rows that have every modality."""

    def prepare(self, task: Task, rows: Rows) -> Prepared:
        """The complete ones among the rows."""
        complete = task.incomplete.complete_rows().cpu().numpy()[rows]
        if complete.sum() < 2:
            raise DataError(f"{self.label}: {complete.sum()} of {len(rows)} training rows have every modality.")
        return Prepared(task.incomplete.subset(rows[complete]))


class Oracle(Variant):
    """The training rows before anything was removed: what could be had at best."""

    def prepare(self, task: Task, rows: Rows) -> Prepared:
        """All rows, complete."""
        return Prepared(task.complete.subset(rows))

    def validation_data(self, task: Task) -> MultimodalData:
        """Complete validation rows."""
        return task.complete.subset(task.validation_rows)

    def calibrate_again(self, task: Task, choice: Choice, first: FittedVariant) -> FittedVariant:
        """The first fit: it sees no missing cell, whatever the share."""
        return first


class Imputed(Variant):
    """A rule fills in what is missing first; the model takes it as if it had been observed.

    Args:
        label, model: as for every variant.
        imputer: the rule. Its settings and variances come from the validation rows.
        direct: it may retrieve by the cosine between the rule's prediction and the candidate, and does if that has
            the higher R@1 on the validation rows.
    """

    def __init__(self, label: str, model: ModelFitter, imputer: Imputer, direct: bool = False) -> None:
        super().__init__(label, model)
        self.imputer = imputer
        self.direct = direct

    def direct_recall(self, prepared: Prepared, data: MultimodalData) -> float:
        """R@1 by the rule's own predictions, if they may be used."""
        if not self.direct or prepared.imputer is None:
            return math.nan
        return recall_at_1(direct_recall(prepared.imputer, data))

    def prepare(self, task: Task, rows: Rows) -> Prepared:
        """The rows, filled in by a rule that learned from them."""
        part, validation = task.incomplete.subset(task.fit_rows), task.incomplete.subset(task.validation_rows)
        imputer = copy.deepcopy(self.imputer).choose(part, validation)
        data = task.incomplete.subset(rows)
        started = time.perf_counter()
        filled = imputer.fit(data).complete(data)
        return Prepared(filled, imputer, time.perf_counter() - started)


def _undecided(recall: Mapping[Setting, float], error: float) -> Iterable[str]:
    """Says so where several settings were tried and none is worse on validation rows than the best by much."""
    reach = _STANDARD_ERRORS * error
    if len(recall) > 1 and all(map(math.isnan, recall.values())):
        yield "no validation row has two modalities, so that nothing could choose: K and the noise prior are the least."
    elif len(recall) > 1 and not max(recall.values()) - min(recall.values()) > reach:
        yield (
            f"validation recall cannot tell the settings apart: the R@1 of all {len(recall)} tried is within two "
            f"standard errors ({100 * reach:.1f} percentage points) of the best. K and the noise prior, and with them "
            "RMSE, NLL and coverage, could as well be others; more seeds or a larger validation_share may decide."
        )


def _mean(numbers: Iterable[float]) -> float:
    return float(np.mean(list(numbers)))
