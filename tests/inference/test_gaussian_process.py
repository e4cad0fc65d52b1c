"""The Gaussian-process route against dense conditioning of N K latents, GPyTorch's own ExactGP, and itself."""

from __future__ import annotations

import builtins
import math
import sys

import gpytorch
import numpy as np
import pyro
import pytest
import torch
from pyro.infer import MCMC, NUTS
from torch import Tensor

import calmrl_prob as cal
from calmrl_prob.errors import ArgumentError, ArgumentTypeError, DataError, MissingDependencyError, NotConjugateError
from calmrl_prob.evaluation.simulation import simulate_model, simulation_ranks
from calmrl_prob.inference.exact.process import gaussian_process_posterior
from calmrl_prob.inference.exact.process_fit import GaussianProcessOptions, fit_gaussian_process
from calmrl_prob.linear_gaussian import LinearGaussian
from calmrl_prob.priors import GaussianProcessPrior
from models.gaussian_process import GaussianProcessModel
from tests.cases.linear_gaussian_cases import random_mask
from tests.cases.linear_gaussian_cases import random_model as random_structure
from tests.cases.process_oracles import dense

DIMS = {"image": 3, "text": 2, "audio": 1}


def smooth_prior(nugget: float = 0.0, latent_dim: int = 3) -> GaussianProcessPrior:
    """Kernels of three kinds over two covariates."""
    kinds = [
        gpytorch.kernels.RBFKernel(ard_num_dims=2),
        gpytorch.kernels.ScaleKernel(gpytorch.kernels.MaternKernel(nu=1.5)),
        gpytorch.kernels.RBFKernel() + gpytorch.kernels.MaternKernel(nu=2.5),
    ]
    prior = GaussianProcessPrior(latent_dim, kinds[:latent_dim], covariate="place", nugget=nugget)
    with torch.no_grad():
        prior.nugget_logit += torch.linspace(-1, 1, latent_dim, dtype=torch.float64)
    return prior


def covariances(prior: GaussianProcessPrior, places: Tensor, other: Tensor | None = None) -> Tensor:
    """Of the latents, (K, N, N), nugget included unless the two sets of places differ."""
    with torch.no_grad():
        smooth = [prior.covariance(k, places, places if other is None else other) for k in range(prior.latent_dim)]
        nugget = prior.nugget[:, None, None] * torch.eye(len(places), dtype=torch.float64)
    return torch.stack(smooth) + (nugget if other is None else 0)


def problem(num_instances: int = 30, seed: int = 0, nugget: float = 0.0) -> tuple[LinearGaussian, GaussianProcessPrior,
                                                                                  cal.MultimodalData]:  # fmt: skip
    """A model, a prior, and data over two covariates, in which two instances share a place."""
    lg = random_structure(DIMS, 3, seed, prior="standard")
    generator = torch.Generator().manual_seed(seed)
    places = torch.rand(num_instances, 2, generator=generator, dtype=torch.float64)
    places[1] = places[0]
    x = {name: torch.randn(num_instances, width, generator=generator).double() for name, width in DIMS.items()}
    mask = random_mask(num_instances, 3, 0.45, seed)
    data = cal.MultimodalData(x, observed_mask=mask, covariates={"place": places.numpy()})
    return lg, smooth_prior(nugget), data


@pytest.mark.parametrize("nugget", [0.0, 0.3])
def test_posterior_is_dense_conditioning(nugget: float) -> None:
    lg, prior, data = problem(nugget=nugget)
    result = gaussian_process_posterior(lg, prior, data, tolerance=0)
    places = torch.from_numpy(data.covariates["place"])
    mean, covariance, evidence = dense(lg, data.blocks, covariances(prior, places))
    blocks = covariance.view(30, 3, 30, 3)[range(30), :, range(30)]
    assert result.diagnostics["exact"]
    torch.testing.assert_close(result.mean, mean, rtol=0, atol=1e-8)
    torch.testing.assert_close(result.covariance, blocks, rtol=0, atol=1e-8)
    assert result.evidence == pytest.approx(evidence, abs=1e-8)
    close = gaussian_process_posterior(lg, prior, data)
    assert close.evidence == pytest.approx(evidence, abs=2e-6)
    torch.testing.assert_close(close.mean, mean, rtol=0, atol=1e-6)


