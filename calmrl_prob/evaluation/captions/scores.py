"""Scores of one caption for each of N images, by all of COCO's measures that need no other program."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from calmrl_prob._support.arguments import brief
from calmrl_prob.errors import ArgumentError, DataError
from calmrl_prob.evaluation.captions.cider import cider_by_image
from calmrl_prob.evaluation.captions.ngrams import ORDERS, caption_texts, reference_texts
from calmrl_prob.evaluation.captions.overlap import bleu, bleu_counts, rouge_l

_BLEU = tuple(f"BLEU-{n}" for n in range(1, ORDERS + 1))
#: The measures, by name: CIDEr from 0 to 10, the others from 0 to 1.
CAPTION_METRICS = ("CIDEr-D", "CIDEr", *_BLEU, "ROUGE-L")


@dataclass(frozen=True, eq=False, repr=False)
class CaptionScores:
    """Scores of N captions.

    Attributes:
        by_image: a row for each image, a column for each of ``CAPTION_METRICS``.
        bleu_counts: n-grams and words of each image, (N, 10): BLEU of a set is of their sums, not a mean.
    """

    by_image: pd.DataFrame
    bleu_counts: NDArray[np.float64]

    @property
    def corpus(self) -> dict[str, float]:
        """Each measure of all images together: BLEU of summed counts, the others as means."""
        whole = np.ones((1, len(self.by_image)))
        return {metric: float(self.weighted(metric, whole)[0]) for metric in CAPTION_METRICS}

    def weighted(self, metric: str, weights: NDArray[np.float64]) -> NDArray[np.float64]:
        """A measure of the set in which image n stands w_n times.

        Args:
            metric: one of ``CAPTION_METRICS``.
            weights: (B, N), such as how often each image was drawn in B resamples.

        Returns:
            (B,).

        Raises:
            ArgumentError: ``metric`` is none, or weights are not (B, N), or are negative, or all zero.
        """
        if metric not in CAPTION_METRICS:
            raise ArgumentError(f"metric: expected one of {CAPTION_METRICS}, got {metric!r}.")
        weights, number = np.asarray(weights), len(self.by_image)
        if weights.dtype.kind not in "biuf" or weights.ndim != 2 or weights.shape[1] != number:
            raise ArgumentError(f"weights: expected (B, {number}) numbers, a row for each set, got {brief(weights)}.")
        if not (weights >= 0).all() or not (weights.sum(axis=1) > 0).all():
            raise ArgumentError("weights: expected none below 0, and one above 0 in each row; weigh with counts.")
        if metric in _BLEU:
            return bleu(weights @ self.bleu_counts)[:, _BLEU.index(metric)]
        found: NDArray[np.float64] = weights @ self.by_image[metric].to_numpy() / weights.sum(axis=1)
        return found

    def __repr__(self) -> str:
        shown = ", ".join(f"{name} {value:.3f}" for name, value in self.corpus.items())
        return f"CaptionScores({len(self.by_image):,} images: {shown})"


def score_captions(candidates: Sequence[str], references: Sequence[Sequence[str]]) -> CaptionScores:
    """Compare one caption for each image with what people wrote of it.

    Definitions and figures are those of COCO's evaluation code, which joins ``CIDEr`` (here CIDEr-D), BLEU and ROUGE-L
    with a tokenizer that needs Java. Captions are given tokenized here: in the same case and without punctuation on
    both sides, words parted by spaces. An empty caption scores 0.

    Args:
        candidates: N captions.
        references: for each image one or more; they may repeat.

    Raises:
        DataError: numbers differ, an image has no reference, or no reference has a word.
        ArgumentTypeError: something is not text.

    Example:
        >>> scores = score_captions(["a dog runs", "a cat"], [["a dog runs fast"], ["the cat", "a black cat"]])
        >>> {name: round(value, 2) for name, value in scores.corpus.items() if name != "BLEU-3"}
        {'CIDEr-D': 3.76, 'CIDEr': 3.81, 'BLEU-1': 0.82, 'BLEU-2': 0.67, 'BLEU-4': 0.02, 'ROUGE-L': 0.8}
    """
    texts, known = _checked(candidates, references)
    plain, damped = cider_by_image(texts, known)
    counts = bleu_counts(texts, known)
    columns = {"CIDEr-D": damped, "CIDEr": plain, **dict(zip(_BLEU, bleu(counts).T, strict=True))}
    return CaptionScores(pd.DataFrame({**columns, "ROUGE-L": rouge_l(texts, known)}), counts)


def _checked(candidates: object, references: object) -> tuple[list[str], list[list[str]]]:
    texts, known = caption_texts("candidates", candidates), reference_texts(references)
    if not len(texts) == len(known) > 0:
        raise DataError(
            f"references: expected the captions of {len(texts)} images, as there are candidates, at least one, got "
            f"those of {len(known)}."
        )
    bare = [n for n, captions in enumerate(known) if not captions]
    if bare:
        raise DataError(
            f"references: {len(bare)} images have no caption, the first is image {bare[0]}; leave them out."
        )
    return texts, known
