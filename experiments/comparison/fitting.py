"""The generative model of a comparison: how it is fitted, and how it retrieves."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import pandas as pd

import calmrl_prob as cal
from calmrl_prob.data import MultimodalData, require_fittable
from calmrl_prob.errors import ArgumentError, CalmrlWarning, DataError
from calmrl_prob.evaluation import SCORES, cross_modal_recall
from calmrl_prob.evaluation.retrieval.sampled_pairs import Estimator
from calmrl_prob.inference import Fittable, HasLinearGaussian, HasStructure, Loads
from calmrl_prob.inference.protocols import Model
from calmrl_prob.inference.subject import stated_structure
from calmrl_prob.linear_gaussian import LinearGaussian, LinearGaussianMixture, fit_em
from experiments.comparison.model_files import build_model
from experiments.comparison.standardisation import Standardisation


@dataclass(frozen=True, order=True)
class Setting:
    """Setting of a model. Of two the lesser is the one with fewer latents, then the weaker prior.

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
        model: what ``posterior``, ``impute`` and ``retrieve`` take.
        trace: one row for each iteration, in nats per training row: iteration, log_likelihood, and objective, which is
            what never falls: the log-likelihood plus the log priors.
        stop_reason: why the iteration ended.
        seconds: wall-clock time of the fit.
        units: in which it sees data.
        method: how it was fitted.
        posterior_options: keywords of ``posterior`` that go with it.
        warnings: what the fit warned of.
    """

    model: Model
    trace: pd.DataFrame
    stop_reason: str
    seconds: float
    units: Standardisation
    method: str = "em"
    posterior_options: Mapping[str, Any] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class ModelFitter:
    """Fits a model: the shared-latent model by closed-form EM, or, with ``file``, any Pyro model by ``cal.fit``.

    Args:
        noise: "isotropic" (one variance for each modality) or "diagonal" (one for each feature); without ``file``.
        latent_dims: the numbers of latents K to choose from.
        noise_pseudo_counts: the weights to choose from of the prior that keeps noise variances from collapsing.
        noise_prior: whether a model from a file has that prior, as option ``noise_pseudo_count`` of its fit; None to
            find out: those fitted by closed-form EM have.
        max_iterations, tolerance: when to stop, in nats for each observed value; None is the method's own.
        file: a Python file that makes the model; see :mod:`experiments.comparison.model_files`. It sees each modality
            centred and of root mean square one.
        arguments: further arguments of the model in the file.
        method: of ``cal.fit``.
        options: further options of ``cal.fit``.
        posterior_options: options of ``cal.posterior``. ``given_train: true`` gives it the training rows as ``given``.
        label: what tables call the model; the name of the file by default.
        baseline: what variants other than the model in focus are fitted with; by default this without the file.
    """

    noise: Literal["isotropic", "diagonal"] = "isotropic"
    latent_dims: Sequence[int] = field(default=(32, 64, 96, 128))
    noise_pseudo_counts: Sequence[float] = field(default=(0.0,))
    max_iterations: int | None = 500
    tolerance: float | None = 1e-4
    file: str | None = None
    arguments: Mapping[str, Any] = field(default_factory=dict)
    method: str = "auto"
    options: Mapping[str, Any] = field(default_factory=dict)
    posterior_options: Mapping[str, Any] = field(default_factory=dict)
    noise_prior: bool | None = None
    label: str | None = None
    baseline: ModelFitter | None = None

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
        if self.max_iterations is not None and (not isinstance(self.max_iterations, int) or self.max_iterations < 1):
            raise ArgumentError(
                f"model.max_iterations: expected a whole number from 1 up, got {self.max_iterations!r}."
            )
        if self.tolerance is not None and (not isinstance(self.tolerance, int | float) or not self.tolerance > 0):
            raise ArgumentError(f"model.tolerance: expected a number above 0, got {self.tolerance!r}.")
        if self.file is None and (self.arguments or self.method not in ("auto", "em")):
            raise ArgumentError("model.arguments, model.method: they are of a model from a file; give model.file too.")

    @property
    def name(self) -> str:
        """Name of the model in tables."""
        return self.label or (Path(self.file).stem.replace("_", " ") if self.file else f"CalMRL {self.noise}")

    def for_baselines(self) -> ModelFitter:
        """The fitter of the variants that are not about the model in the file."""
        return self.baseline or replace(self, file=None, arguments={}, method="auto", options={}, posterior_options={})

    def weights(self, dims: Mapping[str, int]) -> list[float]:
        """The weights of the noise prior that there are to choose from."""
        if self.file is None or self._takes_noise_prior(dims):
            return list(self.noise_pseudo_counts)
        return [0.0]

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
        """Fit to data with any modalities missing.

        Raises:
            CalmrlError: the model or the data cannot be fitted; the message says why.
        """
        started = time.perf_counter()
        if self.file is not None:
            return self._fit_file(data, setting, seed, started)
        require_fittable(data)
        result = fit_em(
            data.blocks,
            setting.latent_dim,
            noise=self.noise,
            seed=seed,
            noise_pseudo_count=setting.noise_pseudo_count,
            **self._limits(),
        )
        seconds = time.perf_counter() - started
        trace = trace_table(result.log_likelihood.numpy(), result.objective.numpy(), len(data))
        return FittedModel(result.linear_gaussian, trace, result.stop_reason, seconds, Standardisation.own(data))

    def _fit_file(self, data: MultimodalData, setting: Setting, seed: int, started: float) -> FittedModel:
        units = Standardisation.of(data)
        seen = units.apply(data)
        model = self._build(data.dims, setting.latent_dim, seed)
        options = {**self._limits(), **self.options}
        if self._takes_noise_prior(data.dims):
            options["noise_pseudo_count"] = setting.noise_pseudo_count
        with collected_warnings() as messages:
            result = cal.fit(model, seen, self.method, seed=seed, **options)
        posterior_options = dict(self.posterior_options)
        if posterior_options.pop("given_train", False):
            posterior_options["given"] = seen
        seconds, volume = time.perf_counter() - started, units.log_volume(data)
        trace = trace_table(result.log_likelihood - volume, result.objective - volume, len(data))
        return FittedModel(
            result, trace, result.stop_reason, seconds, units, result.method, posterior_options, tuple(messages)
        )

    def _build(self, dims: Mapping[str, int], latent_dim: int, seed: int) -> Any:  # noqa: ANN401 - what the file makes
        assert self.file is not None
        return build_model(self.file, dims, latent_dim, self.arguments, seed)

    def _takes_noise_prior(self, dims: Mapping[str, int]) -> bool:
        """Whether the fit of the model in the file knows a prior on noise variances."""
        if self.noise_prior is not None:
            return self.noise_prior
        model = self._build(dims, 1, 0)
        taken = {"em": Fittable, "mixture em": Loads}
        forms = {"em": LinearGaussian, "mixture em": LinearGaussianMixture}
        stated = stated_structure(model)
        if stated is None and isinstance(model, Fittable) and not isinstance(model, HasStructure | HasLinearGaussian):
            return self.method in ("auto", "em")
        return any(
            self.method in ("auto", method) and isinstance(stated, forms[method]) and isinstance(model, taken[method])
            for method in forms
        )

    def _limits(self) -> dict[str, Any]:
        limits = {"max_iterations": self.max_iterations, "tolerance": self.tolerance}
        return {name: value for name, value in limits.items() if value is not None}


def trace_table(log_likelihood: Any, objective: Any, number: int) -> pd.DataFrame:  # noqa: ANN401 - arrays of numbers
    """Per row; NaN where there is no log likelihood yet: SVI has one from its first round on."""
    before = np.full(len(objective) - len(log_likelihood), np.nan)
    return pd.DataFrame(
        {
            "iteration": range(len(objective)),
            "log_likelihood": np.concatenate([before, np.asarray(log_likelihood)]) / number,
            "objective": np.asarray(objective) / number,
        }
    )


@contextmanager
def collected_warnings() -> Iterator[list[str]]:
    """Collect what calmrl_prob warns of, each message once, to be told in a table; other warnings go their way."""
    messages: list[str] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield messages
    for warning in caught:
        if not issubclass(warning.category, CalmrlWarning):
            warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)
        elif str(warning.message) not in messages:
            messages.append(str(warning.message))


@dataclass(frozen=True)
class Retriever:
    """Cross-modal retrieval by one score: each modality asks for each other, over the rows that have both.

    Args:
        score: "likelihood_ratio", "cosine_latent" or "cosine_predicted".
        num_draws: S, of likelihood ratios that have no closed form.
        estimator: how those are estimated: "moments" or "monte_carlo".
    """

    score: str = "likelihood_ratio"
    num_draws: int = 128
    estimator: Estimator = "moments"

    def __post_init__(self) -> None:
        if self.score not in SCORES:
            raise ArgumentError(f"scoring.score: expected one of {sorted(SCORES)}, got {self.score!r}.")
        if self.estimator not in get_args(Estimator):
            raise ArgumentError(
                f"scoring.estimator: expected one of {list(get_args(Estimator))}, got {self.estimator!r}."
            )

    def __call__(self, model: Model, data: MultimodalData, **options: Any) -> pd.DataFrame:
        """One row for each ordered pair of modalities: query, candidate, R@1, R@10 (shares in [0, 1]).

        Args:
            model: the fitted model.
            data: the rows.
            **options: of ``cal.posterior``.
        """
        return cross_modal_recall(
            model, data, score=self.score, ks=(1, 10), num_draws=self.num_draws, estimator=self.estimator, **options
        )