@pytest.mark.parametrize("nugget", [0.0, 0.3])
def test_unseen_covariates_and_further_instances_are_dense_conditioning_too(nugget: float) -> None:
    """Instances 20 to 29 are conditioned on 0 to 19; then their data are taken away, and only the places are left."""
    lg, prior, data = problem(nugget=nugget)
    first, second = data.subset(slice(0, 20)), data.subset(slice(20, 30))
    places = torch.from_numpy(data.covariates["place"])
    whole = dense(lg, data.blocks, covariances(prior, places))
    begun = dense(lg, first.blocks, covariances(prior, places[:20]))
    result = gaussian_process_posterior(lg, prior, second, given=first, tolerance=0)
    torch.testing.assert_close(result.mean, whole[0][20:], rtol=0, atol=1e-8)
    assert result.evidence == pytest.approx(whole[2] - begun[2], abs=1e-8)
    nothing = data.blocks.observed_mask.clone()
    nothing[20:] = False
    hidden = type(data.blocks).from_arrays({name: data.filled(name) for name in DIMS}, nothing)
    mean, covariance, _ = dense(lg, hidden, covariances(prior, places))
    ahead = gaussian_process_posterior(lg, prior, first, tolerance=0).predict(places[20:].numpy())
    torch.testing.assert_close(ahead.mean, mean[20:], rtol=0, atol=1e-8)
    blocks = covariance.view(30, 3, 30, 3)[range(20, 30), :, range(20, 30)]
    torch.testing.assert_close(ahead.covariance, blocks, rtol=0, atol=1e-8)
    predictive = ahead.predictive("text")
    torch.testing.assert_close(predictive.mean, mean[20:] @ lg.loadings["text"].mT + lg.intercepts["text"])
    variance = torch.einsum("dk,nkj,dj->nd", lg.loadings["text"], blocks, lg.loadings["text"])
    torch.testing.assert_close(predictive.variance, variance + lg.noise_variance["text"])
    assert bool((ahead.log_marginal == 0).all())


def test_densities_of_single_instances() -> None:
    lg, prior, data = problem(12, nugget=0.2)
    places = torch.from_numpy(data.covariates["place"])
    result = gaussian_process_posterior(lg, prior, data, tolerance=0)
    evidence = dense(lg, data.blocks, covariances(prior, places))[2]
    conditioned = gaussian_process_posterior(
        lg, prior, data.subset(slice(8, 12)), given=data.subset(slice(0, 8)), tolerance=0
    )
    begun = dense(lg, data.subset(slice(0, 8)).blocks, covariances(prior, places[:8]))[2]
    for row in range(12):
        others = [n for n in range(12) if n != row]
        alone = dense(lg, data.subset([row]).select(_has(data, row)).blocks, covariances(prior, places[[row]]))[2]
        assert float(result.log_marginal[row]) == pytest.approx(alone, abs=1e-8)
        without = dense(lg, data.subset(others).blocks, covariances(prior, places[others]))[2]
        assert float(result.leave_one_out[row]) == pytest.approx(evidence - without, abs=1e-7)
        if row >= 8:
            one_more = [*range(8), row]
            joint = dense(lg, data.subset(one_more).blocks, covariances(prior, places[one_more]))[2]
            assert float(conditioned.log_marginal[row - 8]) == pytest.approx(joint - begun, abs=1e-7)


def _has(data: cal.MultimodalData, row: int) -> list[str]:
    return [name for name in data.names if bool(data.observed(name)[row])]


