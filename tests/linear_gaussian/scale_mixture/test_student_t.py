"""The Student-t model: scipy's multivariate t, dense conditioning, NUTS; and EM for it."""

from __future__ import annotations

import math

import arviz as az
import pyro
import pyro.distributions as dist
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pyro.infer import MCMC, NUTS
from scipy import stats
from torch import Tensor

from calmrl_prob.errors import ArgumentError, NumericalError
from calmrl_prob.linear_gaussian import (
    FeatureBlocks,
    LinearGaussian,
    ObservedBlocks,
    StudentTModel,
    fit_em,
    fit_student_t_em,
    log_marginal,
    posterior,
    student_t_posterior,
)
from calmrl_prob.linear_gaussian.scale_mixture.degrees_of_freedom import from_distances, from_expected_scales
from calmrl_prob.linear_gaussian.scale_mixture.shared_scale import sample_gamma
from calmrl_prob.posteriors.student_t import StudentTResult
from tests.cases.ascent import assert_gradient_ascent_finds_no_more
from tests.cases.linear_gaussian_cases import assert_close, random_blocks, random_mask, random_model, stacked

laws = settings(derandomize=True, deadline=None, max_examples=20)
cases = st.fixed_dictionaries(
    {
        "widths": st.lists(st.integers(1, 5), min_size=1, max_size=4),
        "latent_dim": st.integers(1, 4),
        "freedom": st.sampled_from([0.6, 2.5, 8.0]),
        "rate": st.sampled_from([0.0, 0.4, 0.7]),
        "seed": st.integers(0, 10_000),
    }
)
DIMS = {"a": 6, "b": 4, "c": 5}


def heavy_tailed(
    num_instances: int = 150,
    latent_dim: int = 2,
    freedom: float = 3.0,
    rate: float = 0.4,
    seed: int = 0,
    **options: str,
) -> tuple[ObservedBlocks, StudentTModel]:
    truth = StudentTModel(random_model(DIMS, latent_dim, seed, **options), torch.tensor(freedom))
    _, features = truth.sample(num_instances, torch.Generator().manual_seed(seed + 1))
    return ObservedBlocks.from_arrays(features, random_mask(num_instances, len(DIMS), rate, seed)), truth


def dense(model: StudentTModel, row: Tensor, present: Tensor) -> dict[str, Tensor]:
    """Conditioning of a multivariate t; Ding, On the conditional distribution of the multivariate t (2016)."""
    lg, nu = model.linear_gaussian, float(model.degrees_of_freedom)
    loadings = torch.cat(list(lg.loadings.values()))
    mean, scale = lg.joint()
    count = int(present.sum())
    seen, cross = scale[present][:, present], (loadings @ lg.prior_covariance)[present]
    gain = torch.linalg.solve(seen, cross).mT
    deviation = (row - mean)[present]
    distance = deviation @ torch.linalg.solve(seen, deviation)
    factor = (nu + distance) / (nu + count)
    location = lg.prior_mean + gain @ deviation
    location_x = loadings @ location + torch.cat(list(lg.intercepts.values()))
    spread = factor * (lg.prior_covariance - gain @ cross)
    variance = (nu + count) / (nu + count - 2) if nu + count > 2 else math.inf
    return {
        "mean": location,
        "covariance": variance * spread,
        "evidence": torch.tensor(
            stats.multivariate_t(mean[present].numpy(), seen.numpy(), df=nu).logpdf(row[present].numpy())
            if count
            else 0.0
        ),
        "predicted": location_x,
        "latent_variance": variance * (loadings @ spread @ loadings.mT).diagonal(),
        "noise_variance": variance * factor * torch.cat(list(lg.noise_variance.values())),
    }


