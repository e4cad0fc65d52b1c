"""BLEU-1 .. 4 and ROUGE-L: how far captions overlap with references, as COCO counts it.

BLEU-k of a set of captions, with c_n the candidates' n-grams that occur in a reference too (as often as in the
reference that has most of them), t_n all of them, T the candidates' words and R the words of those references that are
closest in length (of two as close, the shorter):

    BLEU-k = (prod over n = 1 .. k of c_n / t_n)^(1 / k) * min(1, exp(1 - R / T))

ROUGE-L of a caption, with P and Q the longest common subsequence as a share of the candidate's and of a reference's
words, each the largest over the references, and b = 1.2:

    ROUGE-L = (1 + b^2) P Q / (Q + b^2 P)

Sources: Papineni et al., BLEU: a method for automatic evaluation of machine translation (2002); Lin, ROUGE: a package
for automatic evaluation of summaries (2004). The constants that keep quotients finite are those of COCO's code.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from calmrl_prob.evaluation.captions.ngrams import ORDERS

_TINY, _SMALL = 1e-15, 1e-9
_BETA = 1.2


def bleu_counts(candidates: Sequence[str], references: Sequence[Sequence[str]]) -> NDArray[np.float64]:
    """Parts of BLEU, image by image: c_1 .. c_4, t_1 .. t_4, T and R, (N, 10). Sums over images are of a set."""
    return np.array(
        [_counts(text.split(), [r.split() for r in own]) for text, own in zip(candidates, references, strict=True)]
    )


def bleu(counts: NDArray[np.float64]) -> NDArray[np.float64]:
    """BLEU-1 .. 4 of counts, of images or of sums over them.

    Args:
        counts: (..., 10), as :func:`bleu_counts` has them.

    Returns:
        (..., 4), in [0, 1].

    Example:
        >>> counts = bleu_counts(["a dog runs"], [["a dog runs fast", "dogs"]])
        >>> bleu(counts).round(2).tolist()  # no n-gram of order 4
        [[0.72, 0.72, 0.72, 0.0]]
    """
    right, number = counts[..., :ORDERS], counts[..., ORDERS : 2 * ORDERS]
    product = np.cumprod((right + _TINY) / (number + _SMALL), axis=-1)
    ratio = (counts[..., -2] + _TINY) / (counts[..., -1] + _SMALL)
    brevity = np.exp(1.0 - 1.0 / np.minimum(ratio, 1.0))
    found: NDArray[np.float64] = product ** (1.0 / np.arange(1, ORDERS + 1)) * brevity[..., None]
    return found


def rouge_l(candidates: Sequence[str], references: Sequence[Sequence[str]]) -> NDArray[np.float64]:
    """ROUGE-L of one candidate for each image, (N,), in [0, 1].

    Example:
        >>> rouge_l(["a dog runs"], [["a dog that runs", "the dog"]]).round(3).tolist()
        [0.836]
    """
    return np.array(
        [_rouge(text.split(" "), [r.split(" ") for r in own]) for text, own in zip(candidates, references, strict=True)]
    )


def _counts(words: list[str], references: list[list[str]]) -> list[float]:
    most: Counter[tuple[str, ...]] = Counter()
    for reference in references:
        most |= _ngrams(reference)
    shared = _ngrams(words) & most
    right = [sum(count for ngram, count in shared.items() if len(ngram) == n) for n in range(1, ORDERS + 1)]
    closest = min((abs(len(reference) - len(words)), len(reference)) for reference in references)[1]
    return [*right, *(max(0, len(words) - n) for n in range(ORDERS)), len(words), closest]


def _ngrams(words: list[str]) -> Counter[tuple[str, ...]]:
    return Counter(tuple(words[i : i + n]) for n in range(1, ORDERS + 1) for i in range(len(words) - n + 1))


def _rouge(words: list[str], references: list[list[str]]) -> float:
    common = [_common_subsequence(words, reference) for reference in references]
    precision = max(common) / len(words)
    recall = max(length / len(reference) for length, reference in zip(common, references, strict=True))
    if precision == 0.0 or recall == 0.0:
        return 0.0
    return (1 + _BETA**2) * precision * recall / (recall + _BETA**2 * precision)


def _common_subsequence(first: list[str], second: list[str]) -> int:
    """Number of words of the longest one."""
    row = [0] * (len(second) + 1)
    for word in first:
        before = 0
        for place, other in enumerate(second, start=1):
            before, row[place] = row[place], before + 1 if word == other else max(row[place], row[place - 1])
    return row[-1]
