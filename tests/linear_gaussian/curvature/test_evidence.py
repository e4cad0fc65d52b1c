"""The differentiable evidence: against dense normals, against the posterior's own route, and by finite differences."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from calmrl_prob.errors import ArgumentError, NumericalError, SchemaError
from calmrl_prob.linear_gaussian import (
    Evidence,
    FeatureBlocks,
    LinearGaussian,
    ObservedBlocks,
    SufficientStatistics,
    log_evidence,
    log_marginal,
)
from calmrl_prob.linear_gaussian.em.parameters import Parameters
from calmrl_prob.linear_gaussian.em.statistics import FromStatistics
from tests.cases.linear_gaussian_cases import random_blocks, random_model
from tests.cases.recording import Operations

DIMS = {"a": 4, "b": 3, "c": 2}
FORMS = ("statistics", "modality", "pattern")

Flat = tuple[Tensor, ...]


def flatten(lg: LinearGaussian) -> Flat:
    """Every tensor of a model, as leaves; the prior covariance by its root, so that steps keep it definite."""
    parts = [*lg.loadings.values(), *lg.intercepts.values(), *lg.noise_variance.values(), lg.prior_mean]
    return tuple(
        part.detach().clone().requires_grad_() for part in [*parts, torch.linalg.cholesky(lg.prior_covariance)]
    )


def unflatten(parts: Flat) -> LinearGaussian:
    """The inverse."""
    loadings, intercepts, noise = (dict(zip(DIMS, parts[i : i + 3], strict=True)) for i in (0, 3, 6))
    return LinearGaussian(loadings, intercepts, noise, parts[9], parts[10] @ parts[10].mT)


def dense_evidence(lg: LinearGaussian, blocks: ObservedBlocks) -> Tensor:
    """Row by row from the dense joint normal, which shares no code with the engine."""
    total = torch.zeros((), dtype=torch.float64)
    for n in range(blocks.num_instances):
        names = [name for m, name in enumerate(blocks.names) if bool(blocks.observed_mask[n, m])]
        if names:
            row = torch.cat([blocks.values[name][int((blocks.rows[name] == n).nonzero())] for name in names])
            mean, covariance = lg.joint(names)
            total = total + torch.distributions.MultivariateNormal(mean, covariance).log_prob(row)
    return total


@pytest.mark.parametrize("form", FORMS)
def test_value_and_gradient_are_those_of_dense_normals(form: str) -> None:
    model = random_model(DIMS, 2, seed=1)
    blocks = random_blocks(model, 30, rate=0.4, empty=True)
    ours, theirs = flatten(random_model(DIMS, 2, seed=2)), flatten(random_model(DIMS, 2, seed=2))
    value, expected = Evidence(blocks, 2, form=form)(unflatten(ours)), dense_evidence(unflatten(theirs), blocks)
    assert value.dtype == torch.float64
    assert float(value.detach()) == pytest.approx(float(expected.detach()), rel=1e-9)
    value.backward()
    expected.backward()
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-9, atol=1e-9)


@settings(derandomize=True, deadline=None, max_examples=15)
@given(
    latent_dim=st.integers(1, 5),
    rate=st.sampled_from([0.0, 0.3, 0.6]),
    num_instances=st.sampled_from([3, 40, 300]),
    seed=st.integers(0, 1000),
)
def test_all_forms_agree_with_the_posterior_and_with_em(
    latent_dim: int, rate: float, num_instances: int, seed: int
) -> None:
    """Evidence 1e-11 apart from the sum of log marginals; gradients from every form equal autograd's through rows."""
    model = random_model(DIMS, latent_dim, seed)
    blocks = random_blocks(model, num_instances, rate, seed)
    inputs = flatten(random_model(DIMS, latent_dim, seed + 1))
    exact = log_marginal(unflatten(inputs), blocks).sum()
    gradient = torch.autograd.grad(exact, inputs)
    for form in FORMS:
        value = Evidence(blocks, latent_dim, form=form)(unflatten(inputs))
        assert float(value.detach()) == pytest.approx(float(exact.detach()), rel=1e-11)
        for one, other in zip(torch.autograd.grad(value, inputs), gradient, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-8 * num_instances)
    statistics = SufficientStatistics.from_blocks(blocks)
    moments = FromStatistics(statistics)(Parameters.from_linear_gaussian(unflatten(inputs).detach(), statistics.shift))
    assert moments.log_likelihood == pytest.approx(float(exact.detach()), rel=1e-11)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("check", [torch.autograd.gradcheck, torch.autograd.gradgradcheck])
def test_finite_differences(form: str, check: Callable[..., bool]) -> None:
    """First derivatives in closed form, second ones by autograd."""
    model = random_model(DIMS, 2, seed=3)
    evidence = Evidence(random_blocks(model, 12, rate=0.4), 2, form=form)
    assert check(lambda *parts: evidence(unflatten(parts)), flatten(model), fast_mode=True)


