"""Precision that features which an instance lacks would add to that of its latent, and what that is worth.

With R the features of modality m that instances of a missing pattern lack, and P_Omega their posterior precision,

    A_R = W_R^T Psi_R^-1 W_R                      added to P_Omega by observing x_R
    I(z; x_R | x_Omega) = 1/2 (logdet(P_Omega + A_R) - logdet P_Omega)

Source: Cover & Thomas, Elements of Information Theory (2006), section 8.6, for Gaussian mutual information.
"""

from __future__ import annotations

import torch
from torch import Tensor

from calmrl_prob.linear_gaussian.posterior import factorize
from calmrl_prob.linear_gaussian.structure import LinearGaussian


def unseen_features(lg: LinearGaussian, patterns: Tensor, name: str) -> Tensor:
    """Mask of the features of a modality that each pattern lacks, shape (P, D_m) bool, True = MISSING.

    Args:
        lg: the model.
        patterns: (P, M) bool of modalities or (P, D) of features, True = present.
        name: the modality.
    """
    width = lg.dims[name]
    if patterns.shape[1] == len(lg.names):
        return ~patterns[:, [lg.names.index(name)]].expand(-1, width)
    start = sum(lg.dims[before] for before in lg.names[: lg.names.index(name)])
    return ~patterns[:, start : start + width]


def unseen_products(loadings: Tensor, weights: Tensor, unseen: Tensor) -> Tensor:
    """W_R^T diag(weights_R) W_R of the features R that each pattern lacks, shape (P, K, K).

    Patterns that lack all of them, as most do that lack any, share one product; of the others each costs its own.

    Args:
        loadings: (D_m, K).
        weights: (D_m,), such as 1 / psi.
        unseen: (P, D_m) bool, True = MISSING.
    """
    out = loadings.new_zeros(len(unseen), loadings.shape[1], loadings.shape[1])
    lacking = unseen.sum(1)
    everything = lacking == unseen.shape[1]
    if bool(everything.any()):
        out[everything] = loadings.mT @ (loadings * weights[:, None])
    for p in ((lacking > 0) & ~everything).nonzero().flatten().tolist():
        rest = loadings[unseen[p]]
        out[p] = rest.mT @ (rest * weights[unseen[p], None])
    return out


def information_gain(precision: Tensor, added: Tensor, latent_dim: int | None = None) -> Tensor:
    """I(z; x_R | x_Omega) in nats, at least 0, shape (...).

    Args:
        precision: P_Omega, shape (..., K, K).
        added: A_R, shape (..., K, K).
        latent_dim: how many latents, from the first, it is to be about; all by default. By the chain rule
            I(z, e; x) = I(z; x) + I(e; x | z), and P_ee is the precision of the others e given z.

    Example:
        >>> round(float(information_gain(torch.eye(1), 3 * torch.eye(1))), 4)  # log(4) / 2
        0.6931
    """
    whole = _half_logdet_ratio(precision, added)
    if latent_dim is None or latent_dim == precision.shape[-1]:
        return whole
    others = slice(latent_dim, None)
    return (whole - _half_logdet_ratio(precision[..., others, others], added[..., others, others])).clamp(min=0)


def _half_logdet_ratio(precision: Tensor, added: Tensor) -> Tensor:
    """1/2 logdet(I + L^-1 A L^-T) with L L^T = P: small gains are not lost in the difference of large terms."""
    factor = factorize(precision)
    half = torch.linalg.solve_triangular(factor, added.expand_as(precision), upper=False)
    inner = torch.linalg.solve_triangular(factor, half.mT, upper=False)
    inner = (inner + inner.mT) / 2 + torch.eye(inner.shape[-1], dtype=inner.dtype, device=inner.device)
    return factorize(inner).diagonal(dim1=-2, dim2=-1).log().sum(-1).clamp(min=0)
