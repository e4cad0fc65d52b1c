"""Student-t priors and likelihoods behind ``cal.posterior``, ``cal.impute`` and ``cal.fit``."""

from __future__ import annotations

from collections.abc import Callable

import arviz as az
import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import MCMC, NUTS
from torch import Tensor, nn

import calmrl_prob as cal
from calmrl_prob.errors import ArgumentError, ArgumentTypeError, ModelError, NotConjugateError
from calmrl_prob.evaluation import simulate_model, simulation_ranks
from calmrl_prob.inference.exact.scale_mixture import scale_mixture_of
from calmrl_prob.inference.exact.scale_mixture_fit import site_beyond_scale_mixtures
from calmrl_prob.linear_gaussian.scale_mixture.quadrature import gamma_nodes
from calmrl_prob.priors import StudentTPrior
from models.robust import Robust
from models.student_t import StudentT
from tests.cases.model_cases import DIMS, data_with_single_features_missing, random_data
from tests.cases.scale_mixture_cases import heavy_tailed

Model = Callable[[cal.MultimodalData], None]


def zeros(width: int) -> Tensor:
    return torch.zeros(width, dtype=torch.float64)


def loadings(name: str) -> Tensor:
    generator = torch.Generator().manual_seed(len(name))
    return torch.randn(DIMS[name], 2, generator=generator, dtype=torch.float64)


def student_t_model(
    prior: Callable[[], dist.TorchDistribution], noise: Callable[[str, Tensor], dist.TorchDistribution]
) -> Model:
    def model(data: cal.MultimodalData) -> None:
        with pyro.plate("instances", len(data)):
            z = pyro.sample("z", prior())
            for name in data.names:
                features = noise(name, z @ loadings(name).mT + 0.3)
                pyro.sample(name, features.mask(data.observed(name)), obs=data.filled(name))

    return model


def normal_noise(name: str, mean: Tensor) -> dist.TorchDistribution:
    return dist.Normal(mean, 0.6).to_event(1)


def joint_noise(name: str, mean: Tensor) -> dist.TorchDistribution:
    return dist.MultivariateStudentT(4.0, mean, 0.6 * torch.eye(DIMS[name]).double())


def independent_noise(name: str, mean: Tensor) -> dist.TorchDistribution:
    return dist.StudentT(4.0, mean, 0.6).to_event(1)


PRIORS: dict[str, Callable[[], dist.TorchDistribution]] = {
    "normal": lambda: dist.Normal(zeros(2), 1.0).to_event(1),
    "joint": lambda: dist.MultivariateStudentT(5.0, zeros(2) + 0.5, torch.eye(2).double()),
    "independent": lambda: dist.StudentT(5.0, zeros(2), 1.0).to_event(1),
}
#: Prior, noise, and whether an instance has one scale, so that nothing is drawn.
CASES = {
    "joint prior": ("joint", normal_noise, True),
    "independent prior": ("independent", normal_noise, False),
    "joint noise": ("normal", joint_noise, False),
    "independent noise": ("normal", independent_noise, False),
    "all joint": ("joint", joint_noise, False),
    "all independent": ("independent", independent_noise, False),
}


def case(name: str) -> Model:
    prior, noise, _ = CASES[name]
    return student_t_model(PRIORS[prior], noise)


@pytest.mark.parametrize("name", CASES)
def test_every_spelling_takes_the_route(name: str) -> None:
    data = random_data(12)
    result = cal.posterior(case(name), data, seed=1)
    assert result.route == "scale mixture"
    assert bool(result.diagnostics) != CASES[name][2]
    if result.diagnostics:
        assert result.diagnostics["k_hat"].shape == (12,)
        assert float(result.diagnostics["effective_draws"].min()) > 20
    again = cal.posterior(case(name), data, seed=1)
    assert torch.equal(result.log_marginal, again.log_marginal)
    imputed = cal.impute(result, data)
    for modality in DIMS:
        lower, upper = imputed.interval(0.9)[modality]
        assert bool((upper > lower).all())
        assert bool(imputed.variance[modality].isfinite().all())


def assert_is_brute_force(result: cal.PosteriorResult, model: Model, data: cal.MultimodalData, rows: int) -> None:
    """A sum over a fine grid of both latents, of densities that the traced Pyro model states itself."""
    axis = torch.linspace(-9, 9, 181, dtype=torch.float64)
    grid = torch.cartesian_prod(axis, axis)
    for row in range(rows):
        repeated = data.subset(torch.full((len(grid),), row))
        trace = poutine.trace(poutine.condition(model, {"z": grid})).get_trace(repeated)
        trace.compute_log_prob()
        joint = sum(trace.nodes[site]["log_prob"] for site in ("z", *data.names))
        log_share = joint + 2 * float((axis[1] - axis[0]).log())
        share = log_share.softmax(0)
        mean = share @ grid
        spread = grid - mean
        sd = (share @ spread.square()).sqrt()
        error = float(result.diagnostics["log_marginal_error"][row]) if result.diagnostics else 1e-4
        assert float(result.log_marginal[row]) == pytest.approx(float(log_share.logsumexp(0)), abs=6 * error + 1e-4)
        size = float(result.diagnostics["effective_draws"][row]) if result.diagnostics else 1e7
        assert bool(((result.mean[row] - mean).abs() < 6 * sd / size**0.5 + 2e-3).all())


