"""Densities of what was observed given draws: against normals, feature by feature or dense, and without locations."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch
from torch import Tensor
from torch.distributions import MultivariateNormal, Normal

import calmrl_prob as cal
from calmrl_prob.arviz.densities import Densities
from calmrl_prob.datasets import make_synthetic
from calmrl_prob.linear_gaussian import LinearGaussian
from calmrl_prob.posteriors.posterior import Deferred, Draw

DIMS = {"a": 5, "b": 4}


def a_model(*, correlated: bool) -> LinearGaussian:
    generator = torch.Generator().manual_seed(0)
    loadings = {name: torch.randn(width, 2, generator=generator).double() for name, width in DIMS.items()}
    intercepts = {name: torch.randn(width, generator=generator).double() for name, width in DIMS.items()}
    factor = {name: 0.5 * torch.randn(width, 2, generator=generator).double() for name, width in DIMS.items()}
    specific = {name: 0.5 + torch.rand(width, generator=generator).double() for name, width in DIMS.items()}
    if not correlated:
        return LinearGaussian(loadings, intercepts, specific)
    variance = {name: specific[name] + factor[name].square().sum(1) for name in DIMS}
    return LinearGaussian(loadings, intercepts, variance, None, None, factor)  # type: ignore[arg-type]


def draws_of(lg: LinearGaussian, data: cal.MultimodalData) -> list[Draw]:
    return list(cal.posterior(lg, data).draws(3, torch.Generator().manual_seed(1), tuple(DIMS)))


@pytest.mark.parametrize("correlated", [False, True])
def test_densities_are_those_of_normals(correlated: bool) -> None:
    lg = a_model(correlated=correlated)
    data = make_synthetic(20, DIMS, latent_dim=2, missing_rate=0.3, seed=0).data
    densities = Densities(data, DIMS)
    for draw in draws_of(lg, data):
        for name in DIMS:
            noise = lg.correlated_noise(name)
            covariance = torch.diag(lg.noise_variance[name]) if noise is None else noise.covariance()
            mean = draw.latents @ lg.loadings[name].mT + lg.intercepts[name]
            expected = MultivariateNormal(mean, covariance).log_prob(data.filled(name).double())
            here = data.observed(name)
            torch.testing.assert_close(densities(draw, name)[here], expected[here], rtol=1e-10, atol=1e-10)


def test_single_missing_features_count_for_nothing() -> None:
    lg = a_model(correlated=False)
    complete = make_synthetic(20, DIMS, latent_dim=2, seed=0).complete
    present = torch.rand(20, 5, generator=torch.Generator().manual_seed(0)) > 0.4
    arrays = {"a": torch.where(present, complete["a"], torch.nan), "b": complete["b"]}
    data = cal.MultimodalData(arrays, missing="features")
    for draw in draws_of(lg, data):
        cells = Normal(draw.location["a"], lg.noise_variance["a"].sqrt()).log_prob(complete["a"])
        expected = torch.where(present, cells, 0).sum(1)
        torch.testing.assert_close(Densities(data, DIMS)(draw, "a"), expected, rtol=1e-10, atol=1e-10)


def test_locations_are_made_only_where_they_are_read() -> None:
    """To 500 draws of 75 x 20,000 features they were most of the cost."""
    lg, made = a_model(correlated=False), list[str]()

    def make(name: str) -> Tensor:
        made.append(name)
        return torch.zeros(20, DIMS[name])

    data = make_synthetic(20, DIMS, latent_dim=2, missing_rate=0.3, seed=0).data
    location: Mapping[str, Tensor] = Deferred({name: lambda name=name: make(name) for name in DIMS})  # type: ignore[misc]
    draw = Draw(torch.zeros(20, 2).double(), location, dict(lg.noise_variance), likelihood=lg)
    densities = Densities(data, DIMS)
    assert [bool(densities(draw, name).isfinite().all()) for name in draw.location] == [True, True]
    assert "a" in location
    assert made == []
    assert location["b"] is location["b"]
    assert made == ["b"]
