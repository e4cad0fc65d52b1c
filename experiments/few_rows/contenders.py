"""Contenders of ``experiments.small_data``, and how each chooses its settings: by cross-validation on training rows.

In each of a few folds the contender is fitted to the other rows, every modality of the fold's rows is hidden in turn,
and the settings of least negative log-likelihood win. They are varied one after another, from the middle of their
ranges. Test rows, and training rows beyond those of the seed, take no part.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from sklearn.cluster import KMeans
from torch import Tensor

import calmrl_prob as cal
from calmrl_prob.data import MultimodalData
from calmrl_prob.errors import ArgumentError
from calmrl_prob.linear_gaussian import (
    LinearGaussian,
    LinearGaussianMixture,
    fit_em,
    fit_mixture_em,
    fit_student_t_em,
    split_by_labels,
)
from experiments.comparison.imputers import Array, RidgePairs
from experiments.few_rows.mixtures import equal_mixture, scale_mixture
from experiments.few_rows.predictors import FittedContender, FittedModel, FittedRidge, Hidden, hide

Setting = dict[str, Any]


@dataclass(frozen=True)
class Folds:
    """A partition of training rows.

    Attributes:
        parts: for each fold the other rows, and its own.
    """

    parts: Sequence[tuple[MultimodalData, MultimodalData]]

    @classmethod
    def of(cls, data: MultimodalData, count: int, seed: int) -> Folds:
        """Rows at random, in ``count`` folds of about equal size."""
        if not 2 <= count <= len(data):
            raise ArgumentError(f"folds: expected 2 to {len(data)} (the training rows), got {count}.")
        fold = np.random.default_rng(seed).permutation(len(data)) % count
        rows = [(np.flatnonzero(fold != k), np.flatnonzero(fold == k)) for k in range(count)]
        return cls([(data.subset(others), data.subset(own)) for others, own in rows])


@dataclass(frozen=True)
class Winner:
    """A contender, its settings chosen and fitted to all training rows.

    Attributes:
        fitted: what came out.
        setting: what was chosen, as text.
        tried: negative log-likelihood in cross-validation of each setting tried, nats for each feature.
    """

    fitted: FittedContender
    setting: str
    tried: Mapping[str, float] = field(default_factory=dict)


class Contender(ABC):
    """Something that predicts hidden modalities and retrieves.

    Args:
        label: what tables call it.
    """

    def __init__(self, label: str) -> None:
        self.label = label

    @abstractmethod
    def choose(self, data: MultimodalData, folds: Folds, seed: int) -> Winner:
        """Choose settings by the folds, and fit to all the data."""


class Ridge(Contender):
    """Ridge regression from each modality to each other: ``experiments.comparison.imputers.RidgePairs``.

    Each pair's penalty is that of least squared error in cross-validation; the variance of each feature, and the
    weights of several sources, are the errors there.

    Args:
        label: what tables call it.
        penalties: to choose from.
    """

    def __init__(self, label: str, penalties: Sequence[float]) -> None:
        super().__init__(label)
        self.penalties = penalties

    def choose(self, data: MultimodalData, folds: Folds, seed: int) -> Winner:
        """Choose by the folds, and fit to all the data."""
        del seed
        imputer = RidgePairs(self.penalties)
        imputer.cross_validate(data, folds.parts)
        chosen = sorted(imputer.chosen.values())
        return Winner(FittedRidge(imputer), f"penalty {chosen[0]:g} to {chosen[-1]:g}" if chosen else "no pair")


class Model(Contender):
    """A generative model whose settings are chosen from a grid.

    Args:
        label: what tables call it.
        grid: for each setting the values to choose from, in rising order; they are varied in the order of the mapping.
        fixed: settings that stay.
        recalibrate: multiply the predictive variances of each feature so that their mean is right in cross-validation,
            which is what ridge's variances have by construction.
    """

    def __init__(
        self,
        label: str,
        grid: Mapping[str, Sequence[Any]],
        fixed: Mapping[str, Any] | None = None,
        recalibrate: bool = False,
    ) -> None:
        super().__init__(label)
        empty = [name for name, options in grid.items() if not len(options)]
        if empty:
            raise ArgumentError(f"grid.{empty[0]}: expected at least one value, got none.")
        self.grid = {name: list(options) for name, options in grid.items()}
        self.fixed = dict(fixed or {})
        self.recalibrate = recalibrate

    @abstractmethod
    def fit(self, data: MultimodalData, setting: Setting, seed: int) -> LinearGaussian | LinearGaussianMixture:
        """Fit the model to data with any modalities missing."""

    def choose(self, data: MultimodalData, folds: Folds, seed: int) -> Winner:
        """Choose by the folds, and fit to all the data."""
        tried: dict[str, float] = {}
        factors: dict[str, dict[str, Array] | None] = {}

        def score(setting: Setting) -> float:
            key = _text(setting)
            if key not in tried:
                tried[key], factors[key] = self._cross_validate(folds, setting, seed)
            return tried[key]

        setting = {name: options[len(options) // 2] for name, options in self.grid.items()}
        score(setting)
        for name, options in self.grid.items():
            setting = min(({**setting, name: option} for option in options), key=score)
        model = self.fit(data, {**self.fixed, **setting}, seed)
        return Winner(FittedModel(model, factors[_text(setting)]), _text(setting), tried)

    def _cross_validate(self, folds: Folds, setting: Setting, seed: int) -> tuple[float, dict[str, Array] | None]:
        """Negative log-likelihood over the folds, nats for each feature, and the factors of recalibration."""
        hidden: dict[str, list[Hidden]] = {}
        for others, own in folds.parts:
            fitted = FittedModel(self.fit(others, {**self.fixed, **setting}, seed))
            for name in own.names:
                part = hide(fitted, own, name)
                if part is not None:
                    hidden.setdefault(name, []).append(part)
        factors: dict[str, Array] | None = None
        if self.recalibrate:
            factors = {name: np.ones(width) for name, width in folds.parts[0][0].dims.items()}
            for name, parts in hidden.items():
                ratio = [part.square / part.predictive.variance.double().numpy() for part in parts]
                factors[name] = np.concatenate(ratio).mean(axis=0)
        scores = [
            -np.concatenate([part.log_density(factors[name] if factors else None) for part in parts]).mean()
            for name, parts in hidden.items()
        ]
        return float(np.mean(scores)), factors


class Gaussian(Model):
    """A linear-Gaussian model by ``fit_em``, whose options are the settings.

    Besides, ``private_dim`` gives each modality so many latents of its own, beside ``latent_dim`` shared ones.

    Args:
        label, grid, fixed, recalibrate: as for every model.
        average_over: one setting that is not chosen but averaged over: fits with all these values, as a mixture of
            equal prior weights.
    """

    def __init__(
        self,
        label: str,
        grid: Mapping[str, Sequence[Any]],
        fixed: Mapping[str, Any] | None = None,
        recalibrate: bool = False,
        average_over: Mapping[str, Sequence[Any]] | None = None,
    ) -> None:
        super().__init__(label, grid, fixed, recalibrate)
        self.average_over = dict(average_over or {})

    def fit(self, data: MultimodalData, setting: Setting, seed: int) -> LinearGaussian | LinearGaussianMixture:
        """Fit once, or once for each value that is averaged over."""
        if not self.average_over:
            return fit_gaussian(data, setting, seed)
        ((name, options),) = self.average_over.items()
        fits = [fit_gaussian(data, {**setting, name: option}, seed) for option in options]
        return equal_mixture(fits)


class ScaleMixture(Gaussian):
    """The same with one scale for each instance: a Student-t, as a mixture over quantiles of the scale.

    x_n ~ N(mu, Sigma / u_n), u_n ~ Gamma(nu / 2, nu / 2), with Sigma shrunk so that the variance is that of the
    Gaussian fit. Setting ``degrees_of_freedom`` is nu.
    """

    def fit(self, data: MultimodalData, setting: Setting, seed: int) -> LinearGaussianMixture:
        """Fit the Gaussian, and mix it over scales."""
        rest = {name: value for name, value in setting.items() if name != "degrees_of_freedom"}
        gaussian = fit_gaussian(data, rest, seed)
        return scale_mixture(gaussian, float(setting["degrees_of_freedom"]))


class StudentT(Model):
    """The Student-t model of one scale for each instance, by ``fit_student_t_em``, whose options are the settings."""

    def fit(self, data: MultimodalData, setting: Setting, seed: int) -> LinearGaussianMixture:
        """Fit, and state it as a mixture over scales."""
        model = fit_student_t_em(data.blocks, seed=seed, **setting).structure
        return scale_mixture(model.linear_gaussian, float(model.degrees_of_freedom), unit_mean=False)


class Mixture(Model):
    """A mixture-of-Gaussians prior of ``num_components``, by ``fit_mixture_em``, whose options are the settings.

    It starts from a Gaussian fit of ``latent_dim`` and the k-means clusters of its posterior means.
    """

    def fit(self, data: MultimodalData, setting: Setting, seed: int) -> LinearGaussianMixture:
        """Fit the Gaussian, then the mixture."""
        options = dict(setting)
        count = int(options.pop("num_components"))
        common = ("noise", "noise_pseudo_count", "max_iterations", "tolerance")
        shared: Setting = {name: options[name] for name in common if name in options}
        start = fit_gaussian(data, {**shared, "latent_dim": options.pop("latent_dim")}, seed)
        means = cal.posterior(start, data).mean.numpy()
        labels = KMeans(count, n_init=3, random_state=seed).fit_predict(means)
        split = split_by_labels(start, data.blocks, torch.from_numpy(labels).long(), count)
        return fit_mixture_em(data.blocks, split, **options).structure.to(torch.float64)


def fit_gaussian(data: MultimodalData, setting: Setting, seed: int) -> LinearGaussian:
    """``fit_em`` with its options; ``latent_dim`` at most the number of features, ``private_dim`` besides."""
    options = dict(setting)
    latent_dim = min(int(options.pop("latent_dim")), sum(data.dims.values()))
    private_dim = int(options.pop("private_dim", 0))
    if private_dim:
        support = inter_battery(len(data.names), latent_dim, private_dim)
        options["support"], latent_dim = support, support.shape[1]
    return fit_em(data.blocks, latent_dim, seed=seed, **options).linear_gaussian


def inter_battery(num_modalities: int, shared: int, private: int) -> Tensor:
    """Support of inter-battery factor analysis, (M, K) bool: some latents serve all modalities, the others one each.

    Example:
        >>> inter_battery(2, shared=1, private=1).int().tolist()
        [[1, 1, 0], [1, 0, 1]]
    """
    own = torch.eye(num_modalities, dtype=torch.bool).repeat_interleave(private, dim=1)
    return torch.cat([torch.ones(num_modalities, shared, dtype=torch.bool), own], dim=1)


def _text(setting: Setting) -> str:
    return " ".join(
        f"{name}={value:g}" if isinstance(value, float) else f"{name}={value}" for name, value in setting.items()
    )
