"""CIDEr and CIDEr-D of captions, image by image.

With the vectors g^n of a candidate c and of the references r_1 .. r_J of its image (``ngrams.py``), n = 1 .. 4:

    CIDEr    10 * mean over n and j of  <g^n(c), g^n(r_j)> / (|g^n(c)| |g^n(r_j)|)
    CIDEr-D  10 * mean over n and j of  <min(g^n(c), g^n(r_j)), g^n(r_j)> / (|g^n(c)| |g^n(r_j)|)
                                        * exp(-(l(c) - l(r_j))^2 / (2 * 6^2))

where l counts bigrams, as COCO's code does (one less than words), and a vector of length 0 gives 0. What COCO's server
calls CIDEr is CIDEr-D. The paper has the factor 10 for CIDEr-D alone; here both are on one scale.

Source: Vedantam, Zitnick and Parikh, CIDEr: consensus-based image description evaluation (2015).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from calmrl_prob.evaluation.captions.ngrams import ngram_vectors

#: Of the penalty of another length, in bigrams.
_SIGMA = 6.0
_SCALE = 10.0


def cider_by_image(
    candidates: Sequence[str], references: Sequence[Sequence[str]]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """CIDEr and CIDEr-D of one candidate for each image, both (N,), 0 to 10.

    The rarity of an n-gram is that among the references given: those of a single image tell nothing, so all is 0.

    Args:
        candidates: N captions, words parted by spaces.
        references: for each its references, one at least.

    Example:
        >>> plain, damped = cider_by_image(["a dog runs", "a cat"], [["a dog runs fast"], ["the cat", "cats"]])
        >>> plain.round(2).tolist(), damped.round(2).tolist()
        ([5.97, 0.63], [5.89, 0.63])
    """
    of_references, of_candidates = ngram_vectors(references, candidates)
    owner = np.repeat(np.arange(len(references)), [len(captions) for captions in references])
    penalty = np.exp(-((of_candidates.lengths[owner] - of_references.lengths) ** 2) / (2 * _SIGMA**2))
    plain, damped = np.zeros(len(owner)), np.zeros(len(owner))
    of_both = zip(
        of_candidates.weights, of_candidates.norms(), of_references.weights, of_references.norms(), strict=True
    )
    for own, own_norm, theirs, their_norm in of_both:
        product = own_norm[owner] * their_norm
        share = np.divide(1.0, product, out=np.zeros_like(product), where=product > 0)
        beside = own[owner]
        plain += share * np.asarray(beside.multiply(theirs).sum(axis=1)).ravel()
        damped += share * penalty * np.asarray(beside.minimum(theirs).multiply(theirs).sum(axis=1)).ravel()
    number, orders = np.bincount(owner, minlength=len(references)), len(of_references.weights)
    found = [_SCALE * np.bincount(owner, part, len(references)) / (orders * number) for part in (plain, damped)]
    return found[0], found[1]
