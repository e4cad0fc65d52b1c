"""Retrieval against dense multivariate normals and a rank computed one pair at a time."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from calmrl_prob.data import MultimodalData
from calmrl_prob.errors import ArgumentError, ArgumentTypeError, DataError, SchemaError
from calmrl_prob.evaluation.retrieval import latent_rows
from calmrl_prob.evaluation.retrieval.latent_rows import LatentRows
from calmrl_prob.evaluation.retrieval.ranking import RETRIEVAL_METRICS, Retrieval
from calmrl_prob.evaluation.retrieval.retrieval import cross_modal_recall, mean_over_pairs, retrieve
from calmrl_prob.evaluation.retrieval.scores import SCORES, Factors
from calmrl_prob.linear_gaussian import LinearGaussian
from calmrl_prob.model import SharedLatentModel
from tests.cases.retrieval_cases import (
    all_scores,
    dense_log_density,
    make_data,
    make_model,
    naive_ranks,
    naive_score,
    observed_parts,
    with_correlated_noise,
)


@pytest.mark.parametrize("score", sorted(SCORES))
@pytest.mark.parametrize("correlated", [False, True])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_scores_equal_dense_oracle_for_any_patterns(score: str, seed: int, correlated: bool) -> None:
    lg = make_model(seed, latent_dim=1 + seed)
    lg = with_correlated_noise(lg, seed) if correlated else lg
    queries, candidates = make_data(lg, 9, seed + 10), make_data(lg, 8, seed + 20)
    table = all_scores(lg, queries, candidates, score)
    for i in range(len(queries)):
        for j in range(len(candidates)):
            expected = naive_score(lg, list(observed_parts(queries, i)), list(observed_parts(candidates, j)), score)
            assert table[i, j] == pytest.approx(expected, rel=1e-9, abs=1e-9)


@settings(max_examples=15, deadline=None, derandomize=True)
@given(seed=st.integers(0, 10_000), latent_dim=st.integers(1, 4), noise=st.sampled_from([1e-4, 1.0, 1e4]))
def test_likelihood_ratio_equals_dense_oracle_at_any_noise(seed: int, latent_dim: int, noise: float) -> None:
    base = make_model(seed, latent_dim)
    lg = LinearGaussian(
        base.loadings,
        base.intercepts,
        {name: value * noise for name, value in base.noise_variance.items()},
        base.prior_mean,
        base.prior_covariance,
    )
    queries, candidates = make_data(lg, 4, seed), make_data(lg, 4, seed + 1)
    table = all_scores(lg, queries, candidates, "likelihood_ratio")
    for i, j in np.ndindex(table.shape):
        parts = list(observed_parts(queries, i)), list(observed_parts(candidates, j))
        scale = sum(abs(dense_log_density(lg, part)) for part in parts)
        assert table[i, j] == pytest.approx(naive_score(lg, *parts, "likelihood_ratio"), rel=1e-8, abs=1e-10 * scale)


def test_likelihood_ratio_is_symmetric() -> None:
    lg = make_model(3)
    queries, candidates = make_data(lg, 12, 1), make_data(lg, 7, 2)
    there = all_scores(lg, queries, candidates, "likelihood_ratio")
    back = all_scores(lg, candidates, queries, "likelihood_ratio")
    np.testing.assert_allclose(there, back.T, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("score", sorted(SCORES))
def test_moving_the_origin_of_the_latent_changes_no_score(score: str) -> None:
    lg = make_model(4)
    shift = torch.tensor([3.0, -5.0], dtype=torch.float64)
    moved = LinearGaussian(
        lg.loadings,
        {name: lg.intercepts[name] - lg.loadings[name] @ shift for name in lg.names},
        lg.noise_variance,
        lg.prior_mean + shift,
        lg.prior_covariance,
    )
    data = make_data(lg, 10, 5)
    np.testing.assert_allclose(all_scores(lg, data, data, score), all_scores(moved, data, data, score), atol=1e-9)


def test_modalities_are_taken_in_any_order_and_number() -> None:
    lg = make_model(5)
    data = MultimodalData(lg.sample(10, torch.Generator().manual_seed(0)).features)
    one = retrieve(lg, data.select(["image", "text"]), data.select(["audio"]))
    other = retrieve(lg, data.select(["text", "image"]), data.select(["audio"]))
    np.testing.assert_allclose(one.target_scores, other.target_scores, rtol=1e-12)
    np.testing.assert_array_equal(one.ranks, other.ranks)


@pytest.mark.parametrize("score", sorted(SCORES))
@pytest.mark.parametrize("chunk_size", [1, 3, 16, 1000])
def test_ranks_equal_naive_ranks_in_any_chunks(score: str, chunk_size: int) -> None:
    lg = make_model(6)
    # candidates that stand twice, so that ties are there to be counted
    candidates = make_data(lg, 15, 7)
    candidates = candidates.subset(np.r_[0:15, 0:15, 3, 3])
    queries = make_data(lg, 20, 8)
    targets = np.random.default_rng(0).integers(len(candidates), size=20)
    found = retrieve(lg, queries, candidates, score, targets=targets, top_k=5, chunk_size=chunk_size)
    table = all_scores(lg, queries, candidates, score)
    assert found.ranks is not None
    assert found.target_scores is not None
    np.testing.assert_array_equal(found.ranks, naive_ranks(table, targets))
    assert found.ranks.min() >= 2  # each target has a twin
    np.testing.assert_allclose(found.target_scores, table[np.arange(20), targets], rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(found.top_scores, -np.sort(-table, axis=1)[:, :5], rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(np.take_along_axis(table, found.top_indices, 1), found.top_scores, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_duplicates_tie_wherever_they_stand(dtype: torch.dtype) -> None:
    """A product rounds differently from place to place in a tile; a twin must tie all the same."""
    widths = {"image": 67, "text": 131}
    lg = make_model(7, latent_dim=13, widths=widths)
    arrays = lg.sample(101, torch.Generator().manual_seed(1)).features
    data = MultimodalData({name: value.to(dtype) for name, value in arrays.items()})
    twice = data.subset(np.r_[0:101, 0:101])
    for chunk_size in (7, 50, 4096):
        found = retrieve(
            lg, data.select(["image"]), twice.select(["text"]), targets=np.arange(101), top_k=202, chunk_size=chunk_size
        )
        single = retrieve(lg, data.select(["image"]), data.select(["text"]), top_k=101, chunk_size=chunk_size)
        assert found.ranks is not None
        assert single.ranks is not None
        np.testing.assert_array_equal(found.ranks, 2 * single.ranks)  # all others twice, and the twin
        # of each pair of twins the first row is listed first
        np.testing.assert_array_equal(found.top_indices[:, ::2], single.top_indices)
        np.testing.assert_array_equal(found.top_indices[:, 1::2], single.top_indices + 101)


def test_duplicates_tie_when_the_precisions_are_ill_conditioned() -> None:
    generator = torch.Generator().manual_seed(2)
    spread = torch.logspace(-4, 3, 9, dtype=torch.float64)  # condition numbers up to 1e22
    lg = LinearGaussian(
        {name: torch.randn(20, 9, generator=generator, dtype=torch.float64) * spread for name in "ab"},
        {name: torch.zeros(20, dtype=torch.float64) for name in "ab"},
        {name: torch.tensor(1e-8, dtype=torch.float64) for name in "ab"},
    )
    data = MultimodalData(lg.sample(101, generator).features)
    twice = data.subset(np.r_[0:101, 0:101])
    for score in SCORES:
        found = retrieve(lg, data.select("a"), twice.select("b"), score, targets=np.arange(101), chunk_size=17)
        single = retrieve(lg, data.select("a"), data.select("b"), score)
        assert single.ranks is not None
        np.testing.assert_array_equal(found.ranks, 2 * single.ranks)


@pytest.mark.parametrize("score", sorted(SCORES))
def test_patterns_are_batched_without_a_trace(score: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nearly every row has a pattern of its own; patterns one at a time, a few at a time and all at once must agree."""
    lg = make_model(19, latent_dim=3, widths={f"m{i}": 1 + i % 3 for i in range(9)})
    queries, candidates = make_data(lg, 30, 15, 0.5), make_data(lg, 40, 16, 0.5)
    assert len(candidates.patterns) > 20
    targets = np.random.default_rng(2).integers(40, size=30)
    found = []
    for numbers in (1, 3 * 64 * 5, 2**22):
        monkeypatch.setattr(latent_rows, "_BATCH_NUMBERS", numbers)
        found.append(retrieve(lg, queries, candidates, score, targets=targets, top_k=40, chunk_size=64))
        np.testing.assert_array_equal(found[-1].ranks, found[0].ranks)
        np.testing.assert_array_equal(found[-1].top_indices, found[0].top_indices)
        np.testing.assert_allclose(found[-1].top_scores, found[0].top_scores, rtol=1e-10, atol=1e-10)
    for i, rank in [(0, 0), (7, 20), (29, 39)]:
        j = found[0].top_indices[i, rank]
        parts = list(observed_parts(queries, i)), list(observed_parts(candidates, int(j)))
        assert found[0].top_scores[i, rank] == pytest.approx(naive_score(lg, *parts, score), rel=1e-9, abs=1e-9)