def test_one_latent_and_one_feature_are_gpytorchs_own_exact_gp() -> None:
    generator = torch.Generator().manual_seed(0)
    time = torch.linspace(0, 3, 40, dtype=torch.float64)
    x = torch.sin(2 * time) + 0.2 * torch.randn(40, generator=generator, dtype=torch.float64)
    kernel = gpytorch.kernels.MaternKernel(nu=2.5).double()
    kernel.lengthscale = 0.6
    likelihood = gpytorch.likelihoods.GaussianLikelihood().double()
    likelihood.noise = 0.05

    class Regression(gpytorch.models.ExactGP):
        def __init__(self) -> None:
            super().__init__(time, x, likelihood)
            self.mean_module = gpytorch.means.ConstantMean().double()
            self.covar_module = gpytorch.kernels.ScaleKernel(kernel).double()
            self.covar_module.outputscale = 4.0

        def forward(self, at: Tensor) -> gpytorch.distributions.MultivariateNormal:
            return gpytorch.distributions.MultivariateNormal(self.mean_module(at), self.covar_module(at))

    regression = Regression()
    unseen = torch.tensor([-0.5, 1.234, 5.0], dtype=torch.float64)
    with torch.no_grad(), gpytorch.settings.fast_computations(False, False, False):
        marginal = likelihood(regression.train()(time)).log_prob(x)
        theirs = regression.eval()(unseen)
        lg = LinearGaussian({"x": torch.full((1, 1), 2.0).double()}, {"x": torch.zeros(1).double()},
                            {"x": torch.tensor(0.05).double()})  # fmt: skip
        data = cal.MultimodalData({"x": x[:, None]}, covariates={"time": time})
        ours = gaussian_process_posterior(lg, GaussianProcessPrior(1, kernel, nugget=0), data)
        ahead = ours.predict(unseen).predictive("x")
        assert ours.evidence == pytest.approx(float(marginal), abs=1e-7)
        torch.testing.assert_close(ahead.mean[:, 0], theirs.mean, rtol=0, atol=1e-8)
        torch.testing.assert_close(ahead.latent_variance[:, 0], theirs.variance, rtol=0, atol=1e-8)


def test_inducing_points_approach_the_exact_posterior_from_below() -> None:
    lg, prior, data = problem(80, nugget=0.1)
    exact = gaussian_process_posterior(lg, prior, data)
    evidence, error = [], []
    for rank in (1, 4, 20, 80):
        result = gaussian_process_posterior(lg, prior, data, max_rank=rank)
        assert result.diagnostics["num_weights"] <= 3 * rank
        assert result.evidence <= exact.evidence + 1e-7
        assert result.evidence + result.diagnostics["evidence_gap"] >= exact.evidence - 1e-7
        evidence.append(result.evidence)
        error.append(float((result.mean - exact.mean).abs().max()))
    assert exact.diagnostics["exact"]
    assert not gaussian_process_posterior(lg, prior, data, max_rank=1).diagnostics["exact"]
    assert evidence == sorted(evidence)
    assert error[-1] < 1e-8 < 1e-2 < error[0]


def test_latents_taken_apart_have_the_same_means_and_nearly_the_same_covariances() -> None:
    lg = random_structure({"image": 12, "text": 9, "audio": 7}, 3, prior="standard")
    prior = smooth_prior(0.5)
    generator = torch.Generator().manual_seed(1)
    places = torch.rand(60, 2, generator=generator, dtype=torch.float64)
    x = {name: torch.randn(60, width, generator=generator).double() for name, width in lg.dims.items()}
    data = cal.MultimodalData(x, observed_mask=random_mask(60, 3, 0.4), covariates={"place": places})
    joint = gaussian_process_posterior(lg, prior, data)
    apart = gaussian_process_posterior(lg, prior, data, joint_limit=0)
    assert (joint.diagnostics["joint"], apart.diagnostics["joint"]) == (True, False)
    torch.testing.assert_close(apart.mean, joint.mean, rtol=0, atol=1e-8)
    assert joint.evidence - 1.0 < apart.evidence < joint.evidence
    assert float((apart.covariance - joint.covariance).norm() / joint.covariance.norm()) < 0.03
    new = [[0.2, 0.8], [5.0, 5.0]]
    torch.testing.assert_close(apart.predict(new).mean, joint.predict(new).mean, rtol=0, atol=1e-8)
    torch.testing.assert_close(apart.leave_one_out, joint.leave_one_out, rtol=0, atol=0.5)


