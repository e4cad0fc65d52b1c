"""A posterior is of certain instances: with others, or the same in another order, it answers no question."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

import calmrl_prob as cal
from calmrl_prob.errors import ArgumentError
from calmrl_prob.inference.seen import SampledRows

GENERATOR = np.random.default_rng(0)
Z = GENERATOR.normal(size=(60, 2))
X = {name: Z @ GENERATOR.normal(size=(2, 4)) + 0.3 * GENERATOR.normal(size=(60, 4)) for name in "ab"}

CALLS: dict[str, Callable[[Any, cal.MultimodalData], object]] = {
    "impute": cal.impute,
    "value_of_information": cal.value_of_information,
    "to_arviz": lambda given, data: cal.to_arviz(given, data, num_draws=4),
}


def rows(chosen: object, names: str = "a") -> cal.MultimodalData:
    return cal.MultimodalData({name: X[name][chosen].copy() for name in names})


@pytest.fixture(scope="module")
def model() -> Any:  # noqa: ANN401
    data = rows(slice(0, 40), "ab")
    return cal.fit(cal.SharedLatentModel(data.dims, latent_dim=2), data).model


@pytest.mark.parametrize("call", CALLS.values(), ids=list(CALLS))
def test_other_instances_are_refused(call: Callable[[Any, cal.MultimodalData], object], model: Any) -> None:  # noqa: ANN401
    given = cal.posterior(model, rows(slice(40, 60)))
    for other in (rows(slice(20, 40)), rows(slice(59, 39, -1)), rows(slice(39, 59))):
        with pytest.raises(ArgumentError, match=r"^data: row \d+ of modality 'a' is another one"):
            call(given, other)
    with pytest.raises(ArgumentError, match="expected the 20 instances of the posterior, got 60"):
        call(given, rows(slice(None)))


@pytest.mark.parametrize("call", CALLS.values(), ids=list(CALLS))
def test_the_same_instances_are_taken(call: Callable[[Any, cal.MultimodalData], object], model: Any) -> None:  # noqa: ANN401
    data = rows(slice(40, 60))
    given = cal.posterior(model, data)
    for found in (given, pickle.loads(pickle.dumps(given))):
        for same in (data, data.to(torch.float32), rows(slice(40, 60), "ab"), rows(slice(40, 60), "ba")):
            call(found, same)


def test_rows_of_which_single_features_are_missing_are_not_compared() -> None:
    holes = X["a"].copy()
    holes[::2, 0] = np.nan
    partly = cal.MultimodalData({"a": holes}, missing="features")
    assert SampledRows.of(partly).other(rows(slice(None))) is None
    assert SampledRows.of(rows(slice(None))).other(partly) is None
