"""Gaussian-process decoders against GPyTorch's ExactGP and dense algebra, and the GPLVM made of them."""

from __future__ import annotations

import gpytorch
import pyro
import pytest
import torch
from torch import Tensor
from torch.distributions import MultivariateNormal, kl_divergence

import calmrl_prob as cal
from calmrl_prob.decoders import ProcessDecoder
from calmrl_prob.errors import ArgumentError, SchemaError
from models.gplvm import GPLVM


def random_decoder(*, linear: bool = True, seed: int = 0) -> ProcessDecoder:
    """A decoder of 3 features with nothing at its starting value."""
    decoder = ProcessDecoder(3, 2, 6, linear=linear, seed=seed)
    generator = torch.Generator().manual_seed(seed + 1)
    with torch.no_grad():
        for parameter in decoder.parameters():
            if parameter.requires_grad:
                parameter += 0.3 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    return decoder


def conditioned(places: Tensor, values: Tensor, noise: float) -> ProcessDecoder:
    """A decoder whose q(v) is the exact posterior given values (N, D) at inducing points that are the places."""
    decoder = ProcessDecoder(values.shape[1], places.shape[1], len(places), linear=False)
    with torch.no_grad():
        decoder.inducing.copy_(places)
        decoder.log_scale.fill_(0.3)
        decoder.log_noise.fill_(torch.tensor(noise).log())
        factor = decoder.log_scale.exp()[0] * decoder._corner()
        covariance = torch.linalg.inv(torch.eye(len(places)).double() + factor.mT @ factor / noise)
        decoder.mean.copy_(covariance @ factor.mT @ (values - decoder.intercepts) / noise)
        root = torch.linalg.cholesky(covariance)
        decoder.root.copy_(root.tril(-1) + torch.diag(root.diagonal().log()))
    return decoder


def test_predictive_and_divergence_are_what_dense_algebra_gives() -> None:
    decoder, generator = random_decoder(), torch.Generator().manual_seed(5)
    latents = torch.randn(4, 2, generator=generator, dtype=torch.float64)
    with torch.no_grad():
        mean, spread = decoder(latents)
        lengths = decoder.kernel.lengthscale.squeeze(0)

        def kernel(first: Tensor, second: Tensor) -> Tensor:
            return torch.exp(-0.5 * ((first[:, None] - second) / lengths).square().sum(-1))

        corner = torch.linalg.cholesky(kernel(decoder.inducing, decoder.inducing) + 1e-6 * torch.eye(6).double())
        gain = kernel(latents, decoder.inducing) @ torch.linalg.inv(corner).mT
        root = decoder.root.tril(-1) + torch.diag(decoder.root.diagonal().exp())
        scale = decoder.log_scale.exp()
        expected = latents @ decoder.loadings.mT + decoder.intercepts + scale * (gain @ decoder.mean)
        variance = 1 - (gain @ (torch.eye(6).double() - root @ root.mT) @ gain.mT).diagonal()
        torch.testing.assert_close(mean, expected)
        torch.testing.assert_close(spread, scale.square() * variance[:, None])
        origin = MultivariateNormal(torch.zeros(6).double(), torch.eye(6).double())
        parts = [kl_divergence(MultivariateNormal(column, scale_tril=root), origin) for column in decoder.mean.mT]
        torch.testing.assert_close(decoder.divergence(), torch.stack(parts).sum())


def test_with_all_places_as_inducing_points_it_is_gpytorchs_exact_gp() -> None:
    generator = torch.Generator().manual_seed(0)
    places = torch.randn(20, 2, generator=generator, dtype=torch.float64)
    values = torch.stack([places.sin().sum(1), places.prod(1)], dim=1)
    decoder, unseen = conditioned(places, values, 0.05), torch.randn(5, 2, generator=generator, dtype=torch.float64)
    likelihood = gpytorch.likelihoods.GaussianLikelihood().double()
    likelihood.noise = 0.05

    class Regression(gpytorch.models.ExactGP):
        def __init__(self, column: Tensor) -> None:
            super().__init__(places, column, likelihood)
            self.mean_module = gpytorch.means.ZeroMean()
            self.covar_module = gpytorch.kernels.ScaleKernel(decoder.kernel).double()
            self.covar_module.outputscale = float(torch.tensor(0.6).exp())

        def forward(self, at: Tensor) -> gpytorch.distributions.MultivariateNormal:
            return gpytorch.distributions.MultivariateNormal(self.mean_module(at), self.covar_module(at))

    with torch.no_grad(), gpytorch.settings.fast_computations(False, False, False):
        mean, spread = decoder(unseen)
        evidence = torch.zeros(()).double()
        for d, column in enumerate(values.mT):
            regression = Regression(column)
            evidence += likelihood(regression.train()(places)).log_prob(column)
            theirs = regression.eval()(unseen)
            torch.testing.assert_close(mean[:, d], theirs.mean, rtol=0, atol=1e-4)
            torch.testing.assert_close(spread[:, d], theirs.variance, rtol=0, atol=1e-4)
        location, variance = decoder(places)
        expected = torch.distributions.Normal(location, 0.05**0.5).log_prob(values) - 0.5 * variance / 0.05
        bound = expected.sum() - decoder.divergence()
    assert float(bound) == pytest.approx(float(evidence), abs=2e-3)  # the jitter of 1e-6 is all that parts them


