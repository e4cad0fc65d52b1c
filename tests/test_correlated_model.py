"""Models whose noise is correlated within modalities, from fit to file, against dense conditioning."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path

import numpy as np
import pyro
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO
from pyro.optim import Adam
from torch import Tensor
from torch.distributions import MultivariateNormal

import calmrl_prob as cal
from calmrl_prob.encoders.dense import posterior_mean_encoders
from calmrl_prob.errors import ArgumentError
from calmrl_prob.guide import ConjugateGuide
from calmrl_prob.linear_gaussian import LinearGaussian, ObservedBlocks, fit_em, posterior
from calmrl_prob.priors import MixturePrior
from tests.cases.linear_gaussian_cases import assert_close, random_mask, random_model

DIMS = {"a": 6, "b": 5, "c": 7}
NOISES = ["full", "low_rank"]


def drawn(noise: str, num_instances: int = 250, seed: int = 0) -> cal.MultimodalData:
    arrays = (
        random_model(DIMS, 2, seed, noise=noise).sample(num_instances, torch.Generator().manual_seed(seed)).features
    )
    return cal.MultimodalData(arrays, observed_mask=random_mask(num_instances, 3, 0.35, seed))


def loaded(noise: str) -> cal.SharedLatentModel:
    model = cal.SharedLatentModel(DIMS, 2, noise)
    model.load_linear_gaussian(random_model(DIMS, 2, noise=noise))
    return model


def conditioned(lg: LinearGaussian, row: Tensor, present: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and covariance of all features of one instance that are absent, given those that are there."""
    mean, covariance = lg.joint()
    gain = torch.linalg.solve(covariance[present][:, present], covariance[present][:, ~present]).mT
    left = covariance[~present][:, ~present] - gain @ covariance[present][:, ~present]
    return mean[~present] + gain @ (row - mean)[present], left


@pytest.mark.parametrize("noise", NOISES)
def test_imputations_equal_dense_conditioning(noise: str) -> None:
    data, model = drawn(noise, 30), loaded(noise)
    lg, imputed = model.linear_gaussian().detach(), cal.impute(model, data)
    for n in range(30):
        present = torch.cat([data.observed(name)[n].expand(width) for name, width in DIMS.items()])
        if bool(present.all()):
            continue
        row = torch.cat([data.filled(name)[n] for name in DIMS])
        mean, covariance = conditioned(lg, row, present)
        assert_close(torch.cat([imputed.mean[name][n] for name in DIMS])[~present], mean)
        assert_close(torch.cat([imputed.variance[name][n] for name in DIMS])[~present], covariance.diagonal())
    own = torch.cat([lg.correlated_noise(name).variance for name in DIMS])
    assert_close(torch.cat([imputed.noise_variance[name] for name in DIMS]), own)


@pytest.mark.parametrize("noise", NOISES)
def test_draws_are_joint(noise: str) -> None:
    data, model = drawn(noise, 30), loaded(noise)
    n = int((data.observed("a") & ~data.observed("c")).nonzero()[0])
    one = data.subset(torch.tensor([n]))
    lg = model.linear_gaussian().detach()
    present = torch.cat([one.observed(name)[0].expand(width) for name, width in DIMS.items()])
    _, covariance = conditioned(lg, torch.cat([one.filled(name)[0] for name in DIMS]), present)
    covariance = covariance[-7:, -7:]
    sd = covariance.diagonal().sqrt()
    bound = 6 * 1.5 * torch.outer(sd, sd) / 10_000**0.5
    draws = cal.impute(model, one).sample(10_000)["c"][:, 0]
    assert bool(((draws.mT.cov() - covariance).abs() < bound).all())


