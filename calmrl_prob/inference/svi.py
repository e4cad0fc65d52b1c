"""Stochastic variational inference for any Pyro model: maximise the evidence lower bound of a guide, and of the model.

    ELBO = sum_n E_q [log p(x_n, z_n) - log q(z_n | x_n)]  <=  sum_n log p(x_n),   equal where q is the posterior

Gradients are pathwise, with the guide's own parameters held fixed in log q ("sticking the landing": Roeder, Wu &
Duvenaud, 2017), so that their noise vanishes as q approaches the posterior. A guide that starts as the exact posterior
of the nearest linear-Gaussian model therefore stays where it is if the model is one.

Source: Kingma & Welling, Auto-Encoding Variational Bayes (2014); missing modalities as in Wu & Goodman, Multimodal
Generative Models for Scalable Weakly-Supervised Learning (2018), and Mattei & Frellsen, MIWAE (2019).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.distributions import MultivariateNormal

from calmrl_prob._arguments import checked_seed, real_number, whole_number
from calmrl_prob._randomness import seeded, spread_seeds
from calmrl_prob.data import MultimodalData
from calmrl_prob.errors import ArgumentError, ModelError, NumericalError
from calmrl_prob.inference.guides import AmortizedGuide, PerInstanceGuide
from calmrl_prob.inference.instances import InstanceModel
from calmrl_prob.inference.linearize import linearize
from calmrl_prob.inference.progress import Callback
from calmrl_prob.tracing import BoundModel, PyroModel

GuideKind = Literal["amortized", "full", "diagonal"]
Guide = AmortizedGuide | PerInstanceGuide

#: A round is one pass over the data, or this many steps where that is more.
_STEPS_PER_ROUND = 20
#: Draws for each instance by which a round is judged; the same ones each time, so that rounds compare.
_MONITOR_DRAWS = 4
#: When a rate brings nothing more, the next is this share of it; the last is this power of it.
_DECAY, _NUM_DECAYS = 0.3, 2
#: Rates that a guide of this kind starts from: steps in units of the latents, or of a network's weights.
_LEARNING_RATE: dict[GuideKind, float] = {"amortized": 2e-3, "full": 0.05, "diagonal": 0.05}


@dataclass(frozen=True, eq=False, repr=False)
class SVIResult:
    """How stochastic variational inference went. The model's parameters are in the model, which it changed.

    Attributes:
        model: the model as densities of instances; ``model.bound`` has what it stated by ``pyro.param``.
        guide: q(z_n | x_n).
        elbo: (T,) nats, the lower bound of the training rows in each round, from the draws of that round's steps.
        monitor: (T + 1,) nats, the bound of the rows that were held out (of all rows if none was), from the same
            draws each time, the start's first. The best of them is what was kept.
        num_iterations: gradient steps.
        converged: whether the bound stopped rising at the smallest learning rate.
        stop_reason: "converged" or "max_rounds".
        criterion: what the last ``patience`` rounds raised ``monitor`` by, in nats for each observed value.
        tolerance: what the criterion was compared with.
        num_validation: rows held out.
        seconds: wall-clock time. seed: what was asked for.
    """

    model: InstanceModel
    guide: Guide
    elbo: NDArray[np.float64]
    monitor: NDArray[np.float64]
    num_iterations: int
    converged: bool
    stop_reason: str
    criterion: float
    tolerance: float
    num_validation: int
    seconds: float
    seed: int

    def __repr__(self) -> str:
        """Two lines: how it ended, and the bound."""
        held_out = f" of {self.num_validation} held-out rows" if self.num_validation else ""
        return (
            f"SVIResult: stopped after {self.num_iterations} steps, {self.seconds:.1f} s: {self.stop_reason}\n"
            f"  lower bound{held_out} {self.monitor[0]:,.2f} -> {self.monitor.max():,.2f} nats"
        )


@torch.enable_grad()
def fit_svi(
    model: PyroModel | BoundModel | InstanceModel,
    data: MultimodalData,
    *,
    guide: GuideKind | Guide = "amortized",
    train_model: bool = True,
    hidden: Sequence[int] = (128,),
    num_draws: int = 1,
    batch_size: int = 256,
    learning_rate: float | None = None,
    max_rounds: int = 200,
    patience: int = 10,
    tolerance: float = 1e-4,
    validation_share: float = 0.1,
    seed: int = 0,
    callback: Callback | None = None,
) -> SVIResult:
    """Fit a guide, and the model's parameters with it, to incomplete data by Adam on mini-batches of instances.

    The learning rate is cut to 0.3 of itself each time that ``patience`` rounds have brought no gain, twice at most,
    and the best state seen is restored; after that the fit has converged.

    Args:
        model: a Pyro model; its parameters (a torch module's, and ``pyro.param`` statements) are changed in place.
        data: N instances.
        guide: "amortized", computed from what an instance has; "full" or "diagonal", a normal of its own for each
            instance, with full or diagonal covariance; or a guide that was fitted before, to go on with.
        train_model: also the model's parameters; False for the posterior under the parameters as they are.
        hidden: widths of the hidden layers of the amortised guide's networks.
        num_draws: S, draws of each instance in each step.
        batch_size: B, instances in each step.
        learning_rate: what Adam starts with; by default 0.002 for an amortised guide, 0.05 for one by instance.
        max_rounds: passes over the data (of 20 steps at least).
        patience: rounds without gain that are waited for.
        tolerance: gain that counts, in nats for each observed value.
        validation_share: of the rows, held out to judge the rounds by. Only with an amortised guide; others know
            nothing of rows that they have not been fitted to, and are judged by all.
        seed: of batches, draws, held-out rows and networks; global generators are left as they were.
        callback: called after each round with its number and its lower bound (nats).

    Raises:
        ModelError: the model breaks the form that every route needs.
        ArgumentError: an option is out of range, or there is nothing to train.
        ArgumentTypeError: one is of another type.
        NumericalError: the steps ran away; a lower learning rate may help.

    Example:
        >>> from calmrl_prob.model import SharedLatentModel
        >>> generator = torch.Generator().manual_seed(0)
        >>> z = torch.randn(60, 1, generator=generator)
        >>> data = MultimodalData({"x": z + 0.1 * torch.randn(60, 3, generator=generator)})
        >>> result = fit_svi(SharedLatentModel(data.dims, latent_dim=1), data, learning_rate=0.02, max_rounds=5)
        >>> bool(result.monitor[-1] > result.monitor[0]), result.num_iterations
        (True, 100)
    """
    seed, started = checked_seed(seed), time.perf_counter()
    _check_counts(num_draws=num_draws, batch_size=batch_size, max_rounds=max_rounds, patience=patience)
    tolerance = real_number("tolerance", tolerance, 1e-4)
    if not 0 <= real_number("validation_share", validation_share, 0.1) < 1:
        raise ArgumentError(f"validation_share: expected a share in [0, 1), got {validation_share}.")
    instances = model if isinstance(model, InstanceModel) else InstanceModel(model, data)
    data = instances.conform(data)
    seeds = spread_seeds(seed, 4)
    built = guide if isinstance(guide, nn.Module) else make_guide(guide, instances, data, hidden, seeds[0])
    kind: GuideKind = "amortized" if isinstance(built, AmortizedGuide) else "full"
    rate = real_number("learning_rate", _LEARNING_RATE[kind] if learning_rate is None else learning_rate, 1e-3)
    if not 0 < rate < math.inf:
        raise ArgumentError(f"learning_rate: expected a finite number above 0, got {rate}.")
    rows = np.arange(len(data))
    held_out = rows[:0]
    if kind == "amortized" and validation_share and 0 < round(validation_share * len(data)) < len(data):
        shuffled = np.random.default_rng(seeds[1]).permutation(len(data))
        count = round(validation_share * len(data))
        held_out, rows = np.sort(shuffled[:count]), np.sort(shuffled[count:])
    parameters = [*built.parameters(), *(instances.bound.parameters() if train_model else ())]
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    if not trained:
        raise ArgumentError("model, guide: neither has a parameter to train.")

    def bound(chosen: NDArray[np.int64], draws: int) -> Tensor:
        return elbo(instances, built, data, torch.from_numpy(chosen).to(data.device), draws)

    watched = held_out if len(held_out) else rows
    num_values = sum(int(data.subset(watched).feature_mask(name).sum()) for name in data.names)
    trainer = _Trainer(trained, rate, patience, tolerance * num_values)
    shuffle = np.random.default_rng(seeds[2])
    per_round = max(_STEPS_PER_ROUND, math.ceil(len(rows) / batch_size))
    trace: list[float] = []

    @torch.no_grad()
    def judge() -> float:
        with seeded(seeds[3], data.device):
            parts = [watched[i : i + batch_size] for i in range(0, len(watched), batch_size)]
            return float(sum(bound(part, _MONITOR_DRAWS).sum() for part in parts))

    with seeded(seeds[2], data.device):
        done = trainer.judge(judge())
        while not done and len(trace) < max_rounds:
            total = 0.0
            for batch in _batches(rows, batch_size, per_round, shuffle):
                total += trainer.step(lambda batch=batch: bound(batch, num_draws).mean())  # type: ignore[misc]
            trace.append(total / per_round * len(rows))
            done = trainer.judge(judge())
            if callback is not None:
                callback(len(trace), trace[-1])
        trainer.restore()
    return SVIResult(
        model=instances,
        guide=built,
        elbo=np.array(trace),
        monitor=np.array(trainer.seen),
        num_iterations=per_round * len(trace),
        converged=done,
        stop_reason="converged" if done else "max_rounds",
        criterion=trainer.recent_gain() / num_values,
        tolerance=tolerance,
        num_validation=len(held_out),
        seconds=time.perf_counter() - started,
        seed=seed,
    )


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


def elbo(model: InstanceModel, guide: Guide, data: MultimodalData, rows: Tensor, num_draws: int) -> Tensor:
    """The lower bound of some instances, (B,), nats, averaged over draws; differentiable with low noise.

    What the model adds once for all (factors outside the plate) counts with a share 1 / N for each instance.
    """
    chosen = data.subset(rows.cpu())
    q = guide_of(guide, data, rows)
    fixed = MultivariateNormal(q.mean.detach(), scale_tril=q.scale_tril.detach(), validate_args=False)
    total = q.mean.new_zeros(len(rows))
    for _ in range(num_draws):
        latents = q.rsample()
        joint, shared = model.log_joint(chosen, latents)
        total = total + joint - fixed.log_prob(latents) + shared / len(data)
    return total / num_draws


class _Trainer:
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
        try:
            value = objective()
            gradients = torch.autograd.grad(-value, self._parameters, allow_unused=True)
        except (ModelError, RuntimeError) as error:  # torch's error of linear algebra is one
            if not self.seen or not self._optimizer.state:
                raise
            raise NumericalError(f"SVI ran away ({error}) Lower learning_rate, now {self._rate:g}.") from error
        if not bool(value.isfinite()):
            raise NumericalError(
                f"SVI ran away: the lower bound is not finite. Lower learning_rate, now {self._rate:g}."
            )
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


def _batches(rows: NDArray[np.int64], size: int, count: int, shuffle: np.random.Generator) -> list[NDArray[np.int64]]:
    """``count`` batches out of as many shuffled passes over the rows as that takes."""
    if len(rows) <= size:
        return [rows] * count
    passes = math.ceil(count * size / len(rows)) + 1
    order = np.concatenate([shuffle.permutation(rows) for _ in range(passes)])
    return [order[i * size : (i + 1) * size] for i in range(count)]


def _check_counts(**counts: int) -> None:
    for name, value in counts.items():
        whole_number(name, value, least=1)
