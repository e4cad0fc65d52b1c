"""Random Pyro programs: those of normals and affine maps are solved exactly, those bent somewhere are refused."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

import calmrl_prob as cal
from calmrl_prob.errors import NotConjugateError
from tests.cases.pyro_zoo.cases import Normal
from tests.cases.pyro_zoo.programs import random_program
from tests.cases.zoo_densities import close, joint_density, log_density

seeds = st.integers(0, 1_000_000)
#: Functions that are affine nowhere, nearly everywhere, in places, or along lines through zero.
BENDS: dict[str, Callable[[Tensor], Tensor]] = {
    "tanh": torch.tanh,
    "a little": lambda a: a + 1e-4 * a.sin(),
    "far out": lambda a: a.clamp(-9.0, 9.0),
    "relu": torch.relu,
    "leaky": lambda a: torch.nn.functional.leaky_relu(a - 2.0, 0.9),
    "square": lambda a: a + 0.01 * a**2,
    "norm": lambda a: a + 0.1 * a.norm(dim=-1, keepdim=True),
    "steps": lambda a: a + 0.01 * a.round(),
    "neighbours": lambda a: a + 0.1 * a.roll(1, 0),
}


def check_exact(seed: int) -> None:
    """Everything of a random program against dense conditioning."""
    case, _ = random_program(seed)
    got = cal.posterior(case.model, case.data)
    expected = [case.posterior(row) for row in case.rows]
    assert got.route.startswith("exact")
    close(got.mean[case.rows], np.stack([mean for mean, _, _ in expected]), 1e-6)
    close(got.covariance[case.rows], np.stack([covariance for _, covariance, _ in expected]), 1e-6)
    close(got.log_marginal[case.rows], np.array([evidence for _, _, evidence in expected]), 1e-6)
    if case.form == "one":
        lg, truth = cal.discover(case.model, case.data).linear_gaussian(), case.truth
        assert isinstance(truth, Normal)
        for name in lg.names:
            close(lg.loadings[name], truth.loadings[name], 1e-6)
            close(lg.intercepts[name], truth.intercepts[name], 1e-6)


@settings(derandomize=True, deadline=None, max_examples=30)
@given(seeds)
def test_the_generator_keeps_its_books(seed: int) -> None:
    """What it says of its programs is what Pyro says of them: no discovery here."""
    case, _ = random_program(seed)
    latents, expected = joint_density(case)
    np.testing.assert_allclose(log_density(case, latents), expected, rtol=1e-6)


@settings(derandomize=True, deadline=None, max_examples=12)
@given(seeds)
def test_random_programs_are_solved_exactly(seed: int) -> None:
    check_exact(seed)


@pytest.mark.parametrize("bend", BENDS)
@settings(derandomize=True, deadline=None, max_examples=3)
@given(seeds)
def test_bent_programs_are_refused(bend: str, seed: int) -> None:
    case, bent = random_program(seed, BENDS[bend])
    _, straight = case.mixture(0)[0]
    spread = straight.loadings[bent] @ straight.covariance @ straight.loadings[bent].T
    assume(np.diag(spread).max() > 0.3)  # a location that hardly moves is not bent by much either
    condition = "instances coupled" if bend == "neighbours" else "location not affine"
    with pytest.raises(NotConjugateError) as caught:
        cal.discover(case.model, case.data).linear_gaussian()
    assert (caught.value.site, caught.value.condition) == (bent, condition)


@pytest.mark.slow
@settings(derandomize=True, deadline=None, max_examples=400)
@given(seeds)
def test_many_random_programs_are_solved_exactly(seed: int) -> None:
    check_exact(seed)
