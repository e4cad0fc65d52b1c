"""Gaussian scale mixtures: quadrature, draws, coordinate updates and EM, each against integrals done another way."""

from __future__ import annotations

import math
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from scipy.special import roots_genlaguerre
from torch import Tensor
from torch.distributions import MultivariateNormal

from calmrl_prob.errors import ArgumentError, NumericalError
from calmrl_prob.linear_gaussian import (
    FeatureBlocks,
    LinearGaussian,
    ObservedBlocks,
    ScaleMixture,
    fit_em,
    fit_scale_em,
    has_one_scale,
    log_marginal,
    posterior,
    scale_draws,
    scale_posterior,
)
from calmrl_prob.linear_gaussian.scale_mixture.expectation import expected_log_joint, scale_moments
from calmrl_prob.linear_gaussian.scale_mixture.updates import update
from tests.cases.linear_gaussian_cases import assert_close, random_blocks, random_mask, random_model, stacked
from tests.cases.scale_mixture_cases import heavy_tailed

laws = settings(derandomize=True, deadline=None, max_examples=6)
DIMS = {"a": 3, "b": 2}


def number(value: float) -> Tensor:
    return torch.tensor(value, dtype=torch.float64)


def scale_mixture(
    sites: tuple[str, ...], freedom: float = 3.0, latent_dim: int = 2, seed: int = 0, **options: str
) -> ScaleMixture:
    """A random model that is Student-t at some sites: "z" and modalities."""
    lg = random_model(DIMS, latent_dim, seed, **options)
    prior = [(slice(0, latent_dim), number(freedom))] if "z" in sites else []
    return ScaleMixture(lg, {name: number(freedom) for name in sites if name != "z"}, prior)


def spread_blocks(model: ScaleMixture, num_instances: int = 7, seed: int = 0) -> ObservedBlocks:
    """Data of which some rows are far out, some lack modalities and one has nothing."""
    blocks = random_blocks(model.linear_gaussian, num_instances, 0.3, seed, empty=True)
    for values in blocks.values.values():
        values[::3] *= 8
    return blocks


def given_scales(
    model: ScaleMixture, row: Tensor, seen: Tensor, scales: dict[str, Tensor]
) -> tuple[Tensor, Tensor, Tensor]:
    """log p(x | u), mean and covariance of z at J scales, from dense normals with covariances divided by them."""
    lg = model.linear_gaussian
    (count,) = {len(scale) for scale in scales.values()}
    one = torch.ones(count, 1, dtype=torch.float64)
    loadings, intercept = torch.cat(list(lg.loadings.values())), torch.cat(list(lg.intercepts.values()))
    noise = torch.cat([v / scales[n][:, None] if n in scales else v * one for n, v in lg.noise_variance.items()], dim=1)
    prior = lg.prior_covariance / scales.get("z", one[:, 0])[:, None, None]
    covariance = (loadings @ prior @ loadings.mT + torch.diag_embed(noise))[:, seen][:, :, seen]
    mean = (loadings @ lg.prior_mean + intercept)[seen]
    cross = (loadings @ prior)[:, seen]
    gain = torch.linalg.solve(covariance, cross).mT
    evidence = MultivariateNormal(mean, covariance).log_prob(row[seen]) if bool(seen.any()) else 0 * one[:, 0]
    return evidence, lg.prior_mean + gain @ (row[seen] - mean), prior - gain @ cross


def log_prior(freedom: float, log_scale: Tensor) -> Tensor:
    """Density of log u, nats."""
    return torch.from_numpy(stats.gamma(freedom / 2, scale=2 / freedom).logpdf(log_scale.exp().numpy())) + log_scale


