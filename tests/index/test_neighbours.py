"""Structures of faiss in an index: what is found has exact scores, and is what the exact search finds."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch

import calmrl_prob as cal
from calmrl_prob.index import approximate
from calmrl_prob.linear_gaussian import LinearGaussian
from tests.cases.retrieval_cases import make_model

pytest.importorskip("faiss")


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Structures over a few hundred candidates, which are otherwise scanned."""
    monkeypatch.setattr(approximate, "LEAST_CANDIDATES", 300)


@pytest.fixture(scope="module")
def lg() -> LinearGaussian:
    return make_model(3, 4, {"image": 3, "text": 6, "audio": 5})


def candidates(lg: LinearGaussian, number: int, seed: int) -> cal.MultimodalData:
    x = lg.sample(number, torch.Generator().manual_seed(seed)).features
    audio = x["audio"].clone()
    audio[::10] = torch.nan  # a tenth of them, too few for a structure of their own
    return cal.MultimodalData({"text": x["text"], "audio": audio}, ids=[f"{seed}/{n}" for n in range(number)])


def queries(lg: LinearGaussian, number: int = 50) -> dict[str, torch.Tensor]:
    return {"image": lg.sample(number, torch.Generator().manual_seed(99)).features["image"]}


@pytest.mark.parametrize("structure", ["hnsw", "ivfpq"])
def test_what_is_found_is_the_exact_best(lg: LinearGaussian, structure: str, capfd: pytest.CaptureFixture[str]) -> None:
    index = cal.RetrievalIndex.build(lg, candidates(lg, 1000, 0), "faiss", structure=structure)
    assert capfd.readouterr() == ("", "")  # faiss likes to talk
    assert index.recall[("image",)] >= 0.99
    assert "recall of the 10 best: image " in repr(index)
    found, right = (index.search(queries(lg), exact=exact, probabilities=True) for exact in (False, True))
    assert index.measure_recall(queries(lg)) >= 0.95  # of 0.99 on the queries that the effort was chosen by
    same = found.ids == right.ids
    np.testing.assert_array_equal(found.log_ratios[same], right.log_ratios[same])
    assert same.mean() > 0.9
    assert found.probabilities is not None
    assert right.probabilities is not None
    np.testing.assert_allclose(found.probabilities[same], right.probabilities[same], rtol=1e-4)


@pytest.mark.parametrize("structure", ["hnsw", "ivfpq"])
def test_structures_follow_what_is_added_and_removed(lg: LinearGaussian, structure: str, tmp_path: Path) -> None:
    index = cal.RetrievalIndex.build(lg, candidates(lg, 600, 0), "faiss", structure=structure)
    index.add(candidates(lg, 600, 1))
    best = index.search(queries(lg), 1, exact=True).ids.ravel()
    assert {one.split("/")[0] for one in best.tolist()} == {"0", "1"}
    assert (index.search(queries(lg), 1).ids.ravel() == best).mean() > 0.95
    index.remove(np.unique(best))
    again = index.search(queries(lg), 5).ids
    assert not set(again.ravel().tolist()) & set(best.tolist())
    assert index.measure_recall(queries(lg)) >= 0.95

    index.save(tmp_path / "index")
    for other in (cal.load(tmp_path / "index"), copy.deepcopy(index)):
        assert isinstance(other, cal.RetrievalIndex)
        np.testing.assert_array_equal(other.search(queries(lg), 5).ids, again)
        assert other.recall == index.recall


def test_patterns_that_were_not_prepared_are_scanned(lg: LinearGaussian) -> None:
    index = cal.RetrievalIndex.build(lg, candidates(lg, 600, 0), "faiss", queries=["image"])
    x = lg.sample(5, torch.Generator().manual_seed(5)).features
    both = {name: x[name] for name in ("image", "audio")}
    assert list(index.recall) == [("image",)]
    assert index.measure_recall(both) == 1
    index.prepare(["audio", "image"])
    assert set(index.recall) == {("image",), ("image", "audio")} or set(index.recall) == {
        ("image",),
        ("audio", "image"),
    }


def test_a_search_for_more_than_a_structure_finds_is_exact(lg: LinearGaussian) -> None:
    index = cal.RetrievalIndex.build(lg, candidates(lg, 600, 0), "faiss")
    assert index.search(queries(lg, 3), 600).ids.shape == (3, 600)
    index.remove(index.ids[40:].tolist())
    found = index.search(queries(lg, 3), 8)
    np.testing.assert_array_equal(found.ids, index.search(queries(lg, 3), 8, exact=True).ids)
