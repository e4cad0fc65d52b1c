"""A calibration variant once fitted: it retrieves, imputes and represents rows it has not seen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

import calmrl_prob as cal
from calmrl_prob.data import MultimodalData
from calmrl_prob.evaluation import mean_over_pairs
from calmrl_prob.inference import PosteriorResult
from calmrl_prob.linear_gaussian import LinearGaussian
from experiments.comparison.fitting import FittedModel, Retriever, Setting
from experiments.comparison.imputers import Array, Imputer, has, predictable, values
from experiments.comparison.standardisation import Imputed


@dataclass(frozen=True)
class FittedVariant:
    """A variant fitted to training rows.

    Attributes:
        model: the fitted generative model.
        setting: what was chosen for the model.
        seconds: wall-clock time of the fit, imputation of the training rows included, the choice of settings not.
        retriever: how the model retrieves.
        imputer: a rule of its own for missing modalities; None for the model's exact posterior predictive.
        direct: retrieve by the rule's predictions and not by the model.
    """

    model: FittedModel
    setting: Setting
    seconds: float
    retriever: Retriever
    imputer: Imputer | None = None
    direct: bool = False

    @property
    def scoring(self) -> str:
        """Score that it retrieves by: that of the model, or "cosine of prediction" by its imputer."""
        return "cosine of prediction" if self.direct else self.retriever.score

    def recall(self, data: MultimodalData) -> pd.DataFrame:
        """Retrieval for each ordered pair of modalities: query, candidate, R@1, R@10 (shares in [0, 1])."""
        if self.direct and self.imputer is not None:
            return direct_recall(self.imputer, data)
        model = self.model
        return self.retriever(model.model, model.units.apply(data), **model.posterior_options)

    def impute(self, data: MultimodalData, name: str, level: float = 0.9) -> Imputed:
        """One modality given each row's others; what rows hold of it is the truth to compare with, and not read else.

        NaN in rows that have no other modality, or lack this one, so that there is nothing to compare with.

        Args:
            data: N rows.
            name: the modality.
            level: nominal coverage of the intervals.
        """
        rows, width = predictable(data, name), data.dims[name]
        if not rows.any():
            return Imputed(np.full((len(data), width), np.nan), np.full((len(data), width), np.nan))
        truth = data.subset(rows)
        seen = without(truth, name)
        if self.imputer is not None:
            variance = np.broadcast_to(self.imputer.residual_variance[name], (len(seen), width))
            return Imputed(self.imputer.predict(seen, name), variance).at(rows, len(data))
        units = self.model.units
        given = cal.impute(self.model.model, units.apply(seen), **self.model.posterior_options)
        found = Imputed(_array(given.mean[name]), _array(given.variance[name]))
        if not isinstance(self.model.model, LinearGaussian):
            lower, upper = map(_array, given.interval(level)[name])
            density = _array(given.log_density(units.apply(truth))[name])
            found = replace(found, log_density=density, lower=lower, upper=upper)
        return units.undo(name, found).at(rows, len(data))

    def features(self, data: MultimodalData) -> Array:
        """The representation of each row, (N, K): the posterior mean given what it has, or what it was filled with."""
        filled = data if self.imputer is None else self.imputer.complete(data)
        return _array(self.posterior(filled).mean)

    def posterior(self, data: MultimodalData) -> PosteriorResult:
        """The model's posterior given what each row has."""
        return cal.posterior(self.model.model, self.model.units.apply(data), **self.model.posterior_options)


def direct_recall(imputer: Imputer, data: MultimodalData) -> pd.DataFrame:
    """Retrieval by the cosine between an imputer's prediction of the candidate's modality and the candidate.

    Both are centred by the training mean. Ties count against the imputer. NaN for a pair that no row has.
    """
    table: list[dict[str, str | float]] = []
    nan = float("nan")
    for query in data.names:
        for candidate in data.names:
            rows = has(data, query) & has(data, candidate)
            if query == candidate:
                continue
            if not rows.any():
                table.append({"query": query, "candidate": candidate, "num_queries": 0, "R@1": nan, "R@10": nan})
                continue
            both = data.subset(rows)
            asked = without(both, *(name for name in data.names if name != query))
            centre = imputer.centre[candidate]
            predicted = _unit(imputer.predict(asked, candidate) - centre)
            scores = predicted @ _unit(values(both, candidate) - centre).T
            ranks = (scores >= scores.diagonal()[:, None] - 1e-12).sum(axis=1)
            recall = {f"R@{k}": float(np.mean(ranks <= k)) for k in (1, 10)}
            table.append({"query": query, "candidate": candidate, "num_queries": len(ranks), **recall})
    return pd.DataFrame(table)


def recall_at_1(recall: pd.DataFrame) -> float:
    """Mean R@1 over the pairs of modalities, in [0, 1]."""
    return mean_over_pairs(recall)["R@1"]


def standard_error(recall: Sequence[pd.DataFrame]) -> float:
    """Binomial standard error of the R@1 of several tables together, in [0, 1]: sqrt(p (1 - p) / number of queries).

    A row asks in several pairs of modalities, and its answers go together, so this is too small rather than too large.

    Example:
        >>> table = pd.DataFrame({"query": ["a"], "candidate": ["b"], "num_queries": [100], "R@1": [0.2]})
        >>> round(standard_error([table]), 2)
        0.04
    """
    number = sum(int(table["num_queries"].sum()) for table in recall)
    share = float(np.mean([recall_at_1(table) for table in recall]))
    return float(np.sqrt(share * (1.0 - share) / number)) if number else float("nan")


def without(data: MultimodalData, *names: str) -> MultimodalData:
    """The same rows, with whole modalities taken away."""
    kept = torch.tensor([name not in names for name in data.names], device=data.device)
    return data.mask(kept.expand(len(data), -1))


def _array(values: Tensor) -> Array:
    found: Array = values.double().cpu().numpy()
    return found


def _unit(rows: Array) -> NDArray[np.float64]:
    length = np.linalg.norm(rows, axis=1, keepdims=True)
    unit: NDArray[np.float64] = np.divide(rows, length, out=np.zeros_like(rows), where=length > 0)
    return unit