def by_integration(model: ScaleMixture, row: Tensor, seen: Tensor, site: str, freedom: float) -> dict[str, Tensor]:
    """Evidence and moments by a dense sum over log u."""
    grid = torch.linspace(-26, 5, 3001, dtype=torch.float64)
    evidence, means, covariances = given_scales(model, row, seen, {site: grid.exp()})
    log_joint = evidence + log_prior(freedom, grid) + math.log(grid[1] - grid[0])
    weights = log_joint.softmax(0)
    mean = weights @ means
    spread = means - mean
    return {
        "evidence": log_joint.logsumexp(0),
        "mean": mean,
        "covariance": torch.einsum("j,jkl->kl", weights, covariances) + spread.mT @ (spread * weights[:, None]),
        "scale": weights @ grid.exp(),
    }


@pytest.mark.parametrize("site", ["z", "a"])
@pytest.mark.parametrize("freedom", [1.2, 3.0, 40.0])
def test_quadrature_is_the_integral(site: str, freedom: float) -> None:
    model = scale_mixture((site,), freedom)
    blocks = spread_blocks(model)
    found = scale_posterior(model, blocks)
    rows, mask = stacked(blocks)
    covariance = found.covariance
    for n in range(len(rows)):
        oracle = by_integration(model, rows[n], mask[n], site, freedom)
        assert_close(found.log_marginal[n], oracle["evidence"], 3e-6)
        assert_close(found.expected_scale[n], oracle["scale"], 1e-5)
        assert_close(found.mean[n], oracle["mean"], 1e-5)
        if freedom > 2:  # the variance of a heavy tail is where quadratures differ
            assert_close(covariance[n], oracle["covariance"], 1e-3)


def test_more_nodes_are_more_exact() -> None:
    model = scale_mixture(("z",), 3.0, latent_dim=4)
    blocks = spread_blocks(model, 40)
    best = scale_posterior(model, blocks, 101).log_marginal
    errors = [float((scale_posterior(model, blocks, nodes).log_marginal - best).abs().max()) for nodes in (17, 25, 41)]
    assert errors[2] < 1e-6
    assert errors[0] > errors[1] > errors[2]


def test_generalised_gauss_laguerre_is_no_match() -> None:
    """With as many nodes, at the roots of Laguerre polynomials, the error is a thousand times larger."""
    model = scale_mixture(("z",), 4.0, latent_dim=4)
    blocks = spread_blocks(model, 12)
    rows, mask = stacked(blocks)
    best = scale_posterior(model, blocks, 101).log_marginal
    nodes, weights = roots_genlaguerre(41, 1.0)
    errors = []
    for n in range(len(rows)):
        terms = given_scales(model, rows[n], mask[n], {"z": torch.from_numpy(nodes) / 2})[0]
        errors.append(abs(float(torch.logsumexp(terms + torch.from_numpy(weights).log(), 0) - best[n])))
    ours = float((scale_posterior(model, blocks, 41).log_marginal - best).abs().max())
    assert max(errors) > 1000 * ours


def test_single_features_may_be_missing_under_a_student_t_prior() -> None:
    model = scale_mixture(("z",))
    rows, _ = stacked(random_blocks(model.linear_gaussian, 6, 0.0))
    present = random_mask(6, 5, 0.4, empty=True)
    found = scale_posterior(model, FeatureBlocks(DIMS, rows, present))
    for n in range(6):
        assert_close(found.log_marginal[n], by_integration(model, rows[n], present[n], "z", 3.0)["evidence"], 3e-6)


