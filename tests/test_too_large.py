"""What takes more than the memory is refused with the bytes that it would take, before anything is allocated."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

import calmrl_prob as cal
from calmrl_prob.errors import ArgumentError
from calmrl_prob.linear_gaussian import LinearGaussian, LinearGaussianMixture, StudentTModel

MANY = 10**12
LG = LinearGaussian(
    {"a": torch.ones(3, 1).double(), "b": torch.ones(2, 1).double()},
    {"a": torch.zeros(3).double(), "b": torch.zeros(2).double()},
    {"a": torch.tensor(1.0).double(), "b": torch.tensor(1.0).double()},
)
DATA = cal.MultimodalData({"a": torch.ones(4, 3).double(), "b": torch.ones(4, 2).double()})


def fitted() -> cal.SharedLatentModel:
    model = cal.SharedLatentModel(DATA.dims, 1)
    model.load_linear_gaussian(LG)
    return model


@pytest.mark.parametrize(
    ("numbers", "draw"),
    [
        (4 * 1, lambda: cal.posterior(LG, DATA).sample(MANY)),
        (4 * 5, lambda: cal.impute(LG, DATA).sample(MANY)),
        (4 * 1, lambda: cal.to_arviz(LG, DATA, num_draws=MANY)),
        (5 * 3, lambda: cal.parameter_draws(fitted(), DATA, num_draws=MANY)),
        (6, lambda: LG.sample(MANY)),
        (6, lambda: LinearGaussianMixture(torch.zeros(1).double(), (LG,)).sample(MANY)),
        (6, lambda: StudentTModel(LG, torch.tensor(4.0).double()).sample(MANY)),
        (6, lambda: fitted()(MANY)),
        (6, lambda: cal.datasets.make_synthetic(MANY, {"a": 3, "b": 2}, latent_dim=1)),
    ],
    ids=["posterior", "impute", "arviz", "parameters", "structure", "mixture", "student_t", "model", "synthetic"],
)
def test_draws_beyond_the_memory_are_refused_with_their_bytes(numbers: int, draw: Callable[[], object]) -> None:
    with pytest.raises(ArgumentError, match=f"take {MANY * numbers * 8:,} bytes"):
        draw()


def test_draws_one_at_a_time_are_not() -> None:
    assert set(next(cal.impute(LG, DATA).draws(MANY))) == {"a", "b"}
