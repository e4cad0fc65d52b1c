"""Further things that users hold: what alignment and evaluation return, statistics, options, parts of models."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache, partial
from typing import Any

import numpy as np
import torch
from torch import nn

import calmrl_prob as cal
from calmrl_prob import encoders
from calmrl_prob.alignment.anchors import leading_vector
from calmrl_prob.alignment.bounds import shift_bounds
from calmrl_prob.alignment.calibration import CALIBRATIONS
from calmrl_prob.alignment.certificate import certify
from calmrl_prob.alignment.certificate_correction import CertificateCorrection, CertificateOptions
from calmrl_prob.alignment.completion import Completion
from calmrl_prob.alignment.instances import certify_instances
from calmrl_prob.alignment.objectives import OBJECTIVES, Reconstruction, Temperature
from calmrl_prob.alignment.rehearsal import rehearse
from calmrl_prob.alignment.views import Views
from calmrl_prob.classification import Classifier, ClassifyOptions
from calmrl_prob.datasets import make_scenes, make_synthetic
from calmrl_prob.evaluation import linear_probe, simulation_ranks
from calmrl_prob.evaluation.captions import CaptionScores, paired_bootstrap, score_captions
from calmrl_prob.linear_gaussian import (
    EMOptions,
    FeatureBlocks,
    LinearGaussian,
    MixtureEMOptions,
    ObservedBlocks,
    ScaleEMOptions,
    StudentTEMOptions,
    SufficientStatistics,
)
from calmrl_prob.linear_gaussian.em.links import FewLinks
from calmrl_prob.priors import GroupPrior
from calmrl_prob.priors.loadings import LOADINGS_PRIORS
from calmrl_prob.selection import ChoiceOptions, FoldedStatistics
from calmrl_prob.sklearn import CalibratedImputer, LatentTransformer
from calmrl_prob.training import AlignOptions, Batch, Collate, GenerativeOptions, GenerativeStep, InputImputation
from tests.cases.certificate_cases import make_completion
from tests.cases.linear_gaussian_cases import random_model
from tests.cases.training_cases import run


@cache
def completion() -> Completion:
    return make_completion(rows=20)


def correction() -> CertificateCorrection:
    lg = random_model({"image": 4, "sound": 4, "text": 4}, 2, 0)
    x = torch.stack(list(lg.sample(100, torch.Generator().manual_seed(0)).features.values()), dim=1)
    return CertificateCorrection.fit(lg, x, torch.ones(100, 3, dtype=torch.bool), num_draws=10)


def by_instance() -> Any:  # noqa: ANN401
    held = cal.MultimodalData({"a": torch.ones(4, 2).double()}, covariates={"group": np.array(["u", "v", "u", "v"])})
    return cal.SharedLatentModel(held.dims, 1, prior=GroupPrior(1, ["u", "v"], "group")).structure(held)


def statistics() -> SufficientStatistics:
    mask = torch.tensor([[True, True], [True, False], [True, True]])
    chunk = ObservedBlocks.from_arrays({"image": torch.ones(3, 4), "text": torch.ones(3, 2)}, mask)
    return SufficientStatistics({"image": 4, "text": 2}).update(chunk)


def make_objective(name: str) -> Any:  # noqa: ANN401
    settings: dict[str, Any] = {}
    if name == "combined":
        settings = {"parts": {"pairwise": OBJECTIVES["pairwise"]()}, "weights": {"pairwise": 1.0}}
    return OBJECTIVES[name](**settings)


def few_links() -> FewLinks:
    return FewLinks((("image",), ("text",)), (torch.tensor([1, 2]),))


def one_chunk(size: int) -> list[tuple[str, Callable[[], cal.MultimodalData]]]:
    """A plan; a function of a module, so that it can be pickled by its name."""
    return [("all", partial(cal.MultimodalData, {"image": torch.ones(size, 2)}))]


def index() -> cal.RetrievalIndex:
    candidates = cal.MultimodalData({"image": torch.ones(4, 3).double(), "text": torch.eye(4, 2).double()})
    return cal.RetrievalIndex.build(linear(), candidates, queries=["image"])


def on_table(kind: type[Any]) -> Any:  # noqa: ANN401
    """A transformer of scikit-learn, fitted to a small table."""
    table = np.random.default_rng(0).normal(size=(40, 5)) + np.arange(40)[:, None] / 20
    return kind({"a": slice(0, 3), "b": slice(3, 5)}, latent_dim=1, noise="isotropic").fit(table)


def classifier() -> Classifier:
    """Of a fit with batches, which it holds."""
    made = make_synthetic(40, {"image": 3, "text": 2}, latent_dim=2, seed=0).complete
    batch = np.arange(40) % 2
    held = cal.MultimodalData(
        {name: made[name] for name in made.names}, labels=batch[np.argsort(batch)], covariates={"batch": batch}
    )
    return cal.classify(cal.fit(cal.SharedLatentModel(held.dims, 2, batch="batch"), held), held, folds=2)


def caption_scores() -> CaptionScores:
    return score_captions(["a dog runs", "a cat"], [["a dog runs fast"], ["the cat", "a black cat"]])


def linear() -> LinearGaussian:
    return random_model({"image": 3, "text": 2}, 2, 0)


#: One of each, by what it is.
PARTS: dict[str, Callable[[], Any]] = {
    "anchors": lambda: leading_vector(torch.eye(3)[None, :2]),
    "shift bounds": lambda: shift_bounds(torch.tensor([[[1.0, 0.0], [0.6, 0.8]]]), torch.tensor([[True, False]])),
    "completion": completion,
    "certificate": lambda: certify(completion()),
    "certificates by instance": lambda: certify_instances(completion(), num_draws=10),
    "correction": correction,
    "certificate options": CertificateOptions,
    "rehearsal": lambda: rehearse(completion().linear_gaussian, completion().values, completion().observed_mask)[0],
    "views": lambda: Views.observed(torch.eye(3)[None, :2], torch.tensor([[True, True]])),
    "alignment": lambda: run(max_epochs=1),
    "align options": AlignOptions,
    "generative options": GenerativeOptions,
    "generative step": lambda: GenerativeStep([], 2),
    "batch": lambda: Batch({"image": torch.ones(1, 2)}, torch.tensor([[True]])),
    "collate": lambda: Collate(["image"]),
    "input imputation": lambda: InputImputation(linear()),
    "reconstruction": Reconstruction,
    "temperature": lambda: Temperature(0.1, learnable=True),
    **{f"objective {name}": lambda name=name: make_objective(name) for name in OBJECTIVES},  # type: ignore[misc]
    **{f"calibration {name}": kind for name, kind in CALIBRATIONS.items()},
    **{f"loadings {name}": kind for name, kind in LOADINGS_PRIORS.items()},
    "linear encoder": lambda: encoders.LinearEncoder(3, 2),
    "mlp encoder": lambda: encoders.MLPEncoder(3, 2, (4,)),
    "autoencoder": lambda: encoders.Autoencoder(3, 2, (4,)),
    "residual encoder": lambda: encoders.ResidualEncoder(nn.Linear(3, 2), (4,)),
    "conv encoder": lambda: encoders.ConvEncoder(3, 2, (4,)),
    "waveform encoder": lambda: encoders.WaveformEncoder(2, (4,)),
    "text encoder": lambda: encoders.TextEncoder(5, 2, 4),
    "video encoder": lambda: encoders.VideoEncoder(1, 2, (4,)),
    "classifier": classifier,
    "classify options": ClassifyOptions,
    "captions": caption_scores,
    "difference of captions": lambda: paired_bootstrap(caption_scores(), caption_scores(), "ROUGE-L", draws=20),
    "scenes": lambda: make_scenes(6, image_size=8),
    "synthetic": lambda: make_synthetic(10, {"a": 2, "b": 2}, latent_dim=1, seed=0),
    "probe": lambda: linear_probe(torch.eye(4).numpy(), list("uuvv"), torch.eye(4).numpy(), list("uuvv")),
    "simulation": lambda: simulation_ranks(
        lambda seed: ({"z": math.sin(seed)}, None), lambda x, n, s: {"z": np.arange(n) / n}, num_replications=20
    ),
    "feature blocks": lambda: FeatureBlocks({"a": 2}, torch.ones(2, 2), torch.tensor([[True, False], [True, True]])),
    "structures by instance": by_instance,
    "stream": lambda: cal.MultimodalStream({"image": 2}, one_chunk),
    "index": index,
    "imputer": lambda: on_table(CalibratedImputer),
    "latent transformer": lambda: on_table(LatentTransformer),
    "few links": few_links,
    "statistics": statistics,
    "statistics of folds": lambda: FoldedStatistics.of(make_synthetic(30, {"a": 2}, latent_dim=1, seed=0).data, 2),
    "sample": lambda: linear().sample(3, torch.Generator().manual_seed(0)),
    "correlated noise": lambda: random_model({"a": 4}, 1, 0, noise="full").correlated_noise("a"),
    "em options": EMOptions,
    "mixture options": MixtureEMOptions,
    "scale options": ScaleEMOptions,
    "student-t options": StudentTEMOptions,
    "choice options": ChoiceOptions,
}