@pytest.mark.parametrize("site", ["z", "a"])
def test_joint_density_less_posterior_density_is_the_evidence_whatever_the_latents(site: str) -> None:
    """log p(x, z) from scipy's multivariate t, log p(z | x) from the quadrature, at latents anywhere near."""
    model = scale_mixture((site,), 5.0)
    blocks = spread_blocks(model, 5)
    found = scale_posterior(model, blocks)
    rows, mask = stacked(blocks)
    lg = model.linear_gaussian
    z = found.sample(1, torch.Generator().manual_seed(0))[0]
    conditional = found.log_density(z)
    for n in range(5):
        if site == "z":
            joint = stats.multivariate_t(lg.prior_mean.numpy(), lg.prior_covariance.numpy(), df=5.0).logpdf(
                z[n].numpy()
            )
        else:
            joint = float(MultivariateNormal(lg.prior_mean, lg.prior_covariance).log_prob(z[n]))
        start = 0
        for name, width in DIMS.items():
            part = slice(start, start + width)
            start += width
            if not bool(mask[n, part].any()):
                continue
            location = (lg.loadings[name] @ z[n] + lg.intercepts[name]).numpy()
            noise = np.diag(lg.noise_variance[name].numpy())
            law = (
                stats.multivariate_t(location, noise, df=5.0)
                if name == site
                else stats.multivariate_normal(location, noise)
            )
            joint += law.logpdf(rows[n, part].numpy())
        assert float(joint - conditional[n]) == pytest.approx(float(found.log_marginal[n]), abs=1e-4)


def test_draws_and_features_have_the_moments_of_the_posterior() -> None:
    model = scale_mixture(("z",), 6.0)
    blocks = spread_blocks(model)
    found = scale_posterior(model, blocks)
    draws = found.sample(4000, torch.Generator().manual_seed(1))
    assert torch.equal(draws, found.sample(4000, torch.Generator().manual_seed(1)))
    centred = draws - found.mean
    assert bool((centred.mean(0).abs() < 6 * draws.std(0) / 4000**0.5).all())
    products = torch.einsum("snk,snl->snkl", centred, centred)
    assert bool(((products.mean(0) - found.covariance).abs() < 6 * products.std(0) / 4000**0.5).all())
    loadings, intercept = model.linear_gaussian.loadings["a"], model.linear_gaussian.intercepts["a"]
    means, variances = torch.empty(7, 3).double(), torch.empty(7, 3).double()
    for rows in found.chunks(3):
        weights, locations, within = (torch.stack(part) for part in zip(*found.features("a", rows), strict=True))
        share = weights.exp()[:, :, None]
        means[rows] = (share * locations).sum(0)
        variances[rows] = (share * (within + (locations - means[rows]).square())).sum(0)
    assert_close(means, found.mean @ loadings.mT + intercept)
    assert_close(variances, torch.einsum("dk,nkl,dl->nd", loadings, found.covariance, loadings))


def test_many_degrees_of_freedom_are_the_gaussian_model() -> None:
    model = scale_mixture(("z",), 1e5)
    blocks = spread_blocks(model)
    plain = posterior(model.linear_gaussian, blocks)
    found = scale_posterior(model, blocks)
    assert_close(found.mean, plain.mean, 1e-2)
    near = plain.mahalanobis < 30
    assert_close(found.log_marginal[near], plain.log_marginal[near], 1e-3)


def test_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    model = scale_mixture(("z",))
    blocks = spread_blocks(model, 60)
    whole = scale_posterior(model, blocks)
    monkeypatch.setattr(sys.modules[ScaleMixture.__module__], "_CHUNK_BUDGET", 10)
    assert len(list(model.chunks(blocks))) == 4
    parts = scale_posterior(model, blocks)
    assert_close(parts.log_marginal, whole.log_marginal, 1e-12)
    assert_close(parts.covariance, whole.covariance, 1e-9)


def assert_estimates(log_ratio: Tensor, evidence: Tensor) -> None:
    """The mean of the importance ratios is the evidence, within 6 standard errors."""
    relative = (log_ratio - evidence).exp()
    error = relative.std(0) / len(relative) ** 0.5
    assert bool((error < 0.1).all())
    assert bool(((relative.mean(0) - 1).abs() < 6 * error + 1e-5).all())  # of the quadrature, where no scale matters


