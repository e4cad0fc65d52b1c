"""SVI: exact evidence and posteriors of linear-Gaussian models as oracles, quadrature for a model that is bent."""

from __future__ import annotations

import math
import random

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn
from torch.distributions import constraints

import calmrl_prob as cal
from calmrl_prob.data import MultimodalData
from calmrl_prob.errors import ArgumentError, ConvergenceWarning, NumericalError, ReliabilityWarning
from calmrl_prob.inference.approximate.guides import AmortizedGuide
from calmrl_prob.inference.approximate.svi import fit_svi, svi_posterior
from calmrl_prob.inference.approximate.variational import elbo, make_guide
from calmrl_prob.posteriors.importance import importance_weights
from calmrl_prob.posteriors.instances import InstanceModel
from calmrl_prob.posteriors.sampled import draw_and_weigh
from tests.cases.approximate_cases import bent_program, linear_case, on_a_grid
from tests.cases.model_cases import random_data, random_model

pytestmark = (
    pytest.mark.slow
)  # training takes seconds each; the examples of svi.py, models/flow.py and neural_decoder.py are the fast check


@pytest.mark.parametrize("kind", ["amortized", "full"])
def test_with_the_exact_posterior_as_guide_the_bound_is_the_evidence_for_every_draw(kind: str) -> None:
    model, data, exact = linear_case()
    instances = InstanceModel(model, data)
    guide = make_guide(kind, instances, data)
    rows = torch.arange(len(data))
    with torch.no_grad():
        for _ in range(3):
            torch.testing.assert_close(elbo(instances, guide, data, rows, 1), exact.log_marginal)
    found = svi_posterior(model, data, guide=guide, num_draws=100)
    torch.testing.assert_close(found.log_marginal, exact.log_marginal)
    assert found.diagnostics["max_k_hat"] < 0.7
    assert found.diagnostics["effective_draws"] == pytest.approx(100)
    assert found.diagnostics["log_marginal_error"] == pytest.approx(0, abs=1e-9)


def test_gradients_have_no_noise_at_the_exact_posterior() -> None:
    """Of the guide they vanish; of the model they are those of the exact evidence (in the mean over draws)."""
    model, data, _ = linear_case()
    instances = InstanceModel(model, data)
    guide = make_guide("amortized", instances, data)
    bound = elbo(instances, guide, data, torch.arange(len(data)), 1).sum()
    gradients = torch.autograd.grad(bound, list(guide.parameters()), allow_unused=True)
    assert all(gradient is None or float(gradient.abs().max()) < 1e-8 for gradient in gradients)


def test_a_guide_that_starts_elsewhere_finds_the_exact_posterior() -> None:
    """Its evidence, k-hat and means, from a guide that started far off."""
    model, data, exact = linear_case(40)
    guide = make_guide("amortized", InstanceModel(model, data), data, ())
    with torch.no_grad():
        for parameter in guide.parameters():
            parameter.mul_(0.6).add_(0.2)
    result = fit_svi(
        model,
        data,
        guide=guide,
        train_model=False,
        learning_rate=0.03,
        max_iterations=25,
        patience=4,
        validation_share=0,
    )
    assert result.monitor[-1] - result.monitor[0] > 50
    gap = float(exact.log_marginal.sum()) - result.monitor.max()
    assert 0 <= gap + 1e-6 < 0.02 * len(data)
    found = svi_posterior(model, data, guide=result, num_draws=400)
    assert found.diagnostics["max_k_hat"] < 0.5
    error = torch.from_numpy(found.diagnostics["log_marginal_error"])
    assert bool(((found.log_marginal - exact.log_marginal).abs() < 6 * error + 1e-9).all())
    size = torch.from_numpy(found.diagnostics["effective_draws"])[:, None]
    variance = exact.covariance.diagonal(dim1=-2, dim2=-1)
    assert bool(((found.mean - exact.mean).abs() < 6 * (variance / size).sqrt()).all())


