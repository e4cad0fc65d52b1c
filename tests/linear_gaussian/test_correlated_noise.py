"""Noise that is correlated within a modality: its algebra against dense matrices, and the structure that has it.

Posterior and evidence with such noise are held against dense conditioning and ``pyro.ops.gaussian`` in
``test_posterior.py``.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from calmrl_prob.errors import ArgumentError, NumericalError
from calmrl_prob.linear_gaussian import (
    CorrelatedNoise,
    Evidence,
    FeatureBlocks,
    LinearGaussian,
    LinearGaussianMixture,
    ObservedBlocks,
    ScaleMixture,
    StudentTModel,
    SufficientStatistics,
    log_marginal,
    posterior,
)
from tests.cases.linear_gaussian_cases import assert_close, random_blocks, random_model, stacked

DIMS = {"a": 6, "b": 5, "c": 3}
NOISES = ["full", "low_rank"]


def random_noise(width: int, rank: int) -> CorrelatedNoise:
    generator = torch.Generator().manual_seed(width + rank)
    specific = torch.rand(width, generator=generator, dtype=torch.float64) + 0.1
    return CorrelatedNoise(specific, torch.randn(width, rank, generator=generator, dtype=torch.float64))


@pytest.mark.parametrize("rank", [0, 1, 3, 4, 7, 9])  # below and above where Psi itself is factored
def test_algebra_is_that_of_the_dense_covariance(rank: int) -> None:
    noise = random_noise(7, rank)
    dense = torch.diag(noise.specific) + noise.factor @ noise.factor.mT
    rows = torch.randn(11, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    scatter = rows.mT @ rows
    assert noise.dense == (rank > 3)
    assert_close(noise.covariance(), dense)
    assert_close(noise.variance, dense.diagonal())
    assert_close(noise.log_determinant(), torch.logdet(dense))
    assert_close(noise.times(rows.mT), dense @ rows.mT)
    assert_close(noise.solve(rows.mT), torch.linalg.solve(dense, rows.mT))
    assert_close(noise.inverse_diagonal(), torch.linalg.inv(dense).diagonal())
    assert_close(noise.squares(rows), (rows * torch.linalg.solve(dense, rows.mT).mT).sum(1))
    expected = torch.linalg.solve(dense, scatter).diagonal().sum()
    assert_close(noise.trace_solve(lambda block: scatter @ block, scatter.diagonal()), expected)
    normal = torch.distributions.MultivariateNormal(torch.zeros(7).double(), dense)
    assert_close(noise.log_density(rows), normal.log_prob(rows))
    drawn = noise.draw(200_000, torch.Generator().manual_seed(1))
    sd = dense.diagonal().sqrt()
    assert bool(((drawn.mT.cov() - dense).abs() < 6 * 1.5 * torch.outer(sd, sd) / 200_000**0.5).all())


def test_squares_in_single_precision_do_not_cancel() -> None:
    """x^T Psi^-1 x where shared noise has 10^4 times the variance of a feature's own is a sum of squares.

    Rounding of x to float32 alone moves x^T Psi^-1 x by 6e-8 of x along directions of variance 1 where x is 100 wide:
    100 * 6e-8 * sqrt(60) of sqrt(60). Taken as |x|^2 / psi less what is shared, 6e-8 * 10^4 of 60 would be lost.
    """
    generator = torch.Generator().manual_seed(0)
    noise = CorrelatedNoise(
        torch.ones(60).double(), 100 * torch.randn(60, 2, generator=generator, dtype=torch.float64) / 1.4
    )
    rows = noise.draw(50, generator)
    assert float((noise.squares(rows.float()).double() / noise.squares(rows) - 1).abs().max()) < 1e-4


@pytest.mark.parametrize("noise", NOISES)
def test_expanded_says_the_same(noise: str) -> None:
    model = random_model(DIMS, 2, noise=noise)
    blocks = random_blocks(model, 40, rate=0.4)
    wide = model.expanded()
    assert wide.noise_factor is None
    assert wide.latent_dim == 2 + sum(model.noise_factor[name].shape[1] for name in DIMS)
    for one, other in zip(wide.joint(), model.joint(), strict=True):
        assert_close(one, other)
    assert_close(posterior(wide, blocks).mean[:, :2], posterior(model, blocks).mean)
    assert_close(log_marginal(wide, blocks), log_marginal(model, blocks))


@pytest.mark.parametrize("noise", NOISES)
def test_gradients_of_the_evidence(noise: str) -> None:
    model = random_model(DIMS, 2, noise=noise)
    blocks = random_blocks(model, 6, rate=0.4)
    for data in (blocks, SufficientStatistics.from_blocks(blocks)):
        evidence = Evidence(data, 2)

        def value(*changed: Tensor, evidence: Evidence = evidence) -> Tensor:
            loadings, intercept, variance, factor = changed
            return evidence(
                replace(
                    model,
                    loadings={**model.loadings, "a": loadings},
                    intercepts={**model.intercepts, "b": intercept},
                    noise_variance={**model.noise_variance, "a": variance},
                    noise_factor={**model.noise_factor, "a": factor},
                )
            )

        parts = (model.loadings["a"], model.intercepts["b"], model.noise_variance["a"], model.noise_factor["a"])
        assert float(value(*parts)) == pytest.approx(float(log_marginal(model, blocks).sum()), rel=1e-11)
        assert torch.autograd.gradcheck(value, [part.clone().requires_grad_() for part in parts])


@pytest.mark.parametrize("noise", NOISES)
def test_copies_keep_the_noise(noise: str) -> None:
    model = random_model(DIMS, 2, noise=noise)
    mean, covariance = model.joint(["c", "a"])
    whole_mean, whole = model.joint()
    order = torch.tensor([11, 12, 13, 0, 1, 2, 3, 4, 5])
    assert_close(covariance, whole[order][:, order])
    assert_close(mean, whole_mean[order])
    single = model.to(torch.float32)
    assert single.noise_factor["a"].dtype == torch.float32
    assert_close(single.joint()[1].double(), whole, 1e-5)
    leaf = model.map(lambda value: value.clone().requires_grad_())
    assert not leaf.detach().noise_factor["a"].requires_grad


@pytest.mark.parametrize("noise", NOISES)
def test_samples_have_the_joint_moments(noise: str) -> None:
    model = random_model(DIMS, 2, noise=noise)
    _, features = model.sample(100_000, torch.Generator().manual_seed(3))
    _, covariance = model.joint()
    sd = covariance.diagonal().sqrt()
    found = torch.cat(list(features.values()), dim=1).mT.cov()
    assert bool(((found - covariance).abs() < 6 * 1.5 * torch.outer(sd, sd) / 100_000**0.5).all())


def test_float32_data_far_from_zero() -> None:
    """A mean of 10^4 spreads costs float32 data only what rounding them to float32 had cost."""
    model = random_model({"a": 20, "b": 9}, 3, noise="low_rank")
    far = replace(model, intercepts={name: mu + 1e4 + 0.3 for name, mu in model.intercepts.items()})
    single, double = (random_blocks(far, 200, rate=0.3) for _ in range(2))
    single.values = {name: values.float() for name, values in single.values.items()}
    double.values = {name: values.double() for name, values in single.values.items()}
    assert_close(posterior(far, single).mean, posterior(far, double).mean, 1e-5)
    assert_close(posterior(far, single).log_marginal, posterior(far, double).log_marginal, 1e-5)


def test_what_is_refused() -> None:
    model = random_model(DIMS, 2, noise="full")
    blocks = random_blocks(model, 5, rate=0.0)
    rows, present = stacked(blocks)
    with pytest.raises(ArgumentError, match=r"blocks: noise that is correlated .*expanded\(\)"):
        posterior(model, FeatureBlocks(DIMS, rows, present))
    with pytest.raises(ArgumentError, match="components: noise that is correlated"):
        LinearGaussianMixture(torch.zeros(1), (model,))
    with pytest.raises(ArgumentError, match="linear_gaussian: noise that is correlated"):
        ScaleMixture(model, {})
    with pytest.raises(ArgumentError, match="linear_gaussian: noise that is correlated"):
        StudentTModel(model, torch.tensor(4.0))
    with pytest.raises(ArgumentError, match=r"noise_factor\['b'\]: expected rows whose squares sum to less"):
        replace(model, noise_variance={**model.noise_variance, "b": torch.tensor(1e-3).double()})
    with pytest.raises(ArgumentError, match=r"noise_factor\['a'\]: expected shape \(6, R_m\), got \(5, 5\)"):
        replace(model, noise_factor={**model.noise_factor, "a": torch.zeros(5, 5)})
    with pytest.raises(ArgumentError, match="noise_factor: expected the modalities of loadings"):
        replace(model, noise_factor={"a": torch.zeros(6, 1)})
    nan = {**model.loadings}
    broken = LinearGaussian(
        nan, model.intercepts, {n: torch.ones(w) for n, w in DIMS.items()}, None, None,
        {n: torch.full((w, w), 1e-30) for n, w in DIMS.items()},
    )  # fmt: skip
    broken.noise_factor["a"].fill_(torch.nan)
    with pytest.raises(NumericalError, match="noise: expected a positive-definite covariance"):
        posterior(broken, ObservedBlocks.from_arrays({"a": torch.ones(1, 6)}, torch.ones(1, 1).bool()))