def assert_is_dense(model: StudentTModel, blocks: ObservedBlocks | FeatureBlocks, rows: Tensor, mask: Tensor) -> None:
    found = student_t_posterior(model, blocks)
    predicted = [StudentTResult(found).predictive(name) for name in model.linear_gaussian.names]
    mean, latent, noise = (
        torch.cat([getattr(part, moment) for part in predicted], dim=1)
        for moment in ("mean", "latent_variance", "noise_variance")
    )
    covariance = found.covariance
    for n in range(len(rows)):
        oracle = dense(model, rows[n], mask[n])
        assert_close(found.mean[n], oracle["mean"])
        assert_close(found.log_marginal[n], oracle["evidence"])
        assert_close(mean[n], oracle["predicted"])
        assert bool(covariance[n].isfinite().all()) == bool(oracle["covariance"].isfinite().all())
        if bool(oracle["covariance"].isfinite().all()):
            assert_close(covariance[n], oracle["covariance"])
            assert_close(latent[n], oracle["latent_variance"])
            assert_close(noise[n], oracle["noise_variance"])


@laws
@given(cases)
def test_dense_conditioning_of_the_multivariate_t(case: dict) -> None:
    dims = {f"m{i}": width for i, width in enumerate(case["widths"])}
    model = StudentTModel(random_model(dims, case["latent_dim"], case["seed"]), torch.tensor(case["freedom"]))
    blocks = random_blocks(model.linear_gaussian, 11, case["rate"], case["seed"], empty=True)
    assert_is_dense(model, blocks, *stacked(blocks))


def test_single_missing_features_match_dense_conditioning() -> None:
    model = StudentTModel(random_model({"a": 4, "b": 3}, 2), torch.tensor(3.0))
    rows, _ = stacked(random_blocks(model.linear_gaussian, 12, 0.0))
    present = random_mask(12, 7, 0.4, empty=True)
    assert_is_dense(model, FeatureBlocks(model.linear_gaussian.dims, rows, present), rows, present)


def test_many_degrees_of_freedom_are_the_gaussian_model() -> None:
    lg = random_model(DIMS, 3)
    blocks = random_blocks(lg, 20, 0.4)
    plain, wide = posterior(lg, blocks), student_t_posterior(StudentTModel(lg, torch.tensor(1e7)), blocks)
    assert_close(wide.log_marginal, plain.log_marginal, 1e-5)
    assert_close(wide.covariance, plain.covariance, 1e-5)
    assert_close(StudentTResult(wide).predictive("a").noise_variance[0], lg.noise_variance["a"], 1e-5)


def test_draws_have_the_moments_of_the_posterior() -> None:
    blocks, model = heavy_tailed(8, rate=0.5)
    found = student_t_posterior(model, blocks)
    draws = found.sample(40_000, torch.Generator().manual_seed(1))
    assert torch.equal(draws, found.sample(40_000, torch.Generator().manual_seed(1)))
    centred = draws - found.mean
    assert bool((centred.mean(0).abs() < 6 * draws.std(0) / 200).all())
    products = torch.einsum("snk,snl->snkl", centred, centred)
    assert bool(((products.mean(0) - found.covariance).abs() < 6 * products.std(0) / 200).all())
    scales = found.sample_scales(40_000, torch.Generator().manual_seed(2))
    assert bool(((scales.mean(0) - found.weights).abs() < 6 * scales.std(0) / 200).all())


def test_samples_are_those_of_the_multivariate_t() -> None:
    """The Mahalanobis distance of a multivariate t, divided by the dimension, follows an F distribution."""
    model = StudentTModel(random_model({"a": 3, "b": 2}, 2), torch.tensor(3.0))
    drawn = model.sample(20_000, torch.Generator().manual_seed(3))
    scales, latents, features = drawn.scales, drawn.latents, drawn.features
    mean, covariance = model.linear_gaussian.joint()
    deviation = torch.cat(list(features.values()), dim=1) - mean
    distance = (deviation * torch.linalg.solve(covariance, deviation.mT).mT).sum(1)
    assert stats.kstest((distance / 5).numpy(), stats.f(5, 3).cdf).pvalue > 1e-4
    centred = (latents - model.linear_gaussian.prior_mean) * scales.sqrt()[:, None]
    error = (centred.square().var(0) / 20_000).sqrt()
    expected = model.linear_gaussian.prior_covariance.diagonal()
    assert bool(((centred.square().mean(0) - expected).abs() < 6 * error).all())


