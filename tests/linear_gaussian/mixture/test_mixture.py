"""The exact mixture posterior: against brute-force sums of dense normals, Pyro's enumeration, and its own laws."""

from __future__ import annotations

from importlib import import_module

import pyro
import pyro.distributions as dist
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pyro.infer import TraceEnum_ELBO, config_enumerate
from torch import Tensor
from torch.distributions import MultivariateNormal

from calmrl_prob.errors import ArgumentError
from calmrl_prob.linear_gaussian import (
    FeatureBlocks,
    LinearGaussian,
    LinearGaussianMixture,
    MixturePosterior,
    ObservedBlocks,
    mixture_posterior,
    posterior,
)
from calmrl_prob.posteriors.mixture import MixtureResult
from tests.cases.linear_gaussian_cases import assert_close, random_mask, random_model, stacked
from tests.cases.mixture_cases import random_mixture

laws = settings(derandomize=True, deadline=None, max_examples=20)
mixture_cases = st.fixed_dictionaries(
    {
        "widths": st.lists(st.integers(1, 5), min_size=1, max_size=4),
        "latent_dim": st.integers(1, 4),
        "num_components": st.integers(1, 5),
        "shared": st.booleans(),
        "rate": st.sampled_from([0.0, 0.4, 0.7]),
        "seed": st.integers(0, 10_000),
    }
)


def random_mixture_blocks(
    mixture: LinearGaussianMixture, num_instances: int, rate: float, seed: int = 0, *, empty: bool = True
) -> ObservedBlocks:
    _, features = mixture.sample(num_instances, torch.Generator().manual_seed(seed + 7))
    return ObservedBlocks.from_arrays(features, random_mask(num_instances, len(features), rate, seed, empty=empty))


def brute_force(mixture: LinearGaussianMixture, row: Tensor, present: Tensor) -> dict[str, Tensor]:
    """Everything from dense joint normals, one for each component, summed with their weights."""
    evidence, means, covariances, predicted, signal, noise = [], [], [], [], [], []
    for part in mixture.components:
        loadings = torch.cat(list(part.loadings.values()))
        mean, covariance = part.joint()
        cross = (loadings @ part.prior_covariance)[present]
        seen = covariance[present][:, present]
        gain = torch.linalg.solve(seen, cross).mT
        normal = MultivariateNormal(mean[present], seen)
        evidence.append(normal.log_prob(row[present]) if present.any() else torch.zeros((), dtype=torch.float64))
        means.append(part.prior_mean + gain @ (row - mean)[present])
        covariances.append(part.prior_covariance - gain @ cross)
        predicted.append(loadings @ means[-1] + torch.cat(list(part.intercepts.values())))
        signal.append((loadings @ covariances[-1] @ loadings.mT).diagonal())
        noise.append(torch.cat(list(part.noise_variance.values())))
    joint = mixture.log_weights.exp() * torch.stack(evidence).exp()
    weights = joint / joint.sum()
    average = [(weights[:, None] * torch.stack(values)).sum(0) for values in (means, predicted, noise)]
    spread = [mean - average[0] for mean in means]
    covariance = sum(w * (v + torch.outer(d, d)) for w, v, d in zip(weights, covariances, spread, strict=True))
    latent = sum(w * (v + (m - average[1]).square()) for w, v, m in zip(weights, signal, predicted, strict=True))
    return {
        "responsibilities": weights,
        "evidence": joint.sum().log(),
        "mean": average[0],
        "covariance": covariance,
        "predicted": average[1],
        "latent_variance": latent,
        "noise": average[2],
    }


def assert_is_brute_force(mixture: LinearGaussianMixture, given_: MixturePosterior, rows: Tensor, mask: Tensor) -> None:
    predicted = [MixtureResult(given_).predictive(name) for name in mixture.names]
    mean, latent, noise = (
        torch.cat([getattr(part, moment) for part in predicted], dim=1)
        for moment in ("mean", "latent_variance", "noise_variance")
    )
    covariance = given_.covariance
    for n in range(len(rows)):
        oracle = brute_force(mixture, rows[n], mask[n])
        assert_close(given_.responsibilities[n], oracle["responsibilities"])
        assert_close(given_.log_marginal[n], oracle["evidence"])
        assert_close(given_.mean[n], oracle["mean"])
        assert_close(covariance[n], oracle["covariance"])
        assert_close(mean[n], oracle["predicted"])
        assert_close(latent[n], oracle["latent_variance"])
        assert_close(noise[n], oracle["noise"])