@pytest.mark.parametrize("sites", [("z",), ("a",)])
def test_draws_of_scales_estimate_the_evidence_and_the_mean(sites: tuple[str, ...]) -> None:
    model = scale_mixture(sites)
    blocks = spread_blocks(model)
    exact = scale_posterior(model, blocks)
    latents, log_ratio = scale_draws(model, blocks, 1500, torch.Generator().manual_seed(0))
    assert_estimates(log_ratio, exact.log_marginal)
    share = log_ratio.softmax(0)[:, :, None]
    error = (share * (latents - exact.mean)).square().sum(0).sqrt()
    assert bool((((share * latents).sum(0) - exact.mean).abs() < 6 * error + 1e-5).all())


def test_draws_of_two_scales_estimate_a_double_integral() -> None:
    model = scale_mixture(("z", "a"), 4.0)
    blocks = spread_blocks(model, 4)
    rows, mask = stacked(blocks)
    grid = torch.linspace(-12, 4, 121, dtype=torch.float64)
    first, second = (part.flatten() for part in torch.meshgrid(grid, grid, indexing="ij"))
    volume = log_prior(4.0, first) + log_prior(4.0, second) + 2 * math.log(grid[1] - grid[0])
    scales = {"z": first.exp(), "a": second.exp()}
    exact = [float((given_scales(model, rows[n], mask[n], scales)[0] + volume).logsumexp(0)) for n in range(4)]
    _, log_ratio = scale_draws(model, blocks, 1500, torch.Generator().manual_seed(0))
    assert_estimates(log_ratio, torch.tensor(exact).double())


@pytest.mark.parametrize("prior", [False, True])
def test_draws_of_latents_estimate_the_evidence_of_independent_student_t(prior: bool) -> None:
    """A scale for each feature, and for each latent: against an integral over the latent itself."""
    lg = random_model(DIMS, 1)
    freedom = torch.tensor([2.5, 4.0, 9.0]).double()
    model = ScaleMixture(lg, {"a": freedom}, [(slice(0, 1), torch.tensor([3.0]).double())] if prior else ())
    blocks = spread_blocks(model, 6)
    rows, mask = stacked(blocks)
    _, log_ratio = scale_draws(model, blocks, 1500, torch.Generator().manual_seed(0))
    z = np.linspace(-60, 60, 24_001)
    scale = float(lg.prior_covariance.sqrt())
    law = stats.t(3.0, float(lg.prior_mean), scale) if prior else stats.norm(float(lg.prior_mean), scale)
    exact = []
    for n in range(6):
        value = law.logpdf(z) + math.log(z[1] - z[0])
        for name, part in (("a", slice(0, 3)), ("b", slice(3, 5))):
            location = z[:, None] * lg.loadings[name][:, 0].numpy() + lg.intercepts[name].numpy()
            sd = lg.noise_variance[name].sqrt().numpy()
            site = stats.t(freedom.numpy(), location, sd) if name == "a" else stats.norm(location, sd)
            value = value + (site.logpdf(rows[n, part].numpy()) * mask[n, part].numpy()).sum(1)
        exact.append(float(torch.from_numpy(value).logsumexp(0)))
    assert_estimates(log_ratio, torch.tensor(exact).double())


