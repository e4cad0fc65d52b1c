"""Stochastic variational inference: the lower bound of a guide, and ascent on it.

    ELBO = sum_n E_q [log p(x_n, z_n) - log q(z_n | x_n)]  <=  sum_n log p(x_n),   equal where q is the posterior

Gradients are pathwise, with the guide's own parameters held fixed in log q ("sticking the landing"), so that their
noise vanishes as q approaches the posterior.

Source: Roeder, Wu & Duvenaud, Sticking the Landing: Simple, Lower-Variance Gradient Estimators for Variational
Inference (2017).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.distributions import MultivariateNormal

from calmrl_prob._support.arguments import checked_seed, real_number, whole_number
from calmrl_prob._support.progress import Callback
from calmrl_prob._support.randomness import seeded
from calmrl_prob.data import MultimodalData
from calmrl_prob.errors import ArgumentError, ModelError, NumericalError
from calmrl_prob.inference.approximate.guides import AmortizedGuide, PerInstanceGuide
from calmrl_prob.inference.approximate.linearize import linearize
from calmrl_prob.linear_gaussian.options import Options
from calmrl_prob.posteriors.instances import InstanceModel

GuideKind = Literal["amortized", "full", "diagonal"]
Guide = AmortizedGuide | PerInstanceGuide

#: When a rate brings nothing more, the next is this share of it; the last is this power of it.
_DECAY, _NUM_DECAYS = 0.3, 2


#: A round is one pass over the data, or this many steps where that is more.
_STEPS_PER_ROUND = 20
#: Draws for each instance by which a round is judged; the same ones each time, so that rounds compare.
_MONITOR_DRAWS = 4


@dataclass(frozen=True, kw_only=True)
class SVIOptions(Options):
    """Options of :func:`~calmrl_prob.inference.fit_svi`.

    Attributes:
        train_model: also the model's parameters; False for the posterior under the parameters as they are.
        hidden: widths of the hidden layers of the amortised guide's networks.
        num_draws: S, draws of each instance in each step.
        batch_size: B, instances in each step.
        learning_rate: what Adam starts with; by default 0.002 for an amortised guide, 0.05 for one by instance.
        max_iterations: rounds: passes over the data, of 20 steps at least.
        patience: rounds without gain that are waited for.
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
    batch_size: int = 256
    learning_rate: float | None = None
    max_iterations: int = 200
    patience: int = 10
    tolerance: float = 1e-4
    validation_share: float = 0.1
    seed: int = 0

    def __post_init__(self) -> None:
        checked_seed(self.seed)
        for name, least in (("num_draws", 1), ("batch_size", 1), ("patience", 1), ("max_iterations", 0)):
            whole_number(name, getattr(self, name), least)
        real_number("tolerance", self.tolerance, 1e-4)
        if not 0 <= real_number("validation_share", self.validation_share, 0.1) < 1:
            raise ArgumentError(f"validation_share: expected a share in [0, 1), got {self.validation_share}.")
        rate = self.learning_rate
        if rate is not None and not 0 < real_number("learning_rate", rate, 1e-3) < math.inf:
            raise ArgumentError(f"learning_rate: expected a finite number above 0, got {rate}.")


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
        """Gain of the last rounds, as many as are waited for, over the best value before."""
        return self._best_value - max(self.seen[: max(1, len(self.seen) - self._patience)])