@pytest.mark.parametrize("score", sorted(SCORES))
def test_a_model_that_says_nothing_ranks_every_target_last(score: str) -> None:
    lg = make_model(8)
    mute = LinearGaussian(
        {name: torch.zeros_like(value) for name, value in lg.loadings.items()},
        lg.intercepts,
        lg.noise_variance,
        lg.prior_mean,
        lg.prior_covariance,
    )
    data = make_data(lg, 30, 9)
    found = retrieve(mute, data, data, score, chunk_size=7)
    assert found.ranks is not None
    assert found.ranks.tolist() == [30] * 30
    assert found.metrics()["R@10"] == 0


def test_permuting_candidates_or_queries_permutes_the_result() -> None:
    lg = make_model(9)
    queries, candidates = make_data(lg, 25, 10), make_data(lg, 25, 11)
    straight = retrieve(lg, queries, candidates, top_k=3)
    assert straight.ranks is not None
    order = np.random.default_rng(1).permutation(25)
    shuffled = retrieve(lg, queries, candidates.subset(order), targets=np.argsort(order), top_k=3)
    np.testing.assert_array_equal(shuffled.ranks, straight.ranks)
    np.testing.assert_array_equal(order[shuffled.top_indices], straight.top_indices)
    asked = retrieve(lg, queries.subset(order), candidates, targets=order, top_k=3)
    np.testing.assert_array_equal(asked.ranks, straight.ranks[order])
    np.testing.assert_array_equal(asked.top_indices, straight.top_indices[order])


