"""EM with priors of the loadings: the maximum of evidence plus log prior, and what ARD switches off."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from calmrl_prob.data import MultimodalData
from calmrl_prob.errors import ArgumentError, ArgumentTypeError
from calmrl_prob.inference import fit
from calmrl_prob.linear_gaussian import Evidence, LinearGaussian, ObservedBlocks, fit_em, log_evidence
from calmrl_prob.linear_gaussian.em.maximization import PenalisedStep, expected_residual, maximize
from calmrl_prob.linear_gaussian.em.noise_model import NoiseModel
from calmrl_prob.linear_gaussian.em.parameters import Parameters, Shape
from calmrl_prob.linear_gaussian.em.penalties import ARDPenalty, LoadingsPenalty, NormalPenalty
from calmrl_prob.linear_gaussian.em.rotation import best_rotation
from calmrl_prob.model import SharedLatentModel
from tests.cases.em_cases import DIMS, all_forms, relative
from tests.cases.linear_gaussian_cases import random_blocks, random_mask, random_model


def scales(blocks: ObservedBlocks, noise: str) -> dict[str, Tensor]:
    """s_d^2 as the documentation states it."""
    variances = {name: values.var(0, correction=0) for name, values in blocks.values.items()}
    return variances if noise == "diagonal" else {n: v.mean().expand(len(v)) for n, v in variances.items()}


def log_prior(loadings: dict[str, Tensor], scale: dict[str, Tensor], name: str, alpha: float = 0.0) -> Tensor:
    """Both priors by torch.distributions, ARD's by a sum over a fine grid of log alpha."""
    total = torch.zeros((), dtype=torch.float64)
    for key, part in loadings.items():
        standard = part / scale[key].sqrt()[:, None]
        if name == "normal":
            normal = torch.distributions.Normal(0, torch.tensor(alpha, dtype=torch.float64).rsqrt())
            total = total + normal.log_prob(standard).sum()
            continue
        grid = torch.linspace(-25, 25, 4001, dtype=torch.float64)  # of log alpha
        gamma = torch.distributions.Gamma(torch.tensor(1e-3).double(), torch.tensor(1e-6).double())
        normal = torch.distributions.Normal(0, (-grid / 2).exp()[:, None, None])
        joint = gamma.log_prob(grid.exp())[:, None] + grid[:, None] + normal.log_prob(standard).sum(1)
        total = total + (joint.logsumexp(0) + math.log(float(grid[1] - grid[0]))).sum()
    return total


@pytest.mark.parametrize("noise", ["isotropic", "diagonal"])
@pytest.mark.parametrize("prior", ["normal", "ard"])
def test_the_fit_is_a_maximum_of_evidence_plus_log_prior(noise: str, prior: str) -> None:
    """The gradient of the objective, by another route and with ARD's integral done on a grid, vanishes."""
    blocks = random_blocks(random_model(DIMS, 3, seed=1, prior="standard"), 300, rate=0.3)
    precision = 20.0 if prior == "normal" else None
    result = fit_em(
        blocks, 3, noise=noise, loadings_prior=prior, loadings_precision=precision, tolerance=1e-14, max_iterations=5000
    )
    scale, fitted = scales(blocks, noise), result.linear_gaussian
    loadings = {name: part.clone().requires_grad_() for name, part in fitted.loadings.items()}
    log_noise = {
        name: (part if noise == "diagonal" else part[:1]).log().requires_grad_()
        for name, part in fitted.noise_variance.items()
    }
    intercepts = {name: part.clone().requires_grad_() for name, part in fitted.intercepts.items()}
    lg = LinearGaussian(loadings, intercepts, {name: part.exp() for name, part in log_noise.items()})
    value = Evidence(blocks, 3)(lg) + log_prior(loadings, scale, prior, 20.0)
    inputs = [*loadings.values(), *intercepts.values(), *log_noise.values()]
    for part, gradient in zip(inputs, torch.autograd.grad(value, inputs), strict=True):
        # in parameters counted in their own size: nats to be gained by a relative change of 1
        assert float((gradient * part.detach().abs().clamp(min=1e-2)).abs().max()) < 2e-2, part.shape
    unpenalised = torch.autograd.grad(log_prior(loadings, scale, prior, 20.0), list(loadings.values()))
    assert max(float(part.abs().max()) for part in unpenalised) > 1  # without the prior it would not be a maximum