def test_the_mean_field_bound_falls_short_by_the_divergence_known_in_closed_form() -> None:
    """Of all diagonal normals the nearest to N(m, V) has the variances 1 / (V^-1)_kk; KL = log of the ratio of dets."""
    model, data, exact = linear_case(seed=5)
    result = fit_svi(model, data, guide="diagonal", train_model=False, max_iterations=20, patience=4)
    precision = torch.linalg.inv(exact.covariance)
    least = 0.5 * (precision.diagonal(dim1=-2, dim2=-1).log().sum(1) - torch.logdet(precision))
    gap = float(exact.log_marginal.sum()) - result.monitor.max()
    # its bound is judged by 4 draws of each instance: the variance of log p - log q under q bounds the error
    q = result.guide(torch.arange(len(data)))
    _, ratio = draw_and_weigh(InstanceModel(model, data), data, q, 400, 0)
    error = float((ratio.var(dim=0).sum() / 4).sqrt())
    assert abs(gap - float(least.sum())) < 6 * error
    assert float(least.sum()) > 1  # so that there is something to see


@pytest.mark.filterwarnings("ignore::calmrl_prob.errors.ReliabilityWarning")  # a second, slight mode of some instances
def test_a_bent_model_by_quadrature() -> None:
    """Evidence and moments by importance weights, and means where the normal guide alone would be off."""
    program, data = bent_program(0.3), random_data(8)
    evidence, mean, variance = on_a_grid(program, data)
    found = cal.posterior(program, data, method="svi", num_draws=2000, max_iterations=20, patience=4)
    assert found.route == "svi"
    error = torch.from_numpy(found.diagnostics["log_marginal_error"])
    assert bool(((found.log_marginal - evidence).abs() < 6 * error).all())
    size = torch.from_numpy(found.diagnostics["effective_draws"])
    assert bool(((found.mean.squeeze(1) - mean).abs() < 6 * (variance / size).sqrt()).all())


def test_imputation_through_a_sampled_posterior_is_that_of_the_exact_one() -> None:
    model, data, exact = linear_case()
    found = svi_posterior(model, data, guide="amortized", max_iterations=2, num_draws=1500)
    for name in data.names:
        ours, theirs = found.predictive(name), exact.predictive(name)
        latent = theirs.latent_variance
        assert bool(((ours.mean - theirs.mean).abs() < 6 * (latent / 1500).sqrt()).all())
        assert bool(((ours.latent_variance - latent).abs() < 6 * latent * math.sqrt(2 / 1500)).all())
        torch.testing.assert_close(ours.noise_variance, theirs.noise_variance.expand_as(latent))
        # its density is a mean of 1500 normal ones, whose weights are equal
        values, noise = data.filled(name), theirs.noise_variance
        parts = torch.distributions.Normal(ours.location, noise.sqrt()).log_prob(values).exp()  # type: ignore[attr-defined]
        error = parts.std(dim=0) / math.sqrt(1500)
        difference = ours.log_density(values).exp() - theirs.log_density(values).exp()
        assert bool((difference.abs() < 6 * error + 1e-12).all())
    draws = list(found.draws(3, torch.Generator().manual_seed(0), data.names))
    loadings = model.linear_gaussian().loadings["text"].detach()
    torch.testing.assert_close(
        draws[1].location["text"] - draws[0].location["text"], (draws[1].latents - draws[0].latents) @ loadings.mT
    )
    assert found.sample(4, seed=1).shape == (4, len(data), 2)


