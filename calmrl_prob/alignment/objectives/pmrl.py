"""One dominant singular value for each instance, and leading vectors that tell instances apart."""

from __future__ import annotations

import torch
from torch import Tensor

from calmrl_prob.alignment.anchors import leading_vector
from calmrl_prob.alignment.objectives.contrast import Terms, contrast, weighted_mean
from calmrl_prob.alignment.objectives.objective import Objective
from calmrl_prob.alignment.objectives.temperature import Temperature, checked_temperature
from calmrl_prob.alignment.views import Views

#: Added to squared singular values, so that their roots have finite gradients at perfect alignment.
FLOOR = 1e-6


class PMRL(Objective):
    """Softmax of the singular values of each instance's views, plus contrast of the leading vectors.

    With sigma_1 >= sigma_2 >= ... the singular values of the D x M_a matrix [sqrt(w^i) x^i] of the M_a views that
    instance a has, and u_a its leading left singular vector,

        mean_a -log( exp(sigma_1 / tau_1) / sum_j exp(sigma_j / tau_1) )
        + mean_a -log( exp(<u_a, u_a> / tau_2) / sum_b c_b exp(<u_a, u_b> / tau_2) )

    The first mean is over the instances that have two views or more, weighted by the product of the two heaviest
    weights; the second over all, weighted by the heaviest, which is c_b too (c_a = 1). In nats. Full alignment is a
    matrix of rank one, and the first part then as low as it gets. There are as many singular values as views, zeros
    included, so an absent modality is as if not there; sigma is sqrt(sigma^2 + 1e-6). Singular values do not tell a
    view from its mirror image.

    Source: Liu, Xia, Ng and Chua, Principled multimodal representation learning (2025), arXiv 2507.17343. The defaults
    are those of the authors' code.

    Args:
        singular_temperature: tau_1, above 0. Never learned: lower is always lower.
        temperature: tau_2, above 0.
        learnable: learn tau_2.

    Raises:
        ArgumentError: a temperature is not above 0.

    Example:
        >>> x = torch.eye(4)[:, None, :].expand(4, 3, 4)
        >>> PMRL()(Views.observed(x, torch.ones(4, 3).bool())).item() < 1e-3
        True
    """

    name = "pmrl"

    def __init__(
        self, singular_temperature: float = 0.05, temperature: float = 0.1, *, learnable: bool = False
    ) -> None:
        super().__init__()
        self.singular_temperature = checked_temperature("singular_temperature", singular_temperature)
        self.temperature = Temperature(temperature, learnable=learnable)

    def loss(self, views: Views) -> Tensor:
        """The loss of a batch that is all in this process."""
        anchors = leading_vector(views)
        eigenvalues, leading = anchors.values, anchors.vector
        heaviest = views.weights.amax(1)
        apart = contrast(leading @ leading.T * self.temperature(), heaviest, heaviest)
        return weighted_mean(self._alignment(eigenvalues, views.weights)) + weighted_mean(apart)

    def _alignment(self, eigenvalues: Tensor, weights: Tensor) -> Terms:
        present = (weights > 0).sum(1, keepdim=True)
        place = torch.arange(weights.shape[1], device=weights.device)
        logits = (eigenvalues + FLOOR).sqrt() / self.singular_temperature
        logits = torch.where(place < present.clamp(min=1), logits, -torch.inf)  # one for each view that is there
        terms = logits.logsumexp(1) - logits[:, 0]
        if weights.shape[1] < 2:
            return Terms(terms.sum() * 0, weights.new_zeros(()))
        pair = weights.topk(2, dim=1).values.prod(1)
        return Terms((terms * pair).sum(), pair.sum())

    def extra_repr(self) -> str:
        """Settings that a print of the module shows."""
        return f"singular_temperature={self.singular_temperature}"
