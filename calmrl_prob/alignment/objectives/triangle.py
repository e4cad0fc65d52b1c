"""Contrast of the areas of triangles that three modalities span."""

from __future__ import annotations

from itertools import combinations

from torch import Tensor

from calmrl_prob.alignment.objectives.contrast import contrast, weighted_mean
from calmrl_prob.alignment.objectives.objective import Objective
from calmrl_prob.alignment.objectives.temperature import Temperature
from calmrl_prob.alignment.views import Views

#: Added to squared areas, so that their roots have finite gradients at perfect alignment.
FLOOR = 1e-6


class Triangle(Objective):
    """InfoNCE whose similarity is minus the area of a triangle.

    For instances a and b and modalities i; j < k, let A_ab be the area of the triangle x_a^i, x_b^j, x_b^k.
    With the edge e = x_b^k - x_b^j and d = x_a^i - x_b^j,

        A^2 = ( |e|^2 |d|^2 - <d, e>^2 ) / 4

    and s = -sqrt(A^2 + 1e-6) / tau the terms are -log softmax_b(s_ab)[a] and -log softmax_a(s_ab)[b], for each triple
    of modalities and each of its three as i. A term counts by w_a^i w_a^j w_a^k, so an instance with fewer than three
    views has none; it still is a candidate for others, by w_b^j w_b^k or w_a^i. In nats. With fewer than three
    modalities the loss is 0. Where all views of each instance coincide every area is 0, right match or not, and the
    loss is log(B): its minimum keeps the views of an instance a little apart.

    Source: Cicchetti, Grassucci and Comminiello, A TRIANGLE enables multimodal alignment beyond cosine similarity
    (2025), arXiv 2509.24734, for three modalities one of which is i; here each is, in turn, and the mean is over all
    triples.

    Args:
        temperature: tau, above 0.
        learnable: learn the temperature.

    Raises:
        ArgumentError: the temperature is not above 0.

    Example:
        >>> import torch
        >>> x = torch.eye(4)[:, None, :].expand(4, 3, 4)
        >>> Triangle()(Views.observed(x, torch.ones(4, 3).bool())).item()  # log(4)
        1.386
    """

    name = "triangle"

    def __init__(self, temperature: float = 0.07, *, learnable: bool = False) -> None:
        super().__init__()
        self.temperature = Temperature(temperature, learnable=learnable)

    def loss(self, views: Views) -> Tensor:
        """The loss of a batch that is all in this process."""
        modalities = views.shape[1]
        roles = [
            (i, j, k) for i in range(modalities) for j, k in combinations([m for m in range(modalities) if m != i], 2)
        ]
        if not roles:
            return views.values.sum() * 0
        values, weights = views.values.transpose(0, 1), views.weights.T
        cosines = {(i, j): values[i] @ values[j].T for i in range(modalities) for j in range(modalities) if i != j}
        lengths = values.square().sum(2)
        parts = []
        for i, j, k in roles:
            edge = values[k] - values[j]
            distance = lengths[i][:, None] + lengths[j] - 2 * cosines[i, j]
            along = cosines[i, k] - cosines[i, j] - (values[j] * edge).sum(1)
            area = (edge.square().sum(1) * distance - along.square()).clamp(min=0) / 4
            logits = -(area + FLOOR).sqrt() * self.temperature()
            opposite = weights[j] * weights[k]
            parts += [
                contrast(logits, weights[i] * opposite, opposite),
                contrast(logits.T, weights[i] * opposite, weights[i]),
            ]
        return weighted_mean(*parts)
