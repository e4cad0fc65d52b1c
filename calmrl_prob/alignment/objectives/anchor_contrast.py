"""InfoNCE between each view and the anchors of all instances."""

from __future__ import annotations

from torch import Tensor

from calmrl_prob.alignment.anchors import leading_vector
from calmrl_prob.alignment.objectives.contrast import contrast, weighted_mean
from calmrl_prob.alignment.objectives.objective import Objective
from calmrl_prob.alignment.objectives.temperature import Temperature
from calmrl_prob.alignment.views import Views


class AnchorContrast(Objective):
    """Each view finds the anchor of its instance among those of all.

    With u_b the anchor of instance b, which is ``views.anchors`` where given, else the leading vector of its views,

        -log( exp(<x_a^i, u_a> / tau) / sum_b c_b exp(<x_a^i, u_b> / tau) ),    c_b = max_i w_b^i for b != a, c_a = 1

    and of these terms the mean weighted by w_a^i max_i w_a^i. In nats. A single view is its own
    leading vector, and is kept apart from the others all the same; anchors that are given pull it to where it belongs.
    Gradients flow into the anchors too; detach those that are to stay as they are.

    Args:
        temperature: tau, above 0.
        learnable: learn the temperature.

    Raises:
        ArgumentError: the temperature is not above 0.

    Example:
        >>> import torch
        >>> x = torch.eye(4)[:, None, :].expand(4, 2, 4)
        >>> AnchorContrast(0.1)(Views.observed(x, torch.ones(4, 2).bool())).item() < 1e-3
        True
    """

    name = "anchor"

    def __init__(self, temperature: float = 0.07, *, learnable: bool = False) -> None:
        super().__init__()
        self.temperature = Temperature(temperature, learnable=learnable)

    def loss(self, views: Views) -> Tensor:
        """The loss of a batch that is all in this process."""
        anchors = leading_vector(views).vector if views.anchors is None else views.anchors
        logits = views.values.transpose(0, 1) @ anchors.T * self.temperature()
        heaviest = views.weights.amax(1)
        return weighted_mean(contrast(logits, views.weights.T * heaviest, heaviest.expand(logits.shape[:2])))
