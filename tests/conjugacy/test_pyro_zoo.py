"""The zoo itself: its hand-made truths are those of the Pyro models, and its models run in plain Pyro."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyro
import pytest
import torch
from pyro import poutine
from pyro.poutine.util import site_is_subsample
from scipy.special import logsumexp
from scipy.stats import multivariate_normal

from tests.cases.pyro_zoo import CONJUGATE, NOT_CONJUGATE, Conjugate, NotConjugate
from tests.cases.pyro_zoo.cases import Array, Model


@pytest.fixture(autouse=True)
def own_parameter_store() -> Iterator[None]:
    """Some models register parameters; none outlive a test."""
    with pyro.get_param_store().scope(), torch.random.fork_rng():
        pyro.set_rng_seed(0)
        yield


def run(model: Model, case: Conjugate | NotConjugate, *, outside: bool = False) -> dict[str, dict[str, Any]]:
    """The sample sites of the plate of instances, or all of them, their densities computed."""
    trace = poutine.trace(model).get_trace(case.data)
    trace.compute_log_prob()
    return {
        name: site
        for name, site in trace.nodes.items()
        if site["type"] == "sample"
        and not site_is_subsample(site)
        and (outside or any(frame.name == "instances" for frame in site["cond_indep_stack"]))
    }


def by_row(value: torch.Tensor, rows: int) -> Array:
    """(N, -1), as numpy."""
    return value.detach().double().expand(rows, *value.shape[1:]).reshape(rows, -1).numpy()


def density_by_row(site: dict[str, Any], rows: int) -> Array:
    """The log density of a site for each instance, (N,), on whichever dimension the instances are."""
    dim = next(frame.dim for frame in site["cond_indep_stack"] if frame.name == "instances")
    return by_row(site["log_prob"].movedim(dim, 0), rows).sum(1)


def joint_density(case: Conjugate) -> tuple[Array, Array]:
    """Latents drawn from the prior, and their log density together with the data, by Pyro: of the rows of a case."""
    rows = len(case.data)
    sites = run(case.model, case)
    drawn = {n: s["value"] for n, s in sites.items() if not s["is_observed"] and not n.endswith("_unobserved")}
    discrete = {name: site["fn"] for name, site in sites.items() if getattr(site["fn"].support, "is_discrete", False)}
    support = {n: v.enumerate_support(expand=False) for n, v in discrete.items() if n in drawn}
    totals = []
    for choice in itertools.product(*support.values()):
        chosen = {name: value.expand_as(drawn[name]) for name, value in zip(support, choice, strict=True)}
        fixed = {**drawn, **chosen}
        again = run(poutine.condition(case.model, data=fixed), case)
        densities = [density_by_row(s, rows) for n, s in again.items() if not n.endswith("_unobserved")]
        totals.append(np.sum(densities, axis=0))
    latents = np.concatenate([by_row(value, rows) for n, value in drawn.items() if n not in support], axis=1)
    return latents[case.rows], logsumexp(totals, axis=0)[case.rows]


def log_density(case: Conjugate, latents: Array) -> Array:
    """log p(x) + log p(z | x) of the rows of a case, by hand."""
    densities = []
    for row, z in zip(case.rows, latents, strict=True):
        weights, means, covariances, evidence = case.components(row)
        parts = [multivariate_normal(m, cov).logpdf(z) for m, cov in zip(means, covariances, strict=True)]
        densities.append(evidence + logsumexp(parts, b=weights))
    return np.array(densities)


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
