"""The calibration variants: what the generative model is fitted to, and how missing modalities are filled in.

A variant answers one question, :meth:`Variant.prepare`; all the rest (choosing K, fitting, retrieving, imputing) is the
same for all, so that differences in the table come from the calibration alone.

K is chosen on a validation part of the training rows, with what the missingness left of them: the model is fitted to
the other training rows, and the K with the highest R@1 wins, over the pairs of modalities that the validation rows
have, averaged over the seeds (the validation rows of one are too few to tell neighbouring K apart). The winner is
fitted again to all training rows. Test rows take no part.
"""

from __future__ import annotations

import copy
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from calmrl_prob.data import MultimodalData
from calmrl_prob.errors import DataError
from experiments.calibrated import Calibrated, direct_recall, recall_at_1
from experiments.generative import ModelFitter, Retriever
from experiments.imputers import Imputer

Rows = NDArray[np.int64]


@dataclass(frozen=True)
class Task:
    """What a variant may learn from.

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
class Validation:
    """Recall on validation rows, of models fitted to the other training rows.

    Attributes:
        recall: R@1 for each number of latents K; NaN where no validation row has two modalities.
        direct: R@1 of retrieval by the imputer's own predictions; NaN where that is no option.
    """

    recall: dict[int, float]
    direct: float = float("nan")


@dataclass(frozen=True)
class Choice:
    """What validation decided: the number of latents, and whether to retrieve by the imputer's own predictions."""

    latent_dim: int
    direct: bool = False

    @classmethod
    def best(cls, validations: Sequence[Validation]) -> Choice:
        """The highest R@1, averaged over the validations (one for each seed); of equals the smallest K.

        Only a K that could be tried every time is considered; if there is none, the largest that every time could do.
        """
        shared = sorted(set.intersection(*(set(validation.recall) for validation in validations)))
        if not shared:
            return cls(min(max(validation.recall) for validation in validations))
        means = {k: float(np.mean([validation.recall[k] for validation in validations])) for k in shared}
        comparable = {k: mean for k, mean in means.items() if not np.isnan(mean)}
        latent_dim = max(comparable, key=lambda k: comparable[k]) if comparable else shared[0]
        return cls(latent_dim, float(np.mean([v.direct for v in validations])) > means[latent_dim])


class Variant(ABC):
    """One way to deal with missing modalities.

    Args:
        label: what tables and figures call it.
        model: fits the generative model.
        noise: overrides the noise of ``model``, for a variant that is defined by it.
    """

    def __init__(self, label: str, model: ModelFitter, noise: Literal["isotropic", "diagonal"] | None = None) -> None:
        self.label = label
        self.model = model if noise is None else replace(model, noise=noise)

    @abstractmethod
    def prepare(self, task: Task, rows: Rows) -> Prepared:
        """What the generative model is fitted to, of the training rows ``rows``.

        Raises:
            DataError: nothing is left to fit to, such as no complete row.
        """

    def validation_data(self, task: Task) -> MultimodalData:
        """The validation rows as this variant may see them."""
        return task.incomplete.subset(task.validation_rows)

    def validate(self, task: Task) -> Validation:
        """Try every number of latents: fit to the fit rows, retrieve among the validation rows."""
        part, data = self.prepare(task, task.fit_rows), self.validation_data(task)
        dims = self.model.feasible(part.data)
        return Validation({k: recall_at_1(self._fit(task, part, k).recall(data)) for k in dims})

    def calibrate(self, task: Task, choice: Choice) -> Calibrated:
        """Fit to all training rows."""
        fitted = self._fit(task, self.prepare(task, np.arange(len(task.incomplete))), choice.latent_dim)
        return replace(fitted, direct=choice.direct)

    def _fit(self, task: Task, prepared: Prepared, latent_dim: int) -> Calibrated:
        model = self.model.fit(prepared.data, latent_dim, task.seed)
        return Calibrated(model, latent_dim, prepared.seconds + model.seconds, task.retriever, prepared.imputer)


class AllRows(Variant):
    """CalMRL: the model takes all rows as they are, by its exact likelihood."""

    def prepare(self, task: Task, rows: Rows) -> Prepared:
        """All rows, with what they have."""
        return Prepared(task.incomplete.subset(rows))


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

    def validate(self, task: Task) -> Validation:
        """As for every variant, and the rule's own retrieval if it may be used."""
        found = super().validate(task)
        if not self.direct:
            return found
        imputer = self.prepare(task, task.fit_rows).imputer
        assert imputer is not None
        return replace(found, direct=recall_at_1(direct_recall(imputer, self.validation_data(task))))

    def prepare(self, task: Task, rows: Rows) -> Prepared:
        """The rows, filled in by a rule that learned from them."""
        part, validation = task.incomplete.subset(task.fit_rows), task.incomplete.subset(task.validation_rows)
        imputer = copy.deepcopy(self.imputer).choose(part, validation)
        data = task.incomplete.subset(rows)
        started = time.perf_counter()
        filled = imputer.fit(data).complete(data)
        return Prepared(filled, imputer, time.perf_counter() - started)
