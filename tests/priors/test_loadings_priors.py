"""The contract of priors of the loadings: what each of ``LOADINGS_PRIORS`` has to do inside a Pyro model."""

from __future__ import annotations

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from torch import Tensor
from torch.distributions import biject_to

import calmrl_prob as cal
from calmrl_prob.errors import ArgumentError, ArgumentTypeError
from calmrl_prob.priors.loadings import (
    LOADINGS_PRIORS,
    ARDLoadings,
    HorseshoeLoadings,
    LoadingsPrior,
    NormalLoadings,
    SpikeSlabLoadings,
)

DIMS = {"image": 5, "text": 3}
K = 2
every_prior = pytest.mark.parametrize("prior", [make() for make in LOADINGS_PRIORS.values()], ids=list(LOADINGS_PRIORS))


def draw(prior: LoadingsPrior, seed: int = 0, latent_dim: int = K) -> tuple[dict[str, Tensor], poutine.Trace]:
    """All loadings, and the trace of their sites."""
    with poutine.trace() as tracer, poutine.seed(rng_seed=seed):
        loadings = prior.sample_all(DIMS, latent_dim)
    tracer.trace.compute_log_prob()
    return loadings, tracer.trace


@every_prior
def test_shapes_types_and_names(prior: LoadingsPrior) -> None:
    loadings, trace = draw(prior)
    assert {name: tuple(part.shape) for name, part in loadings.items()} == {"image": (5, K), "text": (3, K)}
    assert all(part.dtype == torch.float64 for part in loadings.values())
    sites = [name for name, node in trace.nodes.items() if node["type"] == "sample"]
    assert sites
    assert all(name.startswith(("loadings_image", "loadings_text")) for name in sites)
    assert not any(trace.nodes[name]["is_observed"] for name in sites)
    single = type(prior)(dtype=torch.float32)
    assert draw(single)[0]["image"].dtype == torch.float32
    assert type(prior).__name__ in repr(prior)


@every_prior
def test_one_seed_one_draw_and_loadings_centred_at_zero(prior: LoadingsPrior) -> None:
    assert torch.equal(draw(prior, 1)[0]["image"], draw(prior, 1)[0]["image"])
    assert not torch.equal(draw(prior, 1)[0]["image"], draw(prior, 2)[0]["image"])
    many = draw(prior, 3, latent_dim=2000)[0]["image"]
    positive = float((many > 0).double().mean())
    assert abs(positive - 0.5) < 6 * math.sqrt(0.25 / many.numel())  # signs are independent in all of them


@every_prior
def test_the_density_and_its_gradient_are_finite_in_unconstrained_space(prior: LoadingsPrior) -> None:
    """At many draws of the prior and of wide unconstrained points: what every sampler and optimiser goes through."""
    for seed in range(20):
        _, trace = draw(prior, seed)
        sites = {name: node for name, node in trace.nodes.items() if node["type"] == "sample"}
        transforms = {name: biject_to(node["fn"].support) for name, node in sites.items()}
        points = {}
        for name, node in sites.items():
            there = transforms[name].inv(node["value"])
            if seed % 2:
                there = 3 * torch.randn(there.shape, generator=torch.Generator().manual_seed(seed), dtype=there.dtype)
            assert bool(there.isfinite().all()), name
            points[name] = there.detach().requires_grad_()
        with poutine.trace() as tracer, poutine.condition(data={n: transforms[n](u) for n, u in points.items()}):
            loadings = prior.sample_all(DIMS, K)
        total = tracer.trace.log_prob_sum() + sum(part.square().sum() for part in loadings.values())
        gradients = torch.autograd.grad(total, list(points.values()), allow_unused=True)
        assert bool(total.isfinite())
        assert all(part is None or bool(part.isfinite().all()) for part in gradients)


@every_prior
def test_a_model_with_it_is_conjugate_given_the_loadings(prior: LoadingsPrior) -> None:
    data = cal.MultimodalData(
        {n: torch.randn(6, w, generator=torch.Generator().manual_seed(0)) for n, w in DIMS.items()}
    )

    def model(data: cal.MultimodalData) -> None:
        loadings = prior.sample_all(data.dims, K)
        with pyro.plate("instances", len(data)):
            z = pyro.sample("z", dist.Normal(torch.zeros(K, dtype=torch.float64), 1.0).to_event(1))
            for name in data.names:
                x = dist.Normal(z @ loadings[name].mT, 1.0).to_event(1)
                pyro.sample(name, x.mask(data.observed(name)), obs=data.filled(name).double())

    form = cal.discover(model, data)
    assert form.route == "exact"
    assert form.globals
    values = {name: site.value for name, site in form.bound.call(data).globals.items()}
    with poutine.condition(data=values):
        expected = prior.sample_all(DIMS, K)
    lg = form.linear_gaussian(values)
    for name in DIMS:
        torch.testing.assert_close(lg.loadings[name], expected[name], rtol=1e-6, atol=1e-9)


def test_laws_of_the_marginal_loadings() -> None:
    """Each against a law known in closed form, by the share of draws below a bound, within 6 standard errors."""
    number = 20_000

    def share_below(prior: LoadingsPrior, bound: float) -> float:
        with poutine.seed(rng_seed=3):
            draws = prior.sample("image", 1, number).abs()
        return float((draws < bound).double().mean())

    def close(share: float, expected: float) -> bool:
        return abs(share - expected) < 6 * math.sqrt(expected * (1 - expected) / number)

    assert close(share_below(NormalLoadings(2.0), 2.0), 0.6827)
    # ARD: a Student-t with 2 a degrees of freedom and scale sqrt(b / a); for a = 1/2 a Cauchy, half of it within 1
    assert close(share_below(ARDLoadings(0.5, 0.02, scale=3.0), 3.0 * math.sqrt(0.02 / 0.5)), 0.5)
    # the gate by quantiles of its logit, a logistic variable over the temperature; then the slab given the gate
    uniform = (torch.arange(10_000, dtype=torch.float64) + 0.5) / 10_000
    gate = torch.sigmoid(torch.logit(uniform) / 0.3)
    expected = float(2 * torch.special.ndtr(0.1 / (3 * gate)).mean() - 1)
    assert close(share_below(SpikeSlabLoadings((1e6, 1e6), 0.3, scale=3.0), 0.1), expected)
    # a horseshoe whose slab is fixed at c = 1 and whose tau is huge is the slab: N(0, scale^2)
    assert close(share_below(HorseshoeLoadings(1e6, slab_freedom=1e6, scale=2.0), 2.0), 0.6827)


def test_errors() -> None:
    with pytest.raises(ArgumentError, match="scale: expected a positive number"):
        NormalLoadings(scale=0.0)
    with pytest.raises(ArgumentTypeError, match="scale"):
        NormalLoadings(scale="1")  # type: ignore[arg-type]  # on purpose
    with pytest.raises(ArgumentError, match="rate: expected a positive number"):
        ARDLoadings(rate=-1.0)
    with pytest.raises(ArgumentError, match="inclusion: expected the two parameters"):
        SpikeSlabLoadings(inclusion=0.5)  # type: ignore[arg-type]  # on purpose
    with pytest.raises(ArgumentError, match="latent_dim"):
        NormalLoadings().sample_all(DIMS, 0)