@pytest.mark.parametrize("freedom", [0.3, 1.5, 4.0, 60.0])
def test_gamma_draws(freedom: float) -> None:
    draws = sample_gamma(torch.full((50_000,), freedom).double(), torch.Generator().manual_seed(0))
    assert stats.kstest(draws.numpy(), stats.gamma(freedom / 2, scale=2 / freedom).cdf).pvalue > 1e-4


def test_gradients_of_the_evidence() -> None:
    lg = random_model({"a": 3, "b": 2}, 2)
    blocks = random_blocks(lg, 6, 0.4)

    def evidence(loadings: Tensor, log_noise: Tensor, freedom: Tensor) -> Tensor:
        changed = LinearGaussian(
            {**lg.loadings, "a": loadings}, lg.intercepts, {**lg.noise_variance, "a": log_noise.exp()}
        )
        return student_t_posterior(StudentTModel(changed, freedom), blocks).log_marginal.sum()

    inputs = [lg.loadings["a"], lg.noise_variance["a"].log(), torch.tensor(3.0).double()]
    assert torch.autograd.gradcheck(evidence, [value.clone().requires_grad_() for value in inputs])


@pytest.mark.slow
def test_nuts_finds_the_exact_posterior() -> None:
    """A sampler over scales and latents that knows nothing of conjugacy: moments within 6 standard errors."""
    blocks, model = heavy_tailed(4, freedom=4.0, rate=0.3, seed=2)
    rows, mask = stacked(blocks)
    lg, nu = model.linear_gaussian, model.degrees_of_freedom
    loadings, intercept = torch.cat(list(lg.loadings.values())), torch.cat(list(lg.intercepts.values()))
    noise = torch.cat(list(lg.noise_variance.values()))
    root = torch.linalg.cholesky(lg.prior_covariance)

    def pyro_model() -> None:
        with pyro.plate("instances", len(rows)):
            u = pyro.sample("u", dist.Gamma(nu / 2, nu / 2))[:, None]
            z = pyro.sample("z", dist.MultivariateNormal(lg.prior_mean, scale_tril=root * u[:, :, None].rsqrt()))
            normal = dist.Normal(z @ loadings.mT + intercept, (noise / u).sqrt())
            pyro.sample("x", normal.mask(mask).to_event(1), obs=rows)

    with torch.random.fork_rng():
        pyro.set_rng_seed(0)
        sampler = MCMC(NUTS(pyro_model), num_samples=1000, warmup_steps=300, disable_progbar=True)
        sampler.run()
    found = student_t_posterior(model, blocks)
    draws = sampler.get_samples()
    for values, mean, variance in (
        (draws["z"], found.mean, found.covariance.diagonal(dim1=-2, dim2=-1)),
        (draws["u"][:, :, None], found.weights[:, None], None),
    ):
        size = torch.tensor([[az.ess(values[None, :, n, k].numpy()) for k in range(values.shape[2])] for n in range(4)])
        assert float(size.min()) > 100
        assert bool(((values.mean(0) - mean).abs() < 6 * values.std(0) / size.sqrt()).all())
        if variance is not None:
            squares = (values - mean).square()
            assert bool(((squares.mean(0) - variance).abs() < 6 * squares.std(0) / size.sqrt()).all())


@laws
@given(
    noise=st.sampled_from(["isotropic", "diagonal"]),
    memory=st.sampled_from([0, 5]),
    pseudo_count=st.sampled_from([0.0, 5.0]),
    freedom=st.sampled_from([None, 2.0]),
    floor=st.sampled_from([1e-4, 0.5]),
    seed=st.integers(0, 1000),
)
def test_the_objective_never_falls_and_is_that_of_the_model(
    noise: str, memory: int, pseudo_count: float, freedom: float | None, floor: float, seed: int
) -> None:
    blocks, _ = heavy_tailed(70, seed=seed)
    result = fit_student_t_em(
        blocks,
        2,
        noise=noise,
        anderson_memory=memory,
        noise_pseudo_count=pseudo_count,
        degrees_of_freedom=freedom,
        noise_floor=floor,
        max_iterations=40,
        tolerance=0,
    )
    assert len(result.objective) > 5
    assert bool((result.objective.diff() >= 0).all())
    evidence = student_t_posterior(result.structure, blocks).log_marginal.sum()
    assert float(result.log_likelihood[-1]) == pytest.approx(float(evidence), rel=1e-9)
    if freedom is not None:
        assert float(result.structure.degrees_of_freedom) == freedom


