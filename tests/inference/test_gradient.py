"""Fitting any conjugate Pyro model by the gradient of its exact evidence."""

from __future__ import annotations

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions import constraints
from torch import Tensor, nn

import calmrl_prob as cal
from calmrl_prob.data.missingness import mcar
from calmrl_prob.errors import ArgumentError, ModelError, NotConjugateError, SchemaError, UnfittedWarning
from models.calmrl import CalMRL


@pytest.fixture(scope="module")
def data() -> cal.MultimodalData:
    made = cal.datasets.make_synthetic(300, {"image": 5, "text": 4, "audio": 3}, latent_dim=2, seed=1)
    return made.data.mask(mcar(made.data, rate=0.3, seed=2))


class Plain(nn.Module):
    """The paper's model with nothing but a forward."""

    def __init__(self, dims: dict[str, int]) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.weights = nn.ParameterDict(
            {n: torch.randn(d, 2, generator=generator, dtype=torch.float64) for n, d in dims.items()}
        )
        self.bias = nn.ParameterDict({name: torch.zeros(d, dtype=torch.float64) for name, d in dims.items()})
        self.log_scale = nn.ParameterDict({name: torch.zeros((), dtype=torch.float64) for name in dims})

    def forward(self, data: cal.MultimodalData) -> None:
        with pyro.plate("instances", len(data)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2).double(), 1.0).to_event(1))
            for name in data.names:
                features = dist.Normal(z @ self.weights[name].T + self.bias[name], self.log_scale[name].exp())
                masked = features.to_event(1).mask(data.observed(name))
                pyro.sample(name, masked, obs=data.filled(name).double())


def test_gradients_arrive_where_em_does(data: cal.MultimodalData) -> None:
    native = CalMRL(data.dims, latent_dim=2)
    by_em = cal.fit(native, data, tolerance=1e-10, noise_floor=1e-12)
    model = Plain(data.dims)
    by_gradient = cal.fit(model, data, tolerance=1e-9)
    assert by_gradient.method == "gradient"
    assert by_gradient.converged
    assert bool((np.diff(by_gradient.objective)[:-1] >= 0).all())
    gap = by_em.log_likelihood[-1] - by_gradient.log_likelihood[-1]
    assert abs(gap) < 1e-4 * abs(by_em.log_likelihood[-1])
    exact = cal.posterior(native, data).log_marginal
    assert torch.allclose(cal.posterior(by_gradient, data).log_marginal, exact, rtol=1e-2)
    assert cal.posterior(model, data).route == "exact"


def test_parameters_of_a_plain_function_are_kept_with_the_result(data: cal.MultimodalData) -> None:
    def model(data: cal.MultimodalData) -> None:
        scale = pyro.param("scale", torch.tensor(3.0).double(), constraint=constraints.positive)
        with pyro.plate("instances", len(data)):
            z = pyro.sample("z", dist.Normal(torch.zeros(1).double(), 1.0).to_event(1))
            for name, width in data.dims.items():
                w = pyro.param(f"w_{name}", torch.ones(width, 1).double())
                features = dist.Normal(z @ w.T, scale).to_event(1)
                pyro.sample(name, features.mask(data.observed(name)), obs=data.filled(name).double())

    result = cal.fit(model, data)
    assert result.converged
    assert not list(pyro.get_param_store().keys())
    assert float(result.model.parameter_values()["scale"].detach()) < 3.0
    imputed = cal.impute(result, data)
    assert tuple(imputed.mean["text"].shape) == (300, 4)
    fitted = cal.posterior(result, data).log_marginal.sum()
    assert float(fitted) == pytest.approx(result.log_likelihood[-1], rel=1e-9)


def with_prior(prior: object, data: cal.MultimodalData) -> object:
    w = {name: torch.ones(width, 1).double() for name, width in data.dims.items()}

    def model(data: cal.MultimodalData) -> None:
        slope = pyro.param("slope", torch.tensor(0.1).double())
        with pyro.plate("instances", len(data)):
            z = pyro.sample("z", prior(data, slope))  # type: ignore[operator]
            for name in data.names:
                scale = pyro.param(f"scale_{name}", torch.tensor(2.0).double(), constraint=constraints.positive)
                features = dist.Normal(z @ w[name].T, scale).to_event(1)
                pyro.sample(name, features.mask(data.observed(name)), obs=data.filled(name).double())

    return model


def mixture(data: cal.MultimodalData, slope: Tensor) -> dist.TorchDistribution:
    means = torch.stack([-slope - 1, slope + 1])[:, None]
    return dist.MixtureSameFamily(
        dist.Categorical(torch.ones(2).double()), dist.Normal(means, torch.ones(2, 1).double()).to_event(1)
    )


def regression(data: cal.MultimodalData, slope: Tensor) -> dist.TorchDistribution:
    age = torch.as_tensor(data.covariates["age"])[:, None]
    return dist.Normal(slope * age, 1.0).to_event(1)