def test_draws_are_joint_over_instances_and_places_not_seen() -> None:
    lg, prior, data = problem(8, nugget=0.2)
    places = torch.from_numpy(data.covariates["place"])
    new = torch.cat([places[:1] + 0.01, torch.tensor([[3.0, 3.0], [3.05, 3.0]], dtype=torch.float64)])
    nothing = torch.cat([data.observed_mask, torch.zeros(3, 3, dtype=torch.bool)])
    arrays = {name: torch.cat([data.filled(name), torch.zeros(3, w).double()]) for name, w in DIMS.items()}
    hidden = type(data.blocks).from_arrays(arrays, nothing)
    mean, covariance, _ = dense(lg, hidden, covariances(prior, torch.cat([places, new])))
    result = gaussian_process_posterior(lg, prior, data)
    for part, start, stop in ((result, 0, 8), (result.predict(new), 8, 11)):
        draws = part.sample(2000, seed=1).flatten(1)
        inside = slice(3 * start, 3 * stop)
        wanted, spread = covariance[inside, inside], covariance[inside, inside].diagonal()
        error = draws.mean(0) - mean[start:stop].flatten()
        assert bool((error.abs() < 6 * (spread / 2000).sqrt()).all())
        standard_error = ((wanted.square() + torch.outer(spread, spread)) / 2000).sqrt()
        assert bool(((torch.cov(draws.mT) - wanted).abs() < 6 * standard_error).all())
    assert torch.equal(result.sample(2, seed=5), result.sample(2, seed=5))


def test_imputation_goes_through_the_common_result() -> None:
    lg, prior, data = problem(15, nugget=0.2)
    result = gaussian_process_posterior(lg, prior, data)
    imputed = cal.Imputation(data, result, data.names)
    mean, covariance, _ = dense(lg, data.blocks, covariances(prior, torch.from_numpy(data.covariates["place"])))
    blocks = covariance.view(15, 3, 15, 3)[range(15), :, range(15)]
    torch.testing.assert_close(imputed.mean["image"], mean @ lg.loadings["image"].mT + lg.intercepts["image"])
    latent = torch.einsum("dk,nkj,dj->nd", lg.loadings["image"], blocks, lg.loadings["image"])
    torch.testing.assert_close(imputed.latent_variance["image"], latent)
    drawn = imputed.sample(2000, seed=0)["image"]
    standard_error = (imputed.variance["image"] / 2000).sqrt()
    assert bool(((drawn.mean(0) - imputed.mean["image"]).abs() < 6 * standard_error).all())


def test_rows_may_come_in_any_order() -> None:
    lg, prior, data = problem(20, nugget=0.2)
    order = torch.randperm(20, generator=torch.Generator().manual_seed(0))
    first, second = (
        gaussian_process_posterior(lg, prior, data),
        gaussian_process_posterior(lg, prior, data.subset(order)),
    )
    torch.testing.assert_close(first.mean[order], second.mean, rtol=0, atol=1e-8)
    assert first.evidence == pytest.approx(second.evidence, abs=1e-7)