@pytest.mark.parametrize("noise", NOISES)
def test_single_missing_features_use_what_their_modality_tells(noise: str) -> None:
    """Noise that features share is known in part where some of them are there; dense conditioning knows it too."""
    data, model = drawn(noise, 30), loaded(noise)
    arrays = {name: data[name].clone() for name in DIMS}
    arrays["a"][::2, 1] = torch.nan
    arrays["c"][::3, 4:6] = torch.nan
    partial = cal.MultimodalData(arrays, missing="features")
    imputed, lg = cal.impute(model, partial), model.linear_gaussian().detach()
    for n in range(30):
        row = torch.cat([arrays[name][n] for name in DIMS])
        present = ~row.isnan()
        if bool(present.all()):
            continue
        mean, covariance = conditioned(lg, row, present)
        assert_close(torch.cat([imputed.mean[name][n] for name in DIMS])[~present], mean, 1e-8)
        assert_close(torch.cat([imputed.variance[name][n] for name in DIMS])[~present], covariance.diagonal(), 1e-8)
        joint = MultivariateNormal(
            *(part[present] if part.ndim == 1 else part[present][:, present] for part in lg.joint())
        )
        assert_close(imputed.posterior.log_marginal[n], joint.log_prob(row[present]))
    assert imputed.posterior.mean.shape == (30, 2)
    with pytest.raises(ArgumentError, match="noise: where single features are missing"):
        cal.fit(cal.SharedLatentModel(DIMS, 2, noise), partial)
    with pytest.raises(ArgumentError, match="data: noise that is correlated"):
        model(partial)


