"""The joint density of global latents and data: values, gradients, and that its cost does not grow with N."""

from __future__ import annotations

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

import calmrl_prob as cal
from calmrl_prob.errors import ArgumentError, ModelError, NotConjugateError
from calmrl_prob.inference.parameters.nuts import moving, rotation_free
from calmrl_prob.linear_gaussian import LinearGaussian, SufficientStatistics
from calmrl_prob.programs.bound import BoundModel
from tests.cases.collapsed_cases import CASES, covariate_data, factor_model, intercepts_alone, normal
from tests.cases.model_cases import DIMS, random_data
from tests.cases.recording import Operations

every_case = pytest.mark.parametrize("name", CASES)


def dense_log_joint(data: cal.MultimodalData, values: dict[str, Tensor]) -> Tensor:
    """The factor model's density by torch.distributions and dense normals, with the Jacobian of log sigma."""
    total = torch.zeros((), dtype=torch.float64)
    for name in DIMS:
        total = total + torch.distributions.Normal(0, 1).log_prob(values[f"w_{name}"]).sum()
        total = total + torch.distributions.Normal(0, 1).log_prob(values[f"mu_{name}"]).sum()
        total = total + torch.distributions.Normal(0, 0.5).log_prob(values[f"sigma_{name}"].log())
    lg = LinearGaussian(
        {name: values[f"w_{name}"] for name in DIMS},
        {name: values[f"mu_{name}"] for name in DIMS},
        {name: values[f"sigma_{name}"].square() for name in DIMS},
    )
    for n in range(len(data)):
        names = [name for name in DIMS if bool(data.observed(name)[n])]
        mean, covariance = lg.joint(names)
        row = torch.cat([data[name][n] for name in names])
        total = total + torch.distributions.MultivariateNormal(mean, covariance).log_prob(row)
    return total


def test_value_and_gradient_are_those_of_dense_normals() -> None:
    data = random_data(15)
    model = cal.marginalize(factor_model(), data)
    assert model.dim == sum(3 * width + 1 for width in DIMS.values())
    ours, theirs = (model.draw(3).requires_grad_() for _ in range(2))
    value, expected = model.log_joint(ours), dense_log_joint(data, model.values(theirs))
    assert float(value.detach()) == pytest.approx(float(expected.detach()), rel=1e-9)
    gradient, wanted = torch.autograd.grad(value, ours)[0], torch.autograd.grad(expected, theirs)[0]
    torch.testing.assert_close(gradient, wanted, rtol=1e-6, atol=1e-6)


@every_case
def test_evidence_is_that_of_the_posterior_given_the_values(name: str) -> None:
    """Whatever the form: offsets by row, structures by group, mixtures."""
    build, route = CASES[name]
    data = covariate_data()
    model = cal.marginalize(build, data)
    assert model.form.route == route
    for seed in range(3):
        theta = model.draw(seed)
        terms = model.terms(theta)
        bound = BoundModel(build)
        bound.values = model.values(theta)
        exact = cal.posterior(bound, data).log_marginal.sum()
        assert float(terms.evidence) == pytest.approx(float(exact), rel=1e-9)
        assert float(terms.log_joint) == pytest.approx(float(model.log_joint(theta)))


@every_case
def test_gradients_are_those_of_finite_differences(name: str) -> None:
    model = cal.marginalize(CASES[name][0], covariate_data(8))
    assert torch.autograd.gradcheck(model.log_joint, model.draw(1).requires_grad_(), fast_mode=True, rtol=1e-4)


def test_coordinates_go_both_ways_and_draws_come_from_the_prior() -> None:
    data = random_data()
    bound = BoundModel(factor_model())
    model = cal.marginalize(bound, data)
    theta = model.draw(2)
    values = model.values(theta)
    torch.testing.assert_close(model.pack(values), theta)
    assert values["sigma_image"].shape == ()
    assert values["w_image"].shape == (4, 2)
    many = model.values(torch.stack([theta, model.draw(3)]))
    assert many["w_image"].shape == (2, 4, 2)
    torch.testing.assert_close(many["sigma_text"][0], values["sigma_text"])
    bound.values = values  # what was fitted does not stand in for draws
    assert not torch.equal(model.draw(3), theta)
    spread = torch.stack([model.draw(seed) for seed in range(200)]).std(0)
    scale = torch.cat(
        [
            torch.full((site.place.stop - site.place.start,), 0.5 if "sigma" in n else 1.0)
            for n, site in model.sites.items()
        ]
    )
    assert bool(((spread - scale).abs() < 6 * scale / (2 * 199) ** 0.5).all())


def test_the_work_of_a_call_does_not_grow_with_the_data() -> None:
    seen = []
    few = random_data(50, dims={"wide": 40, "narrow": 30})
    for num_instances in (20_000, 40_000):
        model = cal.marginalize(factor_model(), few.subset(torch.arange(num_instances) % 50))
        theta = model.draw(0).requires_grad_()
        with Operations() as operations:
            torch.autograd.grad(model.log_joint(theta), theta)
        seen.append(operations.seen)
    assert seen[0] == seen[1]


def test_statistics_stand_for_data_that_do_not_fit() -> None:
    data = random_data(300)
    whole = cal.marginalize(factor_model(), data)
    statistics = SufficientStatistics(data.dims)
    for start in range(0, 300, 100):
        statistics.update(data.subset(slice(start, start + 100)).blocks)
    some = cal.marginalize(factor_model(), data.subset(slice(0, 20)), statistics=statistics)
    theta = whole.draw(1)
    assert float(some.log_joint(theta)) == pytest.approx(float(whole.log_joint(theta)), rel=1e-10)
    assert some.num_values == whole.num_values
    with pytest.raises(ArgumentError, match="statistics: this model's form"):
        cal.marginalize(CASES["groups"][0], covariate_data(), statistics=statistics)


