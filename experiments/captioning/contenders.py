"""Ways to deal with what training rows lack: each predicts the text of a row, and ranks training texts by it.

All get the same rows to learn from; settings are chosen afterwards on validation rows, for all alike: which of a
contender's fits and scores, and the temperature of the consensus.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from omegaconf import DictConfig

import calmrl_prob as cal
from calmrl_prob.alignment.objectives import OBJECTIVES
from calmrl_prob.data import MultimodalData
from calmrl_prob.encoders import build_encoders
from calmrl_prob.training import align
from experiments.captioning.bank import Array, Ranked
from experiments.comparison.imputers import Imputer, Mean, NearestNeighbours, Zero, has, values
from experiments.default_choice.ridge import RidgeOfPairs

#: Rows of the bank that a consensus is of, at most.
MOST = 100


@dataclass(frozen=True)
class Learning:
    """Rows to learn from.

    Attributes:
        fit: training rows as they are after removal, less those of validation.
        validation: the others.
        text: the modality that captions are found by.
        seed: of what is random in a fit.
    """

    fit: MultimodalData
    validation: MultimodalData
    text: str
    seed: int


class Fitted(ABC):
    """A contender that has learned."""

    @abstractmethod
    def predicted(self, queries: MultimodalData) -> Array | None:
        """The text of rows with the given modalities alone, (n, D); None where it is not predicted."""

    @abstractmethod
    def ranked(self, queries: MultimodalData, bank: MultimodalData) -> dict[str, Ranked]:
        """Rows of the bank, which have texts alone, by each score that there is."""

    def drawn(self, queries: MultimodalData, num_draws: int, seed: int) -> Array | None:
        """Draws of the text of rows with the given modalities alone, (S, n, D); None where there is no posterior."""
        return None


@dataclass(frozen=True)
class Predictor(Fitted):
    """A rule that imputes; rows are ranked by the cosine of imputed and real texts, both centred.

    Attributes:
        rule: from rows with the given modalities to texts (n, D).
        centre: mean of the training texts.
    """

    rule: Callable[[MultimodalData], Array]
    centre: Array

    def predicted(self, queries: MultimodalData) -> Array:
        """By the rule."""
        return self.rule(queries)

    def ranked(self, queries: MultimodalData, bank: MultimodalData) -> dict[str, Ranked]:
        """By cosine."""
        guess, texts = self.rule(queries), values(bank, bank.names[0])
        return {"cosine": Ranked.of(cosine(guess - self.centre, texts - self.centre), MOST)}


@dataclass(frozen=True)
class Generative(Fitted):
    """A fitted model: rows are ranked by its exact log-likelihood ratio, or by the cosine of what it imputes.

    Attributes:
        model: what ``cal.impute`` takes.
        text: the modality.
        centre: mean of the training texts.
    """

    model: object
    text: str
    centre: Array

    def predicted(self, queries: MultimodalData) -> Array:
        """The posterior mean of the text."""
        found: Array = cal.impute(self.model, queries, names=[self.text]).mean[self.text].double().numpy()
        return found

    def drawn(self, queries: MultimodalData, num_draws: int, seed: int) -> Array:
        """What drawn latents say of the text, W z + mu, less its noise, which no other modality tells of."""
        drawn = cal.posterior(self.model, queries).sample(num_draws, seed).double()  # type: ignore[arg-type]
        lg = self.model.linear_gaussian()  # type: ignore[attr-defined]
        found: Array = (drawn @ lg.loadings[self.text].double().T + lg.intercepts[self.text].double()).numpy()
        return found

    def ranked(self, queries: MultimodalData, bank: MultimodalData) -> dict[str, Ranked]:
        """By log-likelihood ratio, and by cosine."""
        index = cal.RetrievalIndex.build(self.model, bank)  # type: ignore[arg-type]
        found = index.search(queries, k=min(MOST, len(bank)))
        apart = cosine(self.predicted(queries) - self.centre, values(bank, self.text) - self.centre)
        return {"ratio": Ranked(np.asarray(found.ids), np.asarray(found.log_ratios)), "cosine": Ranked.of(apart, MOST)}


@dataclass(frozen=True)
class Averaged(Fitted):
    """Several fits together: the mean of what they impute, and of their log-likelihood ratios.

    Attributes:
        parts: the fits.
    """

    parts: Sequence[Generative]

    def predicted(self, queries: MultimodalData) -> Array:
        """The mean of their posterior means."""
        found: Array = np.mean([part.predicted(queries) for part in self.parts], axis=0)
        return found

    def ranked(self, queries: MultimodalData, bank: MultimodalData) -> dict[str, Ranked]:
        """By the mean of log-likelihood ratios."""
        total = np.zeros((len(queries), len(bank)))
        for part in self.parts:
            found = cal.RetrievalIndex.build(part.model, bank).search(queries, k=len(bank))  # type: ignore[arg-type]
            ratios = np.empty_like(total)
            np.put_along_axis(ratios, np.asarray(found.ids), np.asarray(found.log_ratios), axis=1)
            total += ratios / len(self.parts)
        return {"ratio": Ranked.of(total, MOST)}


@dataclass(frozen=True)
class Encoders(Fitted):
    """Encoders aligned on observed modalities alone: a row is the mean of what its modalities are encoded to.

    Attributes:
        represent: from rows to representations of each modality.
    """

    represent: Callable[[MultimodalData], MultimodalData]

    def predicted(self, queries: MultimodalData) -> None:
        """Nothing: it has no texts but those of the bank."""

    def ranked(self, queries: MultimodalData, bank: MultimodalData) -> dict[str, Ranked]:
        """By the cosine of representations."""
        return {"cosine": Ranked.of(cosine(self._anchor(queries), self._anchor(bank)), MOST)}

    def _anchor(self, data: MultimodalData) -> Array:
        shown = self.represent(data)
        total: Array = sum(np.nan_to_num(values(shown, name)) for name in data.names)  # type: ignore[assignment]
        return total


def cosine(first: Array, second: Array) -> Array:
    """Between rows (n, D) and (N, D): (n, N); 0 where one has no length."""
    one, other = (
        rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), np.finfo(float).tiny) for rows in (first, second)
    )
    return one @ other.T


def linked(data: MultimodalData) -> MultimodalData:
    """The rows that have more than one modality."""
    return data.subset(data.observed_mask.sum(dim=1).numpy() > 1)


def observed_only(task: Learning, temperatures: Sequence[float], width: int, hidden: int, epochs: int) -> list[Fitted]:
    """Encoders trained by pairwise contrast on the modalities that rows have; one for each temperature of the loss."""
    rows = [linked(part) for part in (task.fit, task.validation)]
    found: list[Fitted] = []
    for temperature in temperatures:
        encoders = build_encoders("mlp", task.fit.dims, width, seed=task.seed, hidden=[hidden], dropout=0.2)
        objective = OBJECTIVES["pairwise"](temperature=temperature)
        options = {"max_epochs": epochs, "patience": 12, "batch_size": 256, "weight_decay": 1e-2, "seed": task.seed}
        aligned = align(rows[0], encoders, objective, "none", validation=rows[1], **options)
        found.append(Encoders(aligned.represent))
    return found


def imputed(task: Learning, make: Callable[[], Imputer]) -> list[Fitted]:
    """A rule of ``experiments/comparison/imputers.py``."""
    rule = make().choose(task.fit, task.validation)
    return [Predictor(lambda rows: rule.predict(_padded(rows, task.fit), task.text), rule.centre[task.text])]


def ridge(task: Learning) -> list[Fitted]:
    """Ridge regressions of pairs; penalties by cross-validation."""
    regressions = RidgeOfPairs.fit(task.fit, task.seed)

    def rule(rows: MultimodalData) -> Array:
        return regressions.predict(rows, [name for name in rows.names if name != task.text], task.text)

    return [Predictor(rule, regressions.centre[task.text])]


def default_fit(task: Learning, rows: MultimodalData, options: Mapping[str, object]) -> list[Fitted]:
    """``cal.fit`` with nothing chosen, on rows of the caller's choice."""
    fit = cal.fit(cal.SharedLatentModel(rows.dims), rows, seed=task.seed, progress=False, **options)  # type: ignore[arg-type]
    return [Generative(fit, task.text, _centre(rows, task.text))]


