"""Contrast of the volumes that one view of an instance spans with the others of another."""

from __future__ import annotations

import torch
from torch import Tensor

from calmrl_prob.alignment.objectives.contrast import contrast, weighted_mean
from calmrl_prob.alignment.objectives.objective import Objective
from calmrl_prob.alignment.objectives.temperature import Temperature
from calmrl_prob.alignment.views import Views

#: Added to squared volumes, so that their roots have finite gradients at perfect alignment.
FLOOR = 1e-6


class Gram(Objective):
    """InfoNCE whose similarity is minus the volume of a parallelotope.

    For instances a and b and modality i, let V_ab^i be the volume spanned by view x_a^i and the views x_b^j, j != i,

        V^2 = det [[<x_a^i, x_a^i>, r^T], [r, G]] = <x_a^i, x_a^i> det(G) - r^T adj(G) r,    r_j = <x_a^i, x_b^j>

    with G the Gram matrix of the others and adj(G) its adjugate, which exists at perfect alignment too, where G is
    singular. With s = -sqrt(V^2 + 1e-6) / tau the terms are -log softmax_b(s_ab^i)[a] and -log softmax_a(s_ab^i)[b],
    for all i. A term counts by w_a^i times the heaviest weight of the others; candidates by w_a^i or by that heaviest
    weight. Views x_b^j of weight below 1 enter the volume as (sqrt(w) x, sqrt(1 - w) e_j) with e_j a direction of its
    own, so that an absent one leaves the volume of the rest. In nats; views are meant to have unit length.

    Three properties to know. A volume does not tell a view from its mirror image. It is 0 wherever views are linearly
    dependent, aligned or not. And with three modalities or more, where all views of each instance coincide every volume
    is 0, right match or not, and the loss is log(B): its minimum keeps the views of an instance apart.

    Source: Cicchetti, Grassucci, Sigillo and Comminiello, Gramian multimodal representation learning and alignment
    (2025), arXiv 2412.11959, where one modality is i; here each is, in turn.

    Args:
        temperature: tau, above 0.
        learnable: learn the temperature.

    Raises:
        ArgumentError: the temperature is not above 0.

    Example:
        >>> x = torch.eye(4)[:, None, :].expand(4, 2, 4)
        >>> Gram(0.1)(Views.observed(x, torch.ones(4, 2).bool())).item() < 1e-3
        True
    """

    name = "gram"

    def __init__(self, temperature: float = 0.07, *, learnable: bool = False) -> None:
        super().__init__()
        self.temperature = Temperature(temperature, learnable=learnable)

    def loss(self, views: Views) -> Tensor:
        """The loss of a batch that is all in this process."""
        modalities = views.shape[1]
        if modalities < 2:
            return views.values.sum() * 0
        others = torch.tensor(
            [[j for j in range(modalities) if j != i] for i in range(modalities)], device=views.values.device
        )
        squared = _squared_volumes(views.values, views.weights, others)
        logits = -(squared.clamp(min=0) + FLOOR).sqrt() * self.temperature()
        single, group = views.weights.T, views.weights.T[others].amax(1)
        return weighted_mean(contrast(logits, single * group, single), contrast(logits.mT, single * group, group))


def _squared_volumes(values: Tensor, weights: Tensor, others: Tensor) -> Tensor:
    """V^2 as (M, B, B): modality i, the instance b of the others, the instance a of the single view."""
    instances, modalities, width = values.shape
    present = weights > 0
    roots = torch.where(present, torch.where(present, weights, 1).sqrt(), 0)  # with gradient 0, not infinity, at 0
    weighted = roots[:, :, None] * values
    exact = weighted.double()  # the small matrices come close to singular as views come together
    gram = exact @ exact.mT + torch.diag_embed(1 - weights.double())
    gram = gram[:, others[:, :, None], others[:, None, :]].transpose(0, 1)  # (M, B, M - 1, M - 1)
    adjugate, determinant = (part.to(values.dtype) for part in adjugate_and_determinant(gram))
    singles = values.transpose(0, 1)
    groups = weighted.transpose(0, 1)[others].transpose(1, 2).reshape(modalities, -1, width)
    cross = (groups @ singles.mT).reshape(modalities, instances, modalities - 1, instances)
    outside = (adjugate @ cross * cross).sum(2)
    return determinant[:, :, None] * singles.square().sum(2)[:, None, :] - outside


def adjugate_and_determinant(matrices: Tensor) -> tuple[Tensor, Tensor]:
    """adj(A) and det(A) of small square matrices, polynomials in their entries and so smooth where A is singular.

    By the recursion of Faddeev and LeVerrier: n products of n x n matrices, accurate for the handful of modalities
    that there are.

    Args:
        matrices: (..., n, n), n >= 1.

    Example:
        >>> adjugate, determinant = adjugate_and_determinant(torch.tensor([[1.0, 2.0], [2.0, 4.0]]))
        >>> adjugate.tolist(), determinant.item()
        ([[4.0, -2.0], [-2.0, 1.0]], 0.0)
    """
    size = matrices.shape[-1]
    identity = torch.eye(size, dtype=matrices.dtype, device=matrices.device)
    last, power = identity.expand_as(matrices), matrices
    coefficient = -matrices.diagonal(dim1=-2, dim2=-1).sum(-1)
    for k in range(2, size + 1):
        last = power + coefficient[..., None, None] * identity
        power = matrices @ last
        coefficient = -power.diagonal(dim1=-2, dim2=-1).sum(-1) / k
    sign = -1 if size % 2 else 1
    return -sign * last, sign * coefficient