def test_bad_input_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    lg, prior, data = problem(10)
    with pytest.raises(DataError, match=r"no covariate 'place'.*covariates=\{'place'"):
        gaussian_process_posterior(lg, prior, cal.MultimodalData({"text": torch.ones(3, 2).double()}))
    for broken, message in (
        (np.array([0.0, math.nan, 1.0]), "1 rows are not finite, first row 1"),
        (np.array(["a", "b", "c"]), "expected numbers"),
    ):
        damaged = cal.MultimodalData({"text": torch.ones(3, 2).double()}, covariates={"place": broken})
        with pytest.raises(DataError, match=message):
            gaussian_process_posterior(lg, prior, damaged)
    result = gaussian_process_posterior(lg, prior, data)
    with pytest.raises(ArgumentError, match=r"expected shape \(n, 2\)"):
        result.predict([1.0, 2.0])
    with pytest.raises(ArgumentError, match="finite"):
        result.predict([[1.0, math.nan]])
    with pytest.raises(ArgumentError, match="an entry 'place'"):
        result.predict({"time": [[1.0, 2.0]]})
    with pytest.raises(ArgumentTypeError, match="numbers"):
        result.predict("soon")
    with pytest.raises(ArgumentError, match="3 latents, the model 2"):
        gaussian_process_posterior(random_structure(DIMS, 2, prior="standard"), prior, data)
    with pytest.raises(ArgumentTypeError, match="GaussianProcessPrior"):
        gaussian_process_posterior(lg, "smooth", data)
    with pytest.raises(ArgumentError, match="below 1"):
        GaussianProcessPrior(2, nugget=1.0)
    with pytest.raises(ArgumentError, match="2 kernels, one for each latent, got 1"):
        GaussianProcessPrior(2, [gpytorch.kernels.RBFKernel()])
    with pytest.raises(ArgumentTypeError, match="Kernel"):
        GaussianProcessPrior(2, "rbf")
    with pytest.raises(NotConjugateError, match=r"instances coupled.*depend on each other"):
        cal.SharedLatentModel(DIMS, latent_dim=3, prior=prior).linear_gaussian()

    original = builtins.__import__

    def without_gpytorch(name: str, *args: object, **kwargs: object) -> object:
        if name == "gpytorch":
            raise ImportError(name)
        return original(name, *args, **kwargs)

    monkeypatch.delitem(sys.modules, "gpytorch")
    monkeypatch.setattr(builtins, "__import__", without_gpytorch)
    with pytest.raises(MissingDependencyError, match=r"pip install 'calmrl-prob\[gp\]'"):
        GaussianProcessPrior(2)


def test_fit_raises_the_evidence_and_finds_the_length_scale() -> None:
    """One latent of length scale 0.4 over 150 times, three modalities; noise variances of 0.1."""
    truth = GaussianProcessModel({"image": 4, "text": 3}, 1, nugget=0)
    truth.prior.set_lengthscale(0, 0.4)
    with torch.no_grad():
        for name in truth.dims:
            truth.loadings[name].mul_(10)
            truth.log_noise[name].fill_(math.log(0.1))
    time = torch.linspace(0, 10, 150, dtype=torch.float64)
    full = {name: torch.zeros(150, width).double() for name, width in truth.dims.items()}
    like = cal.MultimodalData(full, observed_mask=random_mask(150, 2, 0.3), covariates={"time": time})
    _, data = simulate_model(truth, like, seed=3)
    model = GaussianProcessModel(truth.dims, 1)
    result = cal.fit(model, data)
    assert result.converged
    assert result.method == "own"
    assert bool((result.objective[1:] >= result.objective[:-1]).all())
    found = gaussian_process_posterior(model.structure(), model.prior, data)
    best = gaussian_process_posterior(truth.structure(), truth.prior, data)
    assert found.evidence == pytest.approx(result.log_likelihood[-1], abs=0.5)
    assert found.evidence > best.evidence
    assert 0.2 < float(model.prior.kernels[0].lengthscale.detach()) < 0.8
    assert float(model.prior.nugget.detach()) < 0.05
    assert cal.posterior(model, data).route == "gaussian process"
    assert cal.impute(result, data).mean["text"].shape == (150, 3)


def test_fit_leaves_alone_what_needs_no_gradient_and_starts_from_what_it_is_given() -> None:
    lg, prior, data = problem(25, nugget=0)
    for parameter in prior.kernels[0].parameters():
        parameter.requires_grad_(False)
    fixed = prior.kernels[0].lengthscale.clone()
    options = GaussianProcessOptions(max_iterations=2)
    result = fit_gaussian_process(prior, data, start=lg, options=options)
    assert torch.equal(prior.kernels[0].lengthscale, fixed)
    assert bool((prior.nugget == 0).all())
    assert (result.num_iterations, result.converged, result.stop_reason) == (2, False, "max_iterations")
    exact = gaussian_process_posterior(lg, problem(25, nugget=0)[1], data).evidence
    assert float(result.log_likelihood[0]) == pytest.approx(exact, abs=0.02)
    with pytest.raises(ArgumentError, match="no option 'steps'"):
        GaussianProcessOptions.of({"steps": 3})
    with pytest.raises(ArgumentError, match="tolerance"):
        GaussianProcessOptions.of({"tolerance": -1.0})


