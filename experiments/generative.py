"""The generative model of a comparison: how it is fitted, and how it retrieves."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import pandas as pd

from calmrl_prob.data import MultimodalData, require_fittable
from calmrl_prob.errors import ArgumentError, DataError
from calmrl_prob.evaluation import SCORES, cross_modal_recall
from calmrl_prob.linear_gaussian import LinearGaussian, fit_em


@dataclass(frozen=True, order=True)
class Setting:
    """What is chosen for a model. Of two settings the lesser is the one with fewer latents, then the weaker prior.

    Attributes:
        latent_dim: number of latents K.
        noise_pseudo_count: weight, in observations of each feature, of the prior on noise variances; 0 for none.

    Example:
        >>> min(Setting(8, 0), Setting(4, 100), Setting(4, 30))
        Setting(latent_dim=4, noise_pseudo_count=30)
    """

    latent_dim: int
    noise_pseudo_count: float


@dataclass(frozen=True)
class FittedModel:
    """A fitted model and how the fit went.

    Attributes:
        linear_gaussian: the parameters.
        trace: one row for each iteration, in nats per training row: iteration, log_likelihood, and objective, which is
            what never falls: the log-likelihood plus the log prior of the noise variances.
        stop_reason: why the iteration ended.
        seconds: wall-clock time of the fit.
    """

    linear_gaussian: LinearGaussian
    trace: pd.DataFrame
    stop_reason: str
    seconds: float


@dataclass(frozen=True)
class ModelFitter:
    """Fits a shared-latent model by closed-form EM.

    Args:
        noise: "isotropic" (one variance for each modality) or "diagonal" (one for each feature).
        latent_dims: the numbers of latents K to choose from.
        noise_pseudo_counts: the weights to choose from of the prior that keeps noise variances from collapsing.
        max_iterations, tolerance: when EM stops; the tolerance in nats for each observed value.
    """

    noise: Literal["isotropic", "diagonal"] = "isotropic"
    latent_dims: Sequence[int] = field(default=(32, 64, 96, 128))
    noise_pseudo_counts: Sequence[float] = field(default=(0.0,))
    max_iterations: int = 500
    tolerance: float = 1e-4

    def __post_init__(self) -> None:
        if self.noise not in ("isotropic", "diagonal"):
            raise ArgumentError(f"model.noise: expected 'isotropic' or 'diagonal', got {self.noise!r}.")
        given = list(self.latent_dims)
        if not given or not all(isinstance(k, int) and k > 0 for k in given):
            raise ArgumentError(
                f"model.latent_dims: expected at least one number of latents, all above 0, got {given}."
            )
        weights = list(self.noise_pseudo_counts)
        if not weights or not all(isinstance(w, int | float) and 0 <= w < math.inf for w in weights):
            raise ArgumentError(
                f"model.noise_pseudo_counts: expected at least one weight, all finite and from 0 up, got {weights}."
            )
        if not isinstance(self.max_iterations, int) or self.max_iterations < 1:
            raise ArgumentError(
                f"model.max_iterations: expected a whole number from 1 up, got {self.max_iterations!r}."
            )
        if not isinstance(self.tolerance, int | float) or not self.tolerance > 0:
            raise ArgumentError(f"model.tolerance: expected a number above 0, got {self.tolerance!r}.")

    def feasible(self, *data: MultimodalData) -> list[int]:
        """The numbers of latents to try on all of these data: those below their numbers of rows and of features.

        If none is, the largest that is.
        """
        rows = min(map(len, data))
        most = min(rows, *(sum(part.dims.values()) for part in data)) - 1
        if most < 1:
            raise DataError(f"model.latent_dims: {rows} training rows are too few for any model; keep more.")
        return sorted({min(k, most) for k in self.latent_dims if k <= most} or {most})

    def fit(self, data: MultimodalData, setting: Setting, seed: int) -> FittedModel:
        """Fit to data with any modalities missing."""
        started = time.perf_counter()
        require_fittable(data)
        result = fit_em(
            data.blocks,
            setting.latent_dim,
            noise=self.noise,
            seed=seed,
            max_iterations=self.max_iterations,
            tolerance=self.tolerance,
            noise_pseudo_count=setting.noise_pseudo_count,
        )
        seconds = time.perf_counter() - started
        trace = pd.DataFrame(
            {
                "iteration": range(len(result.log_likelihood)),
                "log_likelihood": result.log_likelihood.numpy() / len(data),
                "objective": result.objective.numpy() / len(data),
            }
        )
        return FittedModel(result.linear_gaussian, trace, result.stop_reason, seconds)


@dataclass(frozen=True)
class Retriever:
    """Cross-modal retrieval by one score: each modality asks for each other, over the rows that have both.

    Args:
        score: "likelihood_ratio", "cosine_latent" or "cosine_predicted".
    """

    score: str = "likelihood_ratio"

    def __post_init__(self) -> None:
        if self.score not in SCORES:
            raise ArgumentError(f"scoring.score: expected one of {sorted(SCORES)}, got {self.score!r}.")

    def __call__(self, model: LinearGaussian, data: MultimodalData) -> pd.DataFrame:
        """One row for each ordered pair of modalities: query, candidate, R@1, R@10 (shares in [0, 1])."""
        return cross_modal_recall(model, data, score=self.score, ks=(1, 10))
