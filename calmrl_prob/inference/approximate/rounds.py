"""Ascent on the lower bound of a guide: rounds of Adam's steps, at rates that the ascent finds itself.

With guides by instance the first rate is that of a ladder, each three times the one before, which raises the bound most
in one round from the start; a network's is 0.002, since what is best for a round is not what is best for it in the end.
The rate is cut to 0.3 of itself whenever ``patience`` rounds have brought no gain, and the best state seen is gone back
to. When it has been cut twice at least, and the last rate brought nothing over its whole run, the ascent has converged.
All rounds are judged by the same draws, so that their differences are no noise of drawing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cached_property, partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from calmrl_prob._support.progress import Callback
from calmrl_prob._support.randomness import seeded
from calmrl_prob.data import MultimodalData
from calmrl_prob.errors import ArgumentError, ModelError, NumericalError
from calmrl_prob.inference.approximate.guides import AmortizedGuide, PerInstanceGuide
from calmrl_prob.inference.approximate.linearize import linearize
from calmrl_prob.inference.approximate.modes import bring_to_modes
from calmrl_prob.inference.approximate.variational import Guide, SVIOptions, elbo
from calmrl_prob.linear_gaussian import LinearGaussian
from calmrl_prob.posteriors.instances import InstanceModel

#: When a rate brings nothing more, the next is this share of it; so many times at least.
_DECAY, _LEAST_DECAYS = 0.3, 2
#: From one rung of the ladder of first rates to the next, and how many there are to either side of the middle.
_RUNG, _NUM_RUNGS = 3.0, 3
#: The first rate of all parameters: of a network's weights, and the middle of the ladder where latents are stepped.
_FIRST_RATE = {AmortizedGuide: 2e-3, PerInstanceGuide: 0.05}
#: Instances in each step, and rounds without gain that are waited for, unless they are stated.
_BATCH_SIZE = {AmortizedGuide: 256, PerInstanceGuide: 4096}
_PATIENCE = {AmortizedGuide: 10, PerInstanceGuide: 3}
#: Times that steps may run away, each time to go on from the best state at a lower rate.
_MOST_ESCAPES = 8
#: A round is one pass over the data, or this many steps where that is more.
_STEPS_PER_ROUND = 20
#: Draws for each instance by which a round is judged; the same ones each time, so that rounds compare.
_MONITOR_DRAWS = 4


class Trainer:
    """Adam that keeps the best state, and lowers its rate where that no longer rises.

    Args:
        parameters: what is trained.
        rate: the first.
        patience: judgements without gain that are waited for.
        least_gain: gain that counts, nats.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], rate: float, patience: int, least_gain: float) -> None:
        self._parameters = list(parameters)
        self._patience, self._least_gain = patience, least_gain
        self._decays = self._waited = 0
        self._best: list[Tensor] = []
        self._best_value = self._level = self._value_at_cut = -math.inf
        self.seen: list[float] = []
        self.begin(self.state(), rate)

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
        if value > self._best_value or not self._best:
            self._best, self._best_value = self.state(), value
        if len(self.seen) == 1:
            self._level = self._value_at_cut = value
            return False
        if value - self._level > self._least_gain:  # over the last that counted: slow gains add up
            self._level, self._waited = value, 0
            return False
        self._waited += 1
        if self._waited < self._patience:
            return False
        if self._decays >= _LEAST_DECAYS and self._best_value - self._value_at_cut <= self._least_gain:
            return True
        self.cut()
        return False

    def cut(self) -> None:
        """Go on from the best state at a lower rate."""
        self._decays, self._waited = self._decays + 1, 0
        self._value_at_cut = self._best_value
        self.begin(self._best, self.rate * _DECAY)

    @torch.no_grad()
    def begin(self, state: Sequence[Tensor], rate: float) -> None:
        """Go on from a state at a rate."""
        for parameter, value in zip(self._parameters, state, strict=True):
            parameter.copy_(value)
        self.rate = rate
        self._optimizer = torch.optim.Adam(self._parameters, lr=rate)

    def state(self) -> list[Tensor]:
        """The parameters as they are."""
        return [parameter.detach().clone() for parameter in self._parameters]

    def restore(self) -> None:
        """Go back to the best state."""
        self.begin(self._best, self.rate)

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
        options: how; the rates are found if they state none.

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
        self._num_values = sum(int(data.subset(self._watched).feature_mask(name).sum()) for name in data.names)
        kind = AmortizedGuide if isinstance(guide, AmortizedGuide) else PerInstanceGuide
        self._batch_size = options.batch_size or _BATCH_SIZE[kind]
        self._least_gain = options.tolerance * self._num_values
        rate = options.learning_rate or _FIRST_RATE[kind]
        self._trainer = Trainer(trained, rate, options.patience or _PATIENCE[kind], self._least_gain)
        self._per_round = max(_STEPS_PER_ROUND, math.ceil(len(rows) / self._batch_size))
        self._modes_due = self._modes_interval = 1
        self.bounds: list[float] = []
        self.num_steps = 0

    @property
    def monitor(self) -> NDArray[np.float64]:
        """The bound of the watched rows before the first round and after each, nats."""
        return np.array(self._trainer.seen)

    @property
    def recent_gain(self) -> float:
        """Gain of the last rounds, as many as are waited for, over the best before, in nats for each observed value."""
        return self._trainer.recent_gain() / self._num_values

    def run(self, step_seed: int, judge_seed: int, callback: Callback | None) -> bool:
        """Rounds until nothing more is gained; whether that is why they ended. The best state is restored.

        Raises:
            NumericalError: the steps ran away.
        """
        self._shuffle, self._judge_seed = np.random.default_rng(step_seed), judge_seed
        escapes, found = 0, self._options.learning_rate is None
        with seeded(step_seed, self._data.device):
            done = self._trainer.judge(self._judge())
            if found and isinstance(self._guide, PerInstanceGuide) and self._options.max_iterations:
                self._find_rate()
            while not done and len(self.bounds) < self._options.max_iterations:
                try:
                    self._follow_modes()
                    bound, judged = self._round()
                except (ModelError, NumericalError) as error:
                    escapes += 1
                    if found and escapes <= _MOST_ESCAPES:
                        self._trainer.cut()
                        continue
                    self._trainer.restore()
                    raise NumericalError(
                        f"SVI ran away after {len(self.bounds)} rounds: {error} Lower learning_rate."
                    ) from error
                self.bounds.append(bound)
                done = self._trainer.judge(judged)
                if callback is not None:
                    callback(len(self.bounds), bound)
            self._trainer.restore()
        return done

    def _round(self) -> tuple[float, float]:
        """The steps of one round: the bound of all rows on the way, and the watched rows' after it."""
        total = 0.0
        for batch in batches(self._rows, self._batch_size, self._per_round, self._shuffle):
            total += self._trainer.step(partial(self._objective, batch))
        self.num_steps += self._per_round
        return total / self._per_round * len(self._data), self._judge()

    def _follow_modes(self) -> None:
        """Bring guides of instances to where the model has moved the modes; less often where little comes of it."""
        if not (isinstance(self._guide, PerInstanceGuide) and self._options.train_model):
            return
        self._modes_due -= 1
        if self._modes_due:
            return
        gain = bring_to_modes(self._guide, self._model, self._data, self._nearest, self._judge_seed)
        self._modes_interval = 1 if gain > self._least_gain else 2 * self._modes_interval
        self._modes_due = self._modes_interval

    @cached_property
    def _nearest(self) -> LinearGaussian:
        return linearize(self._model, self._data).to(dtype=self._model.dtype, device=self._data.device)

    def _find_rate(self) -> None:
        """Go on at the rate that brings most in a round, tried up or down the ladder for as long as that is better."""
        start, middle = self._trainer.state(), self._trainer.rate

        def tried(rung: int) -> float:
            self._trainer.begin(start, middle * _RUNG**rung)
            try:
                value = self._round()[1]
            except (ModelError, NumericalError):
                return -math.inf
            return value if math.isfinite(value) else -math.inf

        best, best_value = 0, tried(0)
        for direction in (1, -1):
            while abs(best + direction) <= _NUM_RUNGS and (value := tried(best + direction)) > best_value:
                best, best_value = best + direction, value
            if best:
                break
        self._trainer.begin(start, middle * _RUNG**best)

    def _objective(self, batch: NDArray[np.int64]) -> Tensor:
        return self._bound(batch, self._options.num_draws, with_shared=True).mean()

    @torch.no_grad()
    def _judge(self) -> float:
        size, watched = self._batch_size, self._watched
        with seeded(self._judge_seed, self._data.device):
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
