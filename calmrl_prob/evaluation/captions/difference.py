"""Paired differences of caption scores, with intervals by resampling images."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from calmrl_prob._support.arguments import brief, real_number, whole_number
from calmrl_prob.errors import ArgumentError, ArgumentTypeError, DataError
from calmrl_prob.evaluation.captions.scores import CAPTION_METRICS, CaptionScores


@dataclass(frozen=True)
class PairedDifference:
    """One captioner's score less another's on the same images.

    Attributes:
        metric: what was compared.
        first, second: the scores, means over runs.
        lower, upper: ends of the interval of first - second.
        level: of the interval.
    """

    metric: str
    first: float
    second: float
    lower: float
    upper: float
    level: float

    @property
    def difference(self) -> float:
        """first - second."""
        return self.first - self.second

    @property
    def told_apart(self) -> bool:
        """Whether the interval leaves 0 out."""
        return self.lower > 0.0 or self.upper < 0.0


def paired_bootstrap(
    first: CaptionScores | Sequence[CaptionScores],
    second: CaptionScores | Sequence[CaptionScores],
    metric: str = "CIDEr-D",
    *,
    level: float = 0.95,
    draws: int = 2000,
    seed: int = 0,
) -> PairedDifference:
    """Compare two captioners on the same images: percentile interval of the difference over resampled images.

    Each draw takes N images with replacement, the same for both. Of several runs (seeds of a fit) the mean is compared:
    what is told is about other images, not about other seeds.

    Args:
        first: scores of N images; of several runs a list.
        second: of the same images in the same order.
        metric: one of ``CAPTION_METRICS``.
        level: of the interval, between 0 and 1.
        draws: number of resamples.
        seed: of them.

    Raises:
        ArgumentError: ``metric``, ``level``, ``draws`` or ``seed`` cannot be used.
        ArgumentTypeError: ``first`` or ``second`` is no scores, nor a list of them.
        DataError: numbers of images differ, or a list is empty.

    Source: Efron and Tibshirani, An introduction to the bootstrap (1993).

    Example:
        >>> from calmrl_prob.evaluation.captions import score_captions
        >>> references = [["a dog runs"], ["a cat sleeps"], ["two men talk"]] * 10
        >>> right = score_captions([captions[0] for captions in references], references)
        >>> wrong = score_captions(["a dog runs"] * 30, references)
        >>> found = paired_bootstrap(right, wrong, "ROUGE-L")
        >>> found.told_apart, found.lower < found.difference < found.upper
        (True, True)
    """
    if metric not in CAPTION_METRICS:
        raise ArgumentError(f"metric: expected one of {CAPTION_METRICS}, got {metric!r}.")
    if not 0.0 < real_number("level", level, 0.9) < 1.0:
        raise ArgumentError(f"level: expected a number between 0 and 1, both excluded, got {level!r}.")
    runs = [_runs("first", first), _runs("second", second)]
    sizes = {len(scores.by_image) for part in runs for scores in part}
    if len(sizes) != 1 or not all(runs):
        raise DataError(
            f"first, second: expected scores of the same images, got {sorted(sizes)} images; score both alike."
        )
    (number,) = sizes
    rng = np.random.default_rng(whole_number("seed", seed))
    drawn = rng.multinomial(number, np.full(number, 1.0 / number), size=whole_number("draws", draws, 1))
    here = [_mean(part, metric, np.ones((1, number)))[0] for part in runs]
    gaps = np.subtract(*(_mean(part, metric, drawn.astype(np.float64)) for part in runs))
    lower, upper = np.quantile(gaps, [(1 - level) / 2, (1 + level) / 2])
    return PairedDifference(metric, float(here[0]), float(here[1]), float(lower), float(upper), level)


def _runs(name: str, given: object) -> list[CaptionScores]:
    runs: list[Any] = list(given) if isinstance(given, Iterable) else [given]
    wrong = [one for one in runs if not isinstance(one, CaptionScores)]
    if wrong:
        raise ArgumentTypeError(
            f"{name}: expected what score_captions returns, or a list of these, got {brief(wrong[0])}; score "
            "the captions first."
        )
    return runs


def _mean(runs: Sequence[CaptionScores], metric: str, weights: NDArray[np.float64]) -> NDArray[np.float64]:
    found: NDArray[np.float64] = np.mean([scores.weighted(metric, weights) for scores in runs], axis=0)
    return found
