"""Caption metrics against COCO's own code, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
from pycocoevalcap.bleu.bleu import Bleu
from pycocoevalcap.cider.cider import Cider
from pycocoevalcap.rouge.rouge import Rouge

from calmrl_prob.errors import ArgumentError, ArgumentTypeError, DataError
from calmrl_prob.evaluation.captions import CAPTION_METRICS, ngram_vectors, paired_bootstrap, score_captions

WORDS = ["a", "the", "two", "dog", "dogs", "cat", "man", "runs", "sits", "on", "in", "grass", "red", "near"]


def sentences(number: int, seed: int, shortest: int = 1) -> list[str]:
    rng = np.random.default_rng(seed)
    return [" ".join(rng.choice(WORDS, rng.integers(shortest, 16))) for _ in range(number)]


def made(seed: int) -> tuple[list[str], list[list[str]]]:
    """Captions of all lengths, some repeated, some word for word a reference, some empty."""
    rng = np.random.default_rng(seed)
    references = [sentences(int(rng.integers(1, 6)), 100 * seed + n) for n in range(30)]
    references[3] = [references[3][0]] * 3
    candidates = sentences(30, seed + 7)
    candidates[0], candidates[1], candidates[2] = references[0][-1], "", "bird birds unseen words here"
    return candidates, references


@pytest.mark.parametrize("seed", range(4))
def test_cider_bleu_and_rouge_are_those_of_coco(seed: int) -> None:
    candidates, references = made(seed)
    gts, res = dict(enumerate(references)), {n: [text] for n, text in enumerate(candidates)}
    found = score_captions(candidates, references)
    whole, by_image = Bleu(4).compute_score(gts, res, verbose=0)
    for n in range(4):
        assert found.corpus[f"BLEU-{n + 1}"] == pytest.approx(whole[n], abs=1e-9)
        np.testing.assert_allclose(found.by_image[f"BLEU-{n + 1}"], by_image[n], atol=1e-9)
    for scorer, metric in ((Cider(), "CIDEr-D"), (Rouge(), "ROUGE-L")):
        total, of_images = scorer.compute_score(gts, res)
        assert found.corpus[metric] == pytest.approx(total, abs=1e-9)
        np.testing.assert_allclose(found.by_image[metric], of_images, atol=1e-9)


def test_plain_cider_is_the_mean_cosine_of_weighed_counts() -> None:
    candidates, references = made(1)
    expected = []
    for candidate, own in zip(candidates, references, strict=True):
        cosines = []
        for n in range(1, 5):
            of_images = [{g for text in captions for g in _ngrams(text, n)} for captions in references]
            known = sorted({g for text in (candidate, *own) for g in _ngrams(text, n)})
            rarity = np.array([np.log(30 / max(1, sum(g in seen for seen in of_images))) for g in known])
            vectors = [rarity * [_ngrams(text, n).count(g) for g in known] for text in (candidate, *own)]
            lengths = [np.linalg.norm(vector) for vector in vectors]
            cosines += [
                vectors[0] @ vector / (lengths[0] * length) if lengths[0] * length > 0 else 0.0
                for vector, length in zip(vectors[1:], lengths[1:], strict=True)
            ]
        expected.append(10 * np.mean(cosines))
    np.testing.assert_allclose(score_captions(candidates, references).by_image["CIDEr"], expected, atol=1e-9)


def _ngrams(text: str, n: int) -> list[tuple[str, ...]]:
    words = text.split()
    return [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]


def test_inner_products_of_stacked_vectors_are_cider() -> None:
    candidates, references = made(2)
    of_images, others = ngram_vectors(references, candidates)
    products = (others.stacked() @ of_images.stacked().T).toarray()
    starts = np.cumsum([0, *map(len, references)])
    expected = [10 * products[n, starts[n] : starts[n + 1]].mean() for n in range(len(references))]
    np.testing.assert_allclose(score_captions(candidates, references).by_image["CIDEr"], expected, atol=1e-9)


@pytest.mark.parametrize("metric", CAPTION_METRICS)
def test_the_interval_is_that_of_scores_computed_on_resampled_images(metric: str) -> None:
    candidates, references = made(3)
    first, second = score_captions(candidates, references), score_captions(candidates[::-1], references)
    found = paired_bootstrap(first, second, metric, draws=4000, level=0.9)
    assert found.difference == pytest.approx(first.corpus[metric] - second.corpus[metric])
    rng = np.random.default_rng(1)
    rows = rng.integers(30, size=(2000, 30))
    if metric.startswith("BLEU"):
        by_hand = [_bleu(first.bleu_counts[r], metric) - _bleu(second.bleu_counts[r], metric) for r in rows]
    else:
        gap = (first.by_image[metric] - second.by_image[metric]).to_numpy()
        by_hand = gap[rows].mean(axis=1)
    low, high = np.quantile(by_hand, [0.05, 0.95])
    # A quantile at 5% of 2,000 draws errs by about 2 * sqrt(0.05 * 0.95 / 2000) / 0.1 = 0.1 standard deviations.
    room = 0.5 * np.std(by_hand)
    assert abs(found.lower - low) < room
    assert abs(found.upper - high) < room


def _bleu(counts: np.ndarray, metric: str) -> float:
    n = int(metric[-1])
    total = counts.sum(axis=0)
    product = np.prod((total[:n] + 1e-15) / (total[4 : 4 + n] + 1e-9))
    return float(product ** (1 / n) * min(1.0, np.exp(1 - total[9] / total[8])))


def test_several_runs_are_compared_by_their_mean() -> None:
    candidates, references = made(0)
    one, other = score_captions(candidates, references), score_captions(candidates[::-1], references)
    found = paired_bootstrap([one, other], [other, one])
    assert found.difference == pytest.approx(0.0, abs=1e-12)
    assert not found.told_apart


@pytest.mark.parametrize(
    ("candidates", "references", "error", "says"),
    [
        (["a"], [["a"], ["b"]], DataError, "expected the captions of 1 images"),
        ([], [], DataError, "at least one"),
        (["a", "b"], [["a"], []], DataError, "the first is image 1"),
        (["a"], [[" "]], DataError, "no caption has a word"),
        ("a", [["a"]], ArgumentTypeError, "candidates: expected a list"),
        (["a"], ["a"], ArgumentTypeError, r"references\[0\]: expected a list"),
        ([None], [["a"]], ArgumentTypeError, "candidates: expected text"),
        (["a"], 3, ArgumentTypeError, "references: expected a list"),
    ],
)
def test_what_cannot_be_scored_is_refused(candidates: object, references: object, error: type, says: str) -> None:
    with pytest.raises(error, match=says):
        score_captions(candidates, references)  # type: ignore[arg-type]


def test_what_cannot_be_compared_is_refused() -> None:
    one, two = score_captions(["a"], [["a"]]), score_captions(["a", "b"], [["a"], ["b"]])
    with pytest.raises(DataError, match="the same images"):
        paired_bootstrap(one, two)
    with pytest.raises(ArgumentError, match="METEOR"):
        paired_bootstrap(one, one, "METEOR")
    with pytest.raises(ArgumentError, match="level"):
        paired_bootstrap(one, one, level=1.0)
    for wrong in (None, 3, "abc", [[one]], one.by_image):
        with pytest.raises(ArgumentTypeError, match="second: expected what score_captions returns"):
            paired_bootstrap(one, wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize("weights", [None, np.ones(2), np.ones((1, 3)), np.zeros((1, 2)), [[2.0, -1.0]], [["a", "b"]]])
def test_weights_that_are_none_are_refused(weights: object) -> None:
    scores = score_captions(["a", "b"], [["a"], ["b"]])
    with pytest.raises(ArgumentError, match="weights: expected"):
        scores.weighted("CIDEr", weights)  # type: ignore[arg-type]
    with pytest.raises(ArgumentError, match="METEOR"):
        scores.weighted("METEOR", np.ones((1, 2)))


def test_vectors_are_of_text() -> None:
    for wrong in (None, "a dog", ["a dog"], [[None]]):
        with pytest.raises(ArgumentTypeError, match="references"):
            ngram_vectors(wrong)  # type: ignore[arg-type]
    with pytest.raises(ArgumentTypeError, match="candidates: expected a list"):
        ngram_vectors([["a dog"]], "a dog")
    assert ngram_vectors([["a  dog"]])[0].lengths.tolist() == [1]
