"""One alignment: features, a generative model of them, encoders trained by a variant, and what that is worth.

All settings (prior of the covariance, temperature, epoch) are chosen on validation rows, a part of the training rows
with their modalities missing as everywhere in training; test rows are complete and only measured on.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig, OmegaConf
from sklearn.decomposition import PCA
from torch import nn

from calmrl_prob.alignment.calibration import CALIBRATIONS
from calmrl_prob.alignment.objectives import OBJECTIVES
from calmrl_prob.data import MultimodalData
from calmrl_prob.encoders import ResidualEncoder, build_encoders, posterior_mean_encoders
from calmrl_prob.errors import ArgumentError
from calmrl_prob.evaluation import cross_modal_recall
from calmrl_prob.evaluation.retrieval.representations import cosine_recall
from calmrl_prob.linear_gaussian import LinearGaussian, fit_em
from calmrl_prob.training import Alignment, InputImputation, align

STARTS = ("cold", "generative", "none")


@dataclass(frozen=True)
class AlignmentTask:
    """Data that a variant learns from, for one seed: features of rows some of whose modalities are missing.

    Attributes:
        fit, validation: parts of the training rows, as they are after removal.
        complete_fit, complete_validation: the same rows before it; for the oracle alone.
        test: complete rows.
        seed: of everything that is drawn.
    """

    fit: MultimodalData
    validation: MultimodalData
    complete_fit: MultimodalData
    complete_validation: MultimodalData
    test: MultimodalData
    seed: int
    _fitted: dict[tuple[Any, ...], GenerativeModel] = field(default_factory=dict, repr=False)

    def rows(self, complete: bool = False) -> tuple[MultimodalData, MultimodalData]:
        """Rows to fit and to choose by; before removal for the oracle."""
        return (self.complete_fit, self.complete_validation) if complete else (self.fit, self.validation)

    def generative(self, complete: bool, latent_dim: int, pseudo_rows: Sequence[float]) -> GenerativeModel:
        """The model of the inputs, fitted once for all variants."""
        key = (complete, latent_dim, *pseudo_rows)
        if key not in self._fitted:
            self._fitted[key] = fit_generative(*self.rows(complete), latent_dim, pseudo_rows, self.seed)
        return self._fitted[key]


def make_task(
    train: MultimodalData,
    test: MultimodalData,
    observed_mask: torch.Tensor,
    *,
    seed: int,
    components: int | None = None,
    validation_share: float = 0.15,
) -> AlignmentTask:
    """Remove modalities, turn what is left into principal components, and set validation rows aside.

    Args:
        train: rows as the source has them.
        test: the same.
        observed_mask: of the training rows, (N, M) bool, True = PRESENT.
        seed: of the validation rows.
        components: of each modality, learned from the training rows that keep it; None for the features themselves,
            centred and of root mean square 1 all the same.
        validation_share: of the training rows.
    """
    incomplete = train.mask(observed_mask)
    maps = {name: _Components.learn(incomplete, name, components) for name in train.names}
    incomplete, complete, test = (_mapped(part, maps) for part in (incomplete, train, test))
    fit, validation = incomplete.split_indices(1.0 - validation_share, seed=seed)
    return AlignmentTask(
        incomplete.subset(fit),
        incomplete.subset(validation),
        complete.subset(fit),
        complete.subset(validation),
        test,
        seed,
    )


@dataclass(frozen=True)
class _Components:
    pca: PCA
    scale: float

    @classmethod
    def learn(cls, data: MultimodalData, name: str, components: int | None) -> _Components:
        rows = data[name][data.observed(name)].double().numpy()
        count = min(rows.shape) if components is None else min(components, *rows.shape)
        pca = PCA(count, svd_solver="full" if components is None else "auto", random_state=0).fit(rows)
        return cls(pca, float(np.sqrt((pca.transform(rows) ** 2).mean())) or 1.0)


def _mapped(data: MultimodalData, maps: Mapping[str, _Components]) -> MultimodalData:
    arrays = {}
    for name, part in maps.items():
        found = torch.full((len(data), part.pca.n_components_), torch.nan)
        here = data.observed(name)
        if bool(here.any()):
            found[here] = torch.from_numpy(part.pca.transform(data[name][here].double().numpy()) / part.scale).float()
        arrays[name] = found
    return MultimodalData(arrays, observed_mask=data.observed_mask, ids=data.ids, labels=data.labels)


@dataclass(frozen=True)
class GenerativeModel:
    """The model of the inputs, whose prior of the covariance was chosen on validation rows.

    Attributes:
        linear_gaussian: fitted to the rows ``fit``.
        pseudo_rows: chosen weight of the prior.
        recall: R@1 by likelihood ratio on the validation rows, a share.
    """

    linear_gaussian: LinearGaussian
    pseudo_rows: float
    recall: float


def fit_generative(
    fit: MultimodalData, validation: MultimodalData, latent_dim: int, pseudo_rows: Sequence[float], seed: int
) -> GenerativeModel:
    """Fit for each weight of the prior, keep the one that retrieves best on the validation rows."""
    found = []
    most = min(latent_dim, sum(fit.dims.values()) - 1, len(fit) - 1)
    # A tolerance of a thousandth of a nat: recall no longer changes after the first ten iterations.
    for weight in pseudo_rows:
        lg = fit_em(fit.blocks, most, tolerance=1e-3, pseudo_rows=weight, seed=seed).linear_gaussian
        found.append(GenerativeModel(lg, weight, _mean_recall(cross_modal_recall(lg, validation, ks=(1,)))))
    return max(found, key=lambda model: model.recall)


def _mean_recall(recall: Any) -> float:  # noqa: ANN401 - pandas has no annotations
    """Over the ordered pairs of modalities that some row has both of."""
    return float(recall["R@1"].dropna().mean())


@dataclass(frozen=True)
class Settings:
    """Settings that all variants of a run share.

    Attributes:
        latent_dim: K of the models of inputs and of representations.
        pseudo_rows: weights of the prior of the covariance to choose from.
        width: D of cold encoders; those that start from the model have K.
        encoder: kind and options of the encoders, or of the residual network.
        training: options of ``calmrl_prob.training.align``.
    """

    latent_dim: int
    pseudo_rows: Sequence[float]
    width: int
    encoder: Mapping[str, Any]
    training: Mapping[str, Any]

    @classmethod
    def of(cls, cfg: DictConfig) -> Settings:
        """From the configuration ``align``."""
        options = {name: cfg[name] for name in ("latent_dim", "pseudo_rows", "width", "encoder", "training")}
        plain = {
            name: OmegaConf.to_container(value) if OmegaConf.is_config(value) else value
            for name, value in options.items()
        }
        return cls(**plain)


@dataclass(frozen=True)
class Variant:
    """A way to align, by name in the configuration.

    Attributes:
        label: what tables call it.
        start: "cold", encoders as they are initialised; "generative", posterior-mean maps of the model of the inputs,
            with a residual network; "none", no encoder: the model of the inputs itself.
        calibration, calibration_options: one of ``CALIBRATIONS``.
        input_imputation: "draw" or "mean" of the model of the inputs; None for not.
        input_weight: of imputed inputs.
        objective, objective_options: one of ``OBJECTIVES``.
        temperatures: to choose from on the validation rows.
        complete: whether it learns from complete rows: the oracle.
        training: options of ``calmrl_prob.training.align`` of its own.
    """

    label: str
    start: str = "cold"
    calibration: str = "none"
    calibration_options: Mapping[str, Any] = field(default_factory=dict)
    input_imputation: str | None = None
    input_weight: float = 0.5
    objective: str = "pairwise"
    objective_options: Mapping[str, Any] = field(default_factory=dict)
    temperatures: Sequence[float] = (0.07,)
    complete: bool = False
    training: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.start not in STARTS:
            raise ArgumentError(f"variants.{self.label}.start: expected one of {STARTS}, got {self.start!r}.")
        if self.objective not in OBJECTIVES:
            raise ArgumentError(
                f"variants.{self.label}.objective: expected one of {sorted(OBJECTIVES)}, got {self.objective!r}."
            )


@dataclass(frozen=True)
class AlignedVariant:
    """A variant fitted to a task.

    Attributes:
        representations: for the test rows; None without encoders.
        alignment: encoders and history; None without.
        ratio_model: what scores by likelihood ratio: a model of the representations, or of the inputs.
        row: what the table has of it.
    """

    alignment: Alignment | None
    ratio_model: LinearGaussian
    row: dict[str, Any]


def run_variant(variant: Variant, task: AlignmentTask, settings: Settings) -> AlignedVariant:
    """Train and measure one variant."""
    started = time.perf_counter()
    fit, validation = task.rows(variant.complete)
    generative = task.generative(variant.complete, settings.latent_dim, settings.pseudo_rows)
    if variant.start == "none":
        row = {
            "R@1 cosine": float("nan"),
            "R@1 ratio": _percent(cross_modal_recall(generative.linear_gaussian, task.test)),
        }
        row |= {"seconds": time.perf_counter() - started, "pseudo_rows": generative.pseudo_rows}
        return AlignedVariant(None, generative.linear_gaussian, row)
    tried = []
    for temperature in variant.temperatures:
        found = _train(variant, task, generative, temperature, settings)
        recall = found.history["validation_recall"].max()
        tried.append((recall, temperature, found))
    _, temperature, alignment = max(tried, key=lambda item: item[0])
    seconds = time.perf_counter() - started
    shown = tuple(alignment.represent(part) for part in (fit, validation, task.test))
    row, ratio = alignment_row(alignment, shown, settings, task.seed)
    row |= {"temperature": temperature, "seconds": seconds, "pseudo_rows": generative.pseudo_rows}
    return AlignedVariant(alignment, ratio, row)


def alignment_row(
    alignment: Alignment, shown: Sequence[MultimodalData], settings: Settings, seed: int
) -> tuple[dict[str, Any], LinearGaussian]:
    """Scores of encoders on test rows, by cosine and by the likelihood ratio of a model of the representations.

    Args:
        alignment: encoders and history.
        shown: representations of the rows to fit, to choose by and to test on.
        settings: of the model.
        seed: of its fit.

    Returns:
        What the table has of it, and the model.
    """
    fitted, held_out, test = shown
    ratio = fit_generative(fitted, held_out, settings.latent_dim, settings.pseudo_rows, seed).linear_gaussian
    row = {
        "R@1 cosine": _percent(cosine_recall(test)),
        "R@1 ratio": _percent(cross_modal_recall(ratio, test)),
        "validation R@1": 100 * alignment.history["validation_recall"].max(),
        "epochs": alignment.best_epoch + 1,
        "EM share": alignment.history["em_seconds"].sum() / alignment.history["seconds"].sum(),
    }
    return row, ratio


def _percent(recall: Any) -> float:  # noqa: ANN401
    return 100 * _mean_recall(recall)


def _train(
    variant: Variant, task: AlignmentTask, generative: GenerativeModel, temperature: float, settings: Settings
) -> Alignment:
    fit, validation = task.rows(variant.complete)
    options = dict(settings.encoder)
    kind = options.pop("kind", "mlp")
    if variant.start == "cold":
        encoders = build_encoders(kind, fit.dims, settings.width, seed=task.seed, **options)
    else:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(task.seed)
            starts = posterior_mean_encoders(generative.linear_gaussian)
            encoders = nn.ModuleDict({name: ResidualEncoder(start, **options) for name, start in starts.items()})
    imputation = None
    if variant.input_imputation is not None:
        imputation = InputImputation(generative.linear_gaussian, variant.input_imputation, variant.input_weight)  # type: ignore[arg-type]
    objective = OBJECTIVES[variant.objective](temperature=temperature, **variant.objective_options)
    calibration = CALIBRATIONS[variant.calibration](**variant.calibration_options)
    return align(
        fit,
        encoders,
        objective,
        calibration,
        validation=validation,
        input_imputation=imputation,
        latent_dim=min(settings.latent_dim, len(fit) - 1),  # as many as the rows can carry
        seed=task.seed,
        **{**settings.training, **variant.training},
    )