def test_ids_say_which_candidate_is_true() -> None:
    lg = make_model(10)
    arrays = lg.sample(6, torch.Generator().manual_seed(2)).features
    ids = np.array([f"id{i}" for i in range(6)])
    data = MultimodalData(arrays, ids=ids)
    order = np.array([4, 2, 0, 5, 1, 3])
    queries, candidates = data.select(["image"]), data.subset(order).select(["text"])
    by_id = retrieve(lg, queries, candidates)
    by_hand = retrieve(lg, queries, candidates, targets=np.argsort(order))
    np.testing.assert_array_equal(by_id.ranks, by_hand.ranks)
    unknown = retrieve(lg, queries, candidates.subset([0, 1, 2]))
    assert unknown.ranks is None
    with pytest.raises(ArgumentError, match="no candidate has the id 'id1'"):
        unknown.metrics()


def test_without_targets_there_are_candidates_but_no_ranks() -> None:
    lg = make_model(11)
    found = retrieve(lg, make_data(lg, 6, 0), make_data(lg, 9, 1), top_k=20)
    assert found.top_indices.shape == (6, 9)
    assert found.ranks is None
    assert found.target_scores is None
    with pytest.raises(ArgumentError, match=r"6 queries, 9 candidates.*Pass targets"):
        found.metrics()


def test_nan_scores_are_never_hits(monkeypatch: pytest.MonkeyPatch) -> None:
    def partly_nan(queries: LatentRows, candidates: LatentRows) -> Factors:
        query, candidate = queries.mean, candidates.mean
        term = torch.where(candidate[:, 0] > 0, torch.nan, candidate[:, 0])
        return Factors(query, candidate, candidates.slot, candidate_term=term)

    monkeypatch.setitem(SCORES, "partly_nan", partly_nan)
    lg = make_model(12)
    data = MultimodalData(lg.sample(40, torch.Generator().manual_seed(3)).features)
    found = retrieve(lg, data, data, "partly_nan", top_k=40, chunk_size=9)
    assert found.ranks is not None
    assert found.target_scores is not None
    broken = np.isnan(found.target_scores)
    assert 5 < broken.sum() < 35
    assert (found.ranks[broken] == 40).all()  # a NaN target comes last
    assert (found.ranks[~broken] > broken.sum()).all()  # and NaN candidates count against the others
    assert (found.top_indices[:, -broken.sum() :] == -1).all()  # nor are they listed
    assert (found.top_indices[:, : -broken.sum()] >= 0).all()


