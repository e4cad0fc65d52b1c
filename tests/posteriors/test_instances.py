"""A Pyro model as densities of instances: against densities put together by hand, for sites spelled in many ways."""

from __future__ import annotations

from collections.abc import Callable

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn
from torch.distributions import constraints

from calmrl_prob.data import MultimodalData
from calmrl_prob.errors import ArgumentTypeError, ModelError
from calmrl_prob.inference.approximate.linearize import linearize
from calmrl_prob.posteriors.instances import InstanceModel
from tests.cases.approximate_cases import bent_program, linear_case
from tests.cases.model_cases import random_data

DATA = random_data(6)
Program = Callable[[MultimodalData], object]


def normal(location: Tensor, scale: Tensor | float, value: Tensor) -> Tensor:
    return torch.distributions.Normal(location, scale).log_prob(value).sum(-1)


def random_latents(num_latents: int, seed: int = 0) -> Tensor:
    return torch.randn(len(DATA), num_latents, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def several_sites(data: MultimodalData, bonus: float = 0.0) -> None:
    """A vector, a positive scale that depends on it, and a simplex; one modality by ``obs_mask``."""
    with pyro.plate("instances", len(data)):
        if bonus:
            pyro.factor("bonus", torch.full((len(data),), bonus).double())
        z = pyro.sample("z", dist.Normal(torch.zeros(2).double(), 1.0).to_event(1))
        scale = pyro.sample("scale", dist.LogNormal(z[:, 0], 0.5))
        share = pyro.sample("share", dist.Dirichlet(torch.tensor([1.0, 2.0, 3.0]).double()))
        pyro.sample(
            "image",
            dist.Normal(z.sum(1, keepdim=True).expand(-1, 4), scale[:, None]).to_event(1),
            obs=data.filled("image"),
            obs_mask=data.observed("image"),
        )
        site = dist.Normal(share, 1.0).to_event(1).mask(data.observed("text"))
        pyro.sample("text", site, obs=data.filled("text"))
        site = dist.Laplace(z, 1.0).to_event(1).mask(data.observed("audio"))
        pyro.sample("audio", site, obs=data.filled("audio"))


def test_the_joint_density_is_that_of_all_sites_with_what_is_absent_left_out() -> None:
    model = InstanceModel(several_sites, DATA)
    assert model.latent_dim == 2 + 1 + 2
    assert model.dims == DATA.dims
    latents = random_latents(5)
    z, log_scale, free = latents[:, :2], latents[:, 2], latents[:, 3:]
    stick = torch.distributions.StickBreakingTransform()
    share = stick(free)
    expected = normal(torch.zeros(2), 1.0, z)
    expected += torch.distributions.Normal(z[:, 0], 0.5).log_prob(log_scale)  # log-normal times its own stretching
    dirichlet = torch.distributions.Dirichlet(torch.tensor([1.0, 2.0, 3.0]).double())
    expected += dirichlet.log_prob(share) + stick.log_abs_det_jacobian(free, share)
    densities = {
        "image": normal(z.sum(1, keepdim=True), log_scale.exp()[:, None], DATA.filled("image")),
        "text": normal(share, 1.0, DATA.filled("text")),
        "audio": torch.distributions.Laplace(z, 1.0).log_prob(DATA.filled("audio")).sum(-1),
    }
    expected += sum(torch.where(DATA.observed(name), density, 0) for name, density in densities.items())
    found, shared = model.log_joint(DATA, latents)
    torch.testing.assert_close(found, expected)
    assert float(shared) == 0
    constrained = model.constrain(latents)
    torch.testing.assert_close(constrained, torch.cat([z, log_scale.exp()[:, None], share], dim=1))


def test_moments_are_those_of_each_site() -> None:
    model, latents = InstanceModel(several_sites, DATA), random_latents(5)
    found = model.moments(DATA, latents, DATA.names)
    mean, variance = found["image"]
    torch.testing.assert_close(mean, latents[:, :2].sum(1, keepdim=True).expand(-1, 4))
    torch.testing.assert_close(variance, (2 * latents[:, 2:3]).exp().expand(-1, 4))
    torch.testing.assert_close(found["audio"][1], torch.full((6, 2), 2.0, dtype=torch.float64))  # of a Laplace


def test_rows_may_come_in_any_order_and_twice() -> None:
    model, latents = InstanceModel(several_sites, DATA), random_latents(5)
    rows = torch.tensor([4, 0, 4, 2])
    torch.testing.assert_close(
        model.log_joint(DATA.subset(rows), latents[rows])[0], model.log_joint(DATA, latents)[0][rows]
    )


def test_factors_inside_the_plate_are_the_instances_and_those_outside_are_shared() -> None:
    weight = nn.Parameter(torch.tensor(2.0, dtype=torch.float64))

    def program(data: MultimodalData) -> None:
        several_sites(data, bonus=3.0)
        pyro.factor("prior", -weight.square())

    latents = random_latents(5)
    plain, _ = InstanceModel(several_sites, DATA).log_joint(DATA, latents)
    found, shared = InstanceModel(program, DATA).log_joint(DATA, latents)
    torch.testing.assert_close(found, plain + 3)
    assert float(shared.detach()) == -4
    (gradient,) = torch.autograd.grad(shared, weight)
    assert float(gradient) == -4


def test_parameters_are_kept_with_the_model_and_get_gradients() -> None:
    def program(data: MultimodalData) -> None:
        scale = pyro.param("scale", torch.tensor(2.0).double(), constraint=constraints.positive)
        with pyro.plate("instances", len(data)):
            z = pyro.sample("z", dist.Normal(torch.zeros(1).double(), 1.0).to_event(1))
            for name in data.names:
                site = dist.Normal(z.expand(-1, data.dims[name]), scale).to_event(1).mask(data.observed(name))
                pyro.sample(name, site, obs=data.filled(name))

    before = torch.get_rng_state()
    model = InstanceModel(program, DATA)
    total = model.log_joint(DATA, random_latents(1))[0].sum()
    parameters = dict(model.bound.named_parameters())
    assert len(parameters) == 1
    (gradient,) = torch.autograd.grad(total, list(parameters.values()))
    assert bool(gradient.isfinite())
    assert "scale" not in pyro.get_param_store()
    assert torch.equal(torch.get_rng_state(), before)


def test_a_linear_model_is_its_own_linearization() -> None:
    model, data, _ = linear_case()
    found, truth = linearize(InstanceModel(model, data), data), model.linear_gaussian()
    torch.testing.assert_close(found.prior_mean, truth.prior_mean)
    torch.testing.assert_close(found.prior_covariance, truth.prior_covariance)
    for name in data.names:
        torch.testing.assert_close(found.loadings[name], truth.loadings[name].detach())
        torch.testing.assert_close(found.intercepts[name], truth.intercepts[name].detach())
        torch.testing.assert_close(found.noise_variance[name], truth.noise_variance[name].detach())


def test_a_bent_model_is_linearized_about_its_priors_mean() -> None:
    """x = w z + b z^2: slope w, since the two ends of a difference bend alike; noise variance 1/4."""
    data = random_data(6)
    straight, bent = (linearize(InstanceModel(bent_program(bend), data), data) for bend in (0.0, 1.0))
    for name in data.names:
        torch.testing.assert_close(bent.loadings[name], straight.loadings[name])
        assert bool((bent.noise_variance[name] == 0.25).all())


def test_a_prior_that_is_not_gaussian_or_depends_on_another_latent_is_drawn_from() -> None:
    """z ~ Laplace(1, 1), y | z ~ N(2 z, 1): means 1 and 2, variances 2 and 9, covariance 4."""

    def program(data: MultimodalData) -> None:
        with pyro.plate("instances", len(data)):
            z = pyro.sample("z", dist.Laplace(torch.ones(1).double(), 1.0).to_event(1))
            y = pyro.sample("y", dist.Normal(2 * z, 1.0).to_event(1))
            pyro.sample("image", dist.Normal(y.expand(-1, 4), 1.0).to_event(1), obs=data.filled("image"))

    data = MultimodalData({"image": DATA.filled("image")})
    found = linearize(InstanceModel(program, data), data)
    truth = torch.tensor([[2.0, 4.0], [4.0, 9.0]], dtype=torch.float64)
    error = (truth.diagonal() / 4096).sqrt()
    assert bool(((found.prior_mean - torch.tensor([1.0, 2.0])).abs() < 6 * error).all())
    # the fourth moment of a Laplace is 6 times the square of its variance, so 5 bounds the variance of the products
    spread = (5 * truth.diagonal().outer(truth.diagonal()) / 4096).sqrt()
    assert bool(((found.prior_covariance - truth).abs() < 6 * spread).all())


def discrete(data: MultimodalData) -> None:
    with pyro.plate("instances", len(data)):
        z = pyro.sample("z", dist.Bernoulli(torch.tensor(0.5).double()))
        for name in data.names:
            pyro.sample(
                name, dist.Normal(z[:, None].expand(-1, data.dims[name]), 1.0).to_event(1), obs=data.filled(name)
            )


def shared(data: MultimodalData) -> None:
    loadings = pyro.sample("loadings", dist.Normal(torch.zeros(9).double(), 1.0).to_event(1))
    with pyro.plate("instances", len(data)):
        z = pyro.sample("z", dist.Normal(torch.zeros(1).double(), 1.0).to_event(1))
        for name in data.names:
            site = dist.Normal(z * loadings[: data.dims[name]], 1.0).to_event(1)
            pyro.sample(name, site, obs=data.filled(name))


@pytest.mark.parametrize(
    ("program", "message"),
    [(discrete, "'z': its values are discrete"), (shared, "'loadings': it is a latent outside the plate")],
)
def test_what_these_routes_cannot_do_is_refused_by_site(program: Program, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        InstanceModel(program, DATA)


def test_what_is_no_program_is_refused() -> None:
    with pytest.raises(ArgumentTypeError, match="expected a Pyro model"):
        InstanceModel("model", DATA)  # type: ignore[arg-type]


def test_a_site_without_moments_is_refused_when_its_moments_are_asked_for() -> None:
    class NoMoments(dist.Normal):
        @property
        def variance(self) -> Tensor:
            raise NotImplementedError

    def program(data: MultimodalData) -> None:
        with pyro.plate("instances", len(data)):
            z = pyro.sample("z", dist.Normal(torch.zeros(1).double(), 1.0).to_event(1))
            for name in data.names:
                site = NoMoments(z.expand(-1, data.dims[name]), 1.0).to_event(1).mask(data.observed(name))
                pyro.sample(name, site, obs=data.filled(name))

    model = InstanceModel(program, DATA)
    with pytest.raises(ModelError, match=r"'text': its distribution, .*, states no mean or variance"):
        model.moments(DATA, random_latents(1), ("text",))