def test_all_forms_take_the_same_penalised_step() -> None:
    model = random_model(DIMS, 3, seed=2, prior="standard")
    blocks = random_blocks(model, 80, rate=0.4)
    unlimited = NoiseModel(False, torch.zeros(22).double(), 0.0, torch.ones(22).double())
    priors = {"normal": lambda *a: NormalPenalty(*a, alpha=7.0), "ard": ARDPenalty}
    for make in priors.values():
        nexts = []
        for step, shift in all_forms(blocks, 3).values():
            parameters = Parameters.from_linear_gaussian(model, shift)
            prior = make(step.shape, torch.linspace(0.5, 2, 22, dtype=torch.float64))
            moments = step(parameters)
            following = maximize(step, moments, unlimited, expand=True, loadings_prior=prior, current=parameters)
            nexts.append(following.to_linear_gaussian(step.shape, shift))
        for other in nexts[1:]:
            for name in DIMS:
                assert relative(other.loadings[name], nexts[0].loadings[name]) < 1e-10
                assert relative(other.intercepts[name], nexts[0].intercepts[name]) < 1e-10
                assert relative(other.noise_variance[name], nexts[0].noise_variance[name]) < 1e-10


def test_the_penalised_step_solves_its_equations() -> None:
    """Feature by feature a dense (K + 1) x (K + 1) solve, and residuals by their definition."""
    model = random_model(DIMS, 3, seed=3, prior="standard")
    step, shift = all_forms(random_blocks(model, 80, rate=0.4), 3)["modality"]
    parameters = Parameters.from_linear_gaussian(model, shift)
    moments = step(parameters)
    prior = ARDPenalty(step.shape, torch.linspace(0.5, 2, 22, dtype=torch.float64))
    unlimited = NoiseModel(False, torch.zeros(22).double(), 0.0, torch.ones(22).double())
    image = maximize(step, moments, unlimited, expand=False, loadings_prior=prior, current=parameters)
    joint = torch.cat([image.loadings, image.intercepts[:, None]], dim=1)
    penalty = PenalisedStep.at(prior, parameters)
    right = torch.cat([moments.cross, step.totals.total[:, None]], dim=1)
    for d in range(22):
        pull = penalty.ratio[d] * torch.cat([penalty.precision[d], torch.zeros(1).double()])
        latent = moments.latent[int(step.shape.feature_modality[d])] + torch.diag(pull)
        torch.testing.assert_close(joint[d], torch.linalg.solve(latent, right[d]), rtol=1e-9, atol=1e-9)
    _, square = expected_residual(step, moments, joint)
    torch.testing.assert_close(image.noise_variance, square / step.feature_count, rtol=1e-10, atol=0)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_ard_finds_which_latents_serve_which_modality(seed: int) -> None:
    """Two shared by all, one by two modalities, three private, and four to spare, under a random rotation."""
    serves = torch.tensor([[1, 1, 1, 1, 0, 0], [1, 1, 1, 0, 1, 0], [1, 1, 0, 0, 0, 1]], dtype=torch.bool)
    dims = {"a": 20, "b": 15, "c": 25}
    generator = torch.Generator().manual_seed(seed)
    loadings = {
        name: torch.randn(width, 6, generator=generator, dtype=torch.float64) * serves[m]
        for m, (name, width) in enumerate(dims.items())
    }
    truth = LinearGaussian(
        loadings,
        {name: torch.zeros(width).double() for name, width in dims.items()},
        {name: torch.tensor(1.0).double() for name in dims},
    )
    blocks = random_blocks(truth, 600, rate=0.3, seed=seed)
    result = fit_em(blocks, 10, loadings_prior="ard", seed=seed)
    assert result.converged
    assert bool((result.objective.diff() >= 0).all())
    assert result.loadings_precision is not None
    on = torch.stack([result.loadings_precision[name] < 1e3 for name in dims])
    found = sorted(tuple(column) for column in on.mT.tolist())
    assert found == sorted([tuple(column) for column in serves.mT.tolist()] + [(False,) * 3] * 4)
    plain = fit_em(blocks, 10, seed=seed)
    _, fresh = truth.sample(2000, torch.Generator().manual_seed(99))
    held_out = ObservedBlocks.from_arrays(fresh, random_mask(2000, 3, 0.3, 99))
    gain = log_evidence(result.linear_gaussian, held_out) - log_evidence(plain.linear_gaussian, held_out)
    assert float(gain) > 300  # nats on 2,000 new rows


