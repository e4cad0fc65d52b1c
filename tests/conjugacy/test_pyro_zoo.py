"""The zoo itself: its hand-made truths are those of the Pyro models, and its models run in plain Pyro."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pyro
import pytest
import torch

from tests.cases.pyro_zoo import CONJUGATE, NOT_CONJUGATE
from tests.cases.zoo_densities import joint_density, log_density, run


@pytest.fixture(autouse=True)
def own_parameter_store() -> Iterator[None]:
    """Some models register parameters; none outlive a test."""
    with pyro.get_param_store().scope(), torch.random.fork_rng():
        pyro.set_rng_seed(0)
        yield


@pytest.mark.parametrize("name", CONJUGATE)
def test_truth_is_that_of_the_model(name: str) -> None:
    """log p(x, z) by Pyro is log p(x) + log p(z | x) by hand, for every instance at a random z."""
    case = CONJUGATE[name]()
    latents, expected = joint_density(case)
    np.testing.assert_allclose(log_density(case, latents), expected, rtol=max(case.tolerance, 1e-6))


@pytest.mark.parametrize("name", CONJUGATE)
def test_rows_that_the_truth_tells_apart_are_of_that_form(name: str) -> None:
    """What is said to be one LinearGaussian is one; what is said to vary, varies."""
    case = CONJUGATE[name]()
    assert case.form in ("one", "by instance", "mixture", "discrete", "correlated noise")
    assert isinstance(case.truth, type(case.mixture(0)[0][1])) == (case.form in ("one", "correlated noise"))
    assert (len(case.mixture(0)) > 1) == (case.form in ("mixture", "discrete"))


@pytest.mark.parametrize("name", NOT_CONJUGATE)
def test_what_is_not_conjugate_still_runs(name: str) -> None:
    """In plain Pyro it is a good model: all densities are finite, and the site that is blamed is there."""
    case = NOT_CONJUGATE[name]()
    sites = run(case.model, case, outside=True)
    assert case.site in sites
    assert all(bool(site["log_prob"].isfinite().all()) for site in sites.values())