def test_a_nugget_near_one_is_the_fit_of_independent_instances() -> None:
    lg, _, data = problem(25)
    prior = GaussianProcessPrior(3, covariate="place", nugget=1 - 1e-12)
    result = gaussian_process_posterior(lg, prior, data)
    independent = cal.posterior(lg, data)
    torch.testing.assert_close(result.mean, independent.mean, rtol=0, atol=1e-8)
    torch.testing.assert_close(result.covariance, independent.covariance, rtol=0, atol=1e-8)
    assert result.evidence == pytest.approx(float(independent.log_marginal.sum()), abs=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("joint_limit", [2000, 0], ids=["joint", "factorised"])
def test_the_posterior_is_calibrated(joint_limit: int) -> None:
    """300 data sets of 12 instances that lack modalities, two at one time; seeds fixed in advance."""
    model = GaussianProcessModel({"a": 2, "b": 1}, 2, nugget=0.3, seed=1)
    with torch.no_grad():
        for name in model.dims:
            model.loadings[name].mul_(10)
    time = torch.linspace(0, 4, 12, dtype=torch.float64)
    time[1] = time[0]
    full = {name: torch.zeros(12, width).double() for name, width in model.dims.items()}
    like = cal.MultimodalData(full, observed_mask=random_mask(12, 2, 0.4), covariates={"time": time})

    def quantities(z: Tensor, data: cal.MultimodalData) -> dict[str, Tensor]:
        location = z @ model.loadings["a"].detach().mT
        density = torch.distributions.Normal(location, 1.0).log_prob(data.filled("a")).sum(-1)
        return {
            "first": z[..., 0, 0],
            "step": z[..., 6, 1] - z[..., 5, 1],
            "same time": z[..., 1, 0] * z[..., 0, 0],
            "roughness": z.diff(dim=-2).square().sum((-1, -2)),
            "fit": (density * data.observed("a")).sum(-1),
        }

    def simulate(seed: int) -> tuple[dict[str, Tensor], cal.MultimodalData]:
        values, data = simulate_model(model, like, seed)
        return quantities(values["z"], data), data

    def draw(data: cal.MultimodalData, num_draws: int, seed: int) -> dict[str, Tensor]:
        return quantities(model.posterior(data, joint_limit=joint_limit).sample(num_draws, seed), data)

    ranks = simulation_ranks(simulate, draw, num_replications=300, seed=20260105)
    assert ranks.p_value > 0.01, ranks


@pytest.mark.slow
def test_nuts_on_the_pyro_model_agrees() -> None:
    """The third oracle: a sampler that knows nothing of all this, on weights and latents together."""
    model = GaussianProcessModel({"a": 2, "b": 1}, 2, nugget=0.3, seed=1)
    with torch.no_grad():
        for name in model.dims:
            model.loadings[name].mul_(10)
    model.requires_grad_(False)
    time = torch.linspace(0, 4, 8, dtype=torch.float64)
    full = {name: torch.zeros(8, width).double() for name, width in model.dims.items()}
    like = cal.MultimodalData(full, observed_mask=random_mask(8, 2, 0.4), covariates={"time": time})
    _, data = simulate_model(model, like, seed=0)
    result = model.posterior(data)
    with torch.random.fork_rng():
        pyro.set_rng_seed(0)
        sampler = MCMC(NUTS(model, jit_compile=False), num_samples=300, warmup_steps=150, disable_progbar=True)
        sampler.run(data)
    draws = sampler.get_samples()["z"]
    effective = pyro.ops.stats.effective_sample_size(draws[None]).clamp(max=300)
    variance = result.covariance.diagonal(dim1=-2, dim2=-1)
    assert bool(((draws.mean(0) - result.mean).abs() < 6 * (variance / effective).sqrt()).all())
    assert bool(((draws.var(0) / variance - 1).abs() < 6 * (2 / effective).sqrt()).all())