def given_latents(
    task: Learning, latent_dims: Sequence[int], noise: str, pseudo_rows: Sequence[float]
) -> list[Generative]:
    """Fits of a given form, one for each K and each weight of the prior of the covariance; 0 is maximum likelihood."""
    found = []
    for latent_dim in latent_dims:
        for weight in pseudo_rows:
            model = cal.SharedLatentModel(task.fit.dims, min(latent_dim, *task.fit.dims.values()), noise=noise)  # type: ignore[arg-type]
            prior = {"pseudo_rows": weight} if weight else {}
            fit = cal.fit(model, task.fit, seed=task.seed, progress=False, shrinkage=None, **prior)
            found.append(Generative(fit, task.text, _centre(task.fit, task.text)))
    return found


def complete_rows(task: Learning, options: Mapping[str, object]) -> list[Fitted]:
    """The default fit on the rows alone that lack nothing; none where they are fewer than 20."""
    whole: NDArray[np.bool_] = np.asarray(task.fit.complete_rows())
    rows = task.fit.subset(whole)
    return default_fit(task, rows, options) if len(rows) >= 20 else []


IMPUTERS: dict[str, Callable[[], Imputer]] = {"zero": Zero, "mean": Mean, "knn": NearestNeighbours}


def _centre(data: MultimodalData, name: str) -> Array:
    found: Array = values(data, name)[has(data, name)].mean(axis=0)
    return found


def _padded(rows: MultimodalData, like: MultimodalData) -> MultimodalData:
    """Rows with all modalities of others, those that they lack missing."""
    arrays = {
        name: rows[name] if name in rows.names else torch.full((len(rows), width), torch.nan, dtype=torch.float32)
        for name, width in like.dims.items()
    }
    return MultimodalData(arrays)


def makers(cfg: DictConfig) -> dict[str, Callable[[Learning], Sequence[Fitted]]]:
    """The contenders of the configuration ``caption`` that its option ``only`` names."""
    known: dict[str, Callable[[Learning], Sequence[Fitted]]] = {
        "observed": lambda task: observed_only(task, **cfg.observed),
        "complete_rows": lambda task: complete_rows(task, {}),
        "ridge": ridge,
        "calmrl": lambda task: default_fit(task, task.fit, {}),
        "calmrl_retrieval": lambda task: default_fit(task, task.fit, {"criterion": "retrieval"}),
        "calmrl_linked": lambda task: default_fit(task, linked(task.fit), {}),
        "calmrl_full": lambda task: given_latents(task, **cfg.full),
        "calmrl_average": lambda task: [Averaged(given_latents(task, **cfg.average))],
        "paper": lambda task: given_latents(task, **cfg.paper),
        **{name: partial(imputed, make=make) for name, make in IMPUTERS.items()},
    }
    return {key: known[key] for key in cfg.only}
