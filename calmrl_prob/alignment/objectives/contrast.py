"""InfoNCE where some rows, and some candidates, are there only in part."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Terms(NamedTuple):
    """Several terms of a mean: their weighted sum and the sum of their weights."""

    total: Tensor
    weight: Tensor


def contrast(logits: Tensor, term_weights: Tensor, candidate_weights: Tensor) -> Terms:
    """-log of the share that each row's own candidate has, weighted.

        term_a = -log( exp(l_aa) / (exp(l_aa) + sum_{b != a} c_b exp(l_ab)) ),    sum_a t_a term_a,    sum_a t_a

    so that a candidate of weight 0 is not there, and a row of weight 0 does not count. With all weights 1 it is the
    cross-entropy of Oord, Li and Vinyals, Representation learning with contrastive predictive coding (2018).

    Args:
        logits: (..., B, B), row a against candidate b.
        term_weights: t, (..., B).
        candidate_weights: c, (..., B).

    Example:
        >>> contrast(torch.zeros(3, 3), torch.ones(3), torch.tensor([1.0, 1.0, 0.0])).total.exp().item()
        12.0
    """
    own = logits.diagonal(dim1=-2, dim2=-1)
    weighted = logits + _log(candidate_weights)[..., None, :]  # in which the row's own candidate stands with c_a
    mass = torch.logaddexp(weighted.logsumexp(-1), own + _log(1 - candidate_weights))
    return Terms(((mass - own) * term_weights).sum(), term_weights.sum())


def _log(weights: Tensor) -> Tensor:
    """Logarithms, with a finite stand-in for that of 0, whose sums have gradients that are 0 and not NaN."""
    positive = weights > 0
    return torch.where(positive, torch.where(positive, weights, 1).log(), torch.finfo(weights.dtype).min / 4)


def weighted_mean(*parts: Terms) -> Tensor:
    """The mean over all terms; 0, with gradient 0, where none has weight."""
    total, weight = torch.stack([part.total for part in parts]).sum(), torch.stack([p.weight for p in parts]).sum()
    return total / torch.where(weight > 0, weight, 1)