@pytest.mark.parametrize("name", CASES)
def test_evidence_and_moments_by_brute_force_over_the_latents(name: str) -> None:
    data = random_data(4)
    options = {} if CASES[name][2] else {"num_draws": 800}
    assert_is_brute_force(cal.posterior(case(name), data, seed=2, **options), case(name), data, 4)


def test_the_prior_of_a_shared_latent_model_is_the_prior_of_a_plain_one() -> None:
    data = random_data(10)
    model = cal.SharedLatentModel(DIMS, 2, prior=StudentTPrior(2, 5.0))
    with torch.no_grad():
        for name in DIMS:
            getattr(model, f"loadings/{name}").copy_(loadings(name))
            getattr(model, f"log_noise/{name}").fill_(2 * np.log(0.6))
            getattr(model, f"intercepts/{name}").fill_(0.3)
    plain = student_t_model(lambda: dist.MultivariateStudentT(5.0, zeros(2), torch.eye(2).double()), normal_noise)
    one, other = cal.posterior(model, data), cal.posterior(plain, data)
    assert one.route == other.route == "scale mixture"
    torch.testing.assert_close(one.mean, other.mean)
    torch.testing.assert_close(one.log_marginal, other.log_marginal)


def test_single_missing_features() -> None:
    """One scale of the prior by quadrature, scales of features by draws: against the grid over the latents."""
    data = data_with_single_features_missing()

    def model(prior: Callable[[], dist.TorchDistribution], freedom: float | None) -> Model:
        def generate(data: cal.MultimodalData) -> None:
            with pyro.plate("instances", len(data)):
                z = pyro.sample("z", prior())
                for name in data.names:
                    mean = z @ loadings(name).mT
                    noise = dist.Normal(mean, 0.6) if freedom is None else dist.StudentT(freedom, mean, 0.6)
                    mask = data.feature_mask(name)
                    pyro.sample(name, noise.mask(mask).to_event(1), obs=data.filled(name))

        return generate

    whole, single = model(PRIORS["joint"], None), model(PRIORS["normal"], 4.0)
    exact = cal.posterior(whole, data)
    assert exact.route == "scale mixture"
    assert not exact.diagnostics
    assert_is_brute_force(exact, whole, data, 3)
    drawn = cal.posterior(single, data, num_draws=400)
    assert drawn.route == "scale mixture"
    assert_is_brute_force(drawn, single, data, 3)


def test_what_is_beyond_the_route_is_left_to_another() -> None:
    """Noise that is correlated between features has a scale that the latents which carry it would have to share."""

    def correlated(name: str, mean: Tensor) -> dist.TorchDistribution:
        factor = torch.eye(DIMS[name]).double() * 0.6
        factor[-1, 0] = 0.3
        return dist.MultivariateStudentT(4.0, mean, factor)

    data = random_data(3)
    form = cal.discover(student_t_model(PRIORS["normal"], correlated), data)
    assert form.degrees_of_freedom
    assert scale_mixture_of(form) is None
    assert site_beyond_scale_mixtures(form, data) is not None


def test_options_are_checked() -> None:
    with pytest.raises(ArgumentError, match="scale-mixture route has num_draws alone"):
        cal.posterior(case("joint noise"), random_data(3), steps=3)
    with pytest.raises(ArgumentError, match="num_draws: expected a whole number of at least 100"):
        cal.posterior(case("joint noise"), random_data(3), num_draws=3)
    with pytest.raises(NotConjugateError, match="Student-t is Gaussian only given its scale"):
        cal.posterior(case("joint noise"), random_data(3), method="exact")


def test_nodes_of_a_fresh_scale_make_the_t_distribution() -> None:
    values = torch.tensor([0.0, 1.0, 4.0, 10.0], dtype=torch.float64)
    for freedom in (1.5, 4.0, 30.0):
        log_weight, scale = gamma_nodes(torch.tensor(freedom), 41)
        mixture = torch.logsumexp(
            log_weight[:, None] + torch.distributions.Normal(0, scale.rsqrt()[:, None]).log_prob(values), 0
        )
        exact = torch.distributions.StudentT(torch.tensor(freedom, dtype=torch.float64)).log_prob(values)
        torch.testing.assert_close(mixture, exact, rtol=2e-3, atol=2e-3)


