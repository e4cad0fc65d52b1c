"""The exact posterior, evidence and predictive: against dense conditioning, pyro.ops.gaussian, and their own laws."""

from __future__ import annotations

import sys
from dataclasses import replace
from importlib import import_module

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pyro.ops.gaussian import Gaussian, matrix_and_mvn_to_gaussian, mvn_to_gaussian
from torch import Tensor
from torch.distributions import MultivariateNormal

from calmrl_prob.errors import ArgumentError, NumericalError, SchemaError
from calmrl_prob.linear_gaussian import FeatureBlocks, LinearGaussian, ObservedBlocks, log_marginal, posterior
from calmrl_prob.posteriors.gaussian import GaussianPosterior
from tests.cases.linear_gaussian_cases import (
    dense_conditioning,
    random_blocks,
    random_mask,
    random_model,
)

laws = settings(derandomize=True, deadline=None, max_examples=25)
model_cases = st.fixed_dictionaries(
    {
        "widths": st.lists(st.integers(1, 6), min_size=1, max_size=5),
        "latent_dim": st.integers(1, 5),
        "rate": st.sampled_from([0.0, 0.3, 0.7]),
        "prior": st.sampled_from(["standard", "full"]),
        "noise": st.sampled_from(["isotropic", "diagonal", "full", "low_rank"]),
        "seed": st.integers(0, 10_000),
    }
)


def make_case(case: dict) -> tuple[LinearGaussian, ObservedBlocks]:
    dims = {f"m{i}": width for i, width in enumerate(case["widths"])}
    model = random_model(dims, case["latent_dim"], case["seed"], prior=case["prior"], noise=case["noise"])
    return model, random_blocks(model, 23, case["rate"], case["seed"], empty=True)


def stacked_rows(blocks: ObservedBlocks) -> tuple[Tensor, Tensor]:
    """Full arrays with NaN where missing, (N, D), and the mask of present features."""
    rows = torch.full((blocks.num_instances, sum(blocks.dims.values())), torch.nan, dtype=torch.float64)
    start = 0
    for name, values in blocks.values.items():
        rows[blocks.rows[name], start : start + values.shape[1]] = values.double()
        start += values.shape[1]
    return rows, ~rows.isnan()


def assert_close(got: Tensor, expected: Tensor, tolerance: float = 1e-9) -> None:
    """Within ``tolerance`` relative to the size of what is expected."""
    scale = float(expected.abs().max()) if expected.numel() else 1.0
    assert float((got - expected).abs().max() if expected.numel() else 0.0) <= tolerance * max(scale, 1.0)


@laws
@given(model_cases)
def test_dense_conditioning(case: dict) -> None:
    model, blocks = make_case(case)
    post = posterior(model, blocks)
    predicted = [GaussianPosterior(post).predictive(name) for name in model.names]
    rows, present = stacked_rows(blocks)
    mean = torch.cat([part.mean for part in predicted], dim=1)
    variance = torch.cat([part.variance for part in predicted], dim=1)
    for n in range(blocks.num_instances):
        oracle = dense_conditioning(model, rows[n].nan_to_num(), present[n])
        assert_close(post.mean[n], oracle["mean"])
        assert_close(post.covariance[n], oracle["covariance"])
        assert_close(post.log_marginal[n], oracle["evidence"])
        assert_close(mean[n], oracle["predicted"])
        assert_close(variance[n], oracle["variance"])
        assert_close(variance[n][~present[n]], oracle["missing_variance"])


@laws
@given(model_cases)
def test_pyro_gaussian_agrees(case: dict) -> None:
    """Pyro's own Gaussian algebra, one modality at a time, gives the same posterior and evidence."""
    model, blocks = make_case(case)
    post = posterior(model, blocks)
    for n in range(min(8, blocks.num_instances)):
        factor: Gaussian = mvn_to_gaussian(MultivariateNormal(model.prior_mean, model.prior_covariance))
        for name, values in blocks.values.items():
            here = (blocks.rows[name] == n).nonzero().flatten()
            if len(here):
                own = model.correlated_noise(name)
                covariance = torch.diag(model.noise_variance[name]) if own is None else own.covariance()
                noise = MultivariateNormal(model.intercepts[name], covariance)
                factor = factor + matrix_and_mvn_to_gaussian(model.loadings[name].mT, noise).condition(values[here[0]])
        covariance = torch.linalg.inv(factor.precision)
        assert_close(post.covariance[n], covariance)
        assert_close(post.mean[n], covariance @ factor.info_vec)
        assert_close(post.log_marginal[n], factor.event_logsumexp())


@laws
@given(model_cases, st.randoms(use_true_random=False))
def test_order_of_rows_and_modalities_is_nothing(case: dict, random: object) -> None:
    model, blocks = make_case(case)
    post = posterior(model, blocks)
    order = torch.tensor(random.sample(range(blocks.num_instances), blocks.num_instances))  # type: ignore[attr-defined]
    names = random.sample(list(blocks.names), len(blocks.names))  # type: ignore[attr-defined]
    rows, _ = stacked_rows(blocks)
    parts = dict(zip(blocks.names, rows.split(list(blocks.dims.values()), dim=1), strict=True))
    columns = [blocks.names.index(name) for name in names]
    shuffled = ObservedBlocks.from_arrays(
        {name: parts[name][order] for name in names}, blocks.observed_mask[order][:, columns]
    )
    again = posterior(model.select(names), shuffled)
    assert_close(again.mean, post.mean[order])
    assert_close(again.log_marginal, post.log_marginal[order])