@pytest.mark.parametrize(("prior", "route"), [(mixture, "exact mixture"), (regression, "exact by structure")])
def test_mixtures_and_covariates_are_fitted_too(prior: object, route: str, data: cal.MultimodalData) -> None:
    age = np.random.default_rng(0).normal(size=len(data))
    arrays = {name: data[name] for name in data.names}
    given = cal.MultimodalData(arrays, covariates={"age": age})
    result = cal.fit(with_prior(prior, given), given, max_iterations=60, tolerance=1e-5)
    assert result.form == route
    assert result.log_likelihood[-1] > result.log_likelihood[0]
    total = cal.posterior(result, given).log_marginal.sum()
    assert float(total) == pytest.approx(result.log_likelihood[-1], rel=1e-9)


def test_gradient_of_the_evidence_is_that_of_finite_differences(data: cal.MultimodalData) -> None:
    from calmrl_prob.conjugacy import discover
    from calmrl_prob.inference.exact.evidence import FormEvidence
    from calmrl_prob.programs.bound import BoundModel

    few = data.subset(slice(0, 20))
    age = np.random.default_rng(0).normal(size=20)
    given = cal.MultimodalData({name: few[name] for name in few.names}, covariates={"age": age})
    for prior in (mixture, regression):
        bound = BoundModel(with_prior(prior, given))  # type: ignore[arg-type]
        evidence = FormEvidence(discover(bound, given), given)
        value = evidence()
        value.backward()
        slope = bound.own["slope"]
        assert slope.grad is not None
        with torch.no_grad():
            slope += 1e-5
            above = float(evidence())
            slope -= 2e-5
            below = float(evidence())
        assert float(slope.grad) == pytest.approx((above - below) / 2e-5, rel=1e-5)


def test_what_cannot_be_fitted_so_is_refused(data: cal.MultimodalData) -> None:
    def nothing_to_learn(data: cal.MultimodalData) -> None:
        with pyro.plate("instances", len(data)):
            z = pyro.sample("z", dist.Normal(torch.zeros(1).double(), 1.0).to_event(1))
            for name, width in data.dims.items():
                features = dist.Normal(z.expand(len(data), width), 1.0).to_event(1)
                pyro.sample(name, features.mask(data.observed(name)), obs=data.filled(name).double())

    with pytest.raises(ModelError, match=r"no parameters to fit.*pyro.param"):
        cal.fit(nothing_to_learn, data)

    def bent(data: cal.MultimodalData) -> None:
        with pyro.plate("instances", len(data)):
            z = pyro.sample("z", dist.Normal(torch.zeros(1).double(), 1.0).to_event(1))
            for name, width in data.dims.items():
                features = dist.Normal(z.tanh().expand(len(data), width), 1.0).to_event(1)
                pyro.sample(name, features.mask(data.observed(name)), obs=data.filled(name).double())

    with pytest.raises(NotConjugateError, match="location not affine"):
        cal.fit(bent, data, method="gradient")


def test_a_factor_outside_the_plate_is_a_penalty(data: cal.MultimodalData) -> None:
    class Penalised(Plain):
        def forward(self, data: cal.MultimodalData) -> None:
            size = sum(weights.square().sum() for weights in self.weights.values())
            pyro.factor("ridge", -strength * size)
            super().forward(data)

    found = []
    for strength in (0.0, 100.0):  # the model reads it
        model = Penalised(data.dims)
        result = cal.fit(model, data, max_iterations=100)
        size = float(sum(weights.detach().square().sum() for weights in model.weights.values()))
        assert result.objective[-1] == pytest.approx(result.log_likelihood[-1] - strength * size, rel=1e-9)
        found.append((size, result.log_likelihood[-1]))
    (free, best), (small, less) = found
    assert small < 0.5 * free
    assert less < best


def test_modules_that_a_function_closes_over_are_fitted_where_pyro_sees_them(data: cal.MultimodalData) -> None:
    module = Plain(data.dims)

    def model(data: cal.MultimodalData) -> None:
        pyro.module("plain", module)
        module(data)

    before = module.weights["image"].detach().clone()
    result = cal.fit(model, data, max_iterations=50)
    assert result.log_likelihood[-1] > result.log_likelihood[0]
    assert not torch.equal(module.weights["image"].detach(), before)
    assert not list(pyro.get_param_store().keys())


