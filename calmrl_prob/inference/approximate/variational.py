"""What stochastic variational inference is made of: the lower bound of a guide, and ascent on it.

    ELBO = sum_n E_q [log p(x_n, z_n) - log q(z_n | x_n)]  <=  sum_n log p(x_n),   equal where q is the posterior

Gradients are pathwise, with the guide's own parameters held fixed in log q ("sticking the landing"), so that their
noise vanishes as q approaches the posterior.

Source: Roeder, Wu & Duvenaud, Sticking the Landing: Simple, Lower-Variance Gradient Estimators for Variational
Inference (2017).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.distributions import MultivariateNormal

from calmrl_prob._support.arguments import whole_number
from calmrl_prob.data import MultimodalData
from calmrl_prob.errors import ArgumentError, NumericalError
from calmrl_prob.inference.approximate.guides import AmortizedGuide, PerInstanceGuide
from calmrl_prob.inference.approximate.linearize import linearize
from calmrl_prob.posteriors.instances import InstanceModel

GuideKind = Literal["amortized", "full", "diagonal"]
Guide = AmortizedGuide | PerInstanceGuide

#: When a rate brings nothing more, the next is this share of it; the last is this power of it.
_DECAY, _NUM_DECAYS = 0.3, 2


def make_guide(
    kind: GuideKind, model: InstanceModel, data: MultimodalData, hidden: Sequence[int] = (128,), seed: int = 0
) -> Guide:
    """A guide that starts as the exact posterior of the nearest linear-Gaussian model.

    Raises:
        ArgumentError: there is no such kind of guide.
    """
    if kind not in get_args(GuideKind):
        raise ArgumentError(f"guide: expected one of {list(get_args(GuideKind))} or a guide, got {kind!r}.")
    hidden = [whole_number("hidden", width, least=1) for width in hidden]
    nearest = linearize(model, data).to(dtype=model.dtype, device=data.device)
    if kind == "amortized":
        return AmortizedGuide(nearest, hidden, seed)
    with torch.no_grad():
        start: MultivariateNormal = AmortizedGuide(nearest, ())(data)
    return PerInstanceGuide(start.mean, start.scale_tril, kind)


def guide_of(guide: Guide, data: MultimodalData, rows: Tensor) -> MultivariateNormal:
    """q of some instances of the data."""
    found: MultivariateNormal = guide(rows) if isinstance(guide, PerInstanceGuide) else guide(data.subset(rows.cpu()))
    return found


def elbo(
    model: InstanceModel, guide: Guide, data: MultimodalData, rows: Tensor, num_draws: int, *, with_shared: bool = True
) -> Tensor:
    """The lower bound of some instances, (B,), nats, averaged over draws; differentiable with low noise.

    What the model adds once for all (factors outside the plate, such as a prior of its weights) counts with a share of
    1 / N for each instance, unless ``with_shared`` is False: rows held out judge the density of their data alone.
    """
    q = guide_of(guide, data, rows)
    fixed = MultivariateNormal(q.mean.detach(), scale_tril=q.scale_tril.detach(), validate_args=False)
    draws = q.rsample((num_draws,))
    joint, shared = model.log_joint_of_draws(data.subset(rows.cpu()), draws)
    bound: Tensor = (joint - fixed.log_prob(draws)).mean(dim=0)
    return bound + shared / len(data) if with_shared else bound


class Trainer:
    """Adam that keeps the best state, and lowers its rate where that no longer rises."""

    def __init__(self, parameters: Sequence[nn.Parameter], rate: float, patience: int, least_gain: float) -> None:
        self._parameters = list(parameters)
        self._rate, self._patience, self._least_gain = rate, patience, least_gain
        self._decays = self._waited = 0
        self._optimizer = torch.optim.Adam(self._parameters, lr=rate)
        self._best: list[Tensor] = []
        self._best_value = -math.inf
        self.seen: list[float] = []

    def step(self, objective: Callable[[], Tensor]) -> float:
        """One step up; what the objective was.

        Raises:
            NumericalError: it is not finite any more.
        """
        value = objective()
        if not bool(value.isfinite()):
            raise NumericalError("the lower bound is not finite")
        gradients = torch.autograd.grad(-value, self._parameters, allow_unused=True)
        for parameter, gradient in zip(self._parameters, gradients, strict=True):
            parameter.grad = gradient
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        return value.item()

    def judge(self, value: float) -> bool:
        """Note how good the state is, and keep it if it is the best; whether there is nothing more to gain."""
        self.seen.append(value)
        gain = value - self._best_value
        if gain > 0 or not self._best:
            self._best = [parameter.detach().clone() for parameter in self._parameters]
            self._best_value = value
        if gain > self._least_gain:
            self._waited = 0
            return False
        self._waited += 1
        if self._waited < self._patience:
            return False
        if self._decays == _NUM_DECAYS:
            return True
        self.restore()
        self._decays, self._waited = self._decays + 1, 0
        self._rate *= _DECAY
        self._optimizer = torch.optim.Adam(self._parameters, lr=self._rate)
        return False

    @torch.no_grad()
    def restore(self) -> None:
        """Go back to the best state."""
        for parameter, best in zip(self._parameters, self._best, strict=True):
            parameter.copy_(best)

    def recent_gain(self) -> float:
        """What the last rounds, as many as are waited for, added to the best value."""
        return self._best_value - max(self.seen[: max(1, len(self.seen) - self._patience)])


def batches(rows: NDArray[np.int64], size: int, count: int, shuffle: np.random.Generator) -> list[NDArray[np.int64]]:
    """``count`` batches out of as many shuffled passes over the rows as that takes."""
    if len(rows) <= size:
        return [rows] * count
    passes = math.ceil(count * size / len(rows)) + 1
    order = np.concatenate([shuffle.permutation(rows) for _ in range(passes)])
    return [order[i * size : (i + 1) * size] for i in range(count)]