@laws
@given(model_cases)
def test_rotating_the_latent_changes_no_prediction(case: dict) -> None:
    case = {**case, "prior": "standard"}
    model, blocks = make_case(case)
    rotation = torch.linalg.qr(torch.randn(case["latent_dim"], case["latent_dim"], dtype=torch.float64)).Q
    rotated = replace(model, loadings={name: loadings @ rotation for name, loadings in model.loadings.items()})
    one, other = posterior(model, blocks), posterior(rotated, blocks)
    assert_close(other.log_marginal, one.log_marginal)
    for name in model.names:
        first, second = (GaussianPosterior(found).predictive(name) for found in (one, other))
        assert_close(second.mean, first.mean)
        assert_close(second.latent_variance, first.latent_variance)


def test_chunks_of_rows_and_patterns_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    model = random_model({"a": 40, "b": 30, "c": 20}, latent_dim=6)
    blocks = random_blocks(model, 700, rate=0.4)
    whole = posterior(model, blocks)
    variance = GaussianPosterior(whole).predictive("a").latent_variance
    monkeypatch.setattr(import_module("calmrl_prob.linear_gaussian.products"), "CHUNK_BUDGET", 2000)
    # by module, because the package re-exports a function of the same name
    monkeypatch.setattr(sys.modules["calmrl_prob.linear_gaussian.posterior"], "CHUNK_BUDGET", 100)
    monkeypatch.setattr(import_module("calmrl_prob.linear_gaussian.layout"), "_BUCKET_BUDGET", 72)
    parts = posterior(model, blocks)
    assert_close(parts.mean, whole.mean)
    assert_close(parts.log_marginal, whole.log_marginal)
    assert_close(GaussianPosterior(parts).predictive("a").latent_variance, variance)


def test_what_stands_in_absent_rows_is_never_read() -> None:
    model = random_model({"a": 3, "b": 2}, latent_dim=2)
    _, features = model.sample(10)
    mask = random_mask(10, 2, rate=0.5)
    clean = posterior(model, ObservedBlocks.from_arrays(features, mask))
    for m, name in enumerate(features):
        features[name][~mask[:, m]] = torch.nan
    dirty = posterior(model, ObservedBlocks.from_arrays(features, mask))
    assert torch.equal(dirty.mean, clean.mean)
    assert torch.equal(dirty.log_marginal, clean.log_marginal)


def test_gradients_of_the_evidence() -> None:
    model = random_model({"a": 3, "b": 2}, latent_dim=2)
    blocks = random_blocks(model, 6, rate=0.4)

    def evidence(loadings_a: Tensor, intercept_b: Tensor, log_noise: Tensor, prior_mean: Tensor) -> Tensor:
        changed = LinearGaussian(
            {"a": loadings_a, "b": model.loadings["b"]},
            {"a": model.intercepts["a"], "b": intercept_b},
            {"a": log_noise.exp(), "b": model.noise_variance["b"]},
            prior_mean,
            model.prior_covariance,
        )
        return log_marginal(changed, blocks).sum()

    inputs = [model.loadings["a"], model.intercepts["b"], model.noise_variance["a"].log(), model.prior_mean]
    assert torch.autograd.gradcheck(evidence, [value.clone().requires_grad_() for value in inputs])


def test_draws_have_the_moments_of_the_posterior() -> None:
    model = random_model({"a": 4, "b": 3}, latent_dim=3)
    blocks = random_blocks(model, 12, rate=0.5)
    post = posterior(model, blocks)
    draws = post.sample(40_000, torch.Generator().manual_seed(1))
    error = post.pattern_covariance.diagonal(dim1=-2, dim2=-1)[blocks.pattern_index].sqrt() / 200
    assert bool(((draws.mean(0) - post.mean).abs() < 6 * error).all())
    centred = draws - post.mean
    covariance = torch.einsum("snk,snl->nkl", centred, centred) / len(draws)
    scale = torch.einsum("nk,nl->nkl", error, error) * 200 * 2  # sd of a product of correlated normals, at most
    assert bool(((covariance - post.covariance).abs() < 6 * scale).all())


def test_samples_have_the_joint_moments() -> None:
    model = random_model({"a": 3, "b": 2}, latent_dim=2)
    _, features = model.sample(100_000, torch.Generator().manual_seed(3))
    rows = torch.cat(list(features.values()), dim=1)
    mean, covariance = model.joint()
    sd = covariance.diagonal().sqrt()
    assert bool(((rows.mean(0) - mean).abs() < 6 * sd / 100_000**0.5).all())
    assert bool(((rows.mT.cov() - covariance).abs() < 6 * 1.5 * torch.outer(sd, sd) / 100_000**0.5).all())


