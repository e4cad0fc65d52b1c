"""Arguments of another type are refused by their own name: data, fits and imputations where arrays or tables belong."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import calmrl_prob as cal
from calmrl_prob import evaluation
from calmrl_prob.errors import ArgumentTypeError

DATA = cal.datasets.make_synthetic(30, {"a": 3, "b": 2}, latent_dim=1, seed=0).data
MEANS = {name: DATA[name] for name in DATA.names}
MASK = np.ones((30, 2), dtype=bool)
SHARES = np.full((4, 2), 0.5)


def score(**given: object) -> object:
    usual: dict[str, Any] = {"means": MEANS, "variances": None, "truth": DATA, "evaluated_mask": MASK}
    return evaluation.score_imputation(**usual | given)


def probabilities(**given: object) -> object:
    usual: dict[str, Any] = {"probabilities": SHARES, "labels": [0, 1, 0, 1], "classes": [0, 1]}
    return evaluation.score_probabilities(**usual | given)


def ranks(**given: object) -> object:
    usual: dict[str, Any] = {"simulate": lambda seed: ({"z": 0.0}, None), "draw": lambda *_: {"z": np.zeros(9)}}
    return evaluation.simulation_ranks(**usual | given, num_draws=9, num_replications=1)


CALLS: dict[str, tuple[Callable[[Any, Any], object], str]] = {
    "factor_weights": (lambda fit, wrong: evaluation.factor_weights(fit, wrong), "draws: .*parameter_draws"),
    "level": (lambda fit, wrong: evaluation.factor_weights(fit, level=wrong), "level: "),
    "mean_over_pairs": (lambda _, wrong: evaluation.mean_over_pairs(wrong), "recall: .*cross_modal_recall"),
    "means": (lambda _, wrong: score(means=wrong), "means: "),
    "a mean": (lambda _, wrong: score(means={"a": wrong, "b": wrong}), r"means\['a'\]: "),
    "variances": (lambda _, wrong: score(variances=wrong), "variances: "),
    "evaluated_mask": (lambda _, wrong: score(evaluated_mask=wrong), "evaluated_mask: "),
    "observed_mask": (lambda _, wrong: score(observed_mask=wrong), "observed_mask: "),
    "by": (lambda _, wrong: score(by=wrong), "by: "),
    "probabilities": (lambda _, wrong: probabilities(probabilities=wrong), "probabilities: "),
    "labels": (lambda _, wrong: probabilities(labels=wrong), "labels: "),
    "classes": (lambda _, wrong: probabilities(classes=wrong), "classes: "),
    "train_labels": (lambda _, wrong: evaluation.linear_probe(SHARES, wrong, SHARES, [0, 1, 0, 1]), "train_labels: "),
    "targets": (
        lambda fit, wrong: evaluation.retrieve(fit, DATA.select(["a"]), DATA.select(["b"]), targets=wrong),
        "targets: ",
    ),
    "simulate": (lambda _, wrong: ranks(simulate=wrong), "simulate: "),
    "draw": (lambda _, wrong: ranks(draw=wrong), "draw: "),
}


@pytest.fixture(scope="module")
def fit() -> cal.FitResult:
    return cal.fit(cal.SharedLatentModel(DATA.dims, latent_dim=1), DATA)


@pytest.mark.parametrize("kind", ["MultimodalData", "FitResult", "Imputation"])
@pytest.mark.parametrize("call", CALLS)
def test_another_type_is_refused_by_the_name_of_the_argument(call: str, kind: str, fit: cal.FitResult) -> None:
    wrong = {"MultimodalData": DATA, "FitResult": fit}.get(kind) or cal.impute(fit, DATA, ["b"])
    asked, said = CALLS[call]
    if (call, kind) in {("means", "MultimodalData"), ("variances", "MultimodalData")}:
        pytest.skip("data are taken as a mapping of modalities to arrays")
    with pytest.raises(ArgumentTypeError, match=f"^{said}") as refused:
        asked(fit, wrong)
    assert f"got {kind}" in str(refused.value)


def test_an_imputation_is_no_model(fit: cal.FitResult) -> None:
    imputed = cal.impute(fit, DATA, ["b"])
    for asked in (cal.posterior, evaluation.masked_validation, evaluation.value_of_information):
        with pytest.raises(ArgumentTypeError, match=r"^model: expected .*, got Imputation"):
            asked(imputed, DATA)