@pytest.mark.parametrize("noise", NOISES)
def test_fit_is_that_of_the_engine_and_survives_a_file(noise: str, tmp_path: Path) -> None:
    data = drawn(noise)
    model = cal.SharedLatentModel(DIMS, 2, noise, noise_rank={"a": 1, "b": 2, "c": 2} if noise == "low_rank" else None)
    assert model.unfitted
    found = cal.fit(model, data)
    assert not model.unfitted
    engine = fit_em(data.blocks, 2, noise=noise, noise_rank=model.noise_rank)
    assert float(engine.log_likelihood[-1]) == pytest.approx(float(found.log_likelihood[-1]), rel=1e-12)
    for one, other in zip(model.linear_gaussian().joint(), engine.linear_gaussian.joint(), strict=True):
        assert_close(one.detach(), other)
    cal.save(model, tmp_path / "model.safetensors")
    cal.save(engine.linear_gaussian, tmp_path / "form.safetensors")
    back, form = cal.load(tmp_path / "model.safetensors"), cal.load(tmp_path / "form.safetensors")
    assert repr(back) == repr(model)
    assert back.noise_rank == model.noise_rank
    for again in (back, copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(cal.impute(again, data).mean["c"], cal.impute(model, data).mean["c"])
    assert torch.equal(form.noise_factor["b"], engine.linear_gaussian.noise_factor["b"])


@pytest.mark.parametrize("noise", NOISES)
def test_elbo_under_the_exact_guide_is_the_evidence(noise: str) -> None:
    """For every single draw, and with the gradients of the evidence in expectation: SVI climbs it to where EM ends."""
    data = drawn(noise, 120)
    model = cal.SharedLatentModel(DIMS, 2, noise)
    model.load_linear_gaussian(fit_em(data.blocks, 2, noise=noise, max_iterations=3).linear_gaussian)
    guide = ConjugateGuide(model)
    elbo = Trace_ELBO()
    evidence = float(cal.posterior(model, data).log_marginal.sum())
    for seed in range(3):
        pyro.set_rng_seed(seed)
        assert -elbo.loss(model, guide, data) == pytest.approx(evidence, rel=1e-10)
    summit = float(fit_em(data.blocks, 2, noise=noise).log_likelihood[-1])
    svi = SVI(model, guide, Adam({"lr": 0.02}), elbo)
    for _ in range(300):
        svi.step(data)
    reached = float(cal.posterior(model, data).log_marginal.sum())
    # three steps of EM leave 1.4 and 9.4 nats, the climb 0.0004 and 0.06
    assert evidence < reached < summit + 0.5
    assert summit - reached < 0.5


@pytest.mark.parametrize("noise", NOISES)
def test_log_likelihood_of_draws_is_that_of_the_correlated_noise(noise: str) -> None:
    data, model = drawn(noise, 12), loaded(noise)
    exported = cal.to_arviz(model, data, num_draws=8, num_chains=1)
    lg = model.linear_gaussian().detach()
    latents = torch.as_tensor(np.asarray(exported.posterior["z"]))[0]
    for name in DIMS:
        density = torch.as_tensor(np.asarray(exported.log_likelihood[name]))[0]
        normal = MultivariateNormal(
            latents @ lg.loadings[name].mT + lg.intercepts[name], lg.correlated_noise(name).covariance()
        )
        expected = normal.log_prob(data.filled(name))
        here = data.observed(name)
        assert_close(density[:, here], expected[:, here], 1e-8)
        assert bool(density[:, ~here].isnan().all())


@pytest.mark.parametrize("noise", NOISES)
def test_parameter_draws_are_by_the_bootstrap(noise: str) -> None:
    data = drawn(noise)
    fitted = cal.fit(cal.SharedLatentModel(DIMS, 2, noise), data)
    draws = cal.parameter_draws(fitted, data, method="bootstrap", num_draws=8)
    shape = tuple(fitted.model.linear_gaussian().noise_factor["a"].shape)
    assert draws.values["noise_factor_a"].shape == (8, *shape)
    imputed = cal.impute(draws, data)
    part = imputed.parameter_variance["c"][~data.observed("c")]
    assert bool((part > 0).all())
    assert float(part.mean()) < float(
        imputed.noise_variance["c"].mean()
    )  # 250 rows know the parameters to a few percent
    with pytest.raises(ArgumentError, match=r"'laplace' has no curvature of noise that is correlated .*'bootstrap'"):
        cal.parameter_draws(fitted, data, method="laplace", num_draws=8)


def test_encoders_give_the_posterior_mean_of_one_modality() -> None:
    lg = random_model(DIMS, 2, noise="full")
    rows = lg.sample(5, torch.Generator().manual_seed(0)).features
    for name, encoder in posterior_mean_encoders(lg, whiten=False, dtype=torch.float64).items():
        alone = ObservedBlocks.from_arrays({name: rows[name]}, torch.ones(5, 1).bool())
        assert_close(encoder(rows[name]).detach(), posterior(lg.select([name]), alone).mean)


def test_what_a_model_takes_over() -> None:
    full, low = random_model(DIMS, 2, noise="full"), random_model(DIMS, 2, noise="low_rank")
    plain = random_model(DIMS, 2, noise="diagonal")
    for source in (full, low, plain):
        model = cal.SharedLatentModel(DIMS, 2, "full")
        model.load_linear_gaussian(source)
        for one, other in zip(model.linear_gaussian().joint(), source.joint(), strict=True):
            assert_close(one.detach(), other)
    cal.SharedLatentModel(DIMS, 2, "low_rank").load_linear_gaussian(low)
    with pytest.raises(ArgumentError, match="has rank 6, but this model's has 2; make a model with noise_rank=6"):
        cal.SharedLatentModel(DIMS, 2, "low_rank").load_linear_gaussian(full)
    with pytest.raises(
        ArgumentError, match=r"noise of modality 'a' is correlated .* model's is diagonal.*noise='full'"
    ):
        cal.SharedLatentModel(DIMS, 2, "diagonal").load_linear_gaussian(full)
    with pytest.raises(ArgumentError, match="noise_rank: it belongs to noise='low_rank'"):
        cal.SharedLatentModel(DIMS, 2, "full", noise_rank=2)
    with pytest.raises(ArgumentError, match="noise: 'full' goes with a normal prior, and the prior is mixture"):
        cal.SharedLatentModel(DIMS, 2, "full", MixturePrior(2, 3))
