"""Does this view belong with that one? Yes or no, for every two observed views of two modalities."""

from __future__ import annotations

from itertools import combinations

import torch
from torch import Tensor, nn

from calmrl_prob._support.arguments import real_number
from calmrl_prob.alignment.objectives.objective import Objective
from calmrl_prob.alignment.objectives.temperature import Temperature
from calmrl_prob.alignment.views import Views


class Matching(Objective):
    """Logistic loss of which observed views belong to the same instance.

    Over pairs i < j of modalities and all instances a, b with x_a^i and x_b^j observed, z_ab = 1 if a = b, else -1,

        sum w_a^i w_b^j log(1 + exp(-z_ab (<x_a^i, x_b^j> / tau + bias)))  /  number of pairs with z = 1

    in nats. Imputed views take no part. 0 where there is no pair with z = 1.

    Source: the loss is that of Zhai et al., Sigmoid loss for language image pre-training (2023), whose starting values
    are the defaults. It stands for the matching loss of Liu et al., Calibrated multimodal representation learning with
    missing modalities (2025), arXiv 2511.12034, which gives its own the weight 0.1 beside the alignment objective and
    classifies pairs by a cross-attention network, where here there is an inner product.

    Args:
        temperature: tau, above 0.
        bias: log odds of belonging together at inner product 0; negative, since most pairs do not.
        learnable: learn both.

    Raises:
        ArgumentError: the temperature is not above 0.

    Example:
        >>> x = torch.eye(4)[:, None, :].expand(4, 2, 4)
        >>> Matching(0.05, -10.0)(Views.observed(x, torch.ones(4, 2).bool())).item() < 1e-3
        True
    """

    name = "matching"

    def __init__(self, temperature: float = 0.1, bias: float = -10.0, *, learnable: bool = True) -> None:
        super().__init__()
        self.temperature = Temperature(temperature, learnable=learnable)
        start = torch.tensor(real_number("bias", bias, -10.0))
        self.bias: Tensor
        if learnable:
            self.bias = nn.Parameter(start)
        else:
            self.register_buffer("bias", start)

    def loss(self, views: Views) -> Tensor:
        """The loss of a batch that is all in this process."""
        pairs = list(combinations(range(views.shape[1]), 2))
        if not pairs:
            return views.values.sum() * 0
        left, right = zip(*pairs, strict=True)
        values, weights = views.values.transpose(0, 1), (views.weights * views.observed_mask).T
        logits = values[left, :] @ values[right, :].mT * self.temperature() + self.bias
        own = torch.eye(logits.shape[-1], dtype=torch.bool, device=logits.device)
        terms = nn.functional.softplus(torch.where(own, -logits, logits))
        total = torch.einsum("pab,pa,pb->", terms, weights[left, :], weights[right, :])
        matches = (weights[left, :] * weights[right, :]).sum()
        return torch.where(matches > 0, total / torch.where(matches > 0, matches, 1), 0)
