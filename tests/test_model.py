"""The Pyro model, its exact guide, and the hand-written models in models/."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyro
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI, Predictive, Trace_ELBO
from torch import nn

from calmrl_prob.arviz.export import to_arviz
from calmrl_prob.conjugacy import discover
from calmrl_prob.data import MultimodalData
from calmrl_prob.errors import ArgumentError, ArgumentTypeError, SchemaError
from calmrl_prob.guide import ConjugateGuide
from calmrl_prob.imputation import impute
from calmrl_prob.inference import fit
from calmrl_prob.linear_gaussian import LinearGaussian, log_marginal, posterior
from calmrl_prob.model import SharedLatentModel
from calmrl_prob.posteriors.gaussian import GaussianPosterior
from calmrl_prob.priors import NormalPrior
from calmrl_prob.serialization import load, save
from models.calmrl import CalMRL
from models.factor_analysis import FactorAnalysis
from tests.cases.model_cases import DIMS, data_with_single_features_missing, random_data, random_model, random_prior

NOISES = ("isotropic", "diagonal")


@pytest.fixture(autouse=True)
def _global_store_stays_empty() -> Iterator[None]:
    pyro.set_rng_seed(0)
    yield
    assert len(pyro.get_param_store()) == 0


def trace_log_joint(model: Callable[..., object], data: MultimodalData, z: torch.Tensor) -> torch.Tensor:
    conditioned = poutine.condition(model, {"z": z})
    return poutine.trace(conditioned).get_trace(data).log_prob_sum()


@pytest.mark.parametrize("noise", NOISES)
def test_log_joint_is_that_of_the_formula(noise: str) -> None:
    model, data = random_model(noise, random_prior(2)), random_data()
    lg = model.linear_gaussian()
    z = torch.randn(len(data), 2, dtype=torch.float64)
    expected = torch.distributions.MultivariateNormal(lg.prior_mean, lg.prior_covariance).log_prob(z).sum()
    for name in DIMS:
        rows = data.observed(name)
        location = z[rows] @ lg.loadings[name].mT + lg.intercepts[name]
        normal = torch.distributions.Normal(location, lg.noise_variance[name].sqrt())
        expected = expected + normal.log_prob(data[name][rows]).sum()
    torch.testing.assert_close(trace_log_joint(model, data, z), expected, rtol=1e-12, atol=0)


def test_sites_have_the_promised_names_and_shapes() -> None:
    trace = poutine.trace(random_model()).get_trace(random_data(5))
    assert trace.stochastic_nodes == ["instances", "z"]
    assert trace.observation_nodes == list(DIMS)
    assert trace.nodes["z"]["fn"].event_shape == (2,)
    for name, width in DIMS.items():
        assert trace.nodes[name]["fn"].event_shape == (width,)
        assert trace.nodes[name]["fn"].batch_shape == (5,)


@pytest.mark.parametrize("noise", NOISES)
@pytest.mark.parametrize("prior", [None, random_prior(2)], ids=["standard", "full"])
def test_elbo_of_the_exact_guide_is_the_log_marginal_for_every_draw(noise: str, prior: NormalPrior | None) -> None:
    model, data = random_model(noise, prior), random_data(14)
    guide = ConjugateGuide(model)
    exact = log_marginal(model.linear_gaussian(), data.blocks)
    assert len(data.patterns) > 4
    for _ in range(5):
        guide_trace = poutine.trace(guide).get_trace(data)
        model_trace = poutine.trace(poutine.replay(model, trace=guide_trace)).get_trace(data)
        model_trace.compute_log_prob()
        guide_trace.compute_log_prob()
        per_instance = model_trace.nodes["z"]["log_prob"] - guide_trace.nodes["z"]["log_prob"]
        for name in DIMS:
            per_instance = per_instance + model_trace.nodes[name]["log_prob"]
        torch.testing.assert_close(per_instance, exact, rtol=1e-9, atol=1e-9)
        assert -Trace_ELBO().loss(model, guide, data) == pytest.approx(exact.sum().item(), rel=1e-9)


def test_elbo_is_exact_with_single_features_missing() -> None:
    model, data = random_model("diagonal", random_prior(2)), data_with_single_features_missing()
    exact = log_marginal(model.linear_gaussian(), data.blocks).sum().item()
    assert -Trace_ELBO().loss(model, ConjugateGuide(model), data) == pytest.approx(exact, rel=1e-9)


def test_gradient_of_the_elbo_is_that_of_the_log_marginal() -> None:
    model, data = random_model("diagonal", random_prior(2)), random_data(14)
    parameters = list(model.parameters())
    Trace_ELBO().differentiable_loss(model, ConjugateGuide(model), data).backward()
    exact = torch.autograd.grad(-log_marginal(model.linear_gaussian(), data.blocks).sum(), parameters)
    for parameter, gradient in zip(parameters, exact, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("model_class", [SharedLatentModel, CalMRL, FactorAnalysis])
@pytest.mark.parametrize("junk", [0.0, 1e30])
def test_missing_values_touch_neither_density_nor_gradient(model_class: type[nn.Module], junk: float) -> None:
    data = random_data()
    spoiled = MultimodalData(
        {n: torch.where(data.observed(n)[:, None], data[n], junk) for n in DIMS}, observed_mask=data.observed_mask
    )
    z = torch.randn(len(data), 2, dtype=torch.float64)
    found = []
    for version in (data, spoiled):
        model = model_class(DIMS, latent_dim=2)
        loss = trace_log_joint(model, version, z)
        loss.backward()
        gradients = [parameter.grad for parameter in model.parameters()]
        assert all(bool(gradient.isfinite().all()) for gradient in gradients)
        found.append([loss.detach(), *gradients])
    for one, other in zip(*found, strict=True):
        assert torch.equal(one, other)


def test_single_missing_features_are_masked_one_by_one() -> None:
    x = torch.tensor([[1.0, torch.nan], [2.0, 3.0], [torch.nan, torch.nan]], dtype=torch.float64)
    data = MultimodalData({"x": x, "y": torch.ones(3, 1).double()}, missing="features")
    model = SharedLatentModel(data.dims, latent_dim=1, noise="diagonal")
    z = torch.tensor([[0.5], [-1.0], [2.0]], dtype=torch.float64)
    lg = model.linear_gaussian()
    location = z @ lg.loadings["x"].mT + lg.intercepts["x"]
    terms = torch.distributions.Normal(location, lg.noise_variance["x"].sqrt()).log_prob(x.nan_to_num())
    expected = terms[~x.isnan()].sum()
    trace = poutine.trace(poutine.condition(model, {"z": z})).get_trace(data)
    trace.compute_log_prob()
    torch.testing.assert_close(trace.nodes["x"]["log_prob"].sum(), expected)


def test_modalities_that_the_data_lack_altogether_add_nothing() -> None:
    model, data = random_model(), random_data().subset([0]).select(["image"])
    z = torch.zeros(1, 2, dtype=torch.float64)
    trace = poutine.trace(poutine.condition(model, {"z": z})).get_trace(data)
    trace.compute_log_prob()
    assert float(trace.nodes["text"]["log_prob"].detach()) == 0
    assert float(trace.nodes["image"]["log_prob"].detach()) != 0


def test_prior_predictive_has_the_moments_of_the_joint_normal() -> None:
    model = random_model("diagonal", random_prior(2))
    draws = Predictive(model, num_samples=1)(40_000)
    stacked = torch.cat([draws[name][0] for name in DIMS], dim=1).detach()
    mean, covariance = (moment.detach() for moment in model.linear_gaussian().joint())
    variance = covariance.diagonal()
    assert bool(((stacked.mean(0) - mean).abs() < 6 * (variance / len(stacked)).sqrt()).all())
    # Var[(a - E a)(b - E b)] = C_aa C_bb + C_ab^2 for normal a, b
    error = ((torch.outer(variance, variance) + covariance.square()) / len(stacked)).sqrt()
    assert bool(((torch.cov(stacked.mT) - covariance).abs() < 6 * error).all())


@pytest.mark.parametrize("parallel", [False, True])
def test_posterior_predictive_agrees_with_the_closed_form(parallel: bool) -> None:
    model, data = random_model("isotropic", random_prior(2)), random_data(6)
    num_draws = 4_000 if parallel else 300
    predictive = Predictive(
        poutine.uncondition(model), guide=ConjugateGuide(model), num_samples=num_draws, parallel=parallel
    )
    draws = predictive(data)
    lg = model.linear_gaussian().detach()
    result = GaussianPosterior(posterior(lg, data.blocks))
    for name in DIMS:
        exact = result.predictive(name)
        variance = exact.variance
        assert draws[name].shape == (num_draws, 6, DIMS[name])
        assert bool(((draws[name].mean(0) - exact.mean).abs() < 6 * (variance / num_draws).sqrt()).all())
        assert bool(((draws[name].var(0) - variance).abs() < 6 * variance * (2 / num_draws) ** 0.5).all())


def svi_steps(model: nn.Module, data: MultimodalData, steps: int) -> None:
    svi = SVI(model, ConjugateGuide(model), pyro.optim.Adam({"lr": 0.05}), Trace_ELBO())
    for _ in range(steps):
        svi.step(data)


def torch_steps(model: nn.Module, data: MultimodalData, steps: int) -> None:
    guide, optimizer = ConjugateGuide(model), torch.optim.Adam(model.parameters(), lr=0.05)
    for _ in range(steps):
        optimizer.zero_grad()
        Trace_ELBO().differentiable_loss(model, guide, data).backward()
        optimizer.step()


def test_svi_and_a_torch_optimiser_take_the_same_steps_uphill() -> None:
    data = random_data(30)
    ends = []
    for steps in (svi_steps, torch_steps):
        model = SharedLatentModel(DIMS, latent_dim=2)
        before = log_marginal(model.linear_gaussian(), data.blocks).sum().item()
        steps(model, data, 40)
        ends.append(log_marginal(model.linear_gaussian(), data.blocks).sum().item())
        assert ends[-1] > before + 1
    assert ends[0] == pytest.approx(ends[1], rel=1e-6)


def test_two_models_share_nothing() -> None:
    one, other = random_model(), random_model()
    before = copy.deepcopy(other.state_dict())
    svi_steps(one, random_data(), 2)
    assert all(torch.equal(before[key], value) for key, value in other.state_dict().items())
    assert not all(torch.equal(before[key], value) for key, value in one.state_dict().items())


def test_a_prior_is_copied_not_shared() -> None:
    prior = random_prior(2)
    model = SharedLatentModel(DIMS, latent_dim=2, prior=prior)
    prior.mean.zero_()
    assert bool(model.prior.gaussian()[0].any())


def test_state_dict_round_trips() -> None:
    source, target = random_model("diagonal", random_prior(2)), SharedLatentModel(DIMS, 2, "diagonal")
    target.load_state_dict(source.state_dict())
    for mine, theirs in zip(target.linear_gaussian().joint(), source.linear_gaussian().joint(), strict=True):
        assert torch.equal(mine, theirs)


def test_start_is_deterministic_and_depends_on_the_seed() -> None:
    first, again, another = (SharedLatentModel(DIMS, 2, seed=seed).linear_gaussian() for seed in (0, 0, 1))
    assert torch.equal(first.loadings["text"], again.loadings["text"])
    assert not torch.equal(first.loadings["text"], another.loadings["text"])


def test_names_with_dots_and_names_of_torch_attributes_work() -> None:
    dims = {"text.title": 2, "text%2Etitle": 2, "type": 2, "values": 2, "forward": 1}
    model = SharedLatentModel(dims, latent_dim=1)
    data = random_data(6, dims=dims)
    assert -Trace_ELBO().loss(model, ConjugateGuide(model), data) == pytest.approx(
        log_marginal(model.linear_gaussian(), data.blocks).sum().item()
    )
    assert len(model.state_dict()) == 3 * len(dims) + 2


def test_num_parameters_counts_what_is_learned() -> None:
    total = sum(DIMS.values())
    assert random_model("isotropic").num_parameters == total * 3 + len(DIMS)
    assert random_model("diagonal").num_parameters == total * 4


@pytest.mark.parametrize("noise", NOISES)
def test_loading_parameters_gives_them_back(noise: str) -> None:
    source, target = random_model(noise, seed=3), SharedLatentModel(DIMS, 2, noise)
    target.load_linear_gaussian(source.linear_gaussian())
    for name in DIMS:
        for kind in ("loadings", "intercepts", "noise_variance"):
            mine, theirs = (getattr(m.linear_gaussian(), kind)[name] for m in (target, source))
            torch.testing.assert_close(mine, theirs, rtol=1e-14, atol=0)


def test_loading_under_another_prior_keeps_the_distribution_of_the_data() -> None:
    source = random_model("diagonal", random_prior(2, seed=1)).linear_gaussian()
    target = SharedLatentModel(DIMS, 2, "diagonal", random_prior(2, seed=2))
    target.load_linear_gaussian(source)
    for mine, theirs in zip(target.linear_gaussian().joint(), source.joint(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-10, atol=1e-10)


def test_loading_what_does_not_fit_is_refused() -> None:
    source = random_model("diagonal").linear_gaussian()
    with pytest.raises(ArgumentError, match=r"modality 'image' differ by feature.*noise='diagonal'"):
        SharedLatentModel(DIMS, 2, "isotropic").load_linear_gaussian(source)
    with pytest.raises(ArgumentError, match="expected 3 latents, got 2"):
        SharedLatentModel(DIMS, 3, "diagonal").load_linear_gaussian(source)
    with pytest.raises(SchemaError, match="image"):
        SharedLatentModel({"image": 4}, 2, "diagonal").load_linear_gaussian(source)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"dims": {}}, ArgumentError, "at least one modality"),
        ({"dims": {"z": 3}}, ArgumentError, "'z' is taken"),
        ({"dims": {"instances": 3}}, ArgumentError, "'instances' is taken"),
        ({"dims": {"image": 0}}, ArgumentError, r"dims\['image'\].*got 0"),
        ({"dims": {"image": 2.5}}, ArgumentTypeError, r"dims\['image'\].*got 2.5"),
        ({"dims": {"": 2}}, ArgumentTypeError, "not empty"),
        ({"dims": [3, 4]}, ArgumentTypeError, "mapping"),
        ({"dims": {"image": 3}, "latent_dim": 0}, ArgumentError, "latent_dim.*got 0"),
        ({"dims": {"image": 3}, "noise": "dense"}, ArgumentError, "noise.*'dense'"),
        ({"dims": {"image": 3}, "latent_dim": 2, "prior": NormalPrior(3)}, ArgumentError, "3 latents, the model 2"),
        ({"dims": {"image": 3}, "latent_dim": 2, "prior": "normal"}, ArgumentTypeError, "prior.*'normal'"),
        ({"dims": {"image": 3}, "dtype": "float32"}, ArgumentTypeError, "dtype: expected torch.float32 .*'float32'"),
        ({"dims": {"image": 3}, "dtype": torch.float16}, ArgumentError, "dtype: expected .*got torch.float16"),
        ({"dims": {"image": 3}, "seed": "x"}, ArgumentTypeError, "seed: .*got 'x'"),
        ({"dims": {"image": 3}, "seed": None}, ArgumentTypeError, "seed: .*got None"),
    ],
)
def test_bad_arguments_are_refused(arguments: dict[str, object], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        SharedLatentModel(**arguments)


@pytest.mark.parametrize(
    ("data", "error", "message"),
    [
        (0, ArgumentError, "number of instances.*got 0"),
        (True, ArgumentTypeError, "got True"),
        (2.0, ArgumentTypeError, r"got 2\.0"),
        (np.ones((2, 4)), ArgumentTypeError, "got ndarray; wrap"),
        (None, ArgumentTypeError, "got None"),
    ],
)
def test_only_data_or_a_number_of_instances_are_taken(data: object, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=f"data.*{message}"):
        random_model()(data)
    with pytest.raises(ArgumentTypeError, match="data: expected MultimodalData"):
        ConjugateGuide(random_model())(data)


def test_a_guide_needs_a_model_and_a_model_parameters() -> None:
    with pytest.raises(ArgumentTypeError, match="model: expected a SharedLatentModel or a Pyro model, got None"):
        ConjugateGuide(None)
    with pytest.raises(ArgumentTypeError, match=r"linear_gaussian: .*got SharedLatentModel"):
        random_model().load_linear_gaussian(random_model())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_model_knows_whether_it_was_fitted_however_that_was_done(dtype: torch.dtype) -> None:
    start = SharedLatentModel(DIMS, 2, seed=7, dtype=dtype)
    assert start.unfitted
    assert copy.deepcopy(start).to(torch.float64).unfitted
    loaded, filled, stepped = (copy.deepcopy(start) for _ in range(3))
    loaded.load_linear_gaussian(random_model().linear_gaussian())
    filled.load_state_dict(random_model().state_dict())
    stepped(random_data())  # running it changes nothing
    assert stepped.unfitted
    optimizer = torch.optim.SGD(stepped.parameters(), lr=1e-3)
    Trace_ELBO().differentiable_loss(stepped, ConjugateGuide(stepped), random_data()).backward()
    optimizer.step()
    for model in (loaded, filled, stepped):
        assert not model.unfitted
    known = SharedLatentModel(DIMS, 2)  # intercepts 0 and noise 1 that somebody chose are no start
    known.load_linear_gaussian(
        LinearGaussian(
            {name: torch.ones(width, 2) for name, width in DIMS.items()},
            {name: torch.zeros(width) for name, width in DIMS.items()},
            {name: torch.ones(width) for name, width in DIMS.items()},
        )
    )
    assert not known.unfitted


def test_data_that_do_not_fit_are_refused() -> None:
    model = random_model()
    with pytest.raises(SchemaError, match="'video' is unknown"):
        model(MultimodalData({"video": torch.ones(2, 4)}))
    with pytest.raises(SchemaError, match="'image': expected 4 features, got 5"):
        ConjugateGuide(model)(MultimodalData({"image": torch.ones(2, 5)}))


def test_a_prior_that_is_none_is_refused() -> None:
    with pytest.raises(ArgumentError, match="symmetric positive-definite"):
        NormalPrior(2, covariance=torch.tensor([[1.0, 2.0], [2.0, 1.0]]))
    with pytest.raises(ArgumentError, match="symmetric positive-definite"):
        NormalPrior(2, covariance=torch.tensor([[1.0, 0.5], [0.0, 1.0]]))
    with pytest.raises(ArgumentError, match=r"mean: expected shape \(2,\), got \(3,\)"):
        NormalPrior(2, mean=torch.zeros(3))


@pytest.mark.parametrize(("template", "noise"), [(CalMRL, "isotropic"), (FactorAnalysis, "diagonal")])
def test_hand_written_models_are_the_library_model(template: type[nn.Module], noise: str) -> None:
    reference, data = random_model(noise, seed=5), random_data()
    model = template(DIMS, latent_dim=2)
    model.load_linear_gaussian(reference.linear_gaussian())
    z = torch.randn(len(data), 2, dtype=torch.float64)
    torch.testing.assert_close(trace_log_joint(model, data, z), trace_log_joint(reference, data, z), rtol=1e-12, atol=0)
    lg = discover(model, data).linear_gaussian()
    assert isinstance(lg, LinearGaussian)
    for mine, theirs in zip(lg.joint(), reference.linear_gaussian().joint(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-12, atol=1e-12)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_model_guide_and_results_agree_between_cpu_and_cuda(tmp_path: Path) -> None:
    model, data = random_model("diagonal", random_prior(2)), random_data(14)
    expected = log_marginal(model.linear_gaussian(), data.blocks).sum().item()
    on_cpu = impute(model, data)
    save(model, tmp_path / "model.safetensors")
    model, moved = model.to("cuda"), data.to(device="cuda")
    assert -Trace_ELBO().loss(model, ConjugateGuide(model), moved) == pytest.approx(expected, rel=1e-9)
    on_gpu = impute(model, moved)
    for name in DIMS:
        assert on_gpu.sample(2)[name].device.type == "cuda"
        torch.testing.assert_close(on_gpu.mean[name].cpu(), on_cpu.mean[name], rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(on_gpu.variance[name].cpu(), on_cpu.variance[name], rtol=1e-9, atol=1e-9)
    assert dict(to_arviz(model, moved, 8)["posterior"]["z"].sizes)["draw"] == 2
    with pytest.raises(ArgumentError, match=r"data: it is on cpu, the model on cuda:0"):
        impute(model, data)
    assert fit(SharedLatentModel(DIMS, 2).to("cuda"), moved).num_iterations > 0
    save(model, tmp_path / "again.safetensors")
    first, again = (load(tmp_path / f"{name}.safetensors").state_dict() for name in ("model", "again"))
    assert all(torch.equal(first[key], again[key]) for key in first)
