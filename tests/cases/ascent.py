"""An oracle of every closed-form fit: gradient ascent of the exact evidence, from where the fit ended."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor


def assert_gradient_ascent_finds_no_more(
    loss: Callable[[], Tensor], variables: Sequence[Tensor], reached: float
) -> None:
    """The gradient vanishes, and L-BFGS on ``loss``, minus the evidence, gets no higher than what the fit reached."""
    gradients = torch.autograd.grad(loss(), variables)
    assert max(float(g.abs().max()) for g in gradients) < 0.05  # nats per unit, of thousands of nats
    optimizer = torch.optim.LBFGS(variables, max_iter=200, line_search_fn="strong_wolfe", tolerance_change=1e-12)

    def closure() -> float:
        optimizer.zero_grad()
        value = loss()
        value.backward()
        return value.item()

    optimizer.step(closure)
    assert -loss().item() - reached < 1e-3