def test_all_forms_are_the_same_iteration() -> None:
    blocks, truth = heavy_tailed(90)
    rows, present = stacked(blocks)
    options = {"start": truth, "max_iterations": 8, "tolerance": 0, "noise": "diagonal"}
    results = [fit_student_t_em(blocks, 2, form=form, **options) for form in ("modality", "pattern")]
    results.append(fit_student_t_em(FeatureBlocks(blocks.dims, rows, present), 2, **options))
    assert [result.form for result in results] == ["modality", "pattern", "features"]
    for result in results[1:]:
        torch.testing.assert_close(result.log_likelihood, results[0].log_likelihood, rtol=1e-11, atol=0)


@pytest.mark.parametrize("noise", ["isotropic", "diagonal"])
def test_gradient_ascent_finds_no_more(noise: str) -> None:
    blocks, _ = heavy_tailed(200)
    result = fit_student_t_em(blocks, 2, noise=noise, tolerance=1e-12, max_iterations=3000, noise_floor=1e-8)
    fitted = result.structure.linear_gaussian
    loadings = {n: v.clone().requires_grad_() for n, v in fitted.loadings.items()}
    intercepts = {n: v.clone().requires_grad_() for n, v in fitted.intercepts.items()}
    logs = {
        n: (v if noise == "diagonal" else v[0]).log().clone().requires_grad_() for n, v in fitted.noise_variance.items()
    }
    freedom = result.structure.degrees_of_freedom.log().clone().requires_grad_()
    variables = [*loadings.values(), *intercepts.values(), *logs.values(), freedom]

    def loss() -> Tensor:
        base = LinearGaussian(loadings, intercepts, {n: v.exp() for n, v in logs.items()})
        return -student_t_posterior(StudentTModel(base, freedom.exp()), blocks).log_marginal.sum()

    assert_gradient_ascent_finds_no_more(loss, variables, float(result.log_likelihood[-1]))


def test_recovers_the_model_that_made_the_data_and_beats_the_gaussian_one() -> None:
    blocks, truth = heavy_tailed(6000, freedom=3.0, noise="isotropic", prior="standard")
    result = fit_student_t_em(blocks, 2)
    assert result.converged
    assert float(result.structure.degrees_of_freedom) == pytest.approx(3.0, rel=0.1)
    _, mine = result.structure.linear_gaussian.joint()
    _, theirs = truth.linear_gaussian.joint()
    assert float((mine - theirs).abs().max() / theirs.abs().max()) < 0.1
    gaussian = float(fit_em(blocks, 2).log_likelihood[-1])
    assert float(result.log_likelihood[-1]) > gaussian + 1000


def test_gaussian_data_ask_for_many_degrees_of_freedom() -> None:
    blocks = random_blocks(random_model(DIMS, 2, noise="isotropic"), 400, 0.3)
    result = fit_student_t_em(blocks, 2)
    assert float(result.structure.degrees_of_freedom) > 50
    assert abs(float(result.log_likelihood[-1] - fit_em(blocks, 2).log_likelihood[-1])) < 3


def test_an_outlier_moves_the_fit_less_than_the_gaussian_one() -> None:
    lg = random_model(DIMS, 2, noise="isotropic", prior="standard")
    clean, dirty = random_blocks(lg, 300, 0.3), random_blocks(lg, 300, 0.3)
    for values in dirty.values.values():
        values[:5] = 60.0
    held_out = random_blocks(lg, 300, 0.3, seed=9)
    robust = fit_student_t_em(dirty, 2).structure
    gaussian = fit_em(dirty, 2).linear_gaussian
    best = float(log_marginal(fit_em(clean, 2).linear_gaussian, held_out).mean())
    assert float(student_t_posterior(robust, held_out).log_marginal.mean()) > float(
        log_marginal(gaussian, held_out).mean()
    ) + 0.5 * (best - float(log_marginal(gaussian, held_out).mean()))


