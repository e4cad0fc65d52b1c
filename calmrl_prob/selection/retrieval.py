"""Retrieval of held-out rows across modalities, by likelihood ratio.

For a query with modality i and candidates with modality j, log p(x^j | x^i) - log p(x^j) up to what is the same for all
candidates of a query is, with V_ij = (I + A_i + A_j)^-1 and V_j = (I + A_j)^-1,

    h_i^T V_ij h_j + 1/2 h_j^T (V_ij - V_j) h_j

The score is the mean reciprocal rank of the true partner, which is smoother than how often it is first.
"""

from __future__ import annotations

import torch
from torch import Tensor

from calmrl_prob.data import MultimodalData
from calmrl_prob.linear_gaussian import LinearGaussian
from calmrl_prob.linear_gaussian.posterior import factorize
from calmrl_prob.linear_gaussian.structure import solve_noise

#: Rows of a pair of modalities that are ranked, at most.
_MOST_ROWS = 2000


def mean_reciprocal_rank(lg: LinearGaussian, data: MultimodalData) -> float:
    """Mean over ordered pairs of modalities of 1 / rank of the true partner among all rows that have both.

    NaN where no two rows have both of any pair. Ties count as half ahead.

    Args:
        lg: the model, with a standard normal prior of the latents.
        data: held-out rows.
    """
    weights = {name: solve_noise(lg, name, lg.loadings[name]) for name in lg.names}
    precision = {name: weights[name].mT @ lg.loadings[name] for name in lg.names}
    identity = torch.eye(lg.latent_dim, dtype=lg.dtype, device=lg.device)
    found: list[float] = []
    for a, first in enumerate(lg.names):
        for second in lg.names[a + 1 :]:
            both = (data.feature_mask(first).all(1) & data.feature_mask(second).all(1)).nonzero().squeeze(1)
            rows = both[:_MOST_ROWS]
            if len(rows) < 2:
                continue
            natural = {
                name: (data[name][rows].to(lg.dtype) - lg.intercepts[name]) @ weights[name] for name in (first, second)
            }
            joint = torch.cholesky_inverse(factorize(identity + precision[first] + precision[second]))
            pair = natural[first] @ joint @ natural[second].mT
            for scores, name in ((pair, second), (pair.mT, first)):
                alone = torch.cholesky_inverse(factorize(identity + precision[name]))
                own = ((natural[name] @ (joint - alone)) * natural[name]).sum(1)
                found.append(_reciprocal_rank(scores + 0.5 * own))
    return sum(found) / len(found) if found else float("nan")


def _reciprocal_rank(scores: Tensor) -> float:
    """Of the diagonal among each row of (n, n)."""
    true = scores.diagonal()[:, None]
    rank = (scores > true).sum(1) + 0.5 * ((scores == true).sum(1) - 1) + 1
    return float((1 / rank).mean())