@laws
@given(mixture_cases)
def test_brute_force(case: dict) -> None:
    dims = {f"m{i}": width for i, width in enumerate(case["widths"])}
    mixture = random_mixture(dims, case["latent_dim"], case["num_components"], case["seed"], shared=case["shared"])
    assert mixture.shares_likelihood == (case["shared"] or case["num_components"] == 1)
    blocks = random_mixture_blocks(mixture, 13, case["rate"], case["seed"])
    assert_is_brute_force(mixture, mixture_posterior(mixture, blocks), *stacked(blocks))


@pytest.mark.parametrize("shared", [True, False])
def test_brute_force_with_single_features_missing(shared: bool) -> None:
    mixture = random_mixture({"a": 4, "b": 3}, 2, 3, shared=shared)
    rows, _ = stacked(random_mixture_blocks(mixture, 12, 0.0))
    present = random_mask(12, 7, rate=0.4, empty=True)
    blocks = FeatureBlocks(mixture.dims, rows, present)
    assert_is_brute_force(mixture, mixture_posterior(mixture, blocks), rows, present)


def test_pyros_enumeration_finds_the_same_evidence_and_responsibilities() -> None:
    """The model with its discrete site summed out by Pyro, under a guide of z that is a point: p(x, z)."""
    mixture = random_mixture({"a": 3, "b": 2}, 2, 4)
    blocks = random_mixture_blocks(mixture, 6, 0.4, empty=False)
    rows, mask = stacked(blocks)
    first = mixture.components[0]
    given_ = mixture_posterior(mixture, blocks)
    z = given_.sample(1, torch.Generator().manual_seed(0))[0]

    @config_enumerate
    def model() -> None:
        with pyro.plate("instances", len(rows)):
            c = pyro.sample("c", dist.Categorical(logits=mixture.log_weights))
            latents = pyro.sample("z", dist.MultivariateNormal(mixture.means[c], mixture.covariances[c]), obs=z)
            start = 0
            for name, width in mixture.dims.items():
                part = slice(start, start + width)
                location = latents @ first.loadings[name].mT + first.intercepts[name]
                features = dist.Normal(location, first.noise_variance[name].sqrt()).to_event(1)
                pyro.sample(name, features.mask(mask[:, start]), obs=rows[:, part])
                start += width

    joint = -TraceEnum_ELBO(max_plate_nesting=1).loss(model, lambda: None)
    # log p(x) = log p(x, z) - log p(z | x), whatever z is
    dense = [
        MultivariateNormal(part.mean, part.covariance).log_prob(z) + given_.log_responsibilities[:, c]
        for c, part in enumerate(given_.components)
    ]
    evidence = joint - float(torch.stack(dense).logsumexp(0).sum())
    assert float(given_.log_marginal.sum()) == pytest.approx(evidence, rel=1e-9)
    marginal = TraceEnum_ELBO(max_plate_nesting=1).compute_marginals(model, lambda: None)["c"]
    found = marginal.log_prob(torch.arange(4)[:, None]).exp().mT  # of c given z as well
    log_prior = mixture.log_weights + torch.stack(
        [MultivariateNormal(m, s).log_prob(z) for m, s in zip(mixture.means, mixture.covariances, strict=True)], dim=1
    )
    assert_close(found, log_prior.softmax(1))


