"""Retrieval of held-out rows: by the exact likelihood ratio, as dense densities have it."""

from __future__ import annotations

import math

import pytest
import torch

import calmrl_prob as cal
from calmrl_prob.linear_gaussian import LinearGaussian
from calmrl_prob.selection.retrieval import mean_reciprocal_rank


def model(*, correlated: bool) -> LinearGaussian:
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    dims = {"a": 4, "b": 3, "c": 2}
    factor = {name: normal(width, 1) for name, width in dims.items()}
    noise = {name: 0.5 + factor[name].square().sum(1) for name in dims}
    return LinearGaussian(
        {name: normal(width, 2) for name, width in dims.items()},
        {name: normal(width) for name, width in dims.items()},
        noise,
        noise_factor=factor if correlated else None,
    )


def log_density(lg: LinearGaussian, values: torch.Tensor, names: list[str]) -> torch.Tensor:
    mean, covariance = lg.joint(names)
    return torch.distributions.MultivariateNormal(mean, covariance).log_prob(values)


@pytest.mark.parametrize("correlated", [False, True])
def test_ranks_are_those_of_dense_likelihood_ratios(correlated: bool) -> None:
    lg, number = model(correlated=correlated), 40
    x = lg.sample(number, torch.Generator().manual_seed(1)).features
    expected = []
    for query in lg.names:
        for candidate in lg.names:
            if query != candidate:
                pairs = torch.cat(
                    [x[query][:, None].expand(-1, number, -1), x[candidate].expand(number, -1, -1)], dim=2
                )
                ratio = log_density(lg, pairs, [query, candidate]) - log_density(lg, x[candidate], [candidate])
                rank = (ratio > ratio.diagonal()[:, None]).sum(1) + 1
                expected.append(float((1 / rank).mean()))
    found = mean_reciprocal_rank(lg, cal.MultimodalData(x))
    assert found == pytest.approx(sum(expected) / len(expected), rel=1e-12)


def test_without_two_rows_that_have_both_there_is_nothing_to_rank() -> None:
    lg = model(correlated=False)
    x = lg.sample(2, torch.Generator().manual_seed(1)).features
    mask = torch.tensor([[True, False, False], [False, True, True]])
    assert math.isnan(mean_reciprocal_rank(lg, cal.MultimodalData(x, observed_mask=mask)))