@pytest.mark.slow
def test_it_stops_no_further_from_the_top_than_the_tolerance_allows() -> None:
    """Features in units 100 apart, and loadings that start far too large: L-BFGS would crawl."""
    made = cal.datasets.make_synthetic(300, {"image": 12, "text": 10, "audio": 8}, latent_dim=4, seed=4).data
    scaled = {name: made[name] * scale for name, scale in zip(made.names, (10.0, 1.0, 0.1), strict=True)}
    data = cal.MultimodalData(scaled)
    data = data.mask(mcar(data, rate=0.4, seed=5))

    def model(data: cal.MultimodalData) -> None:
        with pyro.plate("instances", len(data)):
            z = pyro.sample("z", dist.Normal(torch.zeros(4).double(), 1.0).to_event(1))
            for name, width in data.dims.items():
                w = pyro.param(f"w_{name}", lambda width=width: torch.randn(width, 4).double())
                b = pyro.param(f"b_{name}", torch.zeros(width).double())
                s = pyro.param(f"s_{name}", torch.ones(()).double(), constraint=constraints.positive)
                features = dist.Normal(z @ w.T + b, s).to_event(1)
                pyro.sample(name, features.mask(data.observed(name)), obs=data.filled(name).double())

    num_values = sum(int(data.feature_mask(name).sum()) for name in data.names)
    em = cal.SharedLatentModel(data.dims, 4)
    top = cal.fit(em, data).log_likelihood[-1]
    result = cal.fit(model, data, tolerance=1e-3)
    assert result.converged
    assert result.criterion <= 1e-3
    assert top - result.log_likelihood[-1] < 1e-3 * num_values


def drawn_start(data: cal.MultimodalData) -> None:
    with pyro.plate("instances", len(data)):
        z = pyro.sample("z", dist.Normal(torch.zeros(1).double(), 1.0).to_event(1))
        for name, width in data.dims.items():
            w = pyro.param(f"w_{name}", lambda width=width: torch.randn(width, 1).double())
            features = dist.Normal(z @ w.T, 0.5).to_event(1)
            pyro.sample(name, features.mask(data.observed(name)), obs=data.filled(name).double())


def test_the_seed_of_a_fit_governs_what_parameters_start_from(data: cal.MultimodalData) -> None:
    before = torch.random.get_rng_state()
    starts = [
        cal.fit(drawn_start, data, seed=seed, max_iterations=40, tolerance=1.0).log_likelihood[0] for seed in (0, 0, 1)
    ]
    assert starts[0] == starts[1] != starts[2]
    assert torch.equal(torch.random.get_rng_state(), before)


def test_a_function_that_was_not_fitted_warns(data: cal.MultimodalData) -> None:
    with pytest.warns(UnfittedWarning, match=r"pyro.param 'w_audio'.*pass the result"):
        cal.impute(drawn_start, data)


def test_a_fitted_function_knows_its_modalities(data: cal.MultimodalData) -> None:
    result = cal.fit(drawn_start, data, max_iterations=20, tolerance=1e-2)
    few = data.subset(data.rows_with("image")).subset(slice(0, 9)).select(["image"])
    whole = cal.impute(result, few.conform(data.dims))
    for fitted in (result, result.model):
        imputed = cal.impute(fitted, few, names=["text"])
        assert torch.equal(imputed.mean["text"], whole.mean["text"])
    foreign = cal.MultimodalData({"image": few["image"], "smell": torch.ones(9, 3)})
    with pytest.raises(SchemaError, match="smell"):
        cal.impute(result, foreign)
    with pytest.raises(ModelError, match=r"'w_smell': the fit did not know it.*data.select"):
        cal.discover(result.model, foreign)


@pytest.mark.parametrize("method", ["gradient", "scale mixture", "map", "nuts", "collapsed svi", "svi"])
def test_unknown_options_are_refused_by_name(method: str, data: cal.MultimodalData) -> None:
    with pytest.raises(ArgumentError, match=r"no option 'num_samples'; it has \["):
        cal.fit(drawn_start, data, method, num_samples=3)


def test_what_a_model_raises_comes_with_advice_that_fits(data: cal.MultimodalData) -> None:
    def reads_group(data: cal.MultimodalData) -> None:
        data.covariates["group"]

    with pytest.raises(ModelError, match=r"lack covariate 'group'"):
        cal.posterior(reads_group, data)

    def mixes_types(data: cal.MultimodalData) -> None:
        torch.ones(1, 1) @ torch.ones(1, 1).double()

    with pytest.raises(ModelError, match=r"Bring all to one type"):
        cal.posterior(mixes_types, data)


@pytest.mark.parametrize(
    ("start", "constraint", "told"),
    [
        (torch.tensor(2), constraints.positive, "torch.int64"),
        (torch.tensor(-1.0), constraints.positive, "breaks its constraint"),
        (torch.tensor(5.0), constraints.interval(0.1, 2.0), "breaks its constraint"),
    ],
)
def test_a_parameter_that_cannot_start_is_named(
    start: Tensor, constraint: constraints.Constraint, told: str, data: cal.MultimodalData
) -> None:
    def model(given: cal.MultimodalData) -> None:
        scale = pyro.param("sigma", start, constraint=constraint)
        with pyro.plate("instances", len(given)):
            z = pyro.sample("z", dist.Normal(torch.zeros(1).double(), 1.0).to_event(1))
            for name in given.names:
                features = dist.Normal(z.expand(-1, given.dims[name]), scale.double()).to_event(1)
                pyro.sample(name, features.mask(given.observed(name)), obs=given.filled(name).double())

    with pytest.raises(ModelError, match=f"pyro.param 'sigma'.*{told}"):
        cal.posterior(model, data)
