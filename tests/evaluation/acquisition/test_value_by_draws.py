"""The value of information of routes that are not Gaussian, against integrals and densities of other packages."""

from __future__ import annotations

import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from scipy import stats
from torch import Tensor

import calmrl_prob as cal
from calmrl_prob.errors import ArgumentError, ReliabilityWarning
from calmrl_prob.inference import ParameterDraws
from calmrl_prob.linear_gaussian import LinearGaussian, LinearGaussianMixture, ScaleMixture
from calmrl_prob.linear_gaussian.scale_mixture.shared_scale import StudentTModel
from calmrl_prob.posteriors.posterior import PosteriorResult
from tests.cases.acquisition_cases import incomplete, mixture_of, random_model
from tests.cases.collapsed_cases import factor_model
from tests.cases.model_cases import random_data

FREEDOM = 5.0


def entropy_of_the_predictive(given: PosteriorResult, name: str, reach: float = 400.0) -> Tensor:
    """Of a modality of one feature, (N,), nats, by the trapezoidal rule in asinh(x)."""
    grid = torch.linspace(-math.asinh(reach), math.asinh(reach), 1_001, dtype=torch.float64)
    predictive, total = given.predictive(name), []
    for v in grid:
        log_density = predictive.log_density(v.sinh().expand_as(predictive.mean)).squeeze(1)
        total.append(-log_density.exp() * log_density * v.cosh())
    return torch.trapezoid(torch.stack(total), grid, dim=0)


def within_six_errors(found: cal.evaluation.ValueOfInformation, column: int, expected: Tensor, rows: Tensor) -> None:
    gain, error = found.gain[rows, column], found.standard_error[rows, column]
    assert (error > 0).all()
    assert (np.abs(gain - expected[rows].numpy()) < 6 * error).all()


def scalar_model(latent_dim: int = 2) -> LinearGaussian:
    """ "depth" has one feature, so that its entropy is one integral."""
    return random_model(latent_dim, seed=2, dims={"image": 2, "text": 2, "depth": 1})


@pytest.mark.parametrize("family", ["mixture", "student-t prior", "student-t noise"])
def test_about_the_latents_it_is_the_entropy_that_the_noise_leaves(family: str) -> None:
    """I(z; x) = h(x) - h(x | z), with h(x | z) that of the noise."""
    lg = scalar_model()
    data = incomplete(lg, 6)
    freedom = torch.tensor(FREEDOM).double()
    model = {
        "mixture": mixture_of(lg, 2.0),
        "student-t prior": ScaleMixture(lg, {}, [(slice(0, 2), freedom)]),
        "student-t noise": ScaleMixture(lg, {"depth": freedom}, []),
    }[family]
    if family == "student-t noise":  # scales of what is observed would be drawn; here the asked modality alone has one
        data = data.subset(~data.observed("depth"))
    found = cal.value_of_information(model, data, num_draws=1000, seed=1)
    scale = float(lg.noise_variance["depth"]) ** 0.5
    noise = stats.t(FREEDOM, scale=scale) if family == "student-t noise" else stats.norm(scale=scale)
    expected = entropy_of_the_predictive(cal.posterior(model, data), "depth") - float(noise.entropy())
    rows = (~data.observed("depth")).nonzero().flatten()
    assert len(rows) > 1
    within_six_errors(found, 2, expected, rows)
    assert found.method == "draws"