def test_where_theta_is_out_of_range_the_density_is_nan_and_not_an_error() -> None:
    model = cal.marginalize(factor_model(), random_data())
    theta = torch.full((model.dim,), -1e4, dtype=torch.float64, requires_grad=True)
    value = model.log_joint(theta)
    assert bool(value.isnan())
    assert bool(torch.autograd.grad(value, theta)[0].isnan().all())


def test_what_stands_outside_the_plate_counts_as_prior() -> None:
    """Factors and observed sites outside the plate, and plates of features."""

    def model(data: cal.MultimodalData) -> None:
        with pyro.plate("features", 4):
            w = pyro.sample("w", dist.Normal(torch.tensor(0.0).double(), 2.0))
        pyro.sample("known", dist.Normal(w.sum(), 1.0), obs=torch.tensor(1.5).double())
        pyro.factor("push", -w.square().sum())
        with pyro.plate("instances", len(data)):
            z = pyro.sample("z", normal(1))
            pyro.sample("x", dist.Normal(z * w, 1.0).to_event(1), obs=data.filled("x"))

    collapsed = cal.marginalize(model, cal.MultimodalData({"x": torch.randn(5, 4).double()}))
    w = collapsed.draw(0)
    expected = (
        torch.distributions.Normal(0, 2.0).log_prob(w).sum()
        + torch.distributions.Normal(w.sum(), 1.0).log_prob(torch.tensor(1.5))
        - w.square().sum()
    )
    assert float(collapsed.terms(w).log_prior) == pytest.approx(float(expected))


def test_a_model_in_single_precision() -> None:
    def model(data: cal.MultimodalData) -> None:
        w = pyro.sample("w", dist.Normal(torch.zeros(3, 1), 1.0).to_event(2))
        with pyro.plate("instances", len(data)):
            z = pyro.sample("z", dist.Normal(torch.zeros(1), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z @ w.T, 0.5).to_event(1), obs=data.filled("x"))

    collapsed = cal.marginalize(model, cal.MultimodalData({"x": torch.randn(30, 3)}))
    theta = collapsed.draw(0).requires_grad_()
    assert theta.dtype == torch.float64
    value = collapsed.log_joint(theta)
    assert bool(torch.autograd.grad(value, theta)[0].isfinite().all())


def test_errors() -> None:
    data = random_data()

    def no_globals(data: cal.MultimodalData) -> None:
        with pyro.plate("instances", len(data)):
            z = pyro.sample("z", normal(1))
            for name in data.names:
                x = dist.Normal(z.expand(-1, data.dims[name]), 1.0).to_event(1)
                pyro.sample(name, x.mask(data.observed(name)), obs=data.filled(name))

    def discrete(data: cal.MultimodalData) -> None:
        scale = 1.0 + pyro.sample("which", dist.Bernoulli(torch.tensor(0.5).double()))
        with pyro.plate("instances", len(data)):
            z = pyro.sample("z", normal(1))
            for name in data.names:
                x = dist.Normal(z.expand(-1, data.dims[name]), scale).to_event(1)
                pyro.sample(name, x.mask(data.observed(name)), obs=data.filled(name))

    def student(data: cal.MultimodalData) -> None:
        scale = pyro.sample("scale", dist.LogNormal(torch.tensor(0.0).double(), 1.0))
        with pyro.plate("instances", len(data)):
            z = pyro.sample("z", dist.StudentT(torch.tensor(4.0).double(), torch.zeros(1).double(), 1.0).to_event(1))
            for name in data.names:
                x = dist.Normal(z.expand(-1, data.dims[name]), scale).to_event(1)
                pyro.sample(name, x.mask(data.observed(name)), obs=data.filled(name))

    with pytest.raises(ModelError, match="it has no global latents"):
        cal.marginalize(no_globals, data)
    with pytest.raises(NotConjugateError, match="discrete global latent"):
        cal.marginalize(discrete, data)
    with pytest.raises(NotConjugateError, match="Student-t"):
        cal.marginalize(student, data)


def test_nothing_global_is_touched() -> None:
    with pyro.get_param_store().scope():
        pyro.set_rng_seed(1)
        before = pyro.util.get_rng_state()
        model = cal.marginalize(factor_model(), random_data())
        model.log_joint(model.draw(0))
        after = pyro.util.get_rng_state()
        assert not list(pyro.get_param_store().keys())
        assert torch.equal(before["torch"], after["torch"])
        assert all(np.array_equal(a, b) for a, b in zip(before["numpy"], after["numpy"], strict=True))


def test_what_is_known_has_no_r_hat() -> None:
    """Loadings that are given are the same in each draw but for rounding, which R-hat must not be of."""
    model = cal.marginalize(intercepts_alone, random_data())
    wide = torch.stack([model.draw(seed) for seed in range(8)]).unflatten(0, (2, 4))
    signal = rotation_free(model, wide)["signal_covariance"]
    assert not torch.equal(signal, signal[:1, :1].expand_as(signal))  # or there would be nothing to tell apart
    for theta in (wide, wide[:1, :1] + 1e-4 * wide):  # a posterior as of 1e8 instances moves, all the same
        found = moving(model, theta, rotation_free(model, theta))
        assert set(found) == {"log_evidence", "log_prior", "signal_mean"}
        assert found["signal_mean"].shape == (2, 4, 9)