def test_single_missing_features() -> None:
    model = random_model(DIMS, 2, seed=4)
    blocks = random_blocks(model, 20, rate=0)
    rows = torch.cat(list(blocks.values.values()), dim=1)
    present = torch.rand(rows.shape, generator=torch.Generator().manual_seed(0)) > 0.3
    features = FeatureBlocks(DIMS, rows, present)
    inputs = flatten(model)
    evidence = Evidence(features, 2)
    assert evidence.form == "features"
    value, exact = evidence(unflatten(inputs)), log_marginal(unflatten(inputs), features).sum()
    assert float(value.detach()) == pytest.approx(float(exact.detach()), rel=1e-11)
    for one, other in zip(torch.autograd.grad(value, inputs), torch.autograd.grad(exact, inputs), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-8)
    assert torch.autograd.gradgradcheck(lambda *parts: evidence(unflatten(parts)), inputs, fast_mode=True)


def test_a_call_from_statistics_touches_nothing_that_grows_with_the_rows() -> None:
    """The same work whatever N: no operation of a call, forward or backward, sees a tensor with a row dimension."""

    model = random_model(DIMS, 2, seed=5)
    seen = []
    for num_instances in (211, 3001):
        evidence = Evidence(random_blocks(model, num_instances, rate=0.4), 2, form="statistics")
        with Operations() as operations:
            evidence(unflatten(flatten(model))).backward()
        seen.append(operations.seen)
    assert seen[0] == seen[1]
    assert len(seen[0]) > 100


def test_rows_may_be_permuted_split_and_shifted() -> None:
    """Laws: order is nothing, parts add, and moving data and intercepts together changes nothing."""
    model = random_model(DIMS, 2, seed=6)
    blocks = random_blocks(model, 60, rate=0.4)
    value = float(log_evidence(model, blocks))
    order = torch.randperm(60, generator=torch.Generator().manual_seed(0))
    full = {name: torch.zeros(60, width).double() for name, width in DIMS.items()}
    for name in DIMS:
        full[name][blocks.rows[name]] = blocks.values[name]

    def rows(index: Tensor, shift: float = 0.0) -> ObservedBlocks:
        return ObservedBlocks.from_arrays(
            {name: array[index] + shift for name, array in full.items()}, blocks.observed_mask[index]
        )

    assert float(log_evidence(model, rows(order))) == pytest.approx(value, rel=1e-12)
    parts = float(log_evidence(model, rows(order[:20]))) + float(log_evidence(model, rows(order[20:])))
    assert parts == pytest.approx(value, rel=1e-12)
    moved = LinearGaussian(
        model.loadings,
        {name: intercept + 1e3 for name, intercept in model.intercepts.items()},
        model.noise_variance,
        model.prior_mean,
        model.prior_covariance,
    )
    assert float(Evidence(rows(order, 1e3), 2, form="statistics")(moved)) == pytest.approx(value, rel=1e-9)


def test_parameters_in_single_precision_and_some_of_them_fixed() -> None:
    model = random_model(DIMS, 2, seed=7)
    blocks = random_blocks(model, 40, rate=0.4)
    narrow = model.to(torch.float32)
    loadings = narrow.loadings["a"].clone().requires_grad_()
    lg = LinearGaussian({**narrow.loadings, "a": loadings}, narrow.intercepts, narrow.noise_variance)
    evidence = Evidence(blocks, 2)
    value = evidence(lg)
    assert value.dtype == torch.float64
    (first,) = torch.autograd.grad(value, loadings, create_graph=True)
    assert first.dtype == torch.float32
    (second,) = torch.autograd.grad(first.sum(), loadings)
    assert bool(second.isfinite().all())
    assert bool((second != 0).any())


def test_errors() -> None:
    model = random_model(DIMS, 2)
    evidence = Evidence(random_blocks(model, 20, rate=0.3), 2)
    assert repr(evidence).startswith("Evidence(")
    with pytest.raises(SchemaError, match="in this order"):
        evidence(model.select(["b", "a", "c"]))
    with pytest.raises(ArgumentError, match="expected 2 latents, got 3"):
        evidence(random_model(DIMS, 3))
    with pytest.raises(ArgumentError, match="form: expected one of"):
        Evidence(random_blocks(model, 20, rate=0.3), 2, form="dense")
    with pytest.raises(NumericalError, match="positive-definite"):
        evidence(model.map(lambda part: part * torch.nan if part.shape == (4, 2) else part))


def test_devices(device: str) -> None:
    model = random_model(DIMS, 2)
    blocks = random_blocks(model, 30, rate=0.3)
    there = ObservedBlocks({n: x.to(device) for n, x in blocks.values.items()}, blocks.observed_mask.to(device))
    assert float(log_evidence(model.to(device=device), there)) == pytest.approx(float(log_evidence(model, blocks)))
