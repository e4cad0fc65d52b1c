"""Gaussian-process latents: posterior, evidence and bounds against dense conditioning of the joint normal."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from calmrl_prob.linear_gaussian import FeatureBlocks, LinearGaussian, ObservedBlocks
from calmrl_prob.linear_gaussian.posterior import posterior
from calmrl_prob.linear_gaussian.process.latent_likelihood import LatentLikelihood
from calmrl_prob.linear_gaussian.process.pivoted_cholesky import pivoted_cholesky
from calmrl_prob.linear_gaussian.process.posterior import (
    FactorisedPosterior,
    JointPosterior,
    LowRankProcess,
    ProcessPosterior,
    process_evidence,
    process_posterior,
)
from tests.cases.linear_gaussian_cases import random_blocks, random_mask, random_model
from tests.cases.process_oracles import dense

DIMS = {"image": 3, "text": 2, "audio": 1}
LENGTHSCALES = (0.15, 0.4, 1.0)
NUGGET = torch.tensor([0.2, 0.0, 0.5], dtype=torch.float64)


def covariances(places: Tensor, lengthscales: tuple[float, ...] = LENGTHSCALES) -> Tensor:
    """Squared-exponential covariances of K processes, (K, N, N)."""
    distance = places[:, None] - places
    return torch.stack([torch.exp(-0.5 * (distance / scale).square()) for scale in lengthscales])


def low_rank(cov: Tensor, weight: Tensor, tolerance: float = 1e-12, max_rank: int = 10**6) -> LowRankProcess:
    parts = [
        pivoted_cholesky(
            lambda index, matrix=matrix: matrix[index],
            matrix.diagonal(),
            weight[:, k],
            tolerance=tolerance,
            max_rank=max_rank,
        )
        for k, matrix in enumerate(cov)
    ]
    return LowRankProcess([p.factor for p in parts], torch.stack([p.residual for p in parts], dim=1))


def problem(num_instances: int = 25, seed: int = 0) -> tuple[LinearGaussian, ObservedBlocks, Tensor]:
    """A model, data with missing modalities (some instances lack all), and covariances; two instances coincide."""
    model = random_model(DIMS, 3, seed, prior="standard")
    blocks = random_blocks(model, num_instances, 0.45, seed, empty=True)
    assert not bool(blocks.observed_mask.any(dim=1).all())
    places = torch.rand(num_instances, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    places[1] = places[0]
    return model, blocks, covariances(places)


def test_posterior_and_evidence_equal_dense_conditioning() -> None:
    model, blocks, cov = problem()
    likelihood = LatentLikelihood.of(model, blocks)
    prior = low_rank(cov, torch.ones(25, 3, dtype=torch.float64))
    given = process_posterior(likelihood, prior)
    mean, covariance = given.moments(prior)
    dense_mean, dense_covariance, evidence = dense(model, blocks, cov)
    blocks_of = dense_covariance.view(25, 3, 25, 3)[range(25), :, range(25)]
    torch.testing.assert_close(mean, dense_mean, rtol=0, atol=1e-8)
    torch.testing.assert_close(covariance, blocks_of, rtol=0, atol=1e-8)
    assert float(given.lower_bound) == pytest.approx(evidence, abs=1e-8)
    assert isinstance(given, JointPosterior)
    assert float(given.upper_bound) == pytest.approx(evidence, abs=1e-8)


def test_noise_of_the_latents_themselves_equals_dense_conditioning() -> None:
    model, blocks, cov = problem()
    conditional = LatentLikelihood.of(model, blocks).marginalize(NUGGET)
    prior = low_rank(cov, torch.ones(25, 3, dtype=torch.float64))
    given = process_posterior(conditional.likelihood, prior)
    outer, spread = given.moments(prior)
    mean = conditional.offset + conditional.likelihood.apply(conditional.slope, outer)
    slope = conditional.slope[blocks.pattern_index]
    covariance = conditional.covariance[blocks.pattern_index] + slope @ spread @ slope.mT
    nuggets = torch.diag_embed(NUGGET[:, None].expand(3, 25))
    dense_mean, dense_covariance, evidence = dense(model, blocks, cov + nuggets)
    blocks_of = dense_covariance.view(25, 3, 25, 3)[range(25), :, range(25)]
    torch.testing.assert_close(mean, dense_mean, rtol=0, atol=1e-8)
    torch.testing.assert_close(covariance, blocks_of, rtol=0, atol=1e-8)
    assert float(given.lower_bound) == pytest.approx(evidence, abs=1e-8)


def test_without_correlation_between_instances_it_is_the_posterior_of_independent_instances() -> None:
    model, blocks, _ = problem()
    likelihood = LatentLikelihood.of(model, blocks)
    prior = LowRankProcess([torch.eye(25, dtype=torch.float64)] * 3, torch.zeros(25, 3, dtype=torch.float64))
    given = process_posterior(likelihood, prior)
    exact = posterior(model, blocks)
    mean, covariance = given.moments(prior)
    torch.testing.assert_close(mean, exact.mean)
    torch.testing.assert_close(covariance, exact.covariance)
    torch.testing.assert_close(given.lower_bound, exact.log_marginal.sum())


def test_bounds_enclose_the_evidence_and_close_in_as_the_rank_grows() -> None:
    model, blocks, cov = problem(60)
    likelihood = LatentLikelihood.of(model, blocks)
    evidence = dense(model, blocks, cov)[2]
    lower, upper = [], []
    for rank in (1, 2, 4, 8, 16, 60):
        given = JointPosterior(likelihood, low_rank(cov, likelihood.precision_diagonal, max_rank=rank))
        lower.append(float(given.lower_bound))
        upper.append(float(given.upper_bound))
    assert all(below <= evidence + 1e-8 for below in lower)
    assert all(above >= evidence - 1e-8 for above in upper)
    assert evidence - lower[-1] < 1e-6 < evidence - lower[0]
    assert upper[-1] - evidence < 1e-4 < upper[0] - evidence


def test_a_low_rank_bound_is_what_dense_algebra_makes_of_it() -> None:
    model, blocks, cov = problem(30)
    likelihood = LatentLikelihood.of(model, blocks)
    prior = low_rank(cov, likelihood.precision_diagonal, max_rank=3)
    assert bool((prior.residual.max(dim=0).values > 1e-3).any())
    nystroem = torch.stack([factor @ factor.mT for factor in prior.factors])
    _, _, evidence = dense(model, blocks, nystroem)
    trace = (likelihood.precision_diagonal * (cov.diagonal(dim1=-2, dim2=-1).mT)).sum()
    trace = trace - (likelihood.precision_diagonal * nystroem.diagonal(dim1=-2, dim2=-1).mT).sum()
    given = process_posterior(likelihood, prior)
    assert float(given.lower_bound) == pytest.approx(evidence - 0.5 * float(trace), abs=1e-7)


@pytest.mark.parametrize("joint_limit", [100, 0], ids=["joint", "factorised"])
def test_gradients_of_the_evidence(joint_limit: int) -> None:
    model, blocks, cov = problem(7)
    parts = low_rank(cov, torch.ones(7, 3, dtype=torch.float64), max_rank=3)

    def evidence(loadings: Tensor, log_noise: Tensor, nugget: Tensor, residual: Tensor, *factors: Tensor) -> Tensor:
        lg = LinearGaussian({**model.loadings, "image": loadings}, model.intercepts,
                            {**model.noise_variance, "text": log_noise.exp()})  # fmt: skip
        likelihood = LatentLikelihood.of(lg, blocks).marginalize(nugget).likelihood
        return process_evidence(likelihood, LowRankProcess(factors, residual), joint_limit)

    inputs = (
        model.loadings["image"],
        model.noise_variance["text"].log(),
        NUGGET + 0.1,
        parts.residual + 0.1,
        *parts.factors,
    )
    inputs = tuple(value.detach().clone().requires_grad_() for value in inputs)
    assert torch.autograd.gradcheck(evidence, inputs)


@pytest.mark.parametrize("kind", [JointPosterior, FactorisedPosterior])
def test_draws_have_the_posterior_moments_jointly_over_instances(kind: type[ProcessPosterior]) -> None:
    model, blocks, cov = problem(12)
    likelihood = LatentLikelihood.of(model, blocks)
    prior = low_rank(cov, torch.ones(12, 3, dtype=torch.float64))
    given = kind(likelihood, prior)
    mean, covariance, _ = dense(model, blocks, cov)
    draws = prior.evaluate(given.sample_weights(10_000, torch.Generator().manual_seed(3))).flatten(1)
    error = (draws - mean.flatten()).mean(0)
    assert bool((error.abs() < 6 * (covariance.diagonal() / 10_000).clamp(min=1e-20).sqrt() + 1e-9).all())
    spread = covariance.diagonal()
    sample = torch.cov(draws.mT)
    standard_error = ((covariance.square() + torch.outer(spread, spread)) / 10_000).sqrt()
    assert bool(((sample - covariance).abs() < 6 * standard_error + 1e-9).all())


def test_single_features_may_be_missing() -> None:
    model, _, cov = problem(15)
    values = torch.randn(15, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    mask = random_mask(15, 6, 0.4, seed=2, empty=True)
    single = LinearGaussian(
        {str(d): row[None] for d, row in enumerate(torch.cat(list(model.loadings.values())))},
        {str(d): row[None] for d, row in enumerate(torch.cat(list(model.intercepts.values())))},
        {str(d): row[None] for d, row in enumerate(torch.cat(list(model.noise_variance.values())))},
    )
    by_feature = FeatureBlocks(DIMS, values.masked_fill(~mask, 0), mask)
    as_modalities = ObservedBlocks.from_arrays({str(d): values[:, d : d + 1] for d in range(6)}, mask)
    prior = low_rank(cov, torch.ones(15, 3, dtype=torch.float64))
    given = process_posterior(LatentLikelihood.of(model, by_feature), prior)
    mean, _, evidence = dense(single, as_modalities, cov)
    torch.testing.assert_close(given.moments(prior)[0], mean, rtol=0, atol=1e-8)
    assert float(given.lower_bound) == pytest.approx(evidence, abs=1e-8)


def test_pivoting_goes_on_from_a_factor_and_leaves_rows_of_no_weight_out() -> None:
    cov = covariances(torch.linspace(0, 1, 40, dtype=torch.float64))[0]
    weight = (torch.arange(40) % 2 == 0).double()
    first = pivoted_cholesky(lambda i: cov[i], cov.diagonal(), weight, tolerance=1e-10, max_rank=4)
    assert bool((first.pivots % 2 == 0).all())
    assert len(first.pivots) == 4
    rest = pivoted_cholesky(
        lambda i: cov[i], cov.diagonal(), torch.ones_like(weight), tolerance=1e-10, max_rank=40, start=first.factor
    )
    whole = torch.cat([first.factor, rest.factor], dim=1)
    torch.testing.assert_close(whole @ whole.mT, cov, rtol=0, atol=1e-9)
    torch.testing.assert_close(rest.residual, (cov - whole @ whole.mT).diagonal().clamp(min=0), rtol=0, atol=1e-9)


def test_rough_kernels_take_full_rank_and_remain_exact() -> None:
    places = torch.linspace(0, 1, 50, dtype=torch.float64)
    cov = torch.exp(-(places[:, None] - places).abs() / 0.05)
    partial = pivoted_cholesky(lambda i: cov[i], cov.diagonal(), torch.ones(50).double(), tolerance=0.0, max_rank=50)
    assert partial.factor.shape == (50, 50)
    torch.testing.assert_close(partial.factor @ partial.factor.mT, cov, rtol=0, atol=1e-12)


def test_taken_apart_the_mean_is_the_same_and_the_bound_is_of_independent_latents() -> None:
    model, blocks, cov = problem(25)
    likelihood = LatentLikelihood.of(model, blocks)
    prior = low_rank(cov, torch.ones(25, 3, dtype=torch.float64))
    given = FactorisedPosterior(likelihood, prior)
    mean, covariance, evidence = dense(model, blocks, cov)
    torch.testing.assert_close(given.moments(prior)[0], mean, rtol=0, atol=1e-8)
    precision = torch.linalg.inv(covariance + 1e-9 * torch.eye(75)).view(25, 3, 25, 3)
    apart = [torch.linalg.inv(precision[:, k, :, k]).diagonal() for k in range(3)]
    torch.testing.assert_close(
        given.moments(prior)[1].diagonal(dim1=-2, dim2=-1), torch.stack(apart, dim=1), rtol=1e-4, atol=1e-6
    )
    assert float(given.lower_bound) < evidence
    # ELBO of q = N(mean, blockdiag): log p(x) - KL(q || p), both normal
    joint = JointPosterior(likelihood, prior)
    matrix = joint.factor @ joint.factor.mT
    blocks_of = torch.block_diag(*given.covariances)
    divergence = 0.5 * ((matrix * blocks_of).sum() - len(matrix) - torch.logdet(matrix) - torch.logdet(blocks_of))
    assert float(given.lower_bound) == pytest.approx(evidence - float(divergence), abs=1e-6)