# ---- fits ------------------------------------------------------------------------------------------------------------


def heavy_tailed_data(sites: tuple[str, ...], num_instances: int = 300) -> cal.MultimodalData:
    blocks, _ = heavy_tailed(sites, num_instances)
    nothing = {name: torch.full((num_instances, width), torch.nan).double() for name, width in blocks.dims.items()}
    return cal.MultimodalData(
        {name: values.index_copy(0, blocks.rows[name], blocks.values[name]) for name, values in nothing.items()}
    )


class TwoSites(nn.Module):
    """A model of the user's own: a Student-t prior in coordinates of its own, parameters of its own form."""

    def __init__(self, dims: dict[str, int], independent: bool) -> None:
        super().__init__()
        self.independent = independent
        generator = torch.Generator().manual_seed(0)
        self.maps = nn.ParameterDict(
            {name: 0.5 * torch.randn(width, 2, generator=generator).double() for name, width in dims.items()}
        )
        self.log_scale = nn.Parameter(zeros(2))
        self.centre = nn.Parameter(zeros(2))
        self.log_freedom = nn.Parameter(zeros(1)[0] + 1.6)

    def forward(self, data: cal.MultimodalData) -> None:
        freedom, scale = self.log_freedom.exp(), self.log_scale.exp()
        with pyro.plate("instances", len(data)):
            if self.independent:
                prior = dist.StudentT(freedom, self.centre, scale).to_event(1)
            else:
                prior = dist.MultivariateStudentT(freedom, self.centre, torch.diag(scale))
            z = pyro.sample("z", prior)
            for name in data.names:
                features = dist.Normal(z @ self.maps[name].mT, 0.8).to_event(1)
                pyro.sample(name, features.mask(data.observed(name)), obs=data.filled(name))


@pytest.mark.parametrize("kind", ["prior", "robust"])
def test_closed_form_steps_and_gradients_end_at_the_same_place(kind: str) -> None:
    data = heavy_tailed_data(("z",) if kind == "prior" else ("a", "b"))
    ends = []
    for method in ("auto", "scale mixture"):
        prior = StudentTPrior(2, 5.0)
        model = cal.SharedLatentModel(data.dims, 2, prior=prior) if kind == "prior" else Robust(data.dims, 2)
        result = cal.fit(model, data, method=method)
        assert result.method == ("scale em" if method == "auto" else method)
        assert bool((np.diff(result.objective) >= -1e-9 * abs(result.objective[-1])).all())
        ends.append(result.log_likelihood[-1])
        if kind == "prior":
            evidence = float(cal.posterior(model, data).log_marginal.sum())
            assert evidence == pytest.approx(result.log_likelihood[-1], rel=1e-6)
    assert ends[0] == pytest.approx(ends[1], abs=0.05)
    plain = cal.SharedLatentModel(data.dims, 2)
    assert ends[0] > cal.fit(plain, data).log_likelihood[-1] + 20


@pytest.mark.parametrize("independent", [False, True])
def test_a_model_of_the_users_own_is_fitted_by_gradients_of_its_evidence(independent: bool) -> None:
    data = heavy_tailed_data(("z",), 200)
    model = TwoSites(data.dims, independent)
    result = cal.fit(model, data)
    assert result.method == "scale mixture"
    assert result.converged
    assert result.log_likelihood[-1] > result.log_likelihood[0] + 50
    if not independent:
        evidence = float(cal.posterior(model, data).log_marginal.sum())
        assert evidence == pytest.approx(result.log_likelihood[-1], rel=1e-6)


def test_penalties_outside_the_plate_count() -> None:
    data = heavy_tailed_data(("z",), 100)
    plain, penalised = TwoSites(data.dims, False), TwoSites(data.dims, False)

    def with_penalty(given: cal.MultimodalData) -> None:
        pyro.module("own", penalised)
        pyro.factor("penalty", -50 * (penalised.log_freedom - 4.0).square())
        penalised(given)

    cal.fit(plain, data)
    result = cal.fit(with_penalty, data)
    assert abs(float(penalised.log_freedom.detach()) - 4.0) < abs(float(plain.log_freedom.detach()) - 4.0)
    assert result.objective[-1] < result.log_likelihood[-1]