def test_metrics_of_known_ranks() -> None:
    ranks = np.array([1, 2, 5, 10, 11, 1])
    found = Retrieval("likelihood_ratio", 20, np.empty((6, 0), int), np.empty((6, 0)), ranks)
    assert found.metrics() == pytest.approx(
        {
            "R@1": 2 / 6,
            "R@5": 4 / 6,
            "R@10": 5 / 6,
            "median_rank": 3.5,
            "mean_reciprocal_rank": (1 + 1 / 2 + 1 / 5 + 1 / 10 + 1 / 11 + 1) / 6,
        }
    )
    assert list(found.metrics()) == list(RETRIEVAL_METRICS)


def test_cross_modal_recall_covers_every_direction() -> None:
    lg = make_model(13, latent_dim=3)
    data = make_data(lg, 60, 12)
    table = cross_modal_recall(lg, data, ks=(1, 7))
    assert list(zip(table["query"], table["candidate"], strict=True)) == [
        (a, b) for a in data.names for b in data.names if a != b
    ]
    both = (data.observed_mask[:, 0] & data.observed_mask[:, 2]).numpy()
    asked, shown = data.subset(both).select(["image"]), data.subset(both).select(["audio"])
    ranks = naive_ranks(all_scores(lg, asked, shown, "likelihood_ratio"), np.arange(both.sum()))
    row = table[(table["query"] == "image") & (table["candidate"] == "audio")].iloc[0]
    assert row["num_queries"] == both.sum()
    assert row["R@1"] == np.mean(ranks == 1)
    assert row["R@7"] == np.mean(ranks <= 7)
    assert row["median_rank"] == np.median(ranks)
    assert mean_over_pairs(table)["R@7"] == pytest.approx(table["R@7"].mean())
    assert set(mean_over_pairs(table)) == {"R@1", "R@7", "median_rank", "mean_reciprocal_rank"}


def test_a_pair_that_no_row_has_is_nan() -> None:
    lg = make_model(14)
    x = lg.sample(4, torch.Generator().manual_seed(4)).features
    observed = torch.tensor([[1, 1, 0], [1, 1, 0], [1, 0, 1], [1, 0, 1]], dtype=torch.bool)
    table = cross_modal_recall(lg, MultimodalData(x, observed_mask=observed), names=["text", "audio"])
    assert table["num_queries"].tolist() == [0, 0]
    assert table["R@1"].isna().all()


def test_informative_model_beats_chance() -> None:
    """Directions of the scores: the true candidate must come out on top, not at the bottom."""
    widths = {"image": 30, "text": 30}
    lg = make_model(15, latent_dim=8, widths=widths)
    data = MultimodalData(lg.sample(200, torch.Generator().manual_seed(5)).features)
    recall = {score: mean_over_pairs(cross_modal_recall(lg, data, score=score))["R@1"] for score in SCORES}
    assert min(recall.values()) > 0.3
    assert recall["likelihood_ratio"] >= max(recall.values())  # it is the Bayes-optimal score of its own model


def test_gradients_are_not_kept_and_dtype_of_model_does_not_matter() -> None:
    lg = make_model(16)
    data = make_data(lg, 12, 13)
    leaf = lg.map(lambda value: value.clone().requires_grad_())
    found, plain = retrieve(leaf, data, data), retrieve(lg, data, data)
    np.testing.assert_array_equal(found.ranks, plain.ranks)
    single = retrieve(lg.to(torch.float32), data, data)
    np.testing.assert_allclose(single.target_scores, plain.target_scores, rtol=1e-3, atol=1e-3)


def test_a_pyro_model_serves_as_its_linear_gaussian_form() -> None:
    lg = make_model(20)
    model = SharedLatentModel(lg.dims, latent_dim=lg.latent_dim, noise="diagonal")
    model.load_linear_gaussian(lg)  # fitted, so to say
    data = make_data(lg, 12, 17)
    np.testing.assert_array_equal(
        retrieve(model, data, data).target_scores, retrieve(model.linear_gaussian(), data, data).target_scores
    )


