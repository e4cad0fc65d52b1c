"""Densities of the zoo of Pyro models, by Pyro and by hand, that discovery is held against."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import torch
from pyro import poutine
from pyro.poutine.util import site_is_subsample
from scipy.special import logsumexp
from scipy.stats import multivariate_normal

from tests.cases.pyro_zoo import Conjugate, NotConjugate
from tests.cases.pyro_zoo.cases import Array, Model


def close(got: torch.Tensor, expected: np.ndarray, tolerance: float) -> None:
    """Within a tolerance of the size of what is expected."""
    scale = max(1.0, float(np.abs(expected).max()))
    np.testing.assert_allclose(got.detach().double().numpy(), expected, rtol=0, atol=tolerance * scale)


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
