"""Contenders of ``experiments.small_data`` once fitted: they predict hidden modalities, and retrieve."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

import calmrl_prob as cal
from calmrl_prob.data import MultimodalData
from calmrl_prob.evaluation import cross_modal_recall
from calmrl_prob.linear_gaussian import LinearGaussian, LinearGaussianMixture
from calmrl_prob.posteriors.predictive import NormalPredictive, Predictive
from calmrl_prob.posteriors.rescaled import Rescaled
from experiments.comparison.fitted_variant import direct_recall, without
from experiments.comparison.imputers import Array, Imputer, predictable, values


class FittedContender(ABC):
    """A contender fitted to training rows."""

    @abstractmethod
    def predictive(self, data: MultimodalData, name: str) -> Predictive:
        """Of one modality, from the others alone: what the rows hold of it is never read. In float64."""

    @abstractmethod
    def recall(self, data: MultimodalData, score: str = "likelihood_ratio") -> pd.DataFrame:
        """Retrieval for each ordered pair of modalities: query, candidate, R@1, R@10 (shares in [0, 1])."""

    def joint_log_density(self, data: MultimodalData, name: str) -> Array | None:
        """log p(x_n^m | the others), all features together, nats, (N,); None where it is not defined."""
        del data, name
        return None


@dataclass(frozen=True)
class FittedRidge(FittedContender):
    """Ridge regressions with the variances of their errors.

    Attributes:
        imputer: the rule, with ``residual_variance``.
    """

    imputer: Imputer

    def predictive(self, data: MultimodalData, name: str) -> Predictive:
        """Normal, with the same variance for all rows."""
        mean = torch.from_numpy(self.imputer.predict(data, name))
        return NormalPredictive(
            mean, torch.zeros_like(mean), torch.from_numpy(self.imputer.residual_variance[name]).expand_as(mean)
        )

    def recall(self, data: MultimodalData, score: str = "likelihood_ratio") -> pd.DataFrame:
        """By the cosine of prediction and candidate, both centred: it has no other score."""
        del score
        return direct_recall(self.imputer, data)


@dataclass(frozen=True)
class FittedModel(FittedContender):
    """A generative model.

    Attributes:
        model: linear-Gaussian, or a mixture of such.
        variance_factor: for each modality what its predictive variances are multiplied by, (D_m,); None for nothing.
    """

    model: LinearGaussian | LinearGaussianMixture
    variance_factor: Mapping[str, Array] | None = None

    def predictive(self, data: MultimodalData, name: str) -> Predictive:
        """The exact posterior predictive, its variances recalibrated if they are to be."""
        found = cal.posterior(self.model, without(data, name)).predictive(name, torch.float64)
        if self.variance_factor is None:
            return found
        return Rescaled(found, torch.from_numpy(self.variance_factor[name]))

    def recall(self, data: MultimodalData, score: str = "likelihood_ratio") -> pd.DataFrame:
        """By one of ``calmrl_prob.evaluation.SCORES``."""
        return cross_modal_recall(self.model, data, score=score, ks=(1, 10))

    def joint_log_density(self, data: MultimodalData, name: str) -> Array:
        """log p(x_n) - log p(x_n without it), of the model as it was fitted."""
        both, rest = (cal.posterior(self.model, rows).log_marginal for rows in (data, without(data, name)))
        gain: Array = (both - rest).double().cpu().numpy()
        return gain


@dataclass(frozen=True)
class Hidden:
    """One modality of the rows that have it and another, predicted from their others.

    Attributes:
        truth: (n, D_m), in the data's units.
        predictive: of the same.
    """

    truth: Array
    predictive: Predictive

    @property
    def square(self) -> Array:
        """Squared errors of the mean, (n, D_m)."""
        square: Array = (self.truth - self.predictive.mean.double().numpy()) ** 2
        return square

    def log_density(self, factor: Array | None = None) -> Array:
        """Nats for each feature, (n, D_m); with the variances of each feature times a factor (D_m,), if given."""
        found = self.predictive if factor is None else Rescaled(self.predictive, torch.from_numpy(factor))
        density: Array = found.log_density(torch.from_numpy(self.truth)).double().numpy()
        return density

    def inside(self, level: float) -> NDArray[np.bool_]:
        """Whether the truth lies in the central interval of this level, (n, D_m) bool."""
        low, high = (self.predictive.quantile(p).double().numpy() for p in ((1 - level) / 2, (1 + level) / 2))
        inside: NDArray[np.bool_] = (low <= self.truth) & (self.truth <= high)
        return inside


def hide(fitted: FittedContender, data: MultimodalData, name: str) -> Hidden | None:
    """Hide one modality and predict it; None if no row has it and another."""
    rows = predictable(data, name)
    if not rows.any():
        return None
    seen = data.subset(rows)
    return Hidden(values(seen, name), fitted.predictive(seen, name))


def measure(
    fitted: FittedContender,
    data: MultimodalData,
    scale: Mapping[str, float],
    level: float,
    score: str = "likelihood_ratio",
) -> dict[str, float]:
    """Retrieval in percent; of every modality hidden in turn RMSE, NLL for each feature, alone and jointly, coverage.

    Errors are in units of ``scale``, and averaged over modalities (RMSE: as squares).
    """
    recall = fitted.recall(data, score)
    rows: list[dict[str, float]] = []
    for name in data.names:
        hidden = hide(fitted, data, name)
        if hidden is None:
            continue
        joint = fitted.joint_log_density(data.subset(predictable(data, name)), name)
        log_unit = float(np.log(scale[name]))
        rows.append(
            {
                "square": float(hidden.square.mean()) / scale[name] ** 2,
                "NLL": -float(hidden.log_density().mean()) - log_unit,
                "NLL joint": math.nan if joint is None else -float(joint.mean()) / data.dims[name] - log_unit,
                "coverage": 100 * float(hidden.inside(level).mean()),
            }
        )
    mean = pd.DataFrame(rows, columns=["square", "NLL", "NLL joint", "coverage"]).mean()
    return {
        "R@1": 100 * float(recall["R@1"].mean()),
        "R@10": 100 * float(recall["R@10"].mean()),
        "RMSE": math.sqrt(mean.pop("square")),
        **{str(name): float(value) for name, value in mean.items()},
    }