def test_bad_arguments_are_named() -> None:
    lg = make_model(17)
    data = make_data(lg, 8, 14)
    with pytest.raises(ArgumentError, match="score: expected one of"):
        retrieve(lg, data, data, "euclid")
    with pytest.raises(ArgumentError, match="chunk_size"):
        retrieve(lg, data, data, chunk_size=0)
    with pytest.raises(ArgumentError, match=r"from 0 to 7, got 8 \(row 2\)"):
        retrieve(lg, data, data, targets=[0, 1, 8, 3, 4, 5, 6, 7])
    with pytest.raises(ArgumentError, match="targets: expected 8 row numbers"):
        retrieve(lg, data, data, targets=[0, 1])
    with pytest.raises(ArgumentTypeError, match="a SharedLatentModel or a LinearGaussian, got"):
        retrieve({}, data, data)  # type: ignore[arg-type]
    with pytest.raises(ArgumentTypeError, match="candidates: expected MultimodalData, got dict"):
        retrieve(lg, data, {"image": np.ones((3, 4))})  # type: ignore[arg-type]
    with pytest.raises(SchemaError, match="queries: the model has no modality 'video'"):
        retrieve(lg, MultimodalData({"video": np.ones((3, 4))}), data)
    with pytest.raises(SchemaError, match="candidates: modality 'image' has 9 features, the model expects 4"):
        retrieve(lg, data, MultimodalData({"image": np.ones((3, 9))}))
    partial = MultimodalData({"image": np.array([[1.0, np.nan, 0.0, 1.0]])}, missing="features")
    with pytest.raises(DataError, match="queries: expected whole modalities"):
        retrieve(lg, partial, data)


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"score": ["x"]}, ArgumentError, "score: expected one of"),
        ({"top_k": -1}, ArgumentError, "top_k: expected a whole number of at least 0, got -1"),
        ({"top_k": "x"}, ArgumentTypeError, "top_k: .*got 'x'"),
        ({"chunk_size": 0}, ArgumentError, "chunk_size: .*at least 1, got 0"),
        ({"chunk_size": 2.5}, ArgumentTypeError, "chunk_size: .*got 2.5"),
    ],
)
def test_bad_settings_are_named(settings: dict[str, Any], error: type[Exception], message: str) -> None:
    lg = make_model(17)
    data = make_data(lg, 8, 14)
    with pytest.raises(error, match=message):
        retrieve(lg, data, data, **settings)


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"names": ["image", "x"]}, SchemaError, r"no modality is called 'x'; the modalities are \['image'"),
        ({"names": ["image", "image"]}, ArgumentError, "'image' stands twice"),
        ({"names": ["image"]}, ArgumentError, r"at least 2 modalities of .*got \['image'\]"),
        ({"names": "image"}, ArgumentTypeError, r"got 'image'; use \['image'\]"),
        ({"names": 3}, ArgumentTypeError, "names: expected a sequence of modality names, got 3"),
        ({"names": [3, "image"]}, ArgumentTypeError, "got 3 among them"),
        ({"ks": 3}, ArgumentTypeError, "ks: expected a sequence of whole numbers, got 3"),
        ({"ks": ["x"]}, ArgumentTypeError, "ks: .*got 'x'"),
        ({"data": np.ones((3, 2))}, ArgumentTypeError, "data: expected MultimodalData, got ndarray"),
    ],
)
def test_bad_choices_of_modalities_are_named(settings: dict[str, Any], error: type[Exception], message: str) -> None:
    lg = make_model(17)
    with pytest.raises(error, match=message):
        cross_modal_recall(lg, **{"data": make_data(lg, 8, 14), **settings})


def test_a_retrieval_shows_itself_in_two_lines() -> None:
    lg = make_model(13)
    data = make_data(lg, 12, 12)
    shown = repr(retrieve(lg, data, data, top_k=3))
    assert shown.startswith("Retrieval: 12 queries among 12 candidates by likelihood_ratio, the best 3 listed\n")
    assert "R@1 " in shown
    assert "median rank" in shown
    assert len(shown) < 250
    assert "no ranks: the true candidates are not known" in repr(retrieve(lg, data, data.subset(slice(0, 5))))


@pytest.mark.slow
def test_large_retrieval_stays_in_bounded_memory() -> None:
    """20,000 x 20,000 scores would take 3.2 GB at once; resident memory may grow by a tenth of that."""
    import multiprocessing

    context = multiprocessing.get_context("spawn")
    with context.Pool(1) as pool:
        growth, recall = pool.apply(_retrieve_large, (20_000,))
    assert recall > 0.01
    assert growth < 320e6


def _retrieve_large(num_instances: int) -> tuple[float, float]:
    import resource

    lg = make_model(18, latent_dim=16, widths={"image": 32, "text": 32})
    data = MultimodalData(lg.sample(num_instances, torch.Generator().manual_seed(6)).features)
    queries, candidates = data.select(["image"]), data.select(["text"])
    retrieve(lg, queries.subset(slice(0, 100)), candidates.subset(slice(0, 100)))  # load what is loaded lazily
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    found = retrieve(lg, queries, candidates)
    growth = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024.0
    return growth, found.metrics()["R@10"]