def curved_data(num_instances: int = 90, seed: int = 0) -> cal.MultimodalData:
    generator = torch.Generator().manual_seed(seed)
    z = torch.randn(num_instances, 1, generator=generator, dtype=torch.float64)
    x = {"image": torch.cat([z, 0.7 * z**2, z.sin()], dim=1), "text": z * torch.ones(3)}
    x = {name: v + 0.4 * torch.randn(v.shape, generator=generator).double() for name, v in x.items()}
    x["text"][::4] = torch.nan
    return cal.MultimodalData(x)


def test_what_is_missing_counts_for_nothing() -> None:
    model, data = GPLVM({"image": 3, "text": 3}, 2, num_inducing=5), curved_data(12)
    other = {name: data.filled(name, 7.0) for name in data.names}
    other = cal.MultimodalData(other, observed_mask=data.observed_mask)
    found = []
    for given in (data, other):
        for training in (True, False):
            model.train(training)
            model.zero_grad()
            z = torch.full((12, 2), 0.3, dtype=torch.float64)
            trace = pyro.poutine.trace(pyro.poutine.condition(model, {"z": z})).get_trace(given)
            trace.log_prob_sum().backward()
            found.append(
                [trace.log_prob_sum().detach(), *(p.grad.clone() for p in model.parameters() if p.grad is not None)]
            )
    for first, second in zip(found[:2], found[2:], strict=True):
        torch.testing.assert_close(first, second)
        assert all(bool(value.isfinite().all()) for value in first)


def test_it_starts_as_the_linear_model() -> None:
    data = curved_data(60)
    model = GPLVM(data.dims, 1, num_inducing=8)
    result = model.fit_to(data, max_iterations=0)
    decoder = model.decoders["image"]
    mean, spread = decoder(torch.tensor([[0.0], [1.0], [2.0]], dtype=torch.float64))
    torch.testing.assert_close(mean[2] - mean[1], mean[1] - mean[0])
    torch.testing.assert_close(spread, (0.01 * decoder.noise_variance).expand_as(spread))
    assert not model.training
    assert result.posterior(data, num_draws=200).route == "svi"


def test_a_process_without_linear_part_starts_close_to_the_linear_map() -> None:
    decoder = ProcessDecoder(3, 2, 40, linear=False)
    generator = torch.Generator().manual_seed(0)
    loadings = torch.randn(3, 2, generator=generator, dtype=torch.float64)
    inducing = torch.randn(40, 2, generator=generator, dtype=torch.float64)
    decoder.start(loadings, torch.ones(3).double(), torch.tensor(0.1).double(), inducing)
    mean, _ = decoder(inducing)
    assert not decoder.loadings.requires_grad
    torch.testing.assert_close(mean, inducing @ loadings.mT + 1, rtol=0, atol=1e-3)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*k-hat:calmrl_prob.errors.ReliabilityWarning")  # z and -z explain z^2 alike
def test_on_curved_data_it_predicts_what_is_missing_better_than_the_linear_model() -> None:
    train, test = curved_data(300), curved_data(100, seed=1)
    hidden = test.mask({"image": torch.zeros(100).bool() | (torch.arange(100) % 4 == 0), "text": test.observed("text")})
    linear = cal.SharedLatentModel(train.dims, 1)
    cal.fit(linear, train)
    model = GPLVM(train.dims, 1, num_inducing=15)
    result = cal.fit(model, train, max_iterations=40, patience=5, learning_rate=0.01, tolerance=1e-2)
    missing = ~hidden.observed("image")

    def score(given: object) -> float:
        density = cal.impute(given, hidden).log_density(test)["image"]
        return float(density[missing].mean())

    assert score(result) > score(linear) + 0.3


def test_bad_input_is_refused_by_name() -> None:
    with pytest.raises(ArgumentError, match="num_inducing"):
        ProcessDecoder(3, 2, 0)
    with pytest.raises(SchemaError, match="audio"):
        GPLVM({"image": 3, "audio": 2}, 1).fit_to(curved_data(10))