def test_importance_sampling_finds_the_same_evidence_and_mean() -> None:
    mixture = random_mixture({"a": 2, "b": 2}, 2, 3)
    blocks = random_mixture_blocks(mixture, 5, 0.4, empty=False)
    rows, mask = stacked(blocks)
    given_ = mixture_posterior(mixture, blocks)
    generator = torch.Generator().manual_seed(1)
    draws = 200_000
    drawn = mixture.sample(draws, generator)
    labels, latents = drawn.labels, drawn.latents
    assert labels.shape == (draws,)
    first = mixture.components[0]
    loadings = torch.cat(list(first.loadings.values()))
    location = latents @ loadings.mT + torch.cat(list(first.intercepts.values()))
    scale = torch.cat(list(first.noise_variance.values())).sqrt()
    for n in range(5):
        weights = torch.distributions.Normal(location, scale).log_prob(rows[n])[:, mask[n]].sum(1).exp()
        evidence = given_.log_marginal[n].exp()
        assert abs(float(weights.mean() - evidence)) < 6 * float(weights.std()) / draws**0.5
        share = weights / weights.sum()
        error = (share.square() @ (latents - given_.mean[n]).square()).sqrt()
        assert bool(((share @ latents - given_.mean[n]).abs() < 6 * error).all())


@laws
@given(mixture_cases)
def test_one_component_is_the_gaussian_posterior(case: dict) -> None:
    dims = {f"m{i}": width for i, width in enumerate(case["widths"])}
    mixture = random_mixture(dims, case["latent_dim"], 1, case["seed"])
    blocks = random_mixture_blocks(mixture, 9, case["rate"], case["seed"])
    single, many = posterior(mixture.components[0], blocks), mixture_posterior(mixture, blocks)
    assert_close(many.mean, single.mean, 1e-14)
    assert_close(many.log_marginal, single.log_marginal, 1e-14)
    assert_close(many.covariance, single.covariance, 1e-14)


@laws
@given(mixture_cases)
def test_equal_components_and_components_without_weight_are_nothing(case: dict) -> None:
    dims = {f"m{i}": width for i, width in enumerate(case["widths"])}
    mixture = random_mixture(dims, case["latent_dim"], 2, case["seed"], shared=case["shared"])
    one, other = mixture.components
    half, off = torch.tensor(0.5).double().log(), torch.tensor(-torch.inf).double()
    split = LinearGaussianMixture(
        torch.stack([mixture.log_weights[0] + half, mixture.log_weights[0] + half, mixture.log_weights[1], off]),
        (one, one, other, one),
    )
    blocks = random_mixture_blocks(mixture, 9, case["rate"], case["seed"])
    first, second = mixture_posterior(mixture, blocks), mixture_posterior(split, blocks)
    assert_close(second.log_marginal, first.log_marginal)
    assert_close(second.mean, first.mean)
    assert_close(second.covariance, first.covariance)


def test_draws_have_the_moments_of_the_posterior() -> None:
    mixture = random_mixture({"a": 3, "b": 2}, 2, 3, shared=False)
    blocks = random_mixture_blocks(mixture, 8, 0.5)
    given_ = mixture_posterior(mixture, blocks)
    draws = given_.sample(40_000, torch.Generator().manual_seed(1))
    again = given_.sample(40_000, torch.Generator().manual_seed(1))
    assert torch.equal(draws, again)
    sd = given_.covariance.diagonal(dim1=-2, dim2=-1).sqrt()
    assert bool(((draws.mean(0) - given_.mean).abs() < 6 * sd / 200).all())
    centred = draws - given_.mean
    products = torch.einsum("snk,snl->snkl", centred, centred)
    assert bool(((products.mean(0) - given_.covariance).abs() < 6 * products.std(0) / 200).all())
    labels = given_.sample_components(40_000, torch.Generator().manual_seed(2))
    found = torch.stack([(labels == c).double().mean(0) for c in range(3)], dim=1)
    error = (given_.responsibilities * (1 - given_.responsibilities)).sqrt() / 200
    assert bool(((found - given_.responsibilities).abs() <= 6 * error).all())


