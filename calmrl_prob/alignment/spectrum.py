"""Singular values and leading vectors of the views of each instance, with gradients that exist at ties."""

from __future__ import annotations

import torch
from torch import Tensor

#: Relative gap between eigenvalues from which on the gradient of the leading vector is exact; bounded below it.
GAP = 1e-3


def root(numbers: Tensor) -> Tensor:
    """Square roots of numbers that are not negative, with gradient 0 instead of infinity at 0.

    Example:
        >>> root(torch.tensor([0.0, 4.0])).tolist()
        [0.0, 2.0]
    """
    positive = numbers > 0
    return torch.where(positive, torch.where(positive, numbers, 1).sqrt(), 0)


def spectrum(values: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Squared singular values and the leading vector of each instance's weighted views.

    With x_j the views, w_j their weights and G = [sqrt(w_i w_j) <x_i, x_j>] = V diag(lambda) V^T,

        u_1 = sum_j v_1j sqrt(w_j) x_j / sqrt(lambda_1),    sign(u_1) such that <u_1, sum_j w_j x_j> > 0

    Where that product is 0, as it is for two views of equal length and weight at an obtuse angle, u_1 points with the
    first view that it has a large part of: the order of modalities decides, since nothing else can.

    Derivatives do not go through the eigendecomposition, whose own are NaN at ties. Eigenvalues: v_j^T G v_j with v_j
    fixed, exact as long as what is made of them is symmetric in those that tie. Vector: first-order perturbation,
    v_1 + sum_{j>1} v_j v_j^T dG v_1 / max(lambda_1 - lambda_j, GAP lambda_1), exact where the gap is above the floor.
    There are first derivatives only.

    Args:
        values: (B, M, D), finite.
        weights: (B, M), not negative.

    Returns:
        lambda (B, M), descending, not negative; and u_1 (B, D), of length 1, or 0 where an instance has no weight.

    Example:
        >>> eigenvalues, leading = spectrum(torch.tensor([[[1.0, 0.0], [1.0, 0.0]]]), torch.ones(1, 2))
        >>> eigenvalues.tolist(), leading.tolist()
        ([[2.0, 0.0]], [[1.0, 0.0]])
    """
    roots = root(weights)
    weighted = roots[:, :, None] * values
    gram = weighted @ weighted.mT
    with torch.no_grad():
        eigenvalues, vectors = torch.linalg.eigh(gram.double())  # exact ties and small gaps are worth the digits
        eigenvalues, vectors = eigenvalues.flip(-1), vectors.flip(-1)
        first = eigenvalues[:, :1].clamp(min=torch.finfo(values.dtype).tiny ** 0.5)
        gaps = (eigenvalues[:, :1] - eigenvalues[:, 1:]).clamp(min=GAP * first)
        scaled = (vectors[:, :, 1:] / gaps[:, None, :]).to(values.dtype)
        vectors = vectors.to(values.dtype)
        leading = vectors[:, :, 0]
        leading = _sign(leading, roots)[:, None] * leading
    along = ((gram @ vectors) * vectors).sum(1).clamp(min=0)
    change = ((gram - gram.detach()) @ leading[:, :, None]).squeeze(2)  # zero, but its gradient is not
    moved = leading + (scaled @ (vectors[:, :, 1:].mT @ change[:, :, None])).squeeze(2)
    combined = (moved[:, None, :] @ weighted).squeeze(1)
    return along, torch.nn.functional.normalize(combined, dim=1)


def _sign(leading: Tensor, roots: Tensor) -> Tensor:
    """1 or -1 for each instance: what turns v_1 (B, M) so that the leading vector points as promised."""
    lean = (roots * leading).sum(1)
    size = leading.abs()
    first = (size >= 0.5 * size.amax(1, keepdim=True)).to(torch.int8).argmax(1)  # rounding does not change which
    decided = lean.abs() > 1e-5 * roots.sum(1)
    return torch.where(torch.where(decided, lean, leading.gather(1, first[:, None]).squeeze(1)) < 0, -1, 1)