def test_a_normal_prior_goes_from_maximum_likelihood_to_nothing() -> None:
    blocks = random_blocks(random_model(DIMS, 3, prior="standard"), 200, rate=0.3)
    plain = fit_em(blocks, 3, tolerance=1e-10)
    weak = fit_em(blocks, 3, loadings_prior="normal", loadings_precision=1e-9, tolerance=1e-10)
    assert float(weak.log_likelihood[-1]) == pytest.approx(float(plain.log_likelihood[-1]), abs=1e-3)
    strong = fit_em(blocks, 3, loadings_prior="normal", loadings_precision=1e9)
    assert max(float(part.abs().max()) for part in strong.linear_gaussian.loadings.values()) < 1e-3
    default = fit_em(blocks, 3, loadings_prior="normal")
    assert default.loadings_precision is not None
    torch.testing.assert_close(default.loadings_precision["a"], torch.full((3,), 3.0).double())
    assert plain.loadings_precision is None


@pytest.mark.parametrize("prior", ["normal", "ard"])
@pytest.mark.parametrize("noise", ["isotropic", "diagonal"])
def test_units_do_not_matter(prior: str, noise: str) -> None:
    blocks = random_blocks(random_model(DIMS, 3, prior="standard"), 200, rate=0.3)
    other = ObservedBlocks({n: v * (1000 if n == "b" else 1) for n, v in blocks.values.items()}, blocks.observed_mask)
    one, two = (fit_em(data, 3, noise=noise, loadings_prior=prior, tolerance=1e-10) for data in (blocks, other))
    assert one.loadings_precision is not None
    assert two.loadings_precision is not None
    torch.testing.assert_close(two.loadings_precision["b"], one.loadings_precision["b"], rtol=1e-3, atol=0)
    product = one.linear_gaussian.loadings["b"] @ one.linear_gaussian.loadings["a"].mT
    again = two.linear_gaussian.loadings["b"] @ two.linear_gaussian.loadings["a"].mT
    torch.testing.assert_close(again, 1000 * product, rtol=1e-3, atol=1)


def test_turning_raises_the_prior_and_leaves_the_evidence() -> None:
    model = random_model(DIMS, 5, prior="standard")
    blocks = random_blocks(model, 50, rate=0.3)
    shape = Shape.of(DIMS)
    prior = ARDPenalty(shape, torch.ones(22).double())
    parameters = Parameters.from_linear_gaussian(model, torch.zeros(22).double())
    turned = prior.turned(parameters, most_rounds=100)
    assert prior.log_density(turned.loadings) > prior.log_density(parameters.loadings) + 0.1
    after = turned.to_linear_gaussian(shape, torch.zeros(22).double())
    assert float(log_evidence(after, blocks)) == pytest.approx(float(log_evidence(model, blocks)), rel=1e-11)
    again = prior.turned(turned, most_rounds=100)
    assert prior.log_density(again.loadings) == pytest.approx(prior.log_density(turned.loadings), rel=1e-4)
    assert best_rotation(torch.ones(2, 1, 1).double(), torch.ones(2).double(), 1e-6, 5) is None
    normal: LoadingsPenalty = NormalPenalty(shape, torch.ones(22).double(), alpha=1.0)
    assert normal.turned(parameters, most_rounds=5) is parameters


def test_options_of_fit_and_errors() -> None:
    blocks = random_blocks(random_model(DIMS, 2, prior="standard"), 60, rate=0.3)
    data = MultimodalData(
        {
            n: torch.full((60, w), torch.nan).double().index_copy(0, blocks.rows[n], blocks.values[n])
            for n, w in DIMS.items()
        }
    )
    model = SharedLatentModel(DIMS, 2)
    result = fit(model, data, loadings_prior="normal", loadings_precision=4)
    assert bool((result.objective[1:] >= result.objective[:-1]).all())
    fit(model, data, loadings_prior="ard", loadings_precision=None)
    with pytest.raises(ArgumentTypeError, match="loadings_precision"):
        fit(model, data, loadings_prior="normal", loadings_precision="4")
    with pytest.raises(ArgumentError, match="loadings_prior: expected 'normal', 'ard' or None"):
        fit(model, data, loadings_prior="horseshoe")
    with pytest.raises(ArgumentError, match="belongs to loadings_prior='normal'"):
        fit(model, data, loadings_prior="ard", loadings_precision=1.0)
    with pytest.raises(ArgumentError, match="expected a positive number"):
        fit(model, data, loadings_prior="normal", loadings_precision=0.0)
