"""The index against dense normals, pyro.ops.gaussian and cal.retrieve, and the laws that it keeps."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from pyro.ops.gaussian import Gaussian, matrix_and_mvn_to_gaussian, mvn_to_gaussian
from scipy.special import softmax
from scipy.stats import multivariate_normal
from torch.distributions import MultivariateNormal

import calmrl_prob as cal
from calmrl_prob.errors import ArgumentError, ArgumentTypeError, DataError, FileFormatError, NumericalError, SchemaError
from calmrl_prob.index.intake import Queries
from calmrl_prob.linear_gaussian import LinearGaussian
from calmrl_prob.priors import MixturePrior, StudentTPrior
from tests.cases.model_cases import random_data, random_model
from tests.cases.retrieval_cases import (
    WIDTHS,
    all_scores,
    make_data,
    make_model,
    noise_covariance,
    with_correlated_noise,
)

#: Of scores in nats: candidates are kept in 48 bits, and there are a few hundred sums of numbers of a hundred nats.
CLOSE = {"rtol": 1e-9, "atol": 1e-9}


def model_of(seed: int, noise: str) -> LinearGaussian:
    lg = make_model(seed, latent_dim=1 + seed)
    return with_correlated_noise(lg, seed) if noise == "correlated" else lg


def without_features(data: cal.MultimodalData, seed: int) -> cal.MultimodalData:
    """The same with single features missing, at least one of each modality left."""
    rng = np.random.default_rng(seed)
    arrays = {}
    for name in data.names:
        values = data[name].numpy().copy()
        gone = rng.random(values.shape) < 0.3
        gone[np.arange(len(values)), rng.integers(values.shape[1], size=len(values))] = False
        values[gone] = np.nan
        arrays[name] = values
    return cal.MultimodalData(arrays, missing="features")


def all_ratios(index: cal.RetrievalIndex, queries: Queries) -> np.ndarray:
    """The table (N_q, N_c), read off a search that lists every candidate."""
    found = index.search(queries, len(index))
    table = np.full(found.ids.shape, np.nan)
    np.put_along_axis(table, found.ids, found.log_ratios, axis=1)
    return table


def entries_of(data: cal.MultimodalData, row: int) -> tuple[np.ndarray, np.ndarray]:
    """What a row has, and which of all features that is."""
    stacked = np.concatenate([data[name][row].numpy() for name in data.names])
    return stacked[~np.isnan(stacked)], np.flatnonzero(~np.isnan(stacked))


def dense_ratio(lg: LinearGaussian, query: tuple[np.ndarray, ...], candidate: tuple[np.ndarray, ...]) -> float:
    """The ratio by densities of single features, each side a measurement of its own."""
    names = list(lg.names)
    W = np.concatenate([lg.loadings[name].numpy() for name in names])
    mean = W @ lg.prior_mean.numpy() + np.concatenate([lg.intercepts[name].numpy() for name in names])
    shared, noise = W @ lg.prior_covariance.numpy() @ W.T, noise_covariance(lg, names)
    (x, i), (y, j) = query, candidate

    def density(values: np.ndarray, places: np.ndarray, covariance: np.ndarray) -> float:
        return float(multivariate_normal.logpdf(values, mean[places], covariance))

    alone = [density(v, at, (shared + noise)[np.ix_(at, at)]) for v, at in (query, candidate)]
    own = np.zeros((len(i) + len(j),) * 2)
    own[: len(i), : len(i)], own[len(i) :, len(i) :] = noise[np.ix_(i, i)], noise[np.ix_(j, j)]
    both = np.r_[i, j]
    return density(np.r_[x, y], both, shared[np.ix_(both, both)] + own) - sum(alone)


@pytest.mark.parametrize("noise", ["diagonal", "correlated"])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_ratios_equal_those_of_retrieve_for_any_patterns(seed: int, noise: str) -> None:
    lg = model_of(seed, noise)
    queries, candidates = make_data(lg, 9, seed + 10), make_data(lg, 20, seed + 20)
    found = all_ratios(cal.RetrievalIndex.build(lg, candidates), queries)
    np.testing.assert_allclose(found, all_scores(lg, queries, candidates, "likelihood_ratio"), **CLOSE)


@pytest.mark.parametrize("noise", ["diagonal", "correlated"])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_ratios_equal_dense_densities_where_single_features_are_missing(seed: int, noise: str) -> None:
    lg = model_of(seed, noise)
    queries, candidates = (without_features(make_data(lg, n, seed + n), seed) for n in (6, 8))
    table = all_ratios(cal.RetrievalIndex.build(lg, candidates), queries)
    for i, j in np.ndindex(table.shape):
        expected = dense_ratio(lg, entries_of(queries, i), entries_of(candidates, j))
        assert table[i, j] == pytest.approx(expected, rel=1e-8, abs=1e-8)


def test_ratios_equal_those_of_pyros_gaussians() -> None:
    lg = make_model(7, latent_dim=3)
    x = lg.sample(5, torch.Generator().manual_seed(0)).features

    def factor(name: str, row: int) -> Gaussian:
        """log p(x | z) as a function of z."""
        noise = MultivariateNormal(lg.intercepts[name], torch.diag(lg.noise_variance[name]))
        joint = matrix_and_mvn_to_gaussian(lg.loadings[name].mT, noise)
        return joint.condition(x[name][row])

    prior = mvn_to_gaussian(MultivariateNormal(lg.prior_mean, lg.prior_covariance))

    def density(*parts: Gaussian) -> float:
        whole = prior
        for part in parts:
            whole = whole + part
        return float(whole.event_logsumexp())

    index = cal.RetrievalIndex.build(lg, cal.MultimodalData({"text": x["text"]}))
    table = all_ratios(index, {"image": x["image"]})
    for i, j in np.ndindex(table.shape):
        query, candidate = factor("image", i), factor("text", j)
        expected = density(query, candidate) - density(query) - density(candidate)
        assert table[i, j] == pytest.approx(expected, rel=1e-8, abs=1e-8)


def test_probabilities_are_the_softmax_over_all_candidates() -> None:
    lg = make_model(3)
    queries, candidates = make_data(lg, 7, 1), make_data(lg, 50, 2)
    index = cal.RetrievalIndex.build(lg, candidates)
    found = index.search(queries, 4, probabilities=True)
    expected = softmax(all_ratios(index, queries), axis=1)
    assert found.probabilities is not None
    # all but the best are summed in float32, of scores below a hundred nats: 1e-7 of a hundred, and room
    np.testing.assert_allclose(found.probabilities, np.take_along_axis(expected, found.ids, axis=1), rtol=1e-4)
    assert index.search(queries, 4).probabilities is None


def test_the_best_are_right_where_float32_cannot_tell_candidates_apart() -> None:
    lg = make_model(4, 2)
    base = lg.sample(1, torch.Generator().manual_seed(0)).features["text"].numpy()
    steps = np.random.default_rng(0).permutation(4000)[:, None] * 1e-8
    candidates = cal.MultimodalData({"text": base + steps * np.ones(WIDTHS["text"])})
    query = {"image": lg.sample(1, torch.Generator().manual_seed(1)).features["image"]}
    found = cal.RetrievalIndex.build(lg, candidates).search(query, 5)
    right = cal.retrieve(lg, cal.MultimodalData(query), candidates, top_k=5)
    np.testing.assert_array_equal(found.ids, right.top_indices)
    assert np.ptp(found.log_ratios) < 1e-6  # nats: finer than float32 can tell apart, at scores of several nats


def test_equal_candidates_stand_in_their_order() -> None:
    lg = make_model(5)
    one = make_data(lg, 6, 1, share_missing=0).subset([0, 1, 2, 3, 4, 5, 3, 3])
    found = cal.RetrievalIndex.build(lg, one).search(make_data(lg, 4, 2), 8).ids
    for row in found.tolist():
        assert [place for place in row if place in (3, 6, 7)] == [3, 6, 7]


def test_added_in_parts_or_in_another_order_is_the_same() -> None:
    lg = make_model(6)
    candidates, queries = without_features(make_data(lg, 30, 1), 1), make_data(lg, 5, 2)
    whole = cal.RetrievalIndex.build(lg, candidates)
    parts = cal.RetrievalIndex.build(lg, candidates.subset(slice(0, 4)))
    parts.search(queries)  # what is known of these candidates is carried on
    for start in (4, 5, 20):
        parts.add(candidates.subset(slice(start, {4: 5, 5: 20}.get(start))))
    np.testing.assert_allclose(all_ratios(parts, queries), all_ratios(whole, queries), **CLOSE)
    order = np.random.default_rng(0).permutation(30)
    permuted = cal.RetrievalIndex.build(lg, candidates.subset(order))
    np.testing.assert_allclose(all_ratios(permuted, queries), all_ratios(whole, queries)[:, order], **CLOSE)
    assert len(parts) == len(whole) == 30


def test_removed_candidates_are_never_found() -> None:
    lg = make_model(6)
    data = make_data(lg, 12, 1)
    data = cal.MultimodalData({n: data[n] for n in data.names}, ids=[f"c{n}" for n in range(12)])
    index, queries = cal.RetrievalIndex.build(lg, data), make_data(lg, 5, 2)
    before = index.search(queries, 12, probabilities=True)
    index.remove(["c3", "c7"])
    after = index.search(queries, 12, probabilities=True)
    assert len(index) == 10
    assert after.ids.shape == (5, 10)
    assert after.probabilities is not None
    for row in range(5):
        left = [one for one in before.ids[row].tolist() if one not in ("c3", "c7")]
        assert after.ids[row].tolist() == left
    np.testing.assert_allclose(after.probabilities.sum(1), 1, rtol=1e-4)
    with pytest.raises(ArgumentError, match="no candidate 'c3'"):
        index.remove(["c3"])
    index.add(data.subset([3]))
    assert set(index.ids.tolist()) == set(data.ids.tolist()) - {"c7"}
    np.testing.assert_allclose(index.search(queries, 1).log_ratios.ravel() >= after.log_ratios[:, 0] - 1e-9, True)
    index.remove(index.ids.tolist())
    with pytest.raises(ArgumentError, match="no candidates left"):
        index.search(queries)


def test_queries_come_as_vectors_series_frames_tensors_and_data() -> None:
    lg = make_model(8)
    x = lg.sample(6, torch.Generator().manual_seed(0)).features
    frames = {
        name: pd.DataFrame(x[name].numpy(), columns=[f"{name}{i}" for i in range(w)]) for name, w in WIDTHS.items()
    }
    index = cal.RetrievalIndex.build(lg, cal.MultimodalData(frames))
    image, frame = x["image"], frames["image"]
    right = index.search(cal.MultimodalData({"image": frame}), 3)
    for queries in (
        {"image": image},
        {"image": image.numpy()},
        {"image": image.tolist()},
        {"image": frame[frame.columns[::-1]]},
    ):
        found = index.search(queries, 3)
        np.testing.assert_array_equal(found.ids, right.ids)
        np.testing.assert_allclose(found.log_ratios, right.log_ratios, **CLOSE)
    for one in (image[2], image[2].numpy(), image[2].tolist(), frame.iloc[2][::-1]):
        single = index.search({"image": one}, 3, probabilities=True)
        np.testing.assert_array_equal(single.ids, right.ids[2])
        np.testing.assert_allclose(single.log_ratios, right.log_ratios[2], **CLOSE)
        assert single.probabilities is not None
        assert single.probabilities.shape == (3,)


def test_a_query_that_lacks_features_is_one_of_its_pattern() -> None:
    lg = make_model(9)
    x = {name: values[0].numpy().copy() for name, values in lg.sample(1).features.items()}
    index = cal.RetrievalIndex.build(lg, make_data(lg, 10, 1))
    x["text"][1], x["audio"][:] = np.nan, np.nan
    as_data = cal.MultimodalData({name: value[None] for name, value in x.items()}, missing="features")
    np.testing.assert_array_equal(index.search(x).log_ratios, index.search(as_data).log_ratios[0])
    without = index.search({"image": x["image"], "text": x["text"]})
    np.testing.assert_array_equal(index.search(x).log_ratios, without.log_ratios)


def test_a_fit_and_a_discovered_form_are_taken() -> None:
    data = cal.datasets.make_synthetic(60, {"image": 5, "text": 4}, seed=0).data
    fit = cal.fit(cal.SharedLatentModel(data.dims, 2, noise="full"), data, method="em")
    index = cal.RetrievalIndex.build(fit, data.select(["text"]))
    found = index.search(data.select(["image"]), 3)
    right = cal.retrieve(fit, data.select(["image"]), data.select(["text"]), top_k=3)
    np.testing.assert_allclose(found.log_ratios, right.top_scores, rtol=1e-6)


@pytest.mark.parametrize("prior", [MixturePrior, StudentTPrior])
def test_families_without_one_gaussian_form_are_sent_to_retrieve(prior: type[MixturePrior | StudentTPrior]) -> None:
    model = random_model(prior=prior(2))
    data = random_data(20)
    with pytest.raises(ArgumentError, match=r"cal\.retrieve"):
        cal.RetrievalIndex.build(model, data)


def test_bad_arguments_are_refused_by_name() -> None:
    lg = make_model(1)
    data = make_data(lg, 5, 1)
    with pytest.raises(ArgumentTypeError, match=r"^candidates"):
        cal.RetrievalIndex.build(lg, {"image": np.ones((3, 4))})  # type: ignore[arg-type]
    with pytest.raises(ArgumentError, match=r"^engine"):
        cal.RetrievalIndex.build(lg, data, "annoy")  # type: ignore[arg-type]
    with pytest.raises(SchemaError, match="no modality 'smell'"):
        cal.RetrievalIndex.build(lg, cal.MultimodalData({"smell": np.ones((3, 4))}))
    index = cal.RetrievalIndex.build(lg, data)
    with pytest.raises(SchemaError, match=r"queries: .*'image' has 9 features"):
        index.search({"image": np.ones(9)})
    with pytest.raises(SchemaError, match=r"queries: .*'smell'"):
        index.search({"smell": np.ones(4)})
    with pytest.raises(ArgumentTypeError, match=r"^queries"):
        index.search(np.ones(4))  # type: ignore[arg-type]
    with pytest.raises(DataError, match="infinities"):
        index.search({"image": np.array([1.0, np.inf, 0, 0])})
    with pytest.raises(DataError, match="no modality"):
        index.search({"image": np.full(4, np.nan)})
    with pytest.raises(ArgumentError, match=r"^k"):
        index.search({"image": np.ones(4)}, 0)
    with pytest.raises(DataError, match="came without"):
        index.add(cal.MultimodalData({"image": np.ones((1, 4))}, ids=["a"]))
    with pytest.raises(SchemaError, match="smell"):
        index.prepare(["smell"])
    with pytest.raises(ArgumentError, match="missing pattern"):
        index.vectors(["image"])


def test_vectors_for_other_stores_give_the_ratio_as_an_inner_product() -> None:
    lg = make_model(2)
    x = lg.sample(8, torch.Generator().manual_seed(0)).features
    index = cal.RetrievalIndex.build(lg, cal.MultimodalData({"text": x["text"]}, ids=list("abcdefgh")))
    ids, table = index.vectors(["image", "audio"])
    asked = index.query_vectors({"image": x["image"], "audio": x["audio"]})
    found = index.search({"image": x["image"], "audio": x["audio"]}, 8)
    by_id = {one: place for place, one in enumerate(ids.tolist())}
    columns = np.vectorize(by_id.__getitem__)(found.ids)
    np.testing.assert_allclose(np.take_along_axis(asked @ table.T, columns, 1), found.log_ratios, **CLOSE)


# ---- files ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "ids",
    [None, ["ä", "b", ""], np.array([7, -3, 2**40]), np.array(["2020-01-01", "2021-02-03", "1999-12-31"], "M8[D]")],
    ids=["numbered", "text", "numbers", "dates"],
)
def test_an_index_comes_back_from_its_file(tmp_path: Path, ids: Sequence[str] | np.ndarray | None) -> None:
    lg = with_correlated_noise(make_model(2, 2), 2)
    data = make_data(lg, 3, 1)
    index = cal.RetrievalIndex.build(
        lg, cal.MultimodalData({n: data[n] for n in data.names}, ids=ids), queries=["image"]
    )
    index.remove([0 if ids is None else ids[0]])
    queries, path = make_data(lg, 5, 2), tmp_path / "index.safetensors"
    cal.save(index, path)
    for loaded in (cal.load(path), cal.RetrievalIndex.load(path)):
        assert isinstance(loaded, cal.RetrievalIndex)
        assert repr(loaded) == repr(index)
        np.testing.assert_array_equal(loaded.ids, index.ids)
        found, right = loaded.search(queries), index.search(queries)
        np.testing.assert_array_equal(found.ids, right.ids)
        np.testing.assert_array_equal(found.log_ratios, right.log_ratios)
        if ids is None:
            loaded.add(data.subset([1]))  # what is mapped is not written to
            assert len(loaded) == 3
    index.save(path)
    assert repr(cal.load(path)) == repr(index)


def test_matches_are_shown_in_a_line() -> None:
    lg = make_model(1)
    index = cal.RetrievalIndex.build(lg, make_data(lg, 6, 0))
    queries = make_data(lg, 4, 1)
    assert repr(index.search(queries, k=3)) == "Matches(3 best of each of 4 queries)"
    name = queries.names[0]
    assert repr(index.search({name: np.zeros(lg.dims[name])}, k=9)) == "Matches(6 best of a query)"


def test_candidates_of_a_loaded_index_stay_in_its_file(tmp_path: Path) -> None:
    lg = make_model(0, 64)
    x = lg.sample(20_000, torch.Generator().manual_seed(0)).features
    index = cal.RetrievalIndex.build(lg, cal.MultimodalData({"text": x["text"]}))
    cal.save(index, tmp_path / "i")

    status = Path("/proc/self/status")
    if not status.exists():
        pytest.skip("memory is counted by /proc")

    def anonymous() -> int:
        return int(status.read_text().split("RssAnon:")[1].split()[0])

    before = anonymous()
    loaded = cal.load(tmp_path / "i")
    loaded.search({"image": x["image"][0]})
    assert anonymous() - before < 5_000  # kilobytes, of the 10,240 that the candidates take


def test_names_of_features_come_back_and_decide(tmp_path: Path) -> None:
    lg = make_model(8)
    frame = pd.DataFrame(lg.sample(4).features["text"].numpy(), columns=["u", "v", "w"])
    index = cal.RetrievalIndex.build(lg, cal.MultimodalData({"text": frame}))
    index.save(tmp_path / "i")
    loaded = cal.RetrievalIndex.load(tmp_path / "i")
    right = index.search({"text": frame}).log_ratios
    np.testing.assert_array_equal(loaded.search({"text": frame[["w", "u", "v"]]}).log_ratios, right)
    with pytest.raises(SchemaError):
        loaded.search({"text": frame.rename(columns={"u": "other"})})


def test_files_that_are_none_are_refused(tmp_path: Path) -> None:
    lg = make_model(2)
    cal.save(lg, tmp_path / "model")
    with pytest.raises(FileFormatError, match=r"RetrievalIndex.*load it by cal\.load"):
        cal.RetrievalIndex.load(tmp_path / "model")
    mixed = cal.MultimodalData({"text": np.ones((2, 3))}, ids=[("a", 1), ("b", 2)])
    with pytest.raises(ArgumentError, match="texts, numbers and dates"):
        cal.RetrievalIndex.build(lg, mixed).save(tmp_path / "i")
    assert not (tmp_path / "i").exists()


def test_an_index_travels() -> None:
    lg = make_model(2)
    index, queries = cal.RetrievalIndex.build(lg, make_data(lg, 9, 1)), make_data(lg, 5, 2)
    right = index.search(queries)
    for other in (pickle.loads(pickle.dumps(index)), copy.deepcopy(index), copy.copy(index)):
        other.remove([0])
        np.testing.assert_array_equal(index.search(queries).log_ratios, right.log_ratios)
        assert len(other) == 8
        assert len(index) == 9


@pytest.mark.parametrize(
    "more", [["1", "x"], [1.5, 2.5], np.array(["2020-01-01", "2020-01-02"], dtype="datetime64[D]")]
)
def test_ids_of_another_kind_that_are_added_leave_all_as_they_are(more: list[object] | np.ndarray) -> None:
    lg = make_model(2)
    rows = {name: make_data(lg, 9, 1)[name] for name in WIDTHS}
    index = cal.RetrievalIndex.build(lg, cal.MultimodalData({n: x[:7] for n, x in rows.items()}, ids=range(7)))
    index.add(cal.MultimodalData({n: x[7:] for n, x in rows.items()}, ids=more))
    assert index.ids.tolist() == [*range(7), *np.asarray(more).tolist()]
    assert [type(entry) for entry in index.ids.tolist()[:7]] == [int] * 7
    index.remove([1])
    index.remove(index.ids[-2:])
    assert index.ids.tolist() == [0, 2, 3, 4, 5, 6]


def test_a_model_in_float32_is_scored_in_float64() -> None:
    lg = make_model(2)
    data = make_data(lg, 9, 1)
    single = replace(lg).to(torch.float32)
    index = cal.RetrievalIndex.build(single, data)
    np.testing.assert_allclose(all_ratios(index, data), all_scores(single, data, data, "likelihood_ratio"), **CLOSE)


@pytest.mark.filterwarnings("error")
def test_what_overflows_is_refused_without_a_warning() -> None:
    lg = make_model(0, latent_dim=2)
    name = lg.names[0]
    index = cal.RetrievalIndex.build(lg, cal.MultimodalData({name: np.eye(WIDTHS[name])}))
    for scale in (1e30, 1e200, 1e300):
        query = {name: np.full(WIDTHS[name], scale)}
        with pytest.raises(NumericalError, match="queries: one has values so far"):
            index.search(query, 2, probabilities=True)
        with pytest.raises(NumericalError, match="candidates: row 0 has values so far"):
            cal.RetrievalIndex.build(lg, cal.MultimodalData({name: query[name][None]}))
    with pytest.raises(NumericalError, match="vector overflows"):
        index.query_vectors({name: np.full(WIDTHS[name], 1e300)})
    far = index.search({name: np.full(WIDTHS[name], 1e12)}, 2)
    assert np.isfinite(far.log_ratios).all()


def test_vectors_come_from_any_library() -> None:
    import polars as pl
    import pyarrow as pa
    import xarray as xr

    lg = make_model(0, latent_dim=2)
    name = lg.names[0]
    features = tuple(f"f{k}" for k in range(WIDTHS[name]))
    lg = replace(lg, feature_names={name: features})
    vector = np.random.default_rng(0).normal(size=len(features))
    index = cal.RetrievalIndex.build(lg, cal.MultimodalData({name: np.eye(len(features))}))
    expected = index.search({name: vector}, 2).log_ratios
    labelled = xr.DataArray(vector, dims="feature", coords={"feature": list(features)})
    for given in (pl.Series(vector), pa.array(vector), labelled, labelled[::-1]):
        found = index.search({name: given}, 2).log_ratios
        np.testing.assert_allclose(found, expected, **CLOSE)


def test_wrong_types_are_refused_by_name() -> None:
    lg = make_model(0, latent_dim=2)
    name = lg.names[0]
    index = cal.RetrievalIndex.build(lg, cal.MultimodalData({name: np.eye(WIDTHS[name])}))
    for wrong in ([[0]], [{}]):
        with pytest.raises(ArgumentError, match="ids: the index has no candidate"):
            index.remove(wrong)
    with pytest.raises(ArgumentTypeError, match="least_recall: expected a number"):
        index.prepare([name], least_recall="all")  # type: ignore[arg-type]
    with pytest.raises(ArgumentError, match="seed"):
        index.prepare([name], seed=-1)
    with pytest.raises(ArgumentTypeError, match="seed"):
        cal.RetrievalIndex.build(lg, cal.MultimodalData({n: np.ones((1, WIDTHS[n])) for n in lg.names}), seed="x")  # type: ignore[arg-type]