@pytest.mark.parametrize("family", ["mixture", "prior"])
def test_about_a_target_it_is_what_the_three_joint_entropies_leave(family: str) -> None:
    """I(x; t) = h(t) - E[h(t | x)]: the entropy of the target's predictive less its mean over draws of x."""
    lg = random_model(2, seed=4, dims={"image": 2, "text": 1, "depth": 1})
    model = mixture_of(lg, 2.0)
    if family == "prior":
        model = ScaleMixture(lg, {}, [(slice(0, 2), torch.tensor(FREEDOM).double())])
    data = cal.MultimodalData(lg.sample(1, torch.Generator().manual_seed(0)).features).select(["image"])
    found = cal.value_of_information(model, data, "depth", num_draws=4000)
    given = cal.posterior(model, data)
    drawn = cal.impute(given, data).sample(400, seed=3)["text"][:, 0]
    after = cal.MultimodalData({"image": data["image"].expand(400, -1), "text": drawn})
    later = cal.posterior(model, after)
    left = entropy_of_the_predictive(later, "depth", 100.0)
    gain = float(entropy_of_the_predictive(given, "depth", 100.0)) - float(left.mean())
    error = math.hypot(float(left.std()) / 20, found.standard_error[0, 1])
    assert abs(found.gain[0, 1] - gain) < 6 * error
    assert found.trace_drop is not None
    variance = cal.impute(later, after).variance["depth"][:, 0]
    drop = float(cal.impute(given, data).variance["depth"]) - float(variance.mean())
    assert found.trace_drop_error is not None
    assert abs(found.trace_drop[0, 1] - drop) < 6 * math.hypot(float(variance.std()) / 20, found.trace_drop_error[0, 1])


@pytest.mark.parametrize("target", [None, "text"])
def test_a_mixture_of_equal_components_is_the_gaussian(target: str | None) -> None:
    lg = random_model()
    data = incomplete(lg)
    exact = cal.value_of_information(lg, data, target)
    found = cal.value_of_information(mixture_of(lg, 0.0), data, target, num_draws=2000)
    asked = ~np.isnan(exact.gain)
    assert (asked == ~np.isnan(found.gain)).all()
    np.testing.assert_allclose(found.gain[asked], exact.gain[asked], rtol=1e-8, atol=1e-10)  # nothing is left to chance
    if target is not None:
        assert exact.trace_drop is not None
        assert found.trace_drop is not None
        np.testing.assert_allclose(found.trace_drop[asked], exact.trace_drop[asked], rtol=1e-8)


@pytest.mark.parametrize("target", [None, "text"])
def test_the_student_t_model_is_a_multivariate_t_of_all(target: str | None) -> None:
    """The mean log-density ratio of draws by SciPy, of z (or the target) and the modality given what is there."""
    lg = random_model(2, seed=5, dims={"image": 2, "text": 1, "audio": 2})
    model = StudentTModel(lg, torch.tensor(FREEDOM).double())
    data = cal.MultimodalData(lg.sample(1, torch.Generator().manual_seed(0)).features).select(["image"])
    found = cal.value_of_information(model, data, target)
    assert found.method == "exact"
    posterior = cal.posterior(lg, data)
    loadings = torch.cat([lg.loadings["text"], lg.loadings["audio"], torch.eye(2).double()])
    covariance = loadings @ posterior.covariance[0] @ loadings.mT
    noise = torch.cat([lg.noise_variance["text"], lg.noise_variance["audio"], torch.zeros(2).double()])
    covariance = (covariance + noise.diag()).numpy()
    one, other = ([3, 4], [1, 2]) if target is None else ([0], [1, 2])
    both = [*one, *other]

    def law(dims: list[int]) -> stats.rv_continuous:
        return stats.multivariate_t(shape=covariance[np.ix_(dims, dims)], df=FREEDOM + 2)

    draws = law(both).rvs(40_000, random_state=np.random.default_rng(0))
    ratio = law(both).logpdf(draws) - law(one).logpdf(draws[:, : len(one)]) - law(other).logpdf(draws[:, len(one) :])
    assert abs(found.gain[0, 2] - ratio.mean()) < 6 * ratio.std() / 200
    assert found.gain[0, 2] > cal.value_of_information(lg, data, target).gain[0, 2]  # the scale is shared too
    if target is not None:
        assert found.trace_drop is not None
        inflation = float(cal.posterior(model, data).covariance[0, 0, 0] / posterior.covariance[0, 0, 0])
        plain = cal.value_of_information(lg, data, target).trace_drop
        assert plain is not None
        assert found.trace_drop[0, 2] == pytest.approx(inflation * plain[0, 2])