class Rounds:
    """Rounds of steps up the lower bound, on batches of rows, each round judged by the same draws of the watched rows.

    Args:
        model: the model as densities of instances.
        guide: q.
        data: N instances.
        rows: those to train on.
        held_out: those to judge by; the rows trained on if there are none.
        options: with a learning rate.

    Raises:
        ArgumentError: there is nothing to train.
    """

    def __init__(
        self,
        model: InstanceModel,
        guide: Guide,
        data: MultimodalData,
        rows: NDArray[np.int64],
        held_out: NDArray[np.int64],
        options: SVIOptions,
    ) -> None:
        self._model, self._guide, self._data, self._options = model, guide, data, options
        self._rows, self._watched, self._with_shared = rows, held_out if len(held_out) else rows, not len(held_out)
        parameters = [*guide.parameters(), *(model.bound.parameters() if options.train_model else ())]
        trained = [parameter for parameter in parameters if parameter.requires_grad]
        if not trained:
            raise ArgumentError("model, guide: neither has a parameter to train.")
        assert options.learning_rate is not None
        self._num_values = sum(int(data.subset(self._watched).feature_mask(name).sum()) for name in data.names)
        self._trainer = Trainer(trained, options.learning_rate, options.patience, options.tolerance * self._num_values)
        self._per_round = max(_STEPS_PER_ROUND, math.ceil(len(rows) / options.batch_size))
        self.bounds: list[float] = []

    @property
    def monitor(self) -> NDArray[np.float64]:
        """The bound of the watched rows before the first round and after each, nats."""
        return np.array(self._trainer.seen)

    @property
    def num_steps(self) -> int:
        """Gradient steps so far."""
        return self._per_round * len(self.bounds)

    @property
    def recent_gain(self) -> float:
        """Gain of the last rounds, as many as are waited for, over the best before, in nats for each observed value."""
        return self._trainer.recent_gain() / self._num_values

    def run(self, step_seed: int, judge_seed: int, callback: Callback | None) -> bool:
        """Rounds until nothing more is gained; whether that is why they ended. The best state is restored.

        Raises:
            NumericalError: the steps ran away.
        """
        shuffle = np.random.default_rng(step_seed)
        with seeded(step_seed, self._data.device):
            done = self._trainer.judge(self._judge(judge_seed))
            try:
                while not done and len(self.bounds) < self._options.max_iterations:
                    total = 0.0
                    for batch in batches(self._rows, self._options.batch_size, self._per_round, shuffle):
                        total += self._trainer.step(partial(self._objective, batch))
                    self.bounds.append(total / self._per_round * len(self._data))
                    done = self._trainer.judge(self._judge(judge_seed))
                    if callback is not None:
                        callback(len(self.bounds), self.bounds[-1])
            except (ModelError, NumericalError) as error:
                self._trainer.restore()
                raise NumericalError(
                    f"SVI ran away after {len(self.bounds)} rounds: {error} Lower learning_rate."
                ) from error
            self._trainer.restore()
        return done

    def _objective(self, batch: NDArray[np.int64]) -> Tensor:
        return self._bound(batch, self._options.num_draws, with_shared=True).mean()

    @torch.no_grad()
    def _judge(self, seed: int) -> float:
        size, watched = self._options.batch_size, self._watched
        with seeded(seed, self._data.device):
            parts = [watched[i : i + size] for i in range(0, len(watched), size)]
            bounds = (self._bound(part, _MONITOR_DRAWS, with_shared=self._with_shared).sum() for part in parts)
            return float(sum(bounds))

    def _bound(self, chosen: NDArray[np.int64], draws: int, *, with_shared: bool) -> Tensor:
        rows = torch.from_numpy(chosen).to(self._data.device)
        return elbo(self._model, self._guide, self._data, rows, draws, with_shared=with_shared)


def validation_split(num_rows: int, share: float, seed: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Rows to train on and, at random, a share of them to judge by; none of these where all or nothing is left."""
    count = round(share * num_rows)
    if not 0 < count < num_rows:
        return np.arange(num_rows), np.arange(0)
    shuffled = np.random.default_rng(seed).permutation(num_rows)
    return np.sort(shuffled[count:]), np.sort(shuffled[:count])


def batches(rows: NDArray[np.int64], size: int, count: int, shuffle: np.random.Generator) -> list[NDArray[np.int64]]:
    """``count`` batches out of as many shuffled passes over the rows as that takes."""
    if len(rows) <= size:
        return [rows] * count
    passes = math.ceil(count * size / len(rows)) + 1
    order = np.concatenate([shuffle.permutation(rows) for _ in range(passes)])
    return [order[i * size : (i + 1) * size] for i in range(count)]
