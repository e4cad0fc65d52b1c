"""Stochastic variational inference for any Pyro model: fit a guide, and the model with it, by its lower bound.

    ELBO = sum_n E_q [log p(x_n, z_n) - log q(z_n | x_n)]  <=  sum_n log p(x_n),   equal where q is the posterior

The guide starts as the exact posterior of the nearest linear-Gaussian model, and stays where it is if the model is one.

Source: Kingma & Welling, Auto-Encoding Variational Bayes (2014); missing modalities as in Wu & Goodman, Multimodal
Generative Models for Scalable Weakly-Supervised Learning (2018), and Mattei & Frellsen, MIWAE (2019).
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from calmrl_prob._support.arguments import (
    checked_seed,
    keyword_options,
    real_number,
    require_known_options,
    whole_number,
)
from calmrl_prob._support.progress import Callback
from calmrl_prob._support.randomness import seeded, spread_seeds
from calmrl_prob._support.warnings import warn_unreliable
from calmrl_prob.data import MultimodalData
from calmrl_prob.errors import ArgumentError, ModelError, NumericalError
from calmrl_prob.inference.approximate.guides import AmortizedGuide, PerInstanceGuide
from calmrl_prob.inference.approximate.variational import (
    Guide,
    GuideKind,
    Trainer,
    batches,
    elbo,
    guide_of,
    make_guide,
)
from calmrl_prob.linear_gaussian import LinearGaussian, fit_em
from calmrl_prob.posteriors.importance import MIN_DRAWS, importance_weights
from calmrl_prob.posteriors.instances import InstanceModel
from calmrl_prob.posteriors.sampled import SampledPosterior, draw_and_weigh, weight_report
from calmrl_prob.programs.bound import BoundModel, PyroModel

#: A round is one pass over the data, or this many steps where that is more.
_STEPS_PER_ROUND = 20
#: Draws for each instance by which a round is judged; the same ones each time, so that rounds compare.
_MONITOR_DRAWS = 4
#: Rates that a guide of this kind starts from: steps in units of the latents, or of a network's weights.
_LEARNING_RATE: dict[GuideKind, float] = {"amortized": 2e-3, "full": 0.05, "diagonal": 0.05}


@dataclass(frozen=True, eq=False, repr=False)
class SVIResult:
    """How stochastic variational inference went. The model's parameters are in the model, which it changed.

    Attributes:
        model: the model as densities of instances; ``model.bound`` has what it stated by ``pyro.param``.
        guide: q(z_n | x_n).
        elbo: (T,) nats, the lower bound of all rows in each round, from the draws of that round's steps.
        monitor: (T + 1,) nats, the bound of the rows that were held out (of all rows if none was), from the same
            draws each time, the start's first. The best of them is what was kept.
        num_iterations: rounds. num_steps: gradient steps.
        converged: whether the bound stopped rising at the smallest learning rate.
        stop_reason: "converged" or "max_iterations".
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
    num_steps: int
    converged: bool
    stop_reason: str
    criterion: float
    tolerance: float
    num_validation: int
    seconds: float
    seed: int
    form: str = "lower bound"

    @property
    def log_likelihood(self) -> Tensor:
        """The lower bound of all rows in each round, (T,), nats."""
        return torch.from_numpy(self.elbo)

    @property
    def objective(self) -> Tensor:
        """The best of ``monitor`` so far, (T + 1,), nats."""
        return torch.from_numpy(np.maximum.accumulate(self.monitor))

    @property
    def diagnostics(self) -> Mapping[str, Any]:
        """Rows held out, gradient steps, and the bound of those rows."""
        return {"num_validation": self.num_validation, "num_steps": self.num_steps, "monitor": self.monitor}

    def posterior(self, data: MultimodalData, **options: Any) -> SampledPosterior:
        """The posterior of any instances under the fitted model: see :func:`svi_posterior`.

        An amortised guide is used as it is, a guide by instance is fitted to the new instances first.
        """
        if isinstance(self.guide, AmortizedGuide):
            options = {"guide": self.guide, **options}
        return svi_posterior(self.model.bound, data, **options)

    def __repr__(self) -> str:
        """Two lines: how it ended, and the bound."""
        held_out = f" of {self.num_validation} held-out rows" if self.num_validation else ""
        return (
            f"SVIResult: stopped after {self.num_steps} steps, {self.seconds:.1f} s: {self.stop_reason}\n"
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
    max_iterations: int = 200,
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
        max_iterations: rounds: passes over the data, of 20 steps at least.
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
        >>> result = fit_svi(SharedLatentModel(data.dims, latent_dim=1), data, learning_rate=0.02, max_iterations=5)
        >>> bool(result.monitor[-1] > result.monitor[0]), result.num_steps
        (True, 100)
    """
    seed, started = checked_seed(seed), time.perf_counter()
    _check_counts(num_draws=num_draws, batch_size=batch_size, patience=patience)
    max_iterations = whole_number("max_iterations", max_iterations)
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

    def bound(chosen: NDArray[np.int64], draws: int, *, with_shared: bool = True) -> Tensor:
        rows_of = torch.from_numpy(chosen).to(data.device)
        return elbo(instances, built, data, rows_of, draws, with_shared=with_shared)

    def ascend(batch: NDArray[np.int64]) -> Tensor:
        return bound(batch, num_draws).mean()

    watched = held_out if len(held_out) else rows
    num_values = sum(int(data.subset(watched).feature_mask(name).sum()) for name in data.names)
    trainer = Trainer(trained, rate, patience, tolerance * num_values)
    shuffle = np.random.default_rng(seeds[2])
    per_round = max(_STEPS_PER_ROUND, math.ceil(len(rows) / batch_size))
    trace: list[float] = []

    @torch.no_grad()
    def judge() -> float:
        with seeded(seeds[3], data.device):
            parts = [watched[i : i + batch_size] for i in range(0, len(watched), batch_size)]
            return float(sum(bound(part, _MONITOR_DRAWS, with_shared=not len(held_out)).sum() for part in parts))

    with seeded(seeds[2], data.device):
        done = trainer.judge(judge())
        try:
            while not done and len(trace) < max_iterations:
                total = 0.0
                for batch in batches(rows, batch_size, per_round, shuffle):
                    total += trainer.step(partial(ascend, batch))
                trace.append(total / per_round * len(data))
                done = trainer.judge(judge())
                if callback is not None:
                    callback(len(trace), trace[-1])
        except (ModelError, NumericalError) as error:
            trainer.restore()
            raise NumericalError(f"SVI ran away after {len(trace)} rounds: {error} Lower learning_rate.") from error
        trainer.restore()
    return SVIResult(
        model=instances,
        guide=built,
        elbo=np.array(trace),
        monitor=np.array(trainer.seen),
        num_iterations=len(trace),
        num_steps=per_round * len(trace),
        converged=done,
        stop_reason="converged" if done else "max_iterations",
        criterion=trainer.recent_gain() / num_values,
        tolerance=tolerance,
        num_validation=len(held_out),
        seconds=time.perf_counter() - started,
        seed=seed,
    )


def svi_posterior(
    model: PyroModel | BoundModel,
    data: MultimodalData,
    *,
    guide: GuideKind | Guide | SVIResult = "full",
    num_draws: int = 200,
    seed: int = 0,
    **options: Any,
) -> SampledPosterior:
    """The posterior of the latents by a normal guide, corrected by importance weights.

    Args:
        model: a Pyro model; its parameters stay as they are.
        data: N instances.
        guide: "full" or "diagonal" to fit a normal to each instance, "amortized" to fit a network; a guide, or what
            :func:`~calmrl_prob.inference.approximate.svi.fit_svi` returned, to use as it is. One by instance knows only
            the instances that it was fitted to.
        num_draws: S, draws from the guide of each instance; at least 100.
        seed: of all that is drawn.
        **options: of ``fit_svi``, where a guide has to be fitted.

    Returns:
        Weighted draws. Its diagnostics: ``k_hat`` (N,), ``max_k_hat``, ``effective_draws`` (N,),
        ``log_marginal_error`` (N,) in nats, ``elbo`` in nats, and of a fit ``num_iterations``, ``converged``,
        ``stop_reason``.

    Raises:
        ModelError: the model breaks the form that every route needs.
        ArgumentError: an option is out of range, or the guide is of other data.

    Warns:
        ReliabilityWarning: Pareto k-hat is above 0.7 for some instances.

    Example:
        >>> from calmrl_prob.model import SharedLatentModel
        >>> model = SharedLatentModel({"x": 3}, latent_dim=2, seed=1)
        >>> found = svi_posterior(model, MultimodalData({"x": torch.ones(4, 3)}), num_draws=100)
        >>> found
        PosteriorResult(4 instances, 2 latents, route='svi')
        >>> bool((found.diagnostics["k_hat"] < 0.7).all())
        True
    """
    fit_seed, draw_seed = spread_seeds(checked_seed(seed), 2)
    num_draws = whole_number("num_draws", num_draws, least=MIN_DRAWS)
    instances = InstanceModel(model, data)
    data = instances.conform(data)
    diagnostics: dict[str, Any] = {}
    if isinstance(guide, str):
        fitted = fit_svi(instances, data, guide=guide, train_model=False, seed=fit_seed, **options)
        guide = fitted.guide
        diagnostics |= {
            "num_iterations": fitted.num_iterations,
            "converged": fitted.converged,
            "stop_reason": fitted.stop_reason,
        }
    elif options:
        raise ArgumentError(f"options: {sorted(options)} are of fitting a guide, but one was given.")
    guide = guide.guide if isinstance(guide, SVIResult) else guide
    if isinstance(guide, PerInstanceGuide) and len(guide.mean) != len(data):
        raise ArgumentError(
            f"guide: it has {len(guide.mean)} instances, the data {len(data)}; fit one to these data, or an amortized "
            "one to any."
        )
    with torch.no_grad():
        q = guide_of(guide, data, torch.arange(len(data), device=data.device))
        latents, ratio = draw_and_weigh(instances, data, q, num_draws, draw_seed)
    weights = importance_weights(ratio)
    diagnostics |= {"elbo": float(ratio.mean(dim=0).sum()), **weight_report(weights)}
    warn_unreliable(weights.problems())
    return SampledPosterior(instances, data, latents, weights.log_weights, weights.log_evidence, "svi", diagnostics)


@runtime_checkable
class _Startable(Protocol):
    """A model that EM can find a start for: at the start of its networks it is a linear-Gaussian one."""

    dims: Mapping[str, int]
    latent_dim: int
    noise: str


def run_svi(
    model: BoundModel,
    data: MultimodalData,
    seed: int,
    callback: Callback | None,
    *,
    start: LinearGaussian | Literal["em"] | None = "em",
    start_options: Mapping[str, Any] | None = None,
    **options: Any,
) -> SVIResult:
    """The method "svi" of ``calmrl_prob.fit``.

    Args:
        model: with parameters to fit.
        data: N instances.
        seed: of all that is drawn.
        callback: called after each round.
        start: parameters that the model takes over first, where it can (it has ``load_linear_gaussian``, or
            ``load_likelihood`` if its prior is its own); "em" for those of closed-form EM with a standard normal
            prior; None to go on from its own.
        start_options: keywords of ``fit_em`` for that start, such as its priors of noise and loadings.
        **options: keywords of :func:`fit_svi`.

    Raises:
        ArgumentError: an unknown option.
    """
    require_known_options(options, ["start", "start_options", *SVI_OPTIONS], "method 'svi'")
    program = model.model
    load = getattr(program, "load_likelihood", None)
    if load is None or getattr(getattr(program, "prior", None), "gaussian", lambda: None)() is not None:
        load = getattr(program, "load_linear_gaussian", load)
    if start == "em" and load is not None and isinstance(program, _Startable):
        blocks = data.conform(program.dims).blocks
        settings = {"tolerance": 1e-4, **(start_options or {})}
        start = fit_em(blocks, program.latent_dim, noise=program.noise, seed=seed, **settings).linear_gaussian
    if isinstance(start, LinearGaussian):
        if load is None:
            raise ArgumentError("start: the model has no load_linear_gaussian or load_likelihood to take it over by.")
        load(start)
    return fit_svi(model, data, seed=seed, callback=callback, **options)


#: What ``fit`` does not settle itself.
SVI_OPTIONS = keyword_options(fit_svi, settled=("seed", "callback"))


def _check_counts(**counts: int) -> None:
    for name, value in counts.items():
        whole_number(name, value, least=1)
