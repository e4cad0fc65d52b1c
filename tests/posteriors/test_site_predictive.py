"""The predictive of a site is the site's own: held against scipy's distributions, mixed over the draws by hand."""

from __future__ import annotations

import numpy as np
import pyro.distributions as dist
import pytest
import torch
from scipy import stats

from calmrl_prob.posteriors.predictive import MixturePredictive
from calmrl_prob.posteriors.rescaled import Rescaled
from calmrl_prob.posteriors.site_given import SiteGiven, features_of
from calmrl_prob.posteriors.site_predictive import SitePredictive
from calmrl_prob.programs.sites import Site

N, D, S = 3, 2, 20
A = 0.5 + 3 * torch.rand(S * N, D, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
P = torch.rand(S * N, D, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
WEIGHT = torch.rand(S, N, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
WEIGHT = WEIGHT / WEIGHT.sum(0)

a, p = A.numpy(), P.numpy()
#: What torch and pyro call it, and scipy's of the same parameters.
FAMILIES = {
    "poisson": (dist.Poisson(A), stats.poisson(a)),
    "bernoulli": (dist.Bernoulli(P), stats.bernoulli(p)),
    "binomial": (dist.Binomial(7, P), stats.binom(7, p)),
    "negative_binomial": (dist.NegativeBinomial(A, P), stats.nbinom(a, 1 - p)),
    "gamma_poisson": (dist.GammaPoisson(A, 2 * P), stats.nbinom(a, 2 * p / (1 + 2 * p))),
    "geometric": (dist.Geometric(P), stats.geom(p, loc=-1)),
    "beta": (dist.Beta(A, 1 + P), stats.beta(a, 1 + p)),
    "log_normal": (dist.LogNormal(P, 0.5), stats.lognorm(0.5, scale=np.exp(p))),
    "gamma": (dist.Gamma(A, 2.0), stats.gamma(a, scale=0.5)),
    "student_t": (dist.StudentT(2 + A, P, 0.5), stats.t(2 + a, p, 0.5)),
    "exponential": (dist.Exponential(A), stats.expon(scale=1 / a)),
    "laplace": (dist.Laplace(P, A), stats.laplace(p, a)),
}
#: Within what quantiles of both are to agree: brackets are halved 30 times, of a width of at most 1e3.
ENOUGH = 1e-5


def predictive(fn: dist.TorchDistribution) -> SitePredictive:
    fn = fn.to_event(1).mask(torch.ones(S * N, dtype=torch.bool))
    site = Site("x", fn, fn.sample(), -1, None, 1.0)
    return SitePredictive(WEIGHT.log(), [SiteGiven(site, features_of(site), N)], torch.float64)


def mixed(parts: np.ndarray) -> np.ndarray:
    return np.einsum("sn,snd->nd", WEIGHT.numpy(), parts.reshape(S, N, D))


@pytest.mark.parametrize("family", FAMILIES)
def test_moments_densities_and_quantiles_are_those_of_the_mixture(family: str) -> None:
    fn, oracle = FAMILIES[family]
    found = predictive(fn)
    mean = mixed(oracle.mean())
    assert np.allclose(found.mean, mean)
    assert np.allclose(found.variance, mixed(oracle.var() + oracle.mean() ** 2) - mean**2)
    whole = fn.support.is_discrete
    # a value that some draw of the latents gives, for each feature of each instance
    at = np.asarray(oracle.rvs(random_state=0), dtype=float).reshape(S, N, D)[0]
    density = (oracle.pmf if whole else oracle.pdf)(np.tile(at, (S, 1)))
    assert np.allclose(found.log_density(torch.tensor(at)), np.log(mixed(density)))
    assert np.allclose(found.cdf(torch.tensor(at)), mixed(oracle.cdf(np.tile(at, (S, 1)))))
    for probability in (0.05, 0.5, 0.95):
        value = found.quantile(probability).numpy()
        reached = mixed(oracle.cdf(np.tile(value, (S, 1))))
        if whole:
            assert (value == value.round()).all()
            assert (reached >= probability).all()
            assert (mixed(oracle.cdf(np.tile(value - 1, (S, 1)))) < probability).all()
        else:
            assert np.allclose(reached, probability, atol=ENOUGH)


@pytest.mark.parametrize("family", ["poisson", "bernoulli", "binomial", "geometric"])
def test_of_what_is_counted_nothing_has_a_density_above_0(family: str) -> None:
    found = predictive(FAMILIES[family][0])
    assert bool((found.log_density(torch.ones(N, D).double()) <= 0).all())
    for outside in (0.5, -1.0):
        assert bool((found.log_density(torch.full((N, D), outside).double()) == -torch.inf).all())
    assert bool(found.log_density(torch.full((N, D), torch.nan).double()).isnan().all())


def test_categories_are_imputed_as_categories() -> None:
    probs = torch.rand(S * N, 4, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    fn = dist.Categorical(probs[:, None])
    site = Site("x", fn.to_event(1), fn.sample(), -1, None, 1.0)
    found = SitePredictive(WEIGHT.log(), [SiteGiven(site, features_of(site), N)], torch.float64)
    share = np.einsum("sn,snk->nk", WEIGHT.numpy(), fn.probs[:, 0].reshape(S, N, 4).numpy())
    for k in range(4):
        at = torch.full((N, 1), float(k)).double()
        assert np.allclose(found.log_density(at)[:, 0].exp(), share[:, k])
        assert np.allclose(found.cdf(at)[:, 0], share[:, : k + 1].sum(1))
    assert np.allclose(found.mean[:, 0], share @ np.arange(4))
    assert set(found.quantile(0.5).flatten().tolist()) <= {0.0, 1.0, 2.0, 3.0}


@pytest.mark.parametrize(
    "fn",
    [
        dist.Dirichlet(A.repeat(1, 2)),
        dist.OneHotCategorical(A.repeat(1, 2)),
        dist.MultivariateStudentT(5 + A[:, 0], A, torch.eye(D).double().expand(S * N, D, D)),
    ],
)
def test_marginals_of_what_has_features_that_go_together(fn: dist.TorchDistribution) -> None:
    features = features_of(Site("x", fn, fn.sample(), -1, None, 1.0))
    assert torch.allclose(features.mean, fn.mean)
    assert torch.allclose(features.variance, fn.variance)


def test_normal_sites_are_left_to_the_mixture_of_normals() -> None:
    fn = dist.Normal(A, 1.0).to_event(1)
    assert features_of(Site("x", fn, fn.sample(), -1, None, 1.0)) is None


def test_the_score_agrees_with_that_from_quantiles() -> None:
    found = predictive(FAMILIES["gamma"][0])
    at = torch.ones(N, D).double()
    # 80 weighted draws: about 60 equal ones, whose mean distance has a standard error of sd / 8; six of these
    bound = 6 * found.variance.sqrt() / 8
    assert bool(((found.crps(at) - MixturePredictive.crps(found, at)).abs() < bound).all())


def test_counts_drawn_out_are_counts_and_their_probabilities_sum_to_1() -> None:
    found = Rescaled(predictive(FAMILIES["poisson"][0]), torch.tensor([2.0, 0.5]).double())
    grid = [torch.full((N, D), float(k)).double() for k in range(60)]
    total = torch.stack([found.log_density(k).exp() for k in grid]).sum(0)
    assert torch.allclose(total, torch.ones_like(total))
    low = found.quantile(0.05)
    assert bool((low == low.round()).all())
    assert bool((low >= 0).all())