def test_components_with_loadings_of_their_own_are_drawn() -> None:
    """Of equal ones the truth is the Gaussian's; the bound by draws is low by about 1 / (2 S) for each latent."""
    lg = scalar_model()
    twin = LinearGaussian(
        {name: part.clone() for name, part in lg.loadings.items()},
        lg.intercepts, lg.noise_variance, lg.prior_mean, lg.prior_covariance,
    )  # fmt: skip
    model = LinearGaussianMixture(torch.tensor([0.5, 0.5]).double().log(), (lg, twin))
    assert not model.shares_likelihood
    data = incomplete(lg, 8)
    exact = cal.value_of_information(lg, data)
    found = cal.value_of_information(model, data, num_draws=500)
    column = 2
    asked = ~np.isnan(exact.gain[:, column])
    assert asked.sum() > 1
    apart = np.abs(found.gain[asked, column] - exact.gain[asked, column])
    assert (apart < 6 * found.standard_error[asked, column]).all()


def latent_scale(data: cal.MultimodalData) -> None:
    with pyro.plate("instances", len(data)):
        z = pyro.sample("z", dist.Normal(torch.zeros(2).double(), 1.0).to_event(1))
        for name, width in data.dims.items():
            mean = torch.tanh(z @ torch.ones(2, width).double())
            site = dist.Normal(mean, 0.5).to_event(1).mask(data.observed(name))
            pyro.sample(name, site, obs=data.filled(name))


@pytest.mark.filterwarnings("ignore::calmrl_prob.errors.ReliabilityWarning")
def test_a_route_by_draws_alone_is_served_up_to_its_limit() -> None:
    data = random_data(4)
    given = cal.posterior(latent_scale, data, method="svi", seed=0, max_iterations=5)
    found = cal.value_of_information(given, data, num_draws=64)
    gains = found.gain[~np.isnan(found.gain)]
    assert found.method == "draws"
    assert len(gains) == int((~data.observed_mask).sum())
    assert ((gains >= 0) & (gains <= math.log(64))).all()


def test_gains_beyond_what_the_draws_can_show_are_said_to_be() -> None:
    lg = random_model()
    sharp = LinearGaussian(lg.loadings, lg.intercepts, {name: torch.tensor(1e-6).double() for name in lg.names})
    twin = LinearGaussian({n: w.clone() for n, w in lg.loadings.items()}, lg.intercepts, sharp.noise_variance)
    model = LinearGaussianMixture(torch.zeros(2).double(), (sharp, twin))
    data = cal.MultimodalData(sharp.sample(1, torch.Generator().manual_seed(0)).features).select(["depth"])
    with pytest.warns(ReliabilityWarning, match=r"3 gains are near .* log\(num_draws\) = 4\.2 nats; raise num_draws"):
        found = cal.value_of_information(model, data, num_draws=64)
    assert np.nanmax(found.gain) <= math.log(64) + 1e-9  # but for rounding


def test_over_draws_of_the_parameters_it_is_the_mean() -> None:
    data = random_data(6)
    collapsed = cal.marginalize(factor_model(), data)
    theta = torch.stack([collapsed.draw(0) + 0.2 * collapsed.draw(s) for s in range(1, 6)])
    given = ParameterDraws(collapsed.bound, collapsed.values(theta), "collapsed").posterior(data)
    found = cal.value_of_information(given, data)
    each = np.stack([cal.value_of_information(given.given(s), data).gain for s in range(5)])
    np.testing.assert_allclose(found.gain, each.mean(0))
    np.testing.assert_allclose(found.standard_error, each.std(0, ddof=1) / 5**0.5)


