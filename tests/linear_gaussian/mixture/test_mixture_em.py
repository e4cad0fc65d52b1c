"""EM under mixtures and group priors: monotone, the same in every form, and as good as what other methods find."""

from __future__ import annotations

from importlib import import_module

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.mixture import GaussianMixture
from torch import Tensor
from torch.distributions import MultivariateNormal, kl_divergence

from calmrl_prob.errors import ArgumentError, NumericalError
from calmrl_prob.linear_gaussian import (
    FeatureBlocks,
    LinearGaussian,
    LinearGaussianMixture,
    ObservedBlocks,
    fit_em,
    fit_mixture_em,
    log_marginal,
    mixture_posterior,
    posterior,
    split_by_labels,
)
from calmrl_prob.linear_gaussian.mixture.expectation import LatentComponents
from calmrl_prob.linear_gaussian.mixture.maximization import ComponentModel
from tests.cases.ascent import assert_gradient_ascent_finds_no_more
from tests.cases.linear_gaussian_cases import random_mask, stacked
from tests.cases.mixture_cases import random_mixture

laws = settings(derandomize=True, deadline=None, max_examples=10)
DIMS = {"a": 6, "b": 4, "c": 5}


def clustered(
    num_instances: int = 120, latent_dim: int = 3, num_components: int = 3, rate: float = 0.4, seed: int = 0
) -> tuple[ObservedBlocks, Tensor, LinearGaussianMixture]:
    """Data drawn from a mixture, with the component of each instance, and the mixture."""
    truth = random_mixture(DIMS, latent_dim, num_components, seed)
    drawn = truth.sample(num_instances, torch.Generator().manual_seed(seed + 1))
    labels, features = drawn.labels, drawn.features
    mask = random_mask(num_instances, len(DIMS), rate, seed)
    return ObservedBlocks.from_arrays(features, mask), labels, truth


def start_of(blocks: ObservedBlocks | FeatureBlocks, labels: Tensor, latent_dim: int = 3) -> LinearGaussianMixture:
    single = fit_em(blocks, latent_dim, max_iterations=20)
    return split_by_labels(single.linear_gaussian, blocks, labels, int(labels.max()) + 1)


def evidence_of(mixture: LinearGaussianMixture, blocks: ObservedBlocks | FeatureBlocks) -> float:
    return float(mixture_posterior(mixture, blocks).log_marginal.sum())