@laws
@given(
    sites=st.sampled_from([("z",), ("a",), ("a", "b"), ("z", "a", "b")]),
    freedom=st.sampled_from([1.5, 4.0]),
    entries=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_coordinate_updates_raise_a_lower_bound(
    sites: tuple[str, ...], freedom: float, entries: bool, seed: int
) -> None:
    model = scale_mixture(sites, freedom, seed=seed)
    if entries and "a" in sites:
        model = ScaleMixture(
            model.linear_gaussian,
            {**model.degrees_of_freedom, "a": number(freedom).expand(3)},
            model.prior_degrees_of_freedom,
        )
    blocks = spread_blocks(model, 9, seed)
    (chunk,) = model.chunks(blocks)
    bounds = torch.stack([update(chunk, sweeps=sweeps).bound for sweeps in (0, 1, 2, 4, 8, 100)])
    assert float(bounds.diff(dim=0).min()) > -1e-9
    if has_one_scale(model, blocks):
        exact = scale_posterior(model, blocks).log_marginal
        assert bool((bounds[-1] < exact + 1e-6).all())
        assert float((exact - bounds[-1]).max()) < 1.0


def test_a_bound_of_known_scales_is_the_evidence() -> None:
    model = scale_mixture(("a", "b"), 1e6)
    blocks = random_blocks(model.linear_gaussian, 9, 0.3)
    (chunk,) = model.chunks(blocks)
    assert_close(update(chunk).bound, log_marginal(model.linear_gaussian, blocks), 1e-3)


@pytest.mark.parametrize("kind", ["z", "a", "z a", "features", "latents"])
def test_gradients_of_fishers_identity_are_those_of_the_evidence(kind: str) -> None:
    """Of the evidence where there is one scale, of the bound at its updates' end elsewhere; by central differences."""
    base = random_model(DIMS, 2)
    diagonal = torch.diag(base.prior_covariance.diagonal())
    blocks = spread_blocks(ScaleMixture(base), 12)
    names = ("loadings", "intercept", "noise", "mean", "scale", "freedom")
    start = [base.loadings["a"], base.intercepts["a"], base.noise_variance["a"].log(), base.prior_mean]
    start += [diagonal.diagonal().log(), torch.tensor([3.0, 5.0]).double().log()]

    def model(values: list[Tensor]) -> ScaleMixture:
        loadings, intercept, noise, mean, scale, freedom = values
        lg = LinearGaussian(
            {**base.loadings, "a": loadings},
            {**base.intercepts, "a": intercept},
            {**base.noise_variance, "a": noise.exp()},
            mean,
            torch.diag(scale.exp()),
        )
        nu = freedom.exp()
        whole = slice(0, 2)
        return {
            "z": ScaleMixture(lg, {}, [(whole, nu[0])]),
            "a": ScaleMixture(lg, {"a": nu[0]}),
            "z a": ScaleMixture(lg, {"a": nu[1]}, [(whole, nu[0])]),
            "features": ScaleMixture(lg, {"a": nu[1].expand(3)}, [(whole, nu[0])]),
            "latents": ScaleMixture(lg, {"a": nu[1]}, [(whole, nu[0].expand(2))]),
        }[kind]

    def value(values: list[Tensor]) -> float:
        return scale_moments(model(values), blocks, sweeps=2000).evidence

    unknowns = [part.clone().requires_grad_() for part in start]
    moments = scale_moments(model(unknowns).detach(), blocks, sweeps=2000)
    gradient = torch.autograd.grad(expected_log_joint(model(unknowns), moments), unknowns, allow_unused=True)
    generator = torch.Generator().manual_seed(0)
    for name, place in zip(names, range(len(start)), strict=True):
        direction = torch.randn(start[place].shape, generator=generator, dtype=torch.float64)
        ends = []
        for size in (1e-4, -1e-4):
            moved = list(start)
            moved[place] = start[place] + size * direction
            ends.append(value(moved))
        expected = (ends[0] - ends[1]) / 2e-4
        found = float((gradient[place] * direction).sum())
        assert found == pytest.approx(expected, rel=1e-3, abs=2e-3), name


@laws
@given(
    sites=st.sampled_from([("z",), ("b",), ("a", "b"), ("z", "a", "b")]),
    noise=st.sampled_from(["isotropic", "diagonal"]),
    memory=st.sampled_from([0, 5]),
    pseudo_count=st.sampled_from([0.0, 5.0]),
    freedom=st.sampled_from([None, 2.0]),
    floor=st.sampled_from([1e-4, 0.5]),
    seed=st.integers(0, 1000),
)
def test_the_objective_never_falls_and_is_that_of_the_model(
    sites: tuple[str, ...], noise: str, memory: int, pseudo_count: float, freedom: float | None, floor: float, seed: int
) -> None:
    blocks, _ = heavy_tailed(sites, 60, seed=seed)
    result = fit_scale_em(
        blocks,
        2,
        student_t=tuple(site for site in sites if site != "z"),
        prior="z" in sites,
        noise=noise,
        anderson_memory=memory,
        noise_pseudo_count=pseudo_count,
        degrees_of_freedom=freedom,
        noise_floor=floor,
        max_iterations=25,
        tolerance=0,
    )
    assert len(result.objective) > 4
    assert bool((result.objective.diff() >= 0).all())
    if len(sites) == 1:
        evidence = float(scale_posterior(result.structure, blocks).log_marginal.sum())
        assert float(result.log_likelihood[-1]) == pytest.approx(evidence, rel=1e-9)
    else:
        (chunk,) = result.structure.chunks(blocks)
        assert float(result.log_likelihood[-1]) <= float(update(chunk).bound.sum()) + 1e-6
    if freedom is not None:
        assert all(float(nu) == freedom for nu in result.structure.degrees_of_freedom.values())


@pytest.mark.parametrize("site", ["z", "b"])
def test_no_step_away_from_the_fit_is_better(site: str) -> None:
    blocks, _ = heavy_tailed((site,), 200)
    result = fit_scale_em(
        blocks, 2, student_t=(site,) if site != "z" else (), prior=site == "z", tolerance=1e-10, max_iterations=3000
    )
    lg, generator = result.structure.linear_gaussian, torch.Generator().manual_seed(0)
    best = float(result.log_likelihood[-1])

    def moved(size: float) -> ScaleMixture:
        def shake(value: Tensor) -> Tensor:
            return value + size * torch.randn(value.shape, generator=generator, dtype=value.dtype)

        def stretch() -> Tensor:
            return (size * torch.randn((), generator=generator, dtype=torch.float64)).exp()

        changed = LinearGaussian(
            {name: shake(value) for name, value in lg.loadings.items()},
            {name: shake(value) for name, value in lg.intercepts.items()},
            {name: value * stretch() for name, value in lg.noise_variance.items()},
        )
        freedom = {name: nu * stretch() for name, nu in result.structure.degrees_of_freedom.items()}
        return ScaleMixture(
            changed, freedom, [(part, nu * stretch()) for part, nu in result.structure.prior_degrees_of_freedom]
        )

    for size in (0.003, 0.01, 0.1):
        for _ in range(5):
            assert float(scale_posterior(moved(size), blocks).log_marginal.sum()) < best + 1e-6


@pytest.mark.parametrize("site", ["z", "b"])
def test_recovers_the_degrees_of_freedom_and_beats_the_gaussian_model(site: str) -> None:
    blocks, truth = heavy_tailed((site,), 3000)
    result = fit_scale_em(blocks, 2, student_t=(site,) if site != "z" else (), prior=site == "z")
    assert result.converged
    freedom = (
        result.structure.degrees_of_freedom["b"] if site == "b" else result.structure.prior_degrees_of_freedom[0][1]
    )
    assert float(freedom) == pytest.approx(3.0, rel=0.15)
    _, mine = result.structure.linear_gaussian.joint()
    _, theirs = truth.joint()
    assert float((mine - theirs).abs().max() / theirs.abs().max()) < 0.1
    assert float(result.log_likelihood[-1]) > float(fit_em(blocks, 2).log_likelihood[-1]) + 200


def test_a_spoilt_modality_is_found_out() -> None:
    """Rows of one modality that mean nothing get small scales there, and the others' latents are as good as without."""
    blocks, truth = heavy_tailed((), 400)
    for row in range(30):
        blocks.values["b"][row] = 15 * torch.randn(5, generator=torch.Generator().manual_seed(row)).double()
    result = fit_scale_em(blocks, 2, student_t=("a", "b"))
    freedom = result.structure.degrees_of_freedom
    assert float(freedom["b"]) < 5 < float(freedom["a"])
    (chunk,) = result.structure.chunks(blocks)
    scale = update(chunk).scales[1]
    spoilt = blocks.rows["b"][:30]
    assert float(scale[spoilt].max()) < 0.2 * float(scale[blocks.rows["b"][30:]].median())
    assert truth is not None


def test_the_prior_of_the_latent_is_kept_and_changes_no_evidence() -> None:
    blocks, _ = heavy_tailed(("z",))
    other = random_model({"a": 6, "b": 5}, 2, seed=5)
    options = {"student_t": (), "prior": True, "tolerance": 1e-9}
    standard = fit_scale_em(blocks, 2, **options)
    full = fit_scale_em(blocks, 2, prior_mean=other.prior_mean, prior_covariance=other.prior_covariance, **options)
    torch.testing.assert_close(full.structure.linear_gaussian.prior_covariance, other.prior_covariance)
    evidence = float(scale_posterior(full.structure, blocks).log_marginal.sum())
    assert evidence == pytest.approx(float(standard.log_likelihood[-1]), rel=1e-9)


def test_devices(device: str) -> None:
    model = scale_mixture(("z",))
    blocks = spread_blocks(model, 30)
    there = ObservedBlocks({n: v.to(device) for n, v in blocks.values.items()}, blocks.observed_mask.to(device))
    moved = ScaleMixture(model.linear_gaussian.to(device=device), {}, [(slice(0, 2), number(3.0).to(device))])
    assert_close(scale_posterior(moved, there).log_marginal.cpu(), scale_posterior(model, blocks).log_marginal, 1e-8)
    latents, _ = scale_draws(moved, there, 3, torch.Generator(device).manual_seed(0))
    assert latents.device.type == device


def test_errors() -> None:
    lg = random_model(DIMS, 2)
    with pytest.raises(ArgumentError, match="no modality is called 'c'"):
        ScaleMixture(lg, {"c": number(3.0)})
    with pytest.raises(ArgumentError, match=r"degrees_of_freedom\['a'\]: expected shape \(\) or \(3,\)"):
        ScaleMixture(lg, {"a": number(3.0).expand(2)})
    with pytest.raises(ArgumentError, match="expected positive finite numbers"):
        ScaleMixture(lg, {"a": number(-1.0)})
    with pytest.raises(ArgumentError, match="have to be uncorrelated in the prior"):
        ScaleMixture(lg, {}, [(slice(0, 1), number(3.0))])
    with pytest.raises(ArgumentError, match="have to be uncorrelated in the prior"):
        ScaleMixture(lg, {}, [(slice(0, 2), number(3.0).expand(2))])
    several = scale_mixture(("a", "b"))
    with pytest.raises(ArgumentError, match="expected one Student-t factor with one scale"):
        scale_posterior(several, spread_blocks(several))
    blocks, _ = heavy_tailed(("b",), 20)
    with pytest.raises(ArgumentError, match="student_t: expected some of"):
        fit_scale_em(blocks, 2, student_t=())
    with pytest.raises(ArgumentError, match="student_t: expected some of"):
        fit_scale_em(blocks, 2, student_t=("c",))
    with pytest.raises(ArgumentError, match=r"degrees_of_freedom: expected 0.1 to 1e\+06"):
        fit_scale_em(blocks, 2, student_t=("b",), degrees_of_freedom=0.0)
    rows, present = stacked(blocks)
    with pytest.raises(ArgumentError, match="expected whole modalities"):
        fit_scale_em(FeatureBlocks(blocks.dims, rows, present), 2, student_t=("b",))
    blocks.values["a"][0, 0] = torch.nan
    with pytest.raises(NumericalError, match="modality 'a' holds values that are not finite"):
        fit_scale_em(blocks, 2, student_t=("b",))
