"""The anchor of an instance, the direction that its modalities share, and how far it shifts when some are missing.

With Z = [x^1 .. x^M] (D x M) the representations of one instance, the anchor u is the leading left singular vector of
Z: the unit vector that maximises sum_m <u, x^m>^2. From the modalities Omega that the instance has comes its local
anchor u^Omega. All is computed from the M x M Gram matrix G = Z^T Z: with G = sum_j lambda_j v_j v_j^T,

    u = Z v_1 / sqrt(lambda_1),    turned so that it points with the sum of the modalities

The derivative of an eigenvector divides by the gaps lambda_1 - lambda_j, and automatic differentiation of an
eigendecomposition is NaN where any two values are equal, which missing modalities alone bring about. Here

    d lambda_j = v_j^T dG v_j,    d v_1 = sum_{j>1} v_j v_j^T dG v_1 / max(lambda_1 - lambda_j, floor)

which is exact to first order wherever the gap is above the floor, and finite everywhere.

Source: Liu et al., Calibrated Multimodal Representation Learning with Missing Modalities, arXiv 2511.12034 (2026), for
anchors and their shift; Magnus, On differentiating eigenvalues and eigenvectors (1985), for the derivatives.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from calmrl_prob.alignment.views import Views, require_matching
from calmrl_prob.errors import ArgumentError, NumericalError

ShiftDistance = Literal["vector", "projector"]

#: Least gap between the leading value and another, as a share of the leading value, that gradients divide by.
GAP_FLOOR = 1e-3
#: Cosine between the sum of the modalities and the anchor's coefficients that is rounding and decides nothing.
_UNDECIDED = 1e-6
#: Least coefficient of a modality that takes part in an anchor.
_TAKES_PART = 1e-3


@dataclass(frozen=True)
class Anchors:
    """The anchors of B instances.

    Attributes:
        vector: u, shape (B, D), of norm 1; 0 for an instance that has nothing, or nothing but zeros.
        values: lambda_1 >= .. >= lambda_M, the eigenvalues of Z Z^T, shape (B, M), never below 0; they sum to the
            squared norms of the modalities that count.
    """

    vector: Tensor
    values: Tensor


def leading_vector(
    representations: Tensor | Views,
    observed_mask: Tensor | None = None,
    weights: Tensor | None = None,
    *,
    gap_floor: float = GAP_FLOOR,
) -> Anchors:
    """The anchor of each instance, from the modalities that count.

    With weights w the columns of Z are sqrt(w^m) x^m, so that u maximises sum_m w^m <u, x^m>^2, and the sum that u
    points with is sum_m w^m x^m. Where that sum is orthogonal to u, as for two unit vectors more than a right angle
    apart, u points with the first modality that takes part in it; where lambda_1 = lambda_2, u is one of many.

    Args:
        representations: (B, M, D), or ``Views``, which bring their weights. Entries of modalities that do not count are
            arbitrary, NaN included.
        observed_mask: (B, M) bool, True = PRESENT; all are present if not given. Only without ``Views``.
        weights: (B, M), not negative: how much each modality that is present counts; 1 if not given. Only without
            ``Views``.
        gap_floor: least gap, as a share of lambda_1, that gradients divide by; they are exact where the gap is larger.

    Returns:
        Vectors and eigenvalues, in the type of the representations; the M x M algebra is in float64.

    Raises:
        ArgumentError: shapes or types do not go together, or weights are negative.
        NumericalError: a modality that counts is not finite.

    Example:
        >>> x = torch.tensor([[[1.0, 0.0], [0.8, 0.6], [float("nan"), 0.0]]])
        >>> anchors = leading_vector(x, torch.tensor([[True, True, False]]))
        >>> anchors.vector, anchors.values
        (tensor([[0.9487, 0.3162]]), tensor([[1.8000, 0.2000, 0.0000]]))
    """
    if isinstance(representations, Views):
        if observed_mask is not None or weights is not None:
            raise ArgumentError("observed_mask, weights: Views bring their own; leave both out, or pass a tensor.")
        weights, representations = representations.weights, representations.values
        observed_mask = weights > 0
    if observed_mask is None:
        observed_mask = torch.ones(representations.shape[:2], dtype=torch.bool, device=representations.device)
    require_matching(representations, observed_mask)
    with torch.autocast(representations.device.type, enabled=False):
        rows, root = weighted_rows(representations, observed_mask, weights)
        gram = (rows @ rows.mT).double()
        values, vectors = eigh_descending(gram)
        leading = vectors[:, :, 0] * _orientation(vectors[:, :, 0], root)[:, None]
        largest = values[:, :1]
        gaps = torch.maximum(largest - values[:, 1:], torch.where(largest > 0, gap_floor * largest, 1))
        change = ((gram - gram.detach()) @ leading[:, :, None]).squeeze(2)
        moved = ((vectors[:, :, 1:].mT @ change[:, :, None]).squeeze(2) / gaps)[:, :, None]
        leading = leading + (vectors[:, :, 1:] @ moved).squeeze(2)
        vector = unit((rows.mT @ leading[:, :, None].to(rows.dtype)).squeeze(2))
        values = ((gram @ vectors) * vectors).sum(1).clamp(min=0)
    return Anchors(vector.to(representations.dtype), values.to(representations.dtype))


def anchor_shift(full: Tensor, local: Tensor, distance: ShiftDistance = "vector") -> Tensor:
    """Distance between two anchors of the same instance.

        vector      || u - v ||              = sqrt(2 (1 - cos))     0 .. 2
        projector   || u u^T - v v^T ||_F    = sqrt(2) sin           0 .. sqrt(2), blind to signs

    Both are computed from u - v, so that small shifts keep their digits, which 1 - cos would lose. The anchor 0 of an
    instance that has nothing is at distance 1 from any other, by either.

    Args:
        full: u, shape (..., D), of norm 1 or 0.
        local: v, the same.
        distance: which of the two.

    Returns:
        Shape (...). Where the two are equal, the gradient is 0.

    Raises:
        ArgumentError: shapes differ, or no such distance.

    Example:
        >>> u, v = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.8, 0.6]])
        >>> anchor_shift(u, v).item(), anchor_shift(u, v, "projector").item()
        (0.632, 0.849)
    """
    require_distance(distance)
    if full.shape != local.shape:
        raise ArgumentError(
            f"local: expected the shape of full, {tuple(full.shape)}, got {tuple(local.shape)}; pass both anchors of "
            "the same instances, (B, D) each."
        )
    difference = full - local
    apart: Tensor = torch.linalg.vector_norm(difference, dim=-1)
    if distance == "vector":
        return apart
    # u u^T - v v^T = (d s^T + s d^T) / 2 with d = u - v and s = u + v
    total = full + local
    parts = torch.stack([apart * torch.linalg.vector_norm(total, dim=-1), (difference * total).sum(-1)], dim=-1)
    frobenius: Tensor = torch.linalg.vector_norm(parts, dim=-1) / 2**0.5
    return frobenius


def require_distance(distance: str) -> None:
    """Raise unless this is one of the two distances.

    Raises:
        ArgumentError: it is not.
    """
    if distance not in get_args(ShiftDistance):
        raise ArgumentError(f"distance: expected one of {list(get_args(ShiftDistance))}, got {distance!r}.")


def weighted_rows(representations: Tensor, observed_mask: Tensor, weights: Tensor | None) -> tuple[Tensor, Tensor]:
    """sqrt(w^m) x^m, shape (B, M, D), zero where absent, at least in float32; and sqrt(w^m), shape (B, M), float64.

    Raises:
        ArgumentError: the weights have another shape, or are negative.
    """
    rows = torch.where(observed_mask[:, :, None], representations, 0)
    rows = rows.to(torch.promote_types(rows.dtype, torch.float32))
    if weights is None:
        return rows, observed_mask.double()
    if weights.shape != observed_mask.shape or bool((weights < 0).any()):
        raise ArgumentError(
            f"weights: expected numbers of at least 0, of shape {tuple(observed_mask.shape)}, got shape "
            f"{tuple(weights.shape)} with least value {weights.min().item() if weights.numel() else None}."
        )
    counts = observed_mask & (weights > 0)
    root = torch.where(counts, torch.where(counts, weights, 1).sqrt(), 0)  # the root has no finite gradient at 0
    return rows * root[:, :, None].to(rows.dtype), root.detach().double()


def eigh_descending(matrices: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues (..., M), largest first, and eigenvectors (..., M, M) of symmetric matrices, without gradients.

    Raises:
        NumericalError: a matrix is not finite.
    """
    matrices = matrices.detach()
    broken = (~matrices.isfinite().flatten(1).all(1)).nonzero().flatten()
    if len(broken):
        raise NumericalError(
            f"representations: {len(broken)} instances hold values that are not finite, or too large to square, in "
            f"modalities that count, first row {int(broken[0])}; mark what is absent in observed_mask, or rescale."
        )
    values, vectors = torch.linalg.eigh(matrices)
    return values.flip(-1), vectors.flip(-1)


def unit(vectors: Tensor) -> Tensor:
    """Vectors (..., D) scaled to norm 1; a zero vector stays, with a gradient of zero."""
    norm = torch.linalg.vector_norm(vectors, dim=-1, keepdim=True)
    return torch.where(norm > 0, vectors / torch.where(norm > 0, norm, 1), 0)


def _orientation(leading: Tensor, root: Tensor) -> Tensor:
    """1 or -1, shape (B,): the sign of <sum_m w^m x^m, Z v_1> = lambda_1 <sqrt(w), v_1>."""
    along = (leading * root).sum(1)
    takes_part = leading.abs() > _TAKES_PART
    first = leading.gather(1, takes_part.int().argmax(1, keepdim=True)).squeeze(1)
    undecided = along.abs() <= _UNDECIDED * torch.linalg.vector_norm(root, dim=1)
    return torch.where(torch.where(undecided, first, along) < 0, -1.0, 1.0).to(leading.dtype)