def test_parameters_are_learned_wherever_they_are_kept() -> None:
    """A weight and a noise scale, by ``pyro.param``: to 0.002 nats for each of 1,200 values of the best evidence."""
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(400, 1, generator=generator, dtype=torch.float64)
    data = MultimodalData({"x": 2.0 * z + 0.5 * torch.randn(400, 3, generator=generator, dtype=torch.float64)})

    def program(data: MultimodalData) -> None:
        weight = pyro.param("weight", torch.tensor(0.5).double())
        scale = pyro.param("scale", torch.tensor(1.0).double(), constraint=constraints.positive)
        with pyro.plate("instances", len(data)):
            z = pyro.sample("z", dist.Normal(torch.zeros(1).double(), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(weight * z.expand(-1, 3), scale).to_event(1), obs=data.filled("x"))

    def evidence(weight: Tensor, scale: Tensor) -> Tensor:
        covariance = weight.square() * torch.ones(3, 3).double() + scale.square() * torch.eye(3).double()
        normal = torch.distributions.MultivariateNormal(torch.zeros(3).double(), covariance)
        return normal.log_prob(data["x"]).sum()

    best = torch.tensor([1.0, 1.0], dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([best], max_iter=100, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = -evidence(*best)
        loss.backward()
        return loss

    optimizer.step(closure)
    result = fit_svi(program, data, hidden=(), learning_rate=0.05, patience=2, validation_share=0)
    values = {name: value.detach() for name, value in result.bound.parameter_values().items()}
    assert list(values) == ["weight", "scale"]
    gap = float(evidence(*best.detach()) - evidence(values["weight"], values["scale"]))
    assert 0 <= gap < 2.4
    assert "weight" not in pyro.get_param_store()


def test_it_repeats_and_leaves_global_generators_alone() -> None:
    before = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()  # noqa: NPY002 - looked at only
    results = [
        fit_svi(bent_program(), random_data(30), max_iterations=2, batch_size=8, seed=seed) for seed in (3, 3, 4)
    ]
    assert results[0].elbo.tolist() == results[1].elbo.tolist()
    assert results[0].elbo.tolist() != results[2].elbo.tolist()
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (np.random.get_state()[1] == before[1]).all()  # noqa: NPY002
    assert random.getstate() == before[2]


def test_what_a_fit_reports() -> None:
    seen: list[tuple[int, float]] = []
    data = random_data(30)
    result = fit_svi(
        bent_program(),
        data,
        guide="amortized",
        max_iterations=3,
        validation_share=0.2,
        callback=lambda *at: seen.append(at),
        hidden=(4,),
    )
    assert result.elbo.shape == (3,)
    assert result.monitor.shape == (4,)
    assert result.num_validation == 6
    assert result.num_steps == 60
    assert not result.converged
    assert result.stop_reason == "max_iterations"
    assert [number for number, _ in seen] == [1, 2, 3]
    assert [value for _, value in seen] == result.elbo.tolist()
    assert bool((result.objective.diff() >= 0).all())


def test_it_stops_when_there_is_nothing_to_gain_and_keeps_the_best_state() -> None:
    model, data, exact = linear_case(30)
    result = fit_svi(model, data, train_model=False, patience=2, max_iterations=50, validation_share=0)
    assert result.converged
    assert result.num_iterations < 12
    assert result.criterion <= result.tolerance
    found = svi_posterior(model, data, guide=result, num_draws=100)
    torch.testing.assert_close(found.log_marginal, exact.log_marginal, atol=1e-2, rtol=0)


def test_the_model_stays_as_it_is_unless_it_is_to_be_trained() -> None:
    model, data, _ = linear_case()
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    fit_svi(model, data, train_model=False, max_iterations=1)
    svi_posterior(model, data, guide="full", max_iterations=1)
    assert all(torch.equal(value, before[name]) for name, value in model.named_parameters())
    assert all(value.grad is None for value in model.parameters())
    fit_svi(model, data, max_iterations=1)
    assert not all(torch.equal(value, before[name]) for name, value in model.named_parameters())


@pytest.mark.filterwarnings("ignore::calmrl_prob.errors.ReliabilityWarning")  # a second, slight mode of some instances
def test_fit_and_posterior_take_the_route_by_name() -> None:
    with pytest.warns(ConvergenceWarning, match=r"'svi' stopped .* pass max_iterations=50; or pass tolerance=0\.\d+"):
        result = cal.fit(bent_program(), random_data(30), method="svi", max_iterations=2)
    assert result.method == "svi"
    found = result.posterior(random_data(5, seed=9), num_draws=100)
    assert found.mean.shape == (5, 1)
    assert found.route == "svi"
    assert np.isfinite(result.log_likelihood).all()
    with pytest.raises(ArgumentError, match="'svi' has no option 'learning_rat'"):
        cal.fit(bent_program(), random_data(30), method="svi", learning_rat=1.0)


def test_a_guide_that_does_not_fit_is_reported_once() -> None:
    model, data, _ = linear_case()
    wrong = AmortizedGuide(random_model("diagonal", seed=9).linear_gaussian(), ())
    with pytest.warns(ReliabilityWarning, match=r"k-hat is above 0\.7 for \d+ of 12 instances") as caught:
        found = svi_posterior(model, data, guide=wrong, num_draws=100)
    assert len(caught) == 1
    assert caught[0].filename == __file__
    assert found.diagnostics["max_k_hat"] > 0.7


def test_what_cannot_work_is_refused() -> None:
    model, data, _ = linear_case()
    guide = make_guide("full", InstanceModel(model, data), data)
    with pytest.raises(ArgumentError, match="it has 12 instances, the data 5"):
        svi_posterior(model, data.subset(slice(0, 5)), guide=guide)
    with pytest.raises(ArgumentError, match="guide: expected one of"):
        svi_posterior(model, data, guide="fll")  # type: ignore[arg-type]
    with pytest.raises(ArgumentError, match="num_draws"):
        svi_posterior(model, data, num_draws=10)
    with pytest.raises(ArgumentError, match=r"\['patience'\] are of fitting a guide"):
        svi_posterior(model, data, guide=guide, patience=3)
    with pytest.raises(ArgumentError, match="learning_rate: expected a finite number above 0"):
        fit_svi(model, data, learning_rate=-1.0)
    for tolerance in (-1.0, float("nan"), float("inf")):
        with pytest.raises(ArgumentError, match=r"^tolerance: expected a finite number of at least 0"):
            fit_svi(model, data, tolerance=tolerance)
    with pytest.raises(ArgumentError, match="validation_share"):
        fit_svi(model, data, validation_share=1.0)


def test_steps_that_run_away_say_so_and_leave_the_last_good_state() -> None:
    class Steep(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.log_scale = nn.Parameter(torch.tensor(0.0).double())

        def forward(self, data: MultimodalData) -> None:
            with pyro.plate("instances", len(data)):
                z = pyro.sample("z", dist.Normal(torch.zeros(1).double(), 1.0).to_event(1))
                scale = (1000 * self.log_scale).exp()
                pyro.sample("x", dist.Normal(z.expand(-1, 2), scale).to_event(1), obs=data.filled("x"))

    model = Steep()
    data = MultimodalData({"x": torch.ones(30, 2).double()})
    with pytest.raises(NumericalError, match=r"ran away .* Lower learning_rate"):
        fit_svi(model, data, learning_rate=100.0, guide="amortized", hidden=())
    assert bool(model.log_scale.isfinite())


def test_the_importance_weighted_bound_of_more_draws_is_higher() -> None:
    """On average over instances, with a guide that is a little off, and never above the evidence by more than noise."""
    model, data, exact = linear_case(60)
    instances = InstanceModel(model, data)
    guide = make_guide("amortized", instances, data)
    with torch.no_grad():
        guide.prior_natural += 0.3
        q = guide(data)
    _, ratio = draw_and_weigh(instances, data, q, 1000, 0)
    truth = exact.log_marginal.mean()
    bounds = [float((torch.logsumexp(ratio[:s], 0) - math.log(s)).mean() - truth) for s in (1, 10, 1000)]
    assert bounds[0] < bounds[1] < bounds[2]
    error = importance_weights(ratio).standard_error
    assert abs(bounds[2]) < 6 * float(error.square().sum().sqrt()) / 60 + float(error.square().mean())
