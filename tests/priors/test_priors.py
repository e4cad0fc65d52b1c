"""What every registered prior promises: densities, draws, gradients, files, and its closed form where it has one."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.distributions import MultivariateNormal

import calmrl_prob as cal
from calmrl_prob.errors import ArgumentError, DataError, MissingDependencyError, NotConjugateError
from calmrl_prob.linear_gaussian import ScaleMixture
from calmrl_prob.priors import PRIORS, FlowPrior, GroupPrior, MixturePrior, NormalPrior, Prior, StudentTPrior
from tests.cases.model_cases import DIMS, jittered, random_data, random_prior

#: For each registered prior, one with parameters that are nothing special, of two latents.
CASES: dict[str, Callable[[], Prior]] = {
    "normal": lambda: random_prior(2),
    "mixture": lambda: jittered(MixturePrior(2, num_components=3), 0.4),
    "student_t": lambda: jittered(StudentTPrior(2, degrees_of_freedom=6.0), 0.4),
    "group": lambda: jittered(GroupPrior(2, groups=["a", "b", "c"]), 0.4),
    "flow": lambda: jittered(FlowPrior(2, num_transforms=2, hidden=(8,)), 0.1),
}
#: What ``cal.posterior`` says it does under them.
ROUTES = {"normal": "exact", "mixture": "exact mixture", "group": "exact by structure"}


def labelled(num_instances: int = 12) -> cal.MultimodalData:
    data = random_data(num_instances)
    return cal.MultimodalData(
        {name: data[name] for name in data.names}, labels=np.array(["a", "b", "c"])[np.arange(num_instances) % 3]
    )


def model_under(prior: Prior) -> cal.SharedLatentModel:
    return jittered(cal.SharedLatentModel(DIMS, 2, prior=prior), 0.4)


@pytest.fixture(params=PRIORS)
def prior(request: pytest.FixtureRequest) -> Prior:
    return CASES[request.param]()


def test_every_registered_prior_has_a_case() -> None:
    assert set(CASES) == set(PRIORS)
    assert all(CASES[name]().name == name for name in PRIORS)


@torch.no_grad()
def test_density_integrates_to_one(prior: Prior) -> None:
    """On a grid wide enough for the tails, for the first instance where priors differ by instance."""
    reach = 10.0 if isinstance(prior, FlowPrior) else 40.0  # a flow is normal beyond 5
    axis = torch.linspace(-reach, reach, int(20 * reach) + 1, dtype=torch.float64)
    points = torch.cartesian_prod(axis, axis)
    distribution = prior.distribution(labelled())
    if distribution.batch_shape:
        points = points[:, None].expand(-1, *distribution.batch_shape, -1)
    density = distribution.log_prob(points).exp().reshape(len(axis) ** 2, -1)[:, 0]
    total = torch.trapezoid(torch.trapezoid(density.view(len(axis), -1), axis), axis)
    assert float(total) == pytest.approx(1, abs=2e-3)


def test_draws_have_the_shape_and_repeat(prior: Prior) -> None:
    distribution = prior.distribution(labelled())
    torch.manual_seed(0)
    first = distribution.sample((5,))
    torch.manual_seed(0)
    assert torch.equal(first, distribution.sample((5,)))
    assert first.shape == (5, *distribution.batch_shape, 2)
    assert bool(distribution.log_prob(first).isfinite().all())


def test_gradients_reach_every_parameter(prior: Prior) -> None:
    distribution = prior.distribution(labelled())
    if not list(prior.parameters()):
        return  # a fixed prior has nothing to learn
    distribution.log_prob(torch.ones(12, 2).double() + distribution.sample()).sum().backward()
    for name, parameter in prior.named_parameters():
        assert parameter.grad is not None, name
        assert bool(parameter.grad.isfinite().all()), name


def test_one_of_the_same_settings_takes_over_the_state(prior: Prior) -> None:
    other = type(prior)(prior.latent_dim, **prior.config())
    other.load_state_dict(prior.state_dict())
    z = torch.randn(12, 2, dtype=torch.float64)
    data = labelled()
    assert torch.equal(other.distribution(data).log_prob(z), prior.distribution(data).log_prob(z))
    assert str(prior.latent_dim) in repr(prior)


def test_a_model_with_it_comes_back_from_its_file(prior: Prior, tmp_path: Path) -> None:
    model, data = model_under(prior), labelled()
    cal.save(model, tmp_path / "model.safetensors")
    back = cal.load(tmp_path / "model.safetensors")
    assert isinstance(back, cal.SharedLatentModel)
    z = torch.randn(12, 2, dtype=torch.float64)
    assert torch.equal(back.prior.distribution(data).log_prob(z), model.prior.distribution(data).log_prob(z))
    assert all(torch.equal(a, b) for a, b in zip(back.parameters(), model.parameters(), strict=True))


def test_a_stated_structure_is_the_one_that_is_discovered(prior: Prior) -> None:
    """To a new prior it applies by itself: what it states is held against what the model does."""
    model, data = model_under(prior), labelled()
    stated = model.structure(data)
    if stated is None:
        assert isinstance(prior, FlowPrior)
        return
    by_statement = cal.posterior(model, data)
    by_discovery = cal.posterior(lambda rows: model(rows), data)
    assert by_statement.route == by_discovery.route
    for part in ("mean", "covariance", "log_marginal"):
        assert torch.allclose(getattr(by_statement, part), getattr(by_discovery, part), rtol=1e-9, atol=1e-10), part
    for name in DIMS:
        ours, theirs = (found.predictive(name) for found in (by_statement, by_discovery))
        assert torch.allclose(ours.mean, theirs.mean, rtol=1e-9, atol=1e-10)
        assert torch.allclose(ours.variance, theirs.variance, rtol=1e-9, atol=1e-10)


def test_data_may_lack_a_modality_altogether(prior: Prior) -> None:
    """Where the form is stated, what they lack is imputed as if it were missing everywhere."""
    model, data = model_under(prior), labelled()
    if model.structure(data) is None:
        return  # a flow: its program is called with the data as they are
    data = data.subset(data.rows_with("image"))
    shown = data.select(["image"])
    observed = torch.zeros(len(data), len(DIMS), dtype=torch.bool)
    observed[:, list(DIMS).index("image")] = True
    ours, theirs = (cal.impute(model, some).mean["text"] for some in (shown, data.mask(observed)))
    assert torch.allclose(ours, theirs, rtol=1e-10, atol=1e-12)


def test_a_model_loads_what_it_states(prior: Prior) -> None:
    model, data = model_under(prior), labelled()
    stated = model.structure(data)
    if stated is None or isinstance(prior, GroupPrior):  # a fit of groups leaves a mixture: below
        return
    other = cal.SharedLatentModel(DIMS, 2, prior=type(prior)(2, **prior.config()))
    other.load(stated)
    ours, theirs = (cal.posterior(m, data).log_marginal for m in (model, other))
    assert torch.allclose(ours, theirs, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("family", ["normal", "mixture", "student_t"])
def test_structures_of_all_families_offer_the_same(family: str) -> None:
    structure = model_under(CASES[family]()).structure()
    assert structure is not None
    assert (structure.dims, structure.names, structure.latent_dim) == (dict(DIMS), tuple(DIMS), 2)
    part = structure.detach().to(dtype=torch.float32).select(["text"])
    assert (part.names, part.dtype, part.device.type) == (("text",), torch.float32, "cpu")
    latents, features = part.sample(5, torch.Generator().manual_seed(0))
    assert latents.shape == (5, 2)
    assert {name: tuple(values.shape) for name, values in features.items()} == {"text": (5, DIMS["text"])}


def test_scale_mixtures_draw_heavy_tails_of_the_right_variance() -> None:
    """A t with nu degrees of freedom has nu / (nu - 2) times the variance of its scale."""
    lg = cal.LinearGaussian(
        {"x": torch.zeros(1, 1).double()}, {"x": torch.zeros(1).double()}, {"x": torch.ones(1).double()}
    )
    nu = torch.tensor(10.0, dtype=torch.float64)
    latents, features = ScaleMixture(lg, {"x": nu}, [(slice(0, 1), nu)]).sample(
        200_000, torch.Generator().manual_seed(0)
    )
    kurtosis = 3 + 6 / (10 - 4)
    for draws in (latents, features["x"]):
        # the standard error of a variance of N draws is that variance times sqrt((kurtosis - 1) / N)
        assert float(draws.var()) == pytest.approx(1.25, abs=6 * 1.25 * ((kurtosis - 1) / 200_000) ** 0.5)


def components(prior: Prior, row: int, data: cal.MultimodalData) -> list[tuple[float, Tensor, Tensor]]:
    """Weights, means and covariances of the prior of one instance."""
    if isinstance(prior, MixturePrior):
        parts = zip(
            prior.log_weights.exp().tolist(), prior.components.means, prior.components.covariances(), strict=True
        )
        return list(parts)
    if isinstance(prior, GroupPrior):
        g = int(prior.index(data)[row])
        return [(1.0, prior.components.means[g], prior.components.covariances()[g])]
    assert isinstance(prior, NormalPrior)
    return [(1.0, prior.mean, prior.covariance)]


@pytest.mark.parametrize("name", ROUTES)
@torch.no_grad()
def test_closed_form_is_brute_force_over_dense_normals(name: str) -> None:
    prior, data = CASES[name](), labelled()
    model = model_under(prior)
    result = cal.posterior(model, data)
    assert result.route == ROUTES[name]
    parameters = dict(model.named_parameters())
    for row in range(len(data)):
        present = [name for name in DIMS if bool(data.observed(name)[row])]
        x = torch.cat([data[name][row] for name in present])
        w = torch.cat([parameters[f"loadings/{name}"] for name in present])
        mu = torch.cat([parameters[f"intercepts/{name}"] for name in present])
        noise = torch.cat([parameters[f"log_noise/{name}"].exp().expand(DIMS[name]) for name in present])
        evidence, means, seconds = [], [], []
        for weight, mean, covariance in components(model.prior, row, data):
            joint = w @ covariance @ w.mT + torch.diag(noise)
            gain = torch.linalg.solve(joint, w @ covariance).mT
            evidence.append(np.log(weight) + float(MultivariateNormal(w @ mean + mu, joint).log_prob(x)))
            means.append(mean + gain @ (x - w @ mean - mu))
            seconds.append(covariance - gain @ w @ covariance + torch.outer(means[-1], means[-1]))
        total = float(torch.logsumexp(torch.tensor(evidence), 0))
        shares = [float(np.exp(value - total)) for value in evidence]
        expected = sum(share * mean for share, mean in zip(shares, means, strict=True))
        second = sum(share * value for share, value in zip(shares, seconds, strict=True))
        assert float(result.log_marginal[row]) == pytest.approx(total, rel=1e-6)
        assert torch.allclose(result.mean[row], expected, rtol=1e-6, atol=1e-8)
        assert torch.allclose(result.covariance[row], second - torch.outer(expected, expected), rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("name", ["mixture", "group"])
def test_fit_takes_closed_form_steps_and_beats_one_gaussian(name: str) -> None:
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(300) % 3
    centres = torch.tensor([[-3.0, 0.0], [3.0, 0.0], [0.0, 4.0]]).double()
    z = centres[labels] + 0.4 * torch.randn(300, 2, generator=generator).double()
    arrays = {
        n: z @ torch.randn(2, d, generator=generator).double() + 0.5 * torch.randn(300, d, generator=generator).double()
        for n, d in DIMS.items()
    }
    arrays["image"][:60] = torch.nan
    data = cal.MultimodalData(arrays, labels=np.array(["a", "b", "c"])[labels.numpy()])
    plain = cal.SharedLatentModel(DIMS, 2)
    one = cal.fit(plain, data)
    prior = MixturePrior(2, 3) if name == "mixture" else GroupPrior(2, ["a", "b", "c"])
    model = cal.SharedLatentModel(DIMS, 2, prior=prior)
    result = cal.fit(model, data)
    assert result.method == "mixture em"
    assert bool((np.diff(result.objective) >= -1e-9 * abs(result.objective[-1])).all())
    assert result.log_likelihood[-1] > one.log_likelihood[-1] + 50
    total = float(cal.posterior(model, data).log_marginal.sum())
    assert total == pytest.approx(result.log_likelihood[-1], rel=1e-9)
    if name == "mixture":
        found = cal.posterior(model, data).responsibilities.argmax(1)  # type: ignore[attr-defined]
        pairs = {(int(a), int(b)) for a, b in zip(found, labels, strict=True)}
        assert len(pairs) == 3  # each component is one of the clusters


@pytest.mark.parametrize("latent_dim", [1, 2, 5])
def test_a_flow_starts_as_the_standard_normal_prior(latent_dim: int) -> None:
    prior = FlowPrior(latent_dim, num_transforms=2, hidden=(8,))
    z = 3 * torch.randn(20, latent_dim, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    standard = torch.distributions.Normal(0.0, 1.0).log_prob(z).sum(1)
    torch.testing.assert_close(prior.distribution().log_prob(z).detach(), standard, rtol=1e-6, atol=1e-6)


def test_draws_of_a_flow_have_its_density() -> None:
    """E[f(z)] over draws of a flow far from normal, and by integration of its density on a grid."""
    prior = jittered(FlowPrior(2, num_transforms=2, hidden=(8,)), 0.25)
    with torch.no_grad():
        axis = torch.linspace(-7, 7, 561, dtype=torch.float64)
        points = torch.cartesian_prod(axis, axis)
        density = prior.distribution().log_prob(points).exp() * (axis[1] - axis[0]) ** 2
        torch.manual_seed(0)
        draws = prior.distribution().sample((4000,))
    for function in (lambda z: z[:, 0], lambda z: z[:, 1].abs(), lambda z: z.prod(1)):
        expected, found = (density * function(points)).sum(), function(draws)
        assert abs(float(found.mean() - expected)) < 6 * float(found.std()) / 4000**0.5
    normal = torch.distributions.Normal(0.0, 1.0).log_prob(points).sum(1).exp() * (axis[1] - axis[0]) ** 2
    assert float((density - normal).abs().sum()) > 0.3  # total variation: far from where it started


def test_a_flow_without_its_package_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "zuko", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'calmrl-prob\[flow\]'"):
        FlowPrior(2)


def test_bad_groups_are_named() -> None:
    prior = GroupPrior(2, groups=["a", "b"], column="site")
    with pytest.raises(DataError, match=r"no 'site', by which the prior tells groups apart"):
        prior.distribution(labelled())
    with pytest.raises(DataError, match=r"group 'c' of 'labels' is unknown to the prior, which has \['a', 'b'\]"):
        GroupPrior(2, groups=["a", "b"]).distribution(labelled())
    with pytest.raises(ArgumentError, match="needs the groups of the instances"):
        prior.distribution()
    with pytest.raises(ArgumentError, match="distinct names"):
        GroupPrior(2, groups=["a", "a"])
    model = cal.SharedLatentModel(DIMS, 2, prior=GroupPrior(2, ["a", "b", "c", "d"]))
    with pytest.raises(DataError, match="no instance belongs to group 'd'"):
        cal.fit(model, labelled())


def test_what_is_not_one_gaussian_says_so() -> None:
    model = cal.SharedLatentModel(DIMS, 2, prior=MixturePrior(2))
    with pytest.raises(NotConjugateError, match="not one Gaussian for all instances"):
        model.linear_gaussian()
    with pytest.raises(ArgumentError, match="degrees_of_freedom: expected a number above 2"):
        StudentTPrior(2, degrees_of_freedom=1.0)
    with pytest.raises(ArgumentError, match="number 1 is not positive definite"):
        MixturePrior(2, 2).components.set(torch.zeros(2, 2), torch.stack([torch.eye(2), -torch.eye(2)]))
