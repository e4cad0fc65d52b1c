"""Recalibrated intervals in the report of a comparison."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from calmrl_prob import MultimodalData
from calmrl_prob.datasets import load_synthetic
from experiments.comparison.fitting import ModelFitter, Retriever, Setting
from experiments.comparison.recalibrated_coverage import recalibrated_coverage
from experiments.comparison.variants import AllRows, Choice, Task

DIMS = {"a": 20, "b": 15, "c": 10}
LEVEL = 0.9
FITTER = ModelFitter(latent_dims=[20])
CHOICE = Choice(Setting(20, 0))


@pytest.fixture(scope="module")
def rows() -> MultimodalData:
    return load_synthetic(num_instances=700, dims=DIMS, latent_dim=3, seed=3)


def task(train: MultimodalData, held_out: int) -> Task:
    numbers = np.arange(len(train))
    return Task(train, train, numbers[:-held_out], numbers[-held_out:], Retriever(), 0)


def test_too_many_latents_for_few_rows_are_put_right(rows: MultimodalData) -> None:
    train, test = rows.subset(slice(0, 260)), rows.subset(slice(260, 700))
    given = task(train, held_out=200)  # 60 rows for 20 latents
    variant = AllRows("all", FITTER)
    after = recalibrated_coverage(variant, CHOICE, given, test, LEVEL)
    alone = variant.calibrate(
        Task(train.subset(slice(0, 60)), train, given.fit_rows, given.fit_rows, Retriever(), 0), CHOICE
    )
    for name in DIMS:
        found = alone.impute(test, name, LEVEL)
        z = np.abs(test[name].numpy() - found.mean) / np.sqrt(found.variance)
        before = float((z < 1.645).mean())
        assert before < LEVEL - 0.05, name
        assert after[name] == pytest.approx(LEVEL, abs=0.03), name


def test_validation_rows_set_the_widths(rows: MultimodalData) -> None:
    train, test = rows.subset(slice(0, 260)), rows.subset(slice(260, 700))
    noisy = {name: train[name].clone() for name in DIMS}
    noise = torch.randn(200, DIMS["c"], generator=torch.Generator().manual_seed(0))
    noisy["c"][60:] += 5 * train["c"].std() * noise
    variant = AllRows("all", FITTER)
    honest = recalibrated_coverage(variant, CHOICE, task(train, 200), test, LEVEL)
    after = recalibrated_coverage(variant, CHOICE, task(MultimodalData(noisy), 200), test, LEVEL)
    assert after["c"] > 0.99 > honest["c"]  # they err more, so that intervals must be wider


def test_what_cannot_be_recalibrated_is_left_out(rows: MultimodalData) -> None:
    train, test = rows.subset(slice(0, 260)), rows.subset(slice(260, 700))
    assert recalibrated_coverage(AllRows("all", FITTER), CHOICE, task(train, 5), test, LEVEL) == {}  # too few for 90%