def test_the_prior_of_the_latent_is_kept_and_changes_no_evidence() -> None:
    blocks, _ = heavy_tailed(150)
    other = random_model(DIMS, 2, seed=5)
    standard = fit_student_t_em(blocks, 2, tolerance=1e-10)
    full = fit_student_t_em(
        blocks, 2, tolerance=1e-10, prior_mean=other.prior_mean, prior_covariance=other.prior_covariance
    )
    torch.testing.assert_close(full.structure.linear_gaussian.prior_covariance, other.prior_covariance)
    evidence = float(student_t_posterior(full.structure, blocks).log_marginal.sum())
    assert evidence == pytest.approx(float(standard.log_likelihood[-1]), rel=1e-9)


@pytest.mark.parametrize("freedom", [0.7, 4.0, 30.0])
def test_degrees_of_freedom_are_the_best(freedom: float) -> None:
    """The root is where the likelihood, on a fine grid of scipy's densities, is highest."""
    distance = torch.from_numpy(stats.f(3, freedom).rvs(4000, random_state=0) * 3)
    features = torch.full((4000,), 3.0, dtype=torch.float64)
    found = from_distances(distance, features, 10.0)
    grid = found * torch.linspace(0.8, 1.25, 46).double()
    # the density of a distance differs from that of the point by what does not depend on nu
    values = [stats.f(3, nu).logpdf(distance.numpy() / 3).sum() for nu in grid.tolist()]
    assert abs(math.log(float(grid[int(torch.tensor(values).argmax())]) / found)) < 0.02
    for start in (0.2, 1e5):
        assert from_distances(distance, features, start) == pytest.approx(found, rel=1e-4)


def test_degrees_of_freedom_have_limits() -> None:
    even = torch.full((100,), 3.0, dtype=torch.float64)
    assert from_distances(even, even, 10.0) == 1e6
    assert from_expected_scales(-1.0, 10.0) == 1e6
    assert from_expected_scales(-1e6, 10.0) == 0.1


def test_devices(device: str) -> None:
    blocks, model = heavy_tailed(60)
    there = ObservedBlocks({n: v.to(device) for n, v in blocks.values.items()}, blocks.observed_mask.to(device))
    moved = StudentTModel(model.linear_gaussian.to(device=device), model.degrees_of_freedom.to(device))
    assert_close(student_t_posterior(moved, there).covariance.cpu(), student_t_posterior(model, blocks).covariance)
    one, other = (fit_student_t_em(data, 2, max_iterations=10, tolerance=0) for data in (blocks, there))
    assert other.structure.linear_gaussian.device.type == device
    assert float(other.log_likelihood[-1]) == pytest.approx(float(one.log_likelihood[-1]), rel=1e-9)


def test_errors() -> None:
    blocks, model = heavy_tailed(20)
    for bad in (0.0, -1.0, math.inf, math.nan):
        with pytest.raises(ArgumentError, match="degrees_of_freedom: expected one positive finite number"):
            StudentTModel(model.linear_gaussian, torch.tensor(bad))
    with pytest.raises(ArgumentError, match=r"degrees_of_freedom: expected 0.1 to 1e\+06"):
        fit_student_t_em(blocks, 2, degrees_of_freedom=0.01)
    with pytest.raises(ArgumentError, match="start: expected modalities"):
        fit_student_t_em(blocks, 2, start=random_model(DIMS, 3))
    with pytest.raises(ArgumentError, match="form: expected one of"):
        fit_student_t_em(blocks, 2, form="statistics")
    blocks.values["a"][0, 0] = torch.nan
    with pytest.raises(NumericalError, match="modality 'a' holds values that are not finite"):
        fit_student_t_em(blocks, 2)