@laws
@given(
    noise=st.sampled_from(["isotropic", "diagonal"]),
    memory=st.sampled_from([0, 5]),
    covariance=st.sampled_from(["full", "tied"]),
    counts=st.sampled_from([(0.0, 0.0), (1.0, None), (2.0, 30.0)]),
    pseudo_count=st.sampled_from([0.0, 5.0]),
    known=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_the_objective_never_falls_and_is_that_of_the_model(
    noise: str, memory: int, covariance: str, counts: tuple, pseudo_count: float, known: bool, seed: int
) -> None:
    blocks, labels, _ = clustered(80, seed=seed)
    scrambled = torch.randint(3, (80,), generator=torch.Generator().manual_seed(seed))
    result = fit_mixture_em(
        blocks,
        start_of(blocks, scrambled),
        noise=noise,
        covariance=covariance,
        known_components=labels if known else None,
        weight_pseudo_count=counts[0],
        covariance_pseudo_count=counts[1],
        noise_pseudo_count=pseudo_count,
        anderson_memory=memory,
        max_iterations=40,
        tolerance=0,
    )
    assert len(result.objective) > 5
    assert bool((result.objective.diff() >= 0).all())
    if counts == (0.0, 0.0) and pseudo_count == 0 and noise == "isotropic":
        assert torch.equal(result.objective, result.log_likelihood)
    if known:
        parts = [log_marginal(part, blocks) for part in result.structure.components]
        evidence = float(torch.stack(parts)[labels, torch.arange(80)].sum())
    else:
        evidence = evidence_of(result.structure, blocks)
    assert float(result.log_likelihood[-1]) == pytest.approx(evidence, rel=1e-7)  # covariances may be near singular
    mean, covariance_ = result.structure.prior_moments()
    torch.testing.assert_close(mean, torch.zeros(3).double(), rtol=0, atol=1e-9)
    torch.testing.assert_close(covariance_, torch.eye(3).double(), rtol=0, atol=1e-9)


@pytest.mark.parametrize("noise", ["isotropic", "diagonal"])
def test_one_component_is_parameter_expanded_em(noise: str) -> None:
    blocks, _, truth = clustered(100)
    one = truth.components[0]
    single = fit_em(blocks, 3, noise=noise, start=one, anderson_memory=0, max_iterations=15, tolerance=0)
    mixture = LinearGaussianMixture(torch.zeros(1).double(), (one,))
    options = {"weight_pseudo_count": 0.0, "covariance_pseudo_count": 0.0, "max_iterations": 15, "tolerance": 0}
    options["anderson_memory"] = 0
    result = fit_mixture_em(blocks, mixture, noise=noise, **options)
    torch.testing.assert_close(result.log_likelihood, single.log_likelihood, rtol=1e-11, atol=0)
    torch.testing.assert_close(
        result.structure.components[0].joint(), single.linear_gaussian.joint(), rtol=1e-8, atol=1e-9
    )


def test_all_forms_are_the_same_iteration(monkeypatch: pytest.MonkeyPatch) -> None:
    """By modality, by pattern, by feature, and however memory cuts the work up."""
    blocks, labels, _ = clustered(90)
    start = start_of(blocks, labels)
    rows, present = stacked(blocks)
    options = {"max_iterations": 8, "tolerance": 0, "anderson_memory": 0}
    results = [fit_mixture_em(blocks, start, form=form, **options) for form in ("modality", "pattern")]
    results.append(fit_mixture_em(FeatureBlocks(blocks.dims, rows, present), start, **options))
    for module in ("MATRIX", "ROW"):
        monkeypatch.setattr(import_module("calmrl_prob.linear_gaussian.mixture.expectation"), f"_{module}_BUDGET", 60)
        results.append(fit_mixture_em(blocks, start, form="modality", **options))
    assert [result.form for result in results] == ["modality", "pattern", "features", "modality", "modality"]
    for result in results[1:]:
        torch.testing.assert_close(result.log_likelihood, results[0].log_likelihood, rtol=1e-11, atol=0)
        torch.testing.assert_close(result.structure.means, results[0].structure.means, rtol=1e-8, atol=1e-8)


def test_gradient_ascent_finds_no_more() -> None:
    """L-BFGS on the exact evidence, over everything, from EM's answer."""
    blocks, labels, _ = clustered(150, latent_dim=2, num_components=2, rate=0.3)
    result = fit_mixture_em(
        blocks,
        start_of(blocks, labels, 2),
        weight_pseudo_count=0.0,
        covariance_pseudo_count=0.0,
        max_iterations=3000,
        tolerance=1e-11,
    )
    first = result.structure.components[0]
    loadings = {n: v.clone().requires_grad_() for n, v in first.loadings.items()}
    intercepts = {n: v.clone().requires_grad_() for n, v in first.intercepts.items()}
    logs = {n: v[0].log().clone().requires_grad_() for n, v in first.noise_variance.items()}
    weights = result.structure.log_weights.clone().requires_grad_()
    means = result.structure.means.clone().requires_grad_()
    roots = torch.linalg.cholesky(result.structure.covariances).contiguous().requires_grad_()
    variables = [*loadings.values(), *intercepts.values(), *logs.values(), weights, means, roots]

    def loss() -> Tensor:
        base = LinearGaussian(loadings, intercepts, {n: v.exp() for n, v in logs.items()})
        return -mixture_posterior(
            LinearGaussianMixture.from_prior(base, weights, means, roots @ roots.mT), blocks
        ).log_marginal.sum()

    assert_gradient_ascent_finds_no_more(loss, variables, float(result.log_likelihood[-1]))


def test_complete_data_with_hardly_any_noise_is_a_gaussian_mixture() -> None:
    generator = torch.Generator().manual_seed(0)
    centres = torch.tensor([[0.0, 0.0], [4.0, 1.0], [-3.0, 3.0]]).double()
    labels = torch.arange(600) % 3
    x = (
        centres[labels]
        + torch.randn(600, 2, generator=generator).double() @ torch.tensor([[1.0, 0.4], [0.0, 0.7]]).double()
    )
    blocks = ObservedBlocks.from_arrays({"x": x}, torch.ones(600, 1, dtype=torch.bool))
    oracle = GaussianMixture(3, means_init=centres.numpy(), tol=1e-10, max_iter=2000, reg_covar=0).fit(x.numpy())
    single = LinearGaussian(
        {"x": torch.eye(2).double()}, {"x": torch.zeros(2).double()}, {"x": torch.tensor(1e-6).double()}
    )
    result = fit_mixture_em(
        blocks,
        split_by_labels(single, blocks, labels, 3),
        weight_pseudo_count=0.0,
        covariance_pseudo_count=0.0,
        noise_floor=1e-7,
        tolerance=1e-10,
        max_iterations=3000,
    )
    assert float(result.log_likelihood[-1]) / 600 == pytest.approx(oracle.score(x.numpy()), abs=2e-4)
    found = mixture_posterior(result.structure, blocks).responsibilities
    expected = torch.from_numpy(oracle.predict_proba(x.numpy()))
    assert float((found - expected).abs().max()) < 0.01


def test_finds_the_clusters_that_made_the_data() -> None:
    blocks, labels, truth = clustered(3000, latent_dim=2, num_components=2, rate=0.3, seed=3)
    scrambled = torch.where(torch.rand(3000, generator=torch.Generator().manual_seed(0)) < 0.25, 1 - labels, labels)
    result = fit_mixture_em(blocks, start_of(blocks, scrambled, 2), noise="diagonal")
    assert result.converged
    best = evidence_of(truth, blocks)
    # what a fit gains over the truth on its own data is half of a chi-square, with a parameter to each degree
    assert 0 < evidence_of(result.structure, blocks) - best < 100
    assert best - float(fit_em(blocks, 2, noise="diagonal").log_likelihood[-1]) > 100
    sure = mixture_posterior(truth, blocks).responsibilities
    mine = mixture_posterior(result.structure, blocks).responsibilities
    assert float((mine.argmax(1) == sure.argmax(1)).double().mean()) > 0.97


def test_a_component_of_one_outlier_does_not_collapse() -> None:
    blocks, _, _ = clustered(100, num_components=2)
    alone = torch.zeros(100, dtype=torch.int64)
    alone[7] = 1
    for noise_floor in (1e-4, 1e-10):
        result = fit_mixture_em(blocks, start_of(blocks, alone), noise_floor=noise_floor, max_iterations=200)
        assert bool((result.objective.diff() >= 0).all())
        spectrum = torch.linalg.eigvalsh(result.structure.covariances)
        assert float(spectrum.min()) > 1e-3


def test_the_covariance_prior_is_the_divergence_that_it_is_said_to_be() -> None:
    mixture = random_mixture(DIMS, 3, 4)
    components = LatentComponents(mixture.log_weights, mixture.means, mixture.covariances)
    common = torch.linalg.inv(torch.linalg.inv(mixture.covariances).mean(0))
    zero = torch.zeros(3).double()
    divergence = sum(
        float(kl_divergence(MultivariateNormal(zero, common), MultivariateNormal(zero, covariance)))
        for covariance in mixture.covariances
    )
    found = ComponentModel(covariance_pseudo_count=7.0).log_prior(components)
    assert found == pytest.approx(-7 * divergence, rel=1e-10)
    moved = components.moved(torch.ones(3).double(), torch.linalg.cholesky(common + torch.eye(3).double()))
    assert ComponentModel(covariance_pseudo_count=7.0).log_prior(moved) == pytest.approx(found, rel=1e-10)
    assert ComponentModel(2.0).log_prior(components) == pytest.approx(2 * float(mixture.log_weights.sum()))


def test_known_groups_against_dense_normals() -> None:
    blocks, labels, _ = clustered(40)
    result = fit_mixture_em(blocks, start_of(blocks, labels), known_components=labels, max_iterations=15)
    rows, present = stacked(blocks)
    total = 0.0
    for n in range(40):
        mean, covariance = result.structure.components[int(labels[n])].joint()
        seen = present[n]
        total += float(MultivariateNormal(mean[seen], covariance[seen][:, seen]).log_prob(rows[n][seen]))
    assert float(result.log_likelihood[-1]) == pytest.approx(total, rel=1e-10)


def test_a_single_known_group_is_a_single_gaussian() -> None:
    blocks, _, truth = clustered(60)
    nobody_else = torch.zeros(60, dtype=torch.int64)
    options = {"noise": "diagonal", "max_iterations": 10, "tolerance": 0}
    one = LinearGaussianMixture(torch.zeros(1).double(), truth.components[:1])
    options["anderson_memory"] = 0
    known = fit_mixture_em(blocks, one, known_components=nobody_else, covariance_pseudo_count=0.0, **options)
    single = fit_em(blocks, 3, start=truth.components[0], **options)
    torch.testing.assert_close(known.log_likelihood, single.log_likelihood, rtol=1e-11, atol=0)


def test_a_group_that_nobody_is_in_keeps_what_all_have_in_common() -> None:
    blocks, labels, _ = clustered(60, num_components=2)
    start = split_by_labels(fit_em(blocks, 3).linear_gaussian, blocks, labels, 3)
    result = fit_mixture_em(blocks, start, known_components=labels, max_iterations=20)
    assert float(result.structure.log_weights[2]) == -torch.inf
    assert bool((torch.linalg.eigvalsh(result.structure.covariances[2]) > 0).all())
    assert bool((result.objective.diff() >= 0).all())


def test_the_split_has_the_moments_of_the_posteriors() -> None:
    blocks, labels, _ = clustered(50)
    model = fit_em(blocks, 3).linear_gaussian
    split = split_by_labels(model, blocks, labels, 3, covariance_pseudo_count=0.0)
    given_ = posterior(model, blocks)
    for c in range(3):
        rows = labels == c
        mean = given_.mean[rows].mean(0)
        second = (given_.covariance[rows] + given_.mean[rows][:, :, None] * given_.mean[rows][:, None, :]).mean(0)
        torch.testing.assert_close(split.means[c], mean, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(split.covariances[c], second - torch.outer(mean, mean), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("noise", ["isotropic", "diagonal"])
def test_a_constant_of_a_million_spreads_moves_intercepts_alone(noise: str) -> None:
    blocks, labels, _ = clustered(100)
    moved, _, _ = clustered(100)
    moved.values["b"] = moved.values["b"] + 1e6
    options = {"noise": noise, "max_iterations": 10, "tolerance": 0}
    one, other = (fit_mixture_em(data, start_of(data, labels), **options).structure for data in (blocks, moved))
    torch.testing.assert_close(other.means, one.means, rtol=1e-6, atol=1e-6)
    intercepts = [fitted.components[0].intercepts["b"] for fitted in (one, other)]
    torch.testing.assert_close(intercepts[1] - 1e6, intercepts[0], rtol=1e-6, atol=1e-6)


def test_float32_data_give_the_fit_of_the_same_numbers_in_float64() -> None:
    blocks, labels, _ = clustered(100)
    start = start_of(blocks, labels)
    single, double = clustered(100)[0], clustered(100)[0]
    single.values = {name: values.float() for name, values in blocks.values.items()}
    double.values = {name: values.double() for name, values in single.values.items()}
    one, other = (fit_mixture_em(data, start, max_iterations=10, tolerance=0) for data in (single, double))
    assert one.structure.dtype == torch.float64
    torch.testing.assert_close(one.structure.means, other.structure.means, rtol=1e-4, atol=1e-4)


def test_devices(device: str) -> None:
    blocks, labels, _ = clustered(80)
    start = start_of(blocks, labels)
    there = ObservedBlocks({n: v.to(device) for n, v in blocks.values.items()}, blocks.observed_mask.to(device))
    one, other = (fit_mixture_em(data, start, max_iterations=10, tolerance=0) for data in (blocks, there))
    assert other.structure.device.type == device
    assert float(other.log_likelihood[-1]) == pytest.approx(float(one.log_likelihood[-1]), rel=1e-9)


def test_errors() -> None:
    blocks, labels, _ = clustered(30)
    start = start_of(blocks, labels)
    with pytest.raises(ArgumentError, match="covariance: expected 'full' or 'tied'"):
        fit_mixture_em(blocks, start, covariance="diagonal")
    with pytest.raises(ArgumentError, match="covariance_pseudo_count: expected at least 0"):
        fit_mixture_em(blocks, start, covariance_pseudo_count=-1.0)
    with pytest.raises(ArgumentError, match=r"known_components: expected an int64 tensor of shape \(30,\)"):
        fit_mixture_em(blocks, start, known_components=labels[:5])
    with pytest.raises(ArgumentError, match="known_components: expected numbers from 0 to 2"):
        fit_mixture_em(blocks, start, known_components=labels + 1)
    with pytest.raises(ArgumentError, match="start: expected modalities"):
        fit_mixture_em(blocks, random_mixture({"a": 6}, 3, 2))
    with pytest.raises(ArgumentError, match="start: expected components that share"):
        fit_mixture_em(blocks, random_mixture(DIMS, 3, 2, shared=False))
    with pytest.raises(ArgumentError, match="form: expected one of"):
        fit_mixture_em(blocks, start, form="statistics")
    with pytest.raises(ArgumentError, match="labels: expected numbers from 0 to 1"):
        split_by_labels(fit_em(blocks, 3).linear_gaussian, blocks, labels, 2)
    blocks.values["a"][0, 0] = torch.inf
    with pytest.raises(NumericalError, match="modality 'a' holds values that are not finite"):
        fit_mixture_em(blocks, start)
