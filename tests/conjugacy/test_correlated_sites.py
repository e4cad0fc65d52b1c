"""Pyro models whose noise is correlated within a modality: what is read off them, differentiably."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

import calmrl_prob as cal
from calmrl_prob.errors import NotConjugateError
from calmrl_prob.inference.exact.evidence import FormEvidence
from calmrl_prob.linear_gaussian import LinearGaussian, log_marginal
from tests.cases.linear_gaussian_cases import assert_close, random_mask, random_model

DIMS = {"a": 4, "b": 3}
LG = random_model(DIMS, 2, noise="full")
LOW = random_model({"a": 6, "b": 7}, 2, noise="low_rank")

Likelihood = Callable[[LinearGaussian, str, Tensor], dist.TorchDistribution]


def covariance(lg: LinearGaussian, name: str, location: Tensor) -> dist.TorchDistribution:
    return dist.MultivariateNormal(location, lg.correlated_noise(name).covariance())


def precision(lg: LinearGaussian, name: str, location: Tensor) -> dist.TorchDistribution:
    return dist.MultivariateNormal(location, precision_matrix=torch.linalg.inv(lg.correlated_noise(name).covariance()))


def scale_tril(lg: LinearGaussian, name: str, location: Tensor) -> dist.TorchDistribution:
    return dist.MultivariateNormal(location, scale_tril=torch.linalg.cholesky(lg.correlated_noise(name).covariance()))


def low_rank(lg: LinearGaussian, name: str, location: Tensor) -> dist.TorchDistribution:
    noise = lg.correlated_noise(name)
    return dist.LowRankMultivariateNormal(location, noise.factor, noise.specific)


def program(lg: LinearGaussian, likelihood: Likelihood) -> Callable[[cal.MultimodalData], Tensor]:
    def model(data: cal.MultimodalData) -> Tensor:
        with pyro.plate("instances", len(data)):
            z: Tensor = pyro.sample("z", dist.MultivariateNormal(lg.prior_mean, lg.prior_covariance))
            for name in data.names:
                features = likelihood(lg, name, z @ lg.loadings[name].mT + lg.intercepts[name])
                pyro.sample(name, features.mask(data.observed(name)), obs=data.filled(name))
        return z

    return model


def drawn(lg: LinearGaussian) -> cal.MultimodalData:
    arrays = lg.sample(25, torch.Generator().manual_seed(0)).features
    return cal.MultimodalData(arrays, observed_mask=random_mask(25, 2, 0.3))


@pytest.mark.parametrize("likelihood", [covariance, precision, scale_tril, low_rank])
@pytest.mark.parametrize("lg", [LG, LOW], ids=["full", "low_rank"])
def test_the_form_has_the_noise_itself(lg: LinearGaussian, likelihood: Likelihood) -> None:
    data = drawn(lg)
    found = cal.discover(program(lg, likelihood), data).linear_gaussian()
    assert found.latent_dim == 2  # no latents in its place
    for one, other in zip(found.joint(), lg.joint(), strict=True):
        assert_close(one, other, 1e-8)
    assert_close(cal.posterior(program(lg, likelihood), data).log_marginal, log_marginal(lg, data.blocks), 1e-8)


@pytest.mark.parametrize("likelihood", [covariance, low_rank])
def test_gradients_reach_the_parameters_of_the_noise(likelihood: Likelihood) -> None:
    data = drawn(LG)
    variance = LG.noise_variance["a"].clone().requires_grad_()
    factor = LG.noise_factor["a"].clone().requires_grad_()

    def changed() -> LinearGaussian:
        variances, factors = {**LG.noise_variance, "a": variance}, {**LG.noise_factor, "a": factor}
        return replace(LG, noise_variance=variances, noise_factor=factors)

    form = cal.discover(program(changed(), likelihood), data)
    value = FormEvidence(form, data)()
    value.backward()
    found = variance.grad.clone(), factor.grad.clone()
    variance.grad = factor.grad = None
    log_marginal(changed(), data.blocks).sum().backward()
    for one, other in zip(found, (variance.grad, factor.grad), strict=True):
        assert_close(one, other, 1e-7)


def test_noise_that_depends_on_the_latent_is_refused() -> None:
    def likelihood(lg: LinearGaussian, name: str, location: Tensor) -> dist.TorchDistribution:
        root = torch.linalg.cholesky(lg.correlated_noise(name).covariance())
        return dist.MultivariateNormal(location, scale_tril=root * (1 + location[:, :1, None].square()))

    with pytest.raises(NotConjugateError, match="'a'"):
        cal.discover(program(LG, likelihood), drawn(LG))