def test_single_missing_features_match_dense_conditioning() -> None:
    model = random_model({"a": 4, "b": 3}, latent_dim=3)
    _, features = model.sample(15, torch.Generator().manual_seed(0))
    present = random_mask(15, 7, rate=0.4, empty=True)
    rows = torch.cat(list(features.values()), dim=1)
    post = posterior(model, FeatureBlocks(model.dims, rows.masked_fill(~present, torch.nan), present))
    for n in range(15):
        oracle = dense_conditioning(model, rows[n], present[n])
        assert_close(post.mean[n], oracle["mean"])
        assert_close(post.covariance[n], oracle["covariance"])
        assert_close(post.log_marginal[n], oracle["evidence"])


def test_whole_modalities_missing_is_a_case_of_features_missing() -> None:
    model = random_model({"a": 4, "b": 3}, latent_dim=3)
    blocks = random_blocks(model, 30, rate=0.4)
    rows, present = stacked_rows(blocks)
    by_feature = posterior(model, FeatureBlocks(model.dims, rows, present))
    by_modality = posterior(model, blocks)
    assert_close(by_feature.mean, by_modality.mean)
    assert_close(by_feature.log_marginal, by_modality.log_marginal)


@pytest.mark.parametrize("num_modalities", [1, 30, 70])
def test_many_modalities_and_patterns(num_modalities: int) -> None:
    """More patterns than half of the rows, and more modalities than an integer has bits."""
    model = random_model({f"m{i}": 2 for i in range(num_modalities)}, latent_dim=4)
    blocks = random_blocks(model, 200, rate=0.5)
    rows, present = stacked_rows(blocks)
    assert blocks.num_patterns > 100 or num_modalities == 1
    post = posterior(model, blocks)
    for n in range(0, 200, 40):
        assert_close(post.mean[n], dense_conditioning(model, rows[n].nan_to_num(), present[n])["mean"], 1e-8)


def test_float32_data_far_from_zero() -> None:
    """A mean of 10^4 spreads costs float32 data only what rounding them to float32 had cost."""
    model = random_model({"a": 20, "b": 10}, latent_dim=3)
    far = LinearGaussian(
        model.loadings, {n: mu + 1e4 + 0.3 for n, mu in model.intercepts.items()}, model.noise_variance
    )
    single = random_blocks(far, 200, rate=0.3)
    single.values = {name: values.float() for name, values in single.values.items()}
    double = random_blocks(far, 200, rate=0.3)
    double.values = {name: values.double() for name, values in single.values.items()}  # the same rounded numbers
    assert_close(posterior(far, single).mean, posterior(far, double).mean, 2e-6)
    assert_close(posterior(far, single).log_marginal, posterior(far, double).log_marginal, 2e-6)


def test_devices(device: str) -> None:
    """Posterior, evidence, predictive and draws on every device at hand, as on the CPU."""
    model = random_model({"a": 8, "b": 5, "c": 3}, latent_dim=4)
    blocks = random_blocks(model, 300, rate=0.4)
    rows, _ = stacked_rows(blocks)
    parts = dict(zip(blocks.names, rows.to(device).split(list(blocks.dims.values()), dim=1), strict=True))
    there = ObservedBlocks.from_arrays(parts, blocks.observed_mask.to(device))
    here, moved = posterior(model, blocks), posterior(model.to(device=device), there)
    assert moved.mean.device.type == device
    assert_close(moved.mean.cpu(), here.mean)
    assert_close(moved.log_marginal.cpu(), here.log_marginal)
    first, second = (GaussianPosterior(found).predictive("b").latent_variance for found in (here, moved))
    assert_close(second.cpu(), first)
    assert moved.sample(3, torch.Generator(device).manual_seed(0)).shape == (3, 300, 4)


def test_errors() -> None:
    model = random_model({"a": 3}, latent_dim=2)
    with pytest.raises(SchemaError, match=r"no modality \['b'\]"):
        model.select(["b"])
    with pytest.raises(ArgumentError, match=r"noise_variance\['a'\]: expected positive"):
        LinearGaussian(model.loadings, model.intercepts, {"a": torch.tensor(0.0)})
    with pytest.raises(ArgumentError, match=r"intercepts\['a'\]: expected shape \(3,\)"):
        LinearGaussian(model.loadings, {"a": torch.zeros(2)}, model.noise_variance)
    far = torch.tensor([[1.0] * 3, [1e200] * 3], dtype=torch.float64)
    with pytest.raises(NumericalError, match="evidence of 1 instances is not finite, first row 1"):
        posterior(model, ObservedBlocks.from_arrays({"a": far}, torch.ones(2, 1).bool()))
    broken = LinearGaussian({"a": torch.full((3, 2), torch.nan)}, {"a": torch.zeros(3)}, {"a": torch.tensor(1.0)})
    with pytest.raises(NumericalError, match="positive-definite"):
        posterior(broken, ObservedBlocks.from_arrays({"a": torch.ones(1, 3)}, torch.tensor([[True]])))
