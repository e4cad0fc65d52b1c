"""Vectors of n-grams, each counted and weighed by how few images it describes: what CIDEr compares.

Of a caption, for the orders n = 1 .. 4 apart, with the number of images I and the number of images df(g) that an
n-gram g occurs in the reference captions of (1 where in none):

    g_k(caption) = count of k in the caption * (log I - log df(k))

Source: Vedantam, Zitnick and Parikh, CIDEr: consensus-based image description evaluation (2015).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from calmrl_prob._support.arguments import brief
from calmrl_prob.errors import ArgumentTypeError, DataError

#: n-grams of 1 to 4 words, as in all of COCO's measures.
ORDERS = 4


@dataclass(frozen=True, eq=False)
class NgramVectors:
    """Weighed n-grams of n captions.

    Attributes:
        weights: for each order a sparse matrix (n, number of n-grams), scipy's CSR, never negative.
        lengths: number of bigrams, (n,): the length that CIDEr-D compares.
    """

    weights: tuple[Any, ...]
    lengths: NDArray[np.int64]

    def norms(self) -> list[NDArray[np.float64]]:
        """For each order the length of each vector, (n,)."""
        return [np.sqrt(np.asarray(part.multiply(part).sum(axis=1)).ravel()) for part in self.weights]

    def stacked(self) -> Any:  # noqa: ANN401 - scipy has no annotations
        """All orders side by side, each of length 1/2, (n, all n-grams): inner products are CIDEr / 10.

        Example:
            >>> of_images, _ = ngram_vectors([["a dog runs"], ["a cat sleeps here"]])
            >>> rows = of_images.stacked()
            >>> (rows @ rows.T).toarray().round(2).tolist()  # of three words the first has no n-gram of order 4
            [[0.75, 0.0], [0.0, 1.0]]
        """
        from scipy import sparse

        scales = [np.divide(0.5, norm, out=np.zeros_like(norm), where=norm > 0) for norm in self.norms()]
        return sparse.hstack(
            [sparse.diags_array(scale) @ part for scale, part in zip(scales, self.weights, strict=True)], format="csr"
        )


def ngram_vectors(
    references: Sequence[Sequence[str]], candidates: Sequence[str] = ()
) -> tuple[NgramVectors, NgramVectors]:
    """Vectors of reference captions, by which n-grams are weighed, and of other captions.

    Args:
        references: for each image its captions, words parted by spaces.
        candidates: other captions.

    Returns:
        Of all references, image after image, and of the candidates.

    Raises:
        ArgumentTypeError: something is not text.
        DataError: no reference has a word.

    Example:
        >>> of_images, others = ngram_vectors([["a dog", "the dog"], ["a cat"]], ["a bird"])
        >>> [part.shape for part in (of_images.weights[0], others.weights[0])]
        [(3, 5), (1, 5)]
        >>> of_images.weights[0].toarray().round(2).tolist()[0]  # a, in both images; bird; cat; dog; the
        [0.0, 0.0, 0.0, 0.69, 0.0]
    """
    from scipy import sparse
    from sklearn.feature_extraction.text import CountVectorizer

    references, candidates = reference_texts(references), caption_texts("candidates", candidates)
    flat = [caption for captions in references for caption in captions]
    if not any(caption.split() for caption in flat):
        raise DataError("references: no caption has a word; give what people wrote, words parted by spaces.")
    counter = CountVectorizer(tokenizer=str.split, token_pattern=None, lowercase=False, ngram_range=(1, ORDERS))
    counts = counter.fit_transform([*flat, *candidates]).astype(np.float64)
    order = np.array([ngram.count(" ") for ngram in counter.get_feature_names_out()])
    image = np.repeat(np.arange(len(references)), [len(captions) for captions in references])
    membership = sparse.csr_array((np.ones(len(flat)), (image, np.arange(len(flat)))), (len(references), len(flat)))
    frequency = ((membership @ counts[: len(flat)]) > 0).sum(axis=0)
    rarity = np.log(len(references)) - np.log(np.maximum(np.asarray(frequency).ravel(), 1))
    weighed = (counts @ sparse.diags_array(rarity)).tocsc()
    parts = [weighed[:, order == n].tocsr() for n in range(ORDERS)]
    bigrams = np.asarray(counts.tocsc()[:, order == 1].sum(axis=1)).ravel().astype(np.int64)
    known, new = slice(len(flat)), slice(len(flat), None)
    return (
        NgramVectors(tuple(part[known] for part in parts), bigrams[known]),
        NgramVectors(tuple(part[new] for part in parts), bigrams[new]),
    )


def reference_texts(references: object) -> list[list[str]]:
    """Captions of each image, words parted by single spaces.

    Raises:
        ArgumentTypeError: they are no lists of text.
    """
    if isinstance(references, str) or not hasattr(references, "__iter__"):
        raise ArgumentTypeError(f"references: expected a list of captions for each image, got {brief(references)}.")
    return [caption_texts(f"references[{n}]", captions) for n, captions in enumerate(references)]


def caption_texts(name: str, given: object) -> list[str]:
    """Captions, words parted by single spaces.

    Raises:
        ArgumentTypeError: they are no list of text.
    """
    if isinstance(given, str) or not hasattr(given, "__iter__"):
        raise ArgumentTypeError(f"{name}: expected a list of captions, got {brief(given)}.")
    found = list(given)
    wrong = [entry for entry in found if not isinstance(entry, str)]
    if wrong:
        raise ArgumentTypeError(f"{name}: expected text, got {brief(wrong[0])}; leave out what has no caption.")
    return [" ".join(entry.split()) for entry in found]