def test_under_a_process_it_is_the_gaussian_of_each_instance() -> None:
    from calmrl_prob.inference.exact.process import gaussian_process_posterior
    from calmrl_prob.priors.gaussian_process import GaussianProcessPrior

    lg = random_model(1, dims={"image": 2, "depth": 1})
    mask = torch.tensor([[True, True], [True, False], [True, False], [True, True]])
    features = lg.sample(4, torch.Generator().manual_seed(0)).features
    data = cal.MultimodalData(features, observed_mask=mask, covariates={"time": [0.0, 1.0, 2.0, 5.0]})
    given = gaussian_process_posterior(lg, GaussianProcessPrior(1, covariate="time"), data)
    found = cal.value_of_information(given, data)
    precision = (lg.loadings["depth"].square() / lg.noise_variance["depth"][:, None]).sum()
    expected = 0.5 * torch.log1p(precision * given.covariance[:, 0, 0])
    np.testing.assert_allclose(found.gain[1:3, 1], expected[1:3].numpy(), rtol=1e-9)


def test_single_features_missing_are_refused_where_gains_are_drawn() -> None:
    lg = scalar_model()
    twin = LinearGaussian({n: w.clone() for n, w in lg.loadings.items()}, lg.intercepts, lg.noise_variance)
    model = LinearGaussianMixture(torch.zeros(2).double(), (lg, twin))
    features = lg.sample(3, torch.Generator().manual_seed(0)).features
    features["image"][0, 0] = torch.nan
    data = cal.MultimodalData(features, missing="features")
    with pytest.raises(ArgumentError, match="single features"):
        cal.value_of_information(model, data)


@pytest.mark.filterwarnings("ignore::calmrl_prob.errors.ReliabilityWarning")
@pytest.mark.parametrize("family", ["poisson", "one of three"])
def test_of_what_is_counted_it_is_the_information_of_the_counts(family: str) -> None:
    """I(z; x) = H(x) - E[H(x | z)], both sums over all that can be counted; a normal in its place misses it."""
    columns = 1 if family == "poisson" else 3

    def program(data: cal.MultimodalData) -> None:
        with pyro.plate("instances", len(data)):
            z = pyro.sample("z", dist.Normal(torch.zeros(1).double(), 1.0).to_event(1))
            seen = dist.Normal(z, 1.0).to_event(1).mask(data.observed("seen"))
            pyro.sample("seen", seen, obs=data.filled("seen"))
            site = dist.Poisson((z - 1).exp()).to_event(1)
            if family != "poisson":
                site = dist.OneHotCategorical(logits=torch.cat([z, 2 * z, -z], 1))
            values = data.filled("told")
            if family != "poisson":  # under the mask any one of three will do
                values = torch.where(data.observed("told")[:, None], values, torch.eye(3).double()[0])
            pyro.sample("told", site.mask(data.observed("told")), obs=values)

    told = torch.full((2, columns), torch.nan).double()
    told[1] = torch.eye(columns).double()[0]
    data = cal.MultimodalData({"seen": torch.tensor([[0.5], [1.0]]).double(), "told": told})
    found = cal.value_of_information(program, data, method="svi", num_draws=400)
    # by quadrature: of the first instance p(z | seen) is N(0.25, 1 / 2)
    z = torch.linspace(-5, 5.5, 4001, dtype=torch.float64)
    weight = torch.softmax(-((z - 0.25) ** 2), 0)
    if family == "poisson":
        given = torch.distributions.Poisson((z - 1).exp()[:, None]).log_prob(torch.arange(200).double()).exp()
    else:
        given = torch.softmax(torch.stack([z, 2 * z, -z], 1), 1)
    mixed = weight @ given
    truth = torch.special.entr(mixed).sum() - weight @ torch.special.entr(given).sum(1)
    # the bound by 400 draws falls short of it by the information over 400 or so
    assert abs(float(found.gain[0, 1]) - float(truth)) < 6 * float(found.standard_error[0, 1]) + 0.01
    assert float(truth) > 0.05