def test_samples_have_the_moments_of_the_prior() -> None:
    mixture = random_mixture({"a": 3, "b": 2}, 2, 3)
    latents, features = mixture.sample(100_000, torch.Generator().manual_seed(3))
    mean, covariance = mixture.prior_moments()
    sd = covariance.diagonal().sqrt()
    assert bool(((latents.mean(0) - mean).abs() < 6 * sd / 100_000**0.5).all())
    products = torch.einsum("nk,nl->nkl", latents - mean, latents - mean)
    assert bool(((products.mean(0) - covariance).abs() < 6 * products.std(0) / 100_000**0.5).all())
    first = mixture.components[0]
    expected = first.loadings["a"] @ mean + first.intercepts["a"]
    assert bool(((features["a"].mean(0) - expected).abs() < 6 * features["a"].std(0) / 100_000**0.5).all())


def test_gradients_of_the_evidence() -> None:
    mixture = random_mixture({"a": 3, "b": 2}, 2, 3)
    blocks = random_mixture_blocks(mixture, 6, 0.4)

    def evidence(log_weights: Tensor, means: Tensor, roots: Tensor, loadings: Tensor) -> Tensor:
        first = mixture.components[0]
        changed = LinearGaussian({**first.loadings, "a": loadings}, first.intercepts, first.noise_variance)
        covariances = roots @ roots.mT + torch.eye(2).double()
        return mixture_posterior(
            LinearGaussianMixture.from_prior(changed, log_weights, means, covariances), blocks
        ).log_marginal.sum()

    inputs = [mixture.log_weights, mixture.means, mixture.covariances, mixture.components[0].loadings["a"]]
    assert torch.autograd.gradcheck(evidence, [value.detach().clone().requires_grad_() for value in inputs])


def test_shared_components_share_the_products_with_the_data(monkeypatch: pytest.MonkeyPatch) -> None:
    module = import_module("calmrl_prob.linear_gaussian.mixture.posterior")
    calls: list[object] = []
    original = module.project_data
    monkeypatch.setattr(module, "project_data", lambda part, blocks: calls.append(part) or original(part, blocks))
    mixture = random_mixture({"a": 3, "b": 2}, 2, 4)
    blocks = random_mixture_blocks(mixture, 6, 0.4)
    for version in (mixture, mixture.to(torch.float32).to(torch.float64).detach(), mixture.select(["a", "b"])):
        calls.clear()
        mixture_posterior(version, blocks)
        assert len(calls) == 1
    calls.clear()
    mixture_posterior(random_mixture({"a": 3, "b": 2}, 2, 4, shared=False), blocks)
    assert len(calls) == 4


def test_devices(device: str) -> None:
    mixture = random_mixture({"a": 5, "b": 3}, 2, 3)
    _, features = mixture.sample(40, torch.Generator().manual_seed(0))
    mask = random_mask(40, 2, 0.4)
    here = mixture_posterior(mixture, ObservedBlocks.from_arrays(features, mask))
    there = mixture_posterior(
        mixture.to(device=device),
        ObservedBlocks.from_arrays({n: x.to(device) for n, x in features.items()}, mask.to(device)),
    )
    assert there.mean.device.type == device
    assert_close(there.mean.cpu(), here.mean)
    assert_close(there.covariance.cpu(), here.covariance)


def test_errors() -> None:
    one, other = random_model({"a": 3}, 2), random_model({"a": 3}, 3)
    weights = torch.zeros(2).double()
    with pytest.raises(ArgumentError, match=r"components\[1\]: expected modalities .* 2 latents"):
        LinearGaussianMixture(weights, (one, other))
    with pytest.raises(ArgumentError, match="components: expected at least one"):
        LinearGaussianMixture(weights, ())
    with pytest.raises(ArgumentError, match=r"log_weights: expected shape \(1,\)"):
        LinearGaussianMixture(weights, (one,))
    for bad in (torch.tensor([torch.nan]), torch.tensor([-torch.inf]), torch.tensor([torch.inf])):
        with pytest.raises(ArgumentError, match="log_weights: expected logarithms"):
            LinearGaussianMixture(bad, (one,))
    with pytest.raises(ArgumentError, match=r"means, covariances: expected shapes \(2, 2\)"):
        LinearGaussianMixture.from_prior(one, weights, torch.zeros(2, 3), torch.zeros(2, 3, 3))