def test_fits_that_cannot_be_are_refused_or_take_another_method() -> None:
    data = heavy_tailed_data(("z",), 60)
    with pytest.raises(ArgumentTypeError, match="method 'scale em' needs a SharedLatentModel with a StudentTPrior"):
        cal.fit(cal.SharedLatentModel(data.dims, 2), data, method="scale em")
    model = cal.SharedLatentModel(data.dims, 2, prior=StudentTPrior(2))
    with pytest.raises(ArgumentError, match="method 'scale em' has no option 'steps'"):
        cal.fit(model, data, steps=3)
    with pytest.raises(ModelError, match="no parameters to fit"):
        cal.fit(case("joint prior"), random_data(8), method="scale mixture")
    partial = data_with_single_features_missing()
    with pytest.raises(NotConjugateError, match="one structure for all instances, whole modalities"):
        cal.fit(cal.SharedLatentModel(DIMS, 1, prior=StudentTPrior(1)), partial, method="scale mixture")


def test_a_saved_student_t_prior_keeps_its_degrees_of_freedom(tmp_path) -> None:  # noqa: ANN001 - pytest's
    data = heavy_tailed_data(("z",), 100)
    model = cal.SharedLatentModel(data.dims, 2, prior=StudentTPrior(2))
    cal.fit(model, data)
    cal.save(model, tmp_path / "model.safetensors")
    back = cal.load(tmp_path / "model.safetensors")
    torch.testing.assert_close(cal.posterior(back, data).log_marginal, cal.posterior(model, data).log_marginal)


# ---- slow: samplers and calibration ----------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("name", ["joint prior", "all joint"])
def test_nuts_finds_the_same_moments(name: str) -> None:
    """On the Pyro model itself, whose scales are integrated out: means and variances within 6 standard errors."""
    data = random_data(4)
    with torch.random.fork_rng():
        pyro.set_rng_seed(0)
        sampler = MCMC(NUTS(case(name)), num_samples=1500, warmup_steps=300, disable_progbar=True)
        sampler.run(data)
    draws = sampler.get_samples()["z"]
    result = cal.posterior(case(name), data, **({} if CASES[name][2] else {"num_draws": 4000}))
    ours = 1e9 if CASES[name][2] else float(result.diagnostics["effective_draws"].min())
    size = torch.tensor([[float(az.ess(draws[None, :, n, k].numpy())) for k in range(2)] for n in range(4)])
    assert float(size.min()) > 150
    error = (1 / size + 1 / ours).sqrt()
    assert bool(((draws.mean(0) - result.mean).abs() < 6 * draws.std(0) * error).all())
    squares = (draws - result.mean).square()
    variance = result.covariance.diagonal(dim1=1, dim2=2)
    assert bool(((squares.mean(0) - variance).abs() < 6 * squares.std(0) * error).all())


def quantities(z: Tensor, data: cal.MultimodalData) -> dict[str, Tensor]:
    residual = (data.filled("text") - z @ loadings("text").mT - 0.3) * data.observed("text")[:, None]
    return {
        "first": z[..., 0, 0],
        "last": z[..., -1, 1],
        "length": z.square().sum((-1, -2)).log(),
        "misfit": residual.square().sum((-1, -2)),
    }


@pytest.mark.slow
@pytest.mark.filterwarnings(
    "ignore:Pareto k-hat:calmrl_prob.errors.ReliabilityWarning"
)  # some of 300 data sets have one
@pytest.mark.parametrize("name", ["joint prior", "all joint", "all independent"])
def test_the_posterior_is_calibrated(name: str) -> None:
    """300 data sets of 5 instances that lack modalities; seed fixed in advance."""
    like = random_data(5)

    def simulate(seed: int) -> tuple[dict[str, Tensor], cal.MultimodalData]:
        latents, data = simulate_model(case(name), like, seed)
        return quantities(latents["z"], data), data

    def draw(data: cal.MultimodalData, num_draws: int, seed: int) -> dict[str, Tensor]:
        options = {} if CASES[name][2] else {"num_draws": 500}
        return quantities(cal.posterior(case(name), data, seed=seed, **options).sample(num_draws, seed), data)

    assert simulation_ranks(simulate, draw, num_replications=300, seed=20260103).p_value > 0.01


@pytest.mark.slow
def test_the_student_t_model_is_calibrated() -> None:
    model, like = StudentT(DIMS, latent_dim=2), random_data(5)
    with torch.no_grad():
        model.log_freedom.fill_(np.log(4.0))
        for name in DIMS:
            model.loadings[name].copy_(loadings(name))
            model.intercepts[name].fill_(0.3)

    def simulate(seed: int) -> tuple[dict[str, Tensor], cal.MultimodalData]:
        latents, data = simulate_model(model, like, seed)
        return quantities(latents["z"], data), data

    def draw(data: cal.MultimodalData, num_draws: int, seed: int) -> dict[str, Tensor]:
        return quantities(cal.posterior(model, data).sample(num_draws, seed), data)

    assert simulation_ranks(simulate, draw, num_replications=300, seed=20260104).p_value > 0.01
