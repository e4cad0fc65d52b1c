"""Retrieval by models of every kind: exact forms however they are spelled, mixtures, and estimates from draws."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import product

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from scipy.special import logsumexp
from scipy.stats import multivariate_normal, multivariate_t
from torch import Tensor

import calmrl_prob as cal
from calmrl_prob.data import MultimodalData
from calmrl_prob.errors import ArgumentError
from calmrl_prob.evaluation.retrieval import sampled_pairs
from calmrl_prob.evaluation.retrieval.instance_sets import InstanceSet, RetrievalModel
from calmrl_prob.evaluation.retrieval.retrieval import cross_modal_recall, mean_over_pairs, retrieve
from calmrl_prob.evaluation.retrieval.sampled_pairs import ESTIMATORS, Estimator, SampledRatio
from calmrl_prob.evaluation.retrieval.scores import SCORES
from calmrl_prob.inference.parameters.parameter_draws import ParameterDraws
from calmrl_prob.linear_gaussian import LinearGaussian
from calmrl_prob.linear_gaussian.mixture.model import LinearGaussianMixture
from calmrl_prob.linear_gaussian.scale_mixture.shared_scale import StudentTModel, student_t_posterior
from calmrl_prob.posteriors.student_t import StudentTResult
from calmrl_prob.programs.bound import BoundModel
from tests.cases.retrieval_cases import (
    WIDTHS,
    all_scores,
    dense_latent_mean,
    dense_log_density,
    make_data,
    make_model,
    naive_ranks,
    naive_score,
    observed_parts,
)

Parts = Sequence[tuple[str, np.ndarray]]


def spelled(lg: LinearGaussian) -> Callable[[MultimodalData], Tensor]:
    """The same model as a Pyro function, of whatever modalities the data have."""

    def model(data: MultimodalData) -> Tensor:
        with pyro.plate("instances", len(data)):
            z: Tensor = pyro.sample("z", dist.MultivariateNormal(lg.prior_mean, lg.prior_covariance))
            for name in data.names:
                location = z @ lg.loadings[name].mT + lg.intercepts[name]
                features = dist.Normal(location, lg.noise_variance[name].sqrt()).to_event(1)
                pyro.sample(name, features.mask(data.observed(name)), obs=data.filled(name))
        return z

    return model


def table(
    model: object, queries: MultimodalData, candidates: MultimodalData, score: str, **options: object
) -> np.ndarray:
    """All scores (N_q, N_c), read off a retrieval that lists every candidate."""
    found = retrieve(model, queries, candidates, score, top_k=len(candidates), **options)  # type: ignore[arg-type]
    scores = np.full((len(queries), len(candidates)), np.nan)
    np.put_along_axis(scores, found.top_indices, found.top_scores, axis=1)
    return scores


def noisier(lg: LinearGaussian, factor: float) -> LinearGaussian:
    noise = {name: factor * value for name, value in lg.noise_variance.items()}
    return LinearGaussian(lg.loadings, lg.intercepts, noise, lg.prior_mean, lg.prior_covariance)


def brute(queries: MultimodalData, candidates: MultimodalData, score: Callable[[list, list], float]) -> np.ndarray:
    """A score of two lists of measurements, one pair at a time."""
    pairs = product(range(len(queries)), range(len(candidates)))
    scores = [score(list(observed_parts(queries, i)), list(observed_parts(candidates, j))) for i, j in pairs]
    return np.reshape(scores, (len(queries), len(candidates)))


# ---- exact forms, however they are spelled -------------------------------------------------------------------------


@pytest.mark.parametrize("score", sorted(SCORES))
def test_a_discovered_form_scores_as_the_form_does(score: str) -> None:
    lg = make_model(0)
    queries = make_data(lg, 9, 1, 0.0).select(["image", "text"])
    candidates = make_data(lg, 8, 2, 0.0).select(["audio"])  # none of it on the other side
    for model in (spelled(lg), BoundModel(spelled(lg))):
        np.testing.assert_allclose(
            table(model, queries, candidates, score), all_scores(lg, queries, candidates, score), rtol=1e-7
        )


def test_the_result_of_a_fit_stands_for_the_model() -> None:
    data = cal.datasets.load_synthetic(num_instances=80, dims={"a": 9, "b": 8}, latent_dim=2, seed=0)
    model = cal.SharedLatentModel(data.dims, latent_dim=2)
    result = cal.fit(model, data, tolerance=1e-3)
    asked, shown = data.select(["a"]), data.select(["b"])
    np.testing.assert_allclose(
        retrieve(result, asked, shown).target_scores, retrieve(model, asked, shown).target_scores, rtol=1e-8
    )
    recall = cross_modal_recall(result, data)
    assert recall["R@1"].tolist() == cross_modal_recall(model, data)["R@1"].tolist()
    assert recall["R@1"].min() > 0.05


@pytest.mark.parametrize("score", sorted(SCORES))
def test_intercepts_that_follow_a_covariate_are_taken_off(score: str) -> None:
    lg = make_model(3)
    slopes = {name: torch.linspace(-3, 3, width, dtype=torch.float64) for name, width in WIDTHS.items()}

    def model(data: MultimodalData) -> None:
        age = torch.as_tensor(data.covariates["age"])
        with pyro.plate("instances", len(data)):
            z = pyro.sample("z", dist.MultivariateNormal(lg.prior_mean, lg.prior_covariance))
            for name in data.names:
                location = z @ lg.loadings[name].mT + lg.intercepts[name] + age[:, None] * slopes[name]
                features = dist.Normal(location, lg.noise_variance[name].sqrt()).to_event(1)
                pyro.sample(name, features.mask(data.observed(name)), obs=data.filled(name))

    def aged(data: MultimodalData, seed: int) -> MultimodalData:
        age = np.random.default_rng(seed).normal(size=len(data))
        arrays = {name: data.filled(name) + torch.from_numpy(age)[:, None] * slopes[name] for name in data.names}
        return MultimodalData(arrays, observed_mask=data.observed_mask, covariates={"age": age})

    queries, candidates = make_data(lg, 300, 4), make_data(lg, 7, 5)
    found = table(model, aged(queries, 0), aged(candidates, 1), score)
    np.testing.assert_allclose(found, all_scores(lg, queries, candidates, score), rtol=1e-6, atol=1e-6)


def test_correlated_noise_is_of_one_measurement_only() -> None:
    lg = make_model(6)
    root = torch.randn(4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    noise = root @ root.mT + 0.3 * torch.eye(4, dtype=torch.float64)

    def model(data: MultimodalData) -> None:
        with pyro.plate("instances", len(data)):
            z = pyro.sample("z", dist.MultivariateNormal(lg.prior_mean, lg.prior_covariance))
            for name in data.names:
                location = z @ lg.loadings[name].mT + lg.intercepts[name]
                wide = torch.diag(lg.noise_variance[name]) if name != "image" else noise
                features = dist.MultivariateNormal(location, wide)
                pyro.sample(name, features.mask(data.observed(name)), obs=data.filled(name))

    def density(parts: Parts) -> float:
        loadings = np.concatenate([lg.loadings[name].numpy() for name, _ in parts])
        blocks = [noise if name == "image" else torch.diag(lg.noise_variance[name]) for name, _ in parts]
        mean = np.concatenate([lg.intercepts[name].numpy() for name, _ in parts]) + loadings @ lg.prior_mean.numpy()
        covariance = loadings @ lg.prior_covariance.numpy() @ loadings.T + torch.block_diag(*blocks).numpy()
        return float(multivariate_normal.logpdf(np.concatenate([x for _, x in parts]), mean, covariance))

    queries, candidates = make_data(lg, 6, 7), make_data(lg, 5, 8)  # images stand on both sides
    expected = brute(queries, candidates, lambda q, c: density(q + c) - density(q) - density(c))
    np.testing.assert_allclose(table(model, queries, candidates, "likelihood_ratio"), expected, rtol=1e-6, atol=1e-7)
    for score in ("cosine_latent", "cosine_predicted"):
        assert np.abs(table(model, queries, candidates, score)).max() <= 1 + 1e-12


# ---- mixtures ------------------------------------------------------------------------------------------------------


def make_mixture(seed: int, shared: bool) -> LinearGaussianMixture:
    rng = np.random.default_rng(seed)
    log_weights = torch.tensor([0.5, 0.3, 0.2, 0.0], dtype=torch.float64).log()
    if shared:
        root = torch.from_numpy(rng.normal(size=(4, 2, 2)))
        covariances = root @ root.mT + 0.2 * torch.eye(2, dtype=torch.float64)
        means = torch.from_numpy(3 * rng.normal(size=(4, 2)))
        return LinearGaussianMixture.from_prior(make_model(seed), log_weights, means, covariances)
    return LinearGaussianMixture(log_weights, tuple(make_model(seed + c) for c in range(4)))


def mixture_density(mixture: LinearGaussianMixture, parts: Parts) -> float:
    terms = [dense_log_density(part, list(parts)) for part in mixture.components]
    return float(logsumexp(mixture.log_weights.numpy() + np.array(terms)))


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("chunk_size", [3, 100])
def test_mixture_ratio_equals_summed_densities(shared: bool, chunk_size: int) -> None:
    mixture = make_mixture(1, shared)
    queries, candidates = make_data(mixture.components[0], 9, 2), make_data(mixture.components[1], 8, 3)

    def ratio(query: list, candidate: list) -> float:
        together, *alone = (mixture_density(mixture, parts) for parts in (query + candidate, query, candidate))
        return together - sum(alone)

    found = table(mixture, queries, candidates, "likelihood_ratio", chunk_size=chunk_size)
    np.testing.assert_allclose(found, brute(queries, candidates, ratio), rtol=1e-9, atol=1e-9)


def test_mixture_cosines_are_of_its_moments() -> None:
    mixture = make_mixture(4, shared=True)
    queries, candidates = make_data(mixture.components[0], 5, 5), make_data(mixture.components[1], 6, 6)
    origin = mixture.prior_moments()[0].numpy()
    lg = mixture.components[0]

    def mean(parts: Parts) -> np.ndarray:
        log_joint = mixture.log_weights.numpy() + [dense_log_density(c, list(parts)) for c in mixture.components]
        weights = np.exp(log_joint - logsumexp(log_joint))
        return weights @ np.array([dense_latent_mean(c, list(parts)) for c in mixture.components]) - origin

    def cosine(one: np.ndarray, other: np.ndarray) -> float:
        return float(one @ other / np.linalg.norm(one) / np.linalg.norm(other))

    expected = brute(queries, candidates, lambda q, c: cosine(mean(q), mean(c)))
    np.testing.assert_allclose(table(mixture, queries, candidates, "cosine_latent"), expected, rtol=1e-9, atol=1e-9)

    def predicted(query: Parts, candidate: Parts) -> float:
        loadings = np.concatenate([lg.loadings[name].numpy() for name, _ in candidate])
        centre = np.concatenate([lg.intercepts[name].numpy() for name, _ in candidate]) + loadings @ origin
        return cosine(loadings @ mean(query), np.concatenate([x for _, x in candidate]) - centre)

    expected = brute(queries, candidates, predicted)
    np.testing.assert_allclose(table(mixture, queries, candidates, "cosine_predicted"), expected, rtol=1e-9, atol=1e-9)


def test_a_mixture_ranks_in_any_chunks_and_beats_one_gaussian_on_its_own_data() -> None:
    generator = torch.Generator().manual_seed(0)
    base = LinearGaussian(
        {name: torch.randn(8, 3, generator=generator, dtype=torch.float64) for name in "ab"},
        {name: torch.zeros(8, dtype=torch.float64) for name in "ab"},
        {name: torch.tensor(2.0, dtype=torch.float64) for name in "ab"},
    )
    means = 6 * torch.randn(5, 3, generator=generator, dtype=torch.float64)
    tight = 0.1 * torch.eye(3, dtype=torch.float64).expand(5, 3, 3)
    mixture = LinearGaussianMixture.from_prior(base, torch.zeros(5, dtype=torch.float64), means, tight)
    data = MultimodalData(mixture.sample(120, generator).features)
    one = LinearGaussian(base.loadings, base.intercepts, base.noise_variance, *mixture.prior_moments())
    recall = {c: mean_over_pairs(cross_modal_recall(mixture, data, chunk_size=c)) for c in (50, 2048)}
    assert recall[50] == recall[2048]
    gain = recall[50]["mean_reciprocal_rank"] - mean_over_pairs(cross_modal_recall(one, data))["mean_reciprocal_rank"]
    assert gain > 0


@pytest.mark.parametrize("chunk_size", [3, 100])
def test_student_t_ratio_equals_dense_densities(chunk_size: int) -> None:
    lg, freedom = make_model(27), 4.5

    class Model:
        dims = WIDTHS

        def posterior(self, data: MultimodalData, **_: object) -> StudentTResult:
            model = StudentTModel(lg, torch.tensor(freedom, dtype=torch.float64))
            return StudentTResult(student_t_posterior(model, data.conform(WIDTHS).blocks))

    def density(parts: Parts) -> float:
        loadings = np.concatenate([lg.loadings[name].numpy() for name, _ in parts])
        noise = np.concatenate([lg.noise_variance[name].numpy() for name, _ in parts])
        mean = np.concatenate([lg.intercepts[name].numpy() for name, _ in parts]) + loadings @ lg.prior_mean.numpy()
        shape = loadings @ lg.prior_covariance.numpy() @ loadings.T + np.diag(noise)
        return float(multivariate_t.logpdf(np.concatenate([x for _, x in parts]), mean, shape, freedom))

    queries, candidates = make_data(lg, 8, 28), make_data(lg, 7, 29)
    found = table(Model(), queries, candidates, "likelihood_ratio", chunk_size=chunk_size)
    expected = brute(queries, candidates, lambda q, c: density(q + c) - density(q) - density(c))
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-9)
    twice = candidates.subset(np.r_[0:7, 0:7])
    ranks = retrieve(Model(), queries, twice, targets=np.arange(8) % 7, chunk_size=chunk_size).ranks
    np.testing.assert_array_equal(ranks, naive_ranks(np.hstack([found, found]), np.arange(8) % 7))
    for score in ("cosine_latent", "cosine_predicted"):  # means are those of the normal model
        np.testing.assert_allclose(
            table(Model(), queries, candidates, score), all_scores(lg, queries, candidates, score), rtol=1e-9
        )


def test_draws_of_the_parameters_make_an_exact_mixture() -> None:
    lg = make_model(24)

    def model(data: MultimodalData) -> None:
        scale = pyro.sample("scale", dist.LogNormal(torch.zeros((), dtype=torch.float64), 1.0))
        with pyro.plate("instances", len(data)):
            z = pyro.sample("z", dist.MultivariateNormal(lg.prior_mean, lg.prior_covariance))
            for name in data.names:
                location = scale * (z @ lg.loadings[name].mT) + lg.intercepts[name]
                features = dist.Normal(location, lg.noise_variance[name].sqrt()).to_event(1)
                pyro.sample(name, features.mask(data.observed(name)), obs=data.filled(name))

    scales = torch.tensor([0.5, 1.0, 1.7], dtype=torch.float64)
    draws = ParameterDraws(BoundModel(model), {"scale": scales}, "collapsed nuts")
    parts = [
        LinearGaussian({n: s * w for n, w in lg.loadings.items()}, lg.intercepts, lg.noise_variance, lg.prior_mean,
                       lg.prior_covariance)
        for s in scales
    ]  # fmt: skip
    mixture = LinearGaussianMixture(torch.zeros(3, dtype=torch.float64), tuple(parts))
    queries, candidates = make_data(lg, 6, 25), make_data(lg, 5, 26)
    found = table(draws, queries, candidates, "likelihood_ratio")
    expected = table(mixture, queries, candidates, "likelihood_ratio")
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6)
    for score in ("cosine_latent", "cosine_predicted"):
        assert np.abs(table(draws, queries, candidates, score)).max() <= 1 + 1e-12


# ---- estimates from draws ------------------------------------------------------------------------------------------


def sides(model: object, queries: MultimodalData, candidates: MultimodalData) -> tuple[InstanceSet, InstanceSet]:
    scored = RetrievalModel(model, (queries, candidates), {})  # type: ignore[arg-type]
    return InstanceSet(scored, queries, "queries"), InstanceSet(scored, candidates, "candidates")


def block(pairs: SampledRatio, num_queries: int, num_candidates: int) -> np.ndarray:
    return pairs.tile(torch.arange(num_queries), torch.arange(num_candidates)).block().numpy()


def require_close(estimate: Callable[[int], np.ndarray], exact: np.ndarray, repeats: int = 12) -> None:
    """Within 6 standard errors, and what is of second order: the log of a mean is off by half its variance."""
    tables = np.array([estimate(seed) for seed in range(repeats)])
    variance = tables.var(axis=0, ddof=1)
    error = np.abs(tables.mean(axis=0) - exact)
    assert (error < 6 * np.sqrt(variance / repeats) + 3 * variance).all(), (error / np.sqrt(variance / repeats)).max()
    assert variance.max() < 0.3  # or it would show nothing


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_estimates_come_to_the_exact_ratio(estimator: Estimator) -> None:
    lg = noisier(make_model(10), 10.0)
    queries, candidates = make_data(lg, 6, 11), make_data(lg, 7, 12)
    exact = all_scores(lg, queries, candidates, "likelihood_ratio")
    both = sides(lg, queries, candidates)
    require_close(lambda seed: block(SampledRatio(*both, 400, seed, estimator), 6, 7), exact)


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("num_draws", [4, 40])
def test_estimates_are_what_the_draws_say(estimator: Estimator, num_draws: int) -> None:
    lg = make_model(13)
    queries, candidates = make_data(lg, 5, 14), make_data(lg, 6, 15)
    latents = cal.posterior(lg, queries.conform(WIDTHS)).sample(num_draws, seed=3).numpy()
    rows = iter(np.repeat(np.arange(5), 6))

    def estimate(query: Parts, candidate: Parts) -> float:
        i = next(rows)
        x = np.concatenate([value for _, value in candidate])
        names = [name for name, _ in candidate]
        means = np.hstack([latents[:, i] @ lg.loadings[n].numpy().T + lg.intercepts[n].numpy() for n in names])
        noise = np.diag(np.concatenate([lg.noise_variance[n].numpy() for n in names]))
        if estimator == "moments":
            covariance = np.atleast_2d(np.cov(means.T)) + noise
            density = multivariate_normal.logpdf(x, means.mean(axis=0), covariance)
        else:
            density = logsumexp([multivariate_normal.logpdf(x, m, noise) for m in means]) - np.log(num_draws)
        return float(density - dense_log_density(lg, list(candidate)))

    found = block(SampledRatio(*sides(lg, queries, candidates), num_draws, 3, estimator), 5, 6)
    np.testing.assert_allclose(found, brute(queries, candidates, estimate), rtol=1e-8, atol=1e-8)


def by_structure(lg: LinearGaussian, prior_too: bool = True) -> Callable[[MultimodalData], None]:
    """Loadings and noise that follow a covariate of two values; with the prior too there is no one form."""

    def model(data: MultimodalData) -> None:
        kind = 1 + torch.as_tensor(data.covariates["kind"])
        with pyro.plate("instances", len(data)):
            covariance = lg.prior_covariance * (kind[:, None, None] if prior_too else 1.0)
            z = pyro.sample("z", dist.MultivariateNormal(lg.prior_mean, covariance))
            for name in data.names:
                location = kind[:, None] * (z @ lg.loadings[name].mT) + lg.intercepts[name]
                features = dist.Normal(location, kind[:, None] * lg.noise_variance[name].sqrt()).to_event(1)
                pyro.sample(name, features.mask(data.observed(name)), obs=data.filled(name))

    return model


def kinds(data: MultimodalData, kind: np.ndarray) -> MultimodalData:
    arrays = {name: data[name] for name in data.names}
    return MultimodalData(arrays, observed_mask=data.observed_mask, covariates={"kind": kind})


def of_kind(lg: LinearGaussian, kind: float, prior_too: bool = True) -> LinearGaussian:
    """What that model is for instances of one kind."""
    return LinearGaussian(
        {name: (1 + kind) * value for name, value in lg.loadings.items()},
        lg.intercepts,
        {name: (1 + kind) ** 2 * value for name, value in lg.noise_variance.items()},
        lg.prior_mean,
        lg.prior_covariance * (1 + kind if prior_too else 1),
    )


@pytest.mark.parametrize("score", sorted(SCORES))
def test_where_loadings_vary_each_side_has_its_own_and_the_score_is_exact(score: str) -> None:
    lg = make_model(16)
    kind = np.array([0.0, 1.0, 0.0, 1.0, 1.0])
    queries, candidates = kinds(make_data(lg, 5, 17), kind), kinds(make_data(lg, 5, 18), kind[::-1].copy())
    widest = {f"{name} {k}": width for k in (0, 1) for name, width in WIDTHS.items()}
    whole = {k: of_kind(lg, k, prior_too=False) for k in (0, 1)}
    # the same model with a modality for each kind
    both = LinearGaussian(
        *({key: getattr(whole[int(key[-1])], what)[key[:-2]] for key in widest} for what in
          ("loadings", "intercepts", "noise_variance")),
        lg.prior_mean, lg.prior_covariance,
    )  # fmt: skip
    queried, shown = iter(np.repeat(kind, 5)), iter(np.tile(kind[::-1], 5))

    def ratio(query: list, candidate: list) -> float:
        q, c = int(next(queried)), int(next(shown))
        return naive_score(both, [(f"{n} {q}", x) for n, x in query], [(f"{n} {c}", x) for n, x in candidate], score)

    found = table(by_structure(lg, prior_too=False), queries, candidates, score)
    np.testing.assert_allclose(found, brute(queries, candidates, ratio), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_where_the_prior_varies_too_the_ratio_is_that_of_the_querys_model(estimator: Estimator) -> None:
    lg = noisier(make_model(16), 10.0)
    kind = np.array([0.0, 1.0, 0.0])
    queries, candidates = kinds(make_data(lg, 3, 17), kind), kinds(make_data(lg, 3, 18), 1 - kind)
    queried, shown = iter(np.repeat(kind, 3)), iter(np.tile(1 - kind, 3))

    def ratio(query: list, candidate: list) -> float:
        asked, other = of_kind(lg, next(queried)), of_kind(lg, next(shown))
        joint = dense_log_density(asked, query + candidate) - dense_log_density(asked, query)
        return joint - dense_log_density(other, candidate)

    both = sides(by_structure(lg), queries, candidates)
    require_close(
        lambda seed: block(SampledRatio(*both, 300, seed, estimator), 3, 3), brute(queries, candidates, ratio)
    )


@pytest.mark.parametrize(
    ("score", "estimator"),
    [("likelihood_ratio", "moments"), ("likelihood_ratio", "monte_carlo"), ("cosine_latent", "moments"),
     ("cosine_predicted", "moments")],
)  # fmt: skip
def test_other_models_rank_in_any_chunks_with_ties_counted(
    score: str, estimator: Estimator, monkeypatch: pytest.MonkeyPatch
) -> None:
    lg = make_model(19)
    data = kinds(make_data(lg, 15, 20), np.arange(15) % 2.0)
    twice = data.subset(np.r_[0:15, 0:15])
    targets = np.random.default_rng(1).integers(30, size=15)
    expected = None
    for chunk_size, held in ((2048, 2**25), (4, 60), (11, 7 * 12 * 50)):
        monkeypatch.setattr(sampled_pairs, "_DRAWN_NUMBERS", held)
        monkeypatch.setattr(sampled_pairs, "_BATCH_NUMBERS", held)
        found = retrieve(
            by_structure(lg), data, twice, score, targets, 30, chunk_size, num_draws=50, seed=2, estimator=estimator
        )
        assert found.ranks is not None
        assert found.ranks.min() >= 2  # each target has a twin
        scores = np.full((15, 30), np.nan)
        np.put_along_axis(scores, found.top_indices, found.top_scores, axis=1)
        np.testing.assert_array_equal(found.ranks, naive_ranks(scores, targets))
        np.testing.assert_allclose(scores[np.arange(15), targets], found.target_scores, rtol=1e-9, atol=1e-9)
        expected = scores if expected is None else expected
        np.testing.assert_allclose(scores, expected, rtol=1e-9, atol=1e-9)


def test_effective_draws_say_when_a_draw_decides() -> None:
    found = {}
    for factor in (10.0, 1e-3):
        lg = noisier(make_model(21, latent_dim=6), factor)  # three features leave three latents open
        data = kinds(make_data(lg, 20, 3, 0.0), np.repeat([0.0, 1.0], 10))
        asked, shown = data.select(["text"]), data.select(["audio"])
        found[factor] = retrieve(by_structure(lg), asked, shown, num_draws=100, estimator="monte_carlo")
        drawn = found[factor].effective_draws
        assert drawn is not None
        assert ((drawn >= 1 - 1e-9) & (drawn <= 100 + 1e-9)).all()
        assert "effective draws" in repr(found[factor])
        assert retrieve(by_structure(lg), asked, shown, num_draws=100).effective_draws is None
    assert np.median(found[1e-3].effective_draws) < 0.2 * np.median(found[10.0].effective_draws)


def test_bad_options_are_named() -> None:
    lg = make_model(22)
    data = make_data(lg, 4, 23)
    mixed = kinds(data, np.array([0.0, 1, 0, 1]))
    with pytest.raises(ArgumentError, match=r"estimator: expected one of .*, got 'exact'"):
        retrieve(by_structure(lg), mixed, mixed, estimator="exact")  # type: ignore[arg-type]
    with pytest.raises(ArgumentError, match="num_draws"):
        retrieve(by_structure(lg), mixed, mixed, num_draws=0)
    with pytest.raises(ArgumentError, match="options: the exact routes have none, got"):
        retrieve(lg, data, data, num_particles=3)
    with pytest.raises(ArgumentError, match="options"):
        retrieve(spelled(lg), data, data, num_particles=3)


@pytest.mark.filterwarnings("ignore::calmrl_prob.errors.ReliabilityWarning")
def test_the_ratio_of_counts_is_refused_and_the_cosines_serve() -> None:
    """A normal density of counts over their own evidence is no likelihood ratio."""

    def program(data: MultimodalData) -> None:
        with pyro.plate("instances", len(data)):
            z = pyro.sample("z", dist.Normal(torch.zeros(1).double(), 1.0).to_event(1))
            for name, site in {"told": dist.Poisson(z.exp().expand(-1, 2)), "seen": dist.Normal(z.tanh(), 0.5)}.items():
                pyro.sample(name, site.to_event(1).mask(data.observed(name)), obs=data.filled(name))

    z = torch.tensor([[-1.5], [0.0], [1.5]], dtype=torch.float64)
    seen, told = MultimodalData({"seen": z.tanh()}), MultimodalData({"told": z.exp().round().expand(-1, 2)})
    both = {"told": 2, "seen": 1}
    options = {"method": "svi", "num_draws": 200}
    seen, told = seen.conform(both), told.conform(both)
    with pytest.raises(ArgumentError, match=r"'told' has another distribution .* score='cosine_latent'"):
        retrieve(program, seen, told, **options)
    top = retrieve(program, seen, told, score="cosine_latent", top_k=1).top_indices[:, 0]
    assert top[0] < top[2]  # of one latent the cosine tells signs apart, and no more
    assert len(retrieve(program, told, seen).top_indices) == 3  # of normal candidates it is one
