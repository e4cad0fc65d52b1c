"""Stochastic variational inference for any Pyro model: fit a guide, and the model with it, by its lower bound.

    ELBO = sum_n E_q [log p(x_n, z_n) - log q(z_n | x_n)]  <=  sum_n log p(x_n),   equal where q is the posterior

The guide starts as the exact posterior of the nearest linear-Gaussian model, and stays where it is if the model is one.

Source: Kingma & Welling, Auto-Encoding Variational Bayes (2014); missing modalities as in Wu & Goodman, Multimodal
Generative Models for Scalable Weakly-Supervised Learning (2018), and Mattei & Frellsen, MIWAE (2019).
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from calmrl_prob._support.arguments import (
    checked_seed,
    keyword_options,
    require_known_options,
    whole_number,
)
from calmrl_prob._support.arrays import own_array
from calmrl_prob._support.progress import Callback
from calmrl_prob._support.randomness import spread_seeds
from calmrl_prob._support.warnings import warn_unreliable
from calmrl_prob.data import MultimodalData
from calmrl_prob.errors import ArgumentError
from calmrl_prob.inference.approximate.guides import AmortizedGuide, PerInstanceGuide
from calmrl_prob.inference.approximate.rounds import Rounds, validation_split
from calmrl_prob.inference.approximate.variational import Guide, GuideKind, SVIOptions, guide_of, make_guide
from calmrl_prob.linear_gaussian import LinearGaussian, Trace, fit_em
from calmrl_prob.linear_gaussian.em.convergence import Traced
from calmrl_prob.posteriors.importance import MIN_DRAWS, importance_weights
from calmrl_prob.posteriors.instances import InstanceModel
from calmrl_prob.posteriors.posterior import checked_draws
from calmrl_prob.posteriors.sampled import SampledPosterior, draw_and_weigh, weight_report
from calmrl_prob.programs.bound import BoundModel, PyroModel

#: Instances up to which each has a guide of its own unless another is asked for.
_MOST_BY_INSTANCE = 4096


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class SVIResult(Traced):
    """Guide that stochastic variational inference fitted, and how. The model's parameters are in the model.

    Attributes:
        bound: the model, with what it stated by ``pyro.param``.
        guide: q(z_n | x_n).
        trace: ``log_likelihood`` (T,) is the lower bound of all rows in each round, from the draws of that round's
            steps, and ``objective`` (T + 1,) the best of ``monitor`` so far, nats. It has converged if the bound
            stopped rising at the smallest learning rate; ``criterion`` is what the last ``patience`` rounds raised
            ``monitor`` by, in nats for each observed value.
        monitor: (T + 1,) nats, the bound of the rows that were held out (of all rows if none was), from the same
            draws each time, the start's first. The best of them is what was kept.
        num_steps: gradient steps.
        num_validation: rows held out.
        seconds: wall-clock time. seed: what was asked for.
        remedy: what to pass so that it converges, if it has not.
    """

    bound: BoundModel
    guide: Guide
    trace: Trace
    monitor: NDArray[np.float64]
    num_steps: int
    num_validation: int
    seconds: float
    seed: int
    remedy: str = ""

    @property
    def elbo(self) -> NDArray[np.float64]:
        """The lower bound of all rows in each round, (T,), nats."""
        return own_array(self.trace.log_likelihood)

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
        return svi_posterior(self.bound, data, **options)

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
    options: SVIOptions | None = None,
    *,
    guide: GuideKind | Guide | None = None,
    callback: Callback | None = None,
    **settings: Any,
) -> SVIResult:
    """Fit a guide, and the model's parameters with it, to incomplete data by Adam on mini-batches of instances.

    The fit finds its learning rate: of a ladder, that which raises the bound most in a round from the start; 0.002 with
    an amortised guide. It is cut to 0.3 of itself each time that ``patience`` rounds have brought no gain, and the best
    state seen is restored. The fit has converged when that has happened twice, or more often if need be, and the last
    rate brought no gain either. Where steps run away, it goes back to the best state and on at a lower rate, unless
    ``learning_rate`` is given. Guides of instances are brought to the modes as the model moves. The seed decides all.

    Args:
        model: a Pyro model; its parameters (a torch module's, and ``pyro.param`` statements) are changed in place.
        data: N instances.
        options: what is trained and how: :class:`~calmrl_prob.inference.approximate.variational.SVIOptions`; its
            defaults if not given.
        guide: "full" or "diagonal", a normal of its own for each instance, with full or diagonal covariance;
            "amortized", a network that computes it from what an instance has; or a guide that was fitted before, to go
            on with. By default "full" up to 4,096 instances, which is the tighter bound, and "amortized" for more.
        callback: called after each round with its number and its lower bound (nats).
        **settings: fields of the options by name, such as ``max_iterations=50``, in place of those in ``options``.

    Raises:
        ModelError: the model breaks the form that every route needs.
        ArgumentError: there is no such option, one is out of range, or there is nothing to train.
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
    started = time.perf_counter()
    options = SVIOptions.of(options, settings, "fit_svi")
    instances = model if isinstance(model, InstanceModel) else InstanceModel(model, data)
    data = instances.conform(data)
    seeds = spread_seeds(options.seed, 4)
    if guide is None:
        guide = "full" if len(data) <= _MOST_BY_INSTANCE else "amortized"
    built = guide if isinstance(guide, nn.Module) else make_guide(guide, instances, data, options.hidden, seeds[0])
    amortized = isinstance(built, AmortizedGuide)
    rows, held_out = validation_split(len(data), options.validation_share if amortized else 0.0, seeds[1])
    rounds = Rounds(instances, built, data, rows, held_out, options)
    done = rounds.run(seeds[2], seeds[3], callback)
    best = np.maximum.accumulate(rounds.monitor)
    trace = Trace(
        log_likelihood=torch.tensor(rounds.bounds, dtype=torch.float64),
        objective=torch.from_numpy(best),
        num_iterations=len(rounds.bounds),
        converged=done,
        stop_reason="converged" if done else "max_iterations",
        criterion=rounds.recent_gain,
        tolerance=options.tolerance,
        form="lower bound",
    )
    return SVIResult(
        bound=instances.bound,
        guide=built,
        trace=trace,
        monitor=rounds.monitor,
        num_steps=rounds.num_steps,
        num_validation=len(held_out),
        seconds=time.perf_counter() - started,
        seed=int(options.seed),
        remedy="" if done else _remedy(options, rounds.recent_gain),
    )


def _remedy(options: SVIOptions, gain: float) -> str:
    """Advice to a fit that stopped while it still gained so much, nats for each observed value."""
    more = f"pass max_iterations={max(50, 2 * options.max_iterations)}"
    if options.learning_rate is not None:
        more += ", or leave learning_rate out, so that the fit finds it"
    enough = 10.0 ** math.ceil(math.log10(max(gain, options.tolerance)))
    return (
        f"The last rounds still gained {gain:.1e} nats for each observed value, and the tolerance is "
        f"{options.tolerance:.1e}: {more}; or pass tolerance={enough:g} if that is near enough."
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
        PosteriorResult(4 instances, 2 latents, route='svi', approximate: by weighted draws from a normal guide)
        >>> bool((found.diagnostics["k_hat"] < 0.7).all())
        True
    """
    fit_seed, draw_seed = spread_seeds(checked_seed(seed), 2)
    num_draws = whole_number("num_draws", num_draws, least=MIN_DRAWS)
    instances = InstanceModel(model, data)
    data = instances.conform(data)
    checked_draws(num_draws, len(data) * instances.latent_dim, instances.dtype)
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
    warn_unreliable(weights.problems(_better_guide(guide)))
    return SampledPosterior(instances, data, latents, weights.log_weights, weights.log_evidence, "svi", diagnostics)


def _better_guide(guide: Guide) -> str:
    """Advice beyond the guide that was used."""
    if isinstance(guide, PerInstanceGuide) and guide.below is not None:  # the fullest guide that there is
        return "the posterior is not normal enough for a guide: use method 'nuts'"
    return "use guide='full', or method 'nuts'"


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
            prior; None to go on from its own. From such a start the guide is amortised unless another is asked for.
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
        form = {"noise": program.noise, "noise_rank": getattr(program, "noise_rank", None)}
        start = fit_em(blocks, program.latent_dim, seed=seed, **form, **settings).linear_gaussian
    if isinstance(start, LinearGaussian):
        if load is None:
            raise ArgumentError("start: the model has no load_linear_gaussian or load_likelihood to take it over by.")
        load(start)
        # it is to be bent from there only as far as rows held out become more likely
        options = {"guide": "amortized", **options}
    return fit_svi(model, data, seed=seed, callback=callback, **options)


#: What ``fit`` does not settle itself.
SVI_OPTIONS = keyword_options(fit_svi, ("seed", "callback"), SVIOptions)
