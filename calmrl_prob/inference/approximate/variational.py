"""Stochastic variational inference: the lower bound of a guide, and ascent on it.

    ELBO = sum_n E_q [log p(x_n, z_n) - log q(z_n | x_n)]  <=  sum_n log p(x_n),   equal where q is the posterior

Gradients are pathwise, with the guide's own parameters held fixed in log q ("sticking the landing"), so that their
noise vanishes as q approaches the posterior.

Source: Roeder, Wu & Duvenaud, Sticking the Landing: Simple, Lower-Variance Gradient Estimators for Variational
Inference (2017).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor
from torch.distributions import MultivariateNormal

from calmrl_prob._support.arguments import checked_seed, real_number, whole_number
from calmrl_prob.data import MultimodalData
from calmrl_prob.errors import ArgumentError
from calmrl_prob.inference.approximate.guides import AmortizedGuide, PerInstanceGuide
from calmrl_prob.inference.approximate.linearize import linearize
from calmrl_prob.inference.approximate.modes import bring_to_modes
from calmrl_prob.linear_gaussian.options import Options
from calmrl_prob.posteriors.instances import InstanceModel

GuideKind = Literal["amortized", "full", "diagonal"]
Guide = AmortizedGuide | PerInstanceGuide


@dataclass(frozen=True, kw_only=True)
class SVIOptions(Options):
    """Options of :func:`~calmrl_prob.inference.fit_svi`.

    Attributes:
        train_model: also the model's parameters; False for the posterior under the parameters as they are.
        hidden: widths of the hidden layers of the amortised guide's networks.
        num_draws: S, draws of each instance in each step.
        batch_size: B, instances in each step; by default 256 with an amortised guide, and up to 4,096 with one by
            instance, of which a step over all costs little more than one over some.
        learning_rate: what Adam starts with; by default 0.002 with an amortised guide, and with one by instance what
            the fit finds by rounds tried from the start.
        max_iterations: rounds: passes over the data, of 20 steps at least.
        patience: rounds without gain that are waited for; by default 10 with an amortised guide, whose gains come by
            fits and starts, and 3 with one by instance.
        tolerance: gain that counts, in nats for each observed value.
        validation_share: of the rows, held out to judge the rounds by. Only with an amortised guide; others know
            nothing of rows that they have not been fitted to, and are judged by all.
        seed: of batches, draws, held-out rows and networks; global generators are left as they were.

    Raises:
        ArgumentError: one is out of range.
        ArgumentTypeError: one is of another type.
    """

    train_model: bool = True
    hidden: Sequence[int] = (128,)
    num_draws: int = 1
    batch_size: int | None = None
    learning_rate: float | None = None
    max_iterations: int = 200
    patience: int | None = None
    tolerance: float = 1e-4
    validation_share: float = 0.1
    seed: int = 0

    def __post_init__(self) -> None:
        checked_seed(self.seed)
        for name, least in (("num_draws", 1), ("batch_size", 1), ("patience", 1), ("max_iterations", 0)):
            if getattr(self, name) is not None or name in ("num_draws", "max_iterations"):
                whole_number(name, getattr(self, name), least)
        if not 0 <= real_number("tolerance", self.tolerance, 1e-4) < math.inf:
            raise ArgumentError(f"tolerance: expected a finite number of at least 0, got {self.tolerance}.")
        if not 0 <= real_number("validation_share", self.validation_share, 0.1) < 1:
            raise ArgumentError(f"validation_share: expected a share in [0, 1), got {self.validation_share}.")
        rate = self.learning_rate
        if rate is not None and not 0 < real_number("learning_rate", rate, 1e-3) < math.inf:
            raise ArgumentError(f"learning_rate: expected a finite number above 0, got {rate}.")


def make_guide(
    kind: GuideKind, model: InstanceModel, data: MultimodalData, hidden: Sequence[int] = (128,), seed: int = 0
) -> Guide:
    """A guide that starts as the exact posterior of the nearest linear-Gaussian model; by instance, or at the modes.

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
    guide = PerInstanceGuide(start.mean, start.scale_tril, kind)
    bring_to_modes(guide, model, data, nearest, seed)
    return guide


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
