"""A guide for global latents, latents of instances integrated out: stochastic variational inference in theta alone.

    maximise  E_q [log p(theta, x) - log q(theta)]  <=  log p(x)

With z integrated out exactly, the bound is loose by what q misses of theta's posterior and by nothing else. Guides are
Pyro's AutoGuides over the one vector theta; "laplace" is the normal at the mode with the curvature there.

How near q is to the posterior, k-hat of its importance weights says; in hundreds of dimensions it will mostly say "not
near enough to reweight", and still the moments can be of use: compare with NUTS on a part of the problem.

Source: Kucukelbir, Tran, Ranganath, Gelman & Blei, Automatic Differentiation Variational Inference (2017); MacKay,
Information Theory, Inference, and Learning Algorithms (2003), chapter 27, for Laplace's method.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.infer import Trace_ELBO
from pyro.infer.autoguide import AutoGuide, AutoLowRankMultivariateNormal, AutoMultivariateNormal, AutoNormal
from pyro.infer.autoguide.initialization import init_to_value
from torch import Tensor

from calmrl_prob._support.arguments import real_number, whole_number
from calmrl_prob._support.progress import Callback
from calmrl_prob._support.randomness import seeded, spread_seeds
from calmrl_prob._support.warnings import warn_unreliable
from calmrl_prob.data import MultimodalData
from calmrl_prob.errors import ArgumentError, NumericalError
from calmrl_prob.inference.parameters.collapsed import CollapsedModel, marginalize
from calmrl_prob.inference.parameters.map import climb
from calmrl_prob.inference.parameters.nuts import DrawsReport, chain_starts, rotation_free
from calmrl_prob.inference.parameters.unbounded import advice
from calmrl_prob.linear_gaussian import Trace
from calmrl_prob.posteriors.importance import MAX_K_HAT, MIN_DRAWS, importance_weights
from calmrl_prob.programs.bound import BoundModel

#: Standard deviation that guides start from, on the unconstrained scale.
_START_SCALE = 0.05
#: The learning rate falls to this share of itself over the run.
_LAST_RATE = 0.01
#: Share of steps whose gradient may be lost to points out of all range.
_MOST_LOST = 0.1
#: Unknowns up to which Laplace's method is offered: it needs the full matrix of second derivatives.
_MOST_LAPLACE = 1500
#: Curvature, relative to the largest, below which a direction counts as flat: a rotation of the latent.
_FLAT = 1e-9

GUIDES: dict[str, Callable[..., AutoGuide]] = {
    "normal": AutoNormal,
    "low_rank": AutoLowRankMultivariateNormal,
    "full": AutoMultivariateNormal,
}


def run_collapsed_svi(
    bound: BoundModel,
    data: MultimodalData,
    seed: int,
    callback: Callback | None,
    *,
    guide: str | Callable[..., AutoGuide] = "normal",
    num_steps: int = 2000,
    learning_rate: float = 0.02,
    num_particles: int = 1,
    num_draws: int = 500,
) -> DrawsReport:
    """Fit a guide to the posterior of the global latents, and draw from it.

    Args:
        bound: a model that is conjugate given its global latents; its parameters stay as they are.
        data: N instances.
        seed: of everything.
        callback: called after each step with its number and the bound (noisy), nats.
        guide: "normal" (independent), "low_rank", "full" (covariance), "laplace", or a function of a Pyro model that
            returns an AutoGuide for it.
        num_steps: of Adam, whose rate falls to a hundredth along a half cosine.
        learning_rate: the first.
        num_particles: draws for each gradient.
        num_draws: S, draws returned; at least 100.

    Returns:
        The draws. ``objective`` is the bound step by step (nats), ``diagnostics`` has "k_hat" and "elbo", and the
        importance-weighted "log_evidence" of the data with its "log_evidence_error".

    Raises:
        NotConjugateError, ModelError: as :func:`~calmrl_prob.inference.parameters.collapsed.marginalize` does.
        ArgumentError, ArgumentTypeError: an option is out of range or of another type.
        NumericalError: the density is not finite at the start, or at too many draws of the guide.

    Warns:
        ReliabilityWarning: k-hat is above 0.7.
    """
    num_steps = whole_number("num_steps", num_steps, least=1)
    num_particles = whole_number("num_particles", num_particles, least=1)
    num_draws = whole_number("num_draws", num_draws, least=MIN_DRAWS)
    learning_rate = real_number("learning_rate", learning_rate, 0.02)
    if not 0 < learning_rate < math.inf:
        raise ArgumentError(f"learning_rate: expected a positive number, got {learning_rate}.")
    if not callable(guide) and guide not in (*GUIDES, "laplace"):
        raise ArgumentError(f"guide: expected one of {[*GUIDES, 'laplace']} or a function, got {guide!r}.")
    start_seed, jitter_seed, step_seed, draw_seed = spread_seeds(seed, 4)
    model = marginalize(bound, data)
    start = chain_starts(model, 1, start_seed, jitter_seed)[0]
    if guide == "laplace":
        theta, log_q, bounds = _laplace(model, start, num_draws, draw_seed, callback)
        return _report(model, theta, log_q, bounds, "collapsed laplace")
    make = guide if callable(guide) else GUIDES[guide]
    fitted, bounds = _fit_guide(model, start, make, num_steps, learning_rate, num_particles, step_seed, callback)
    theta, log_q = _draws_of(fitted, num_draws, draw_seed, start.device)
    return _report(model, theta, log_q, bounds, "collapsed svi", richest=guide == "full")


def _report(
    model: CollapsedModel, theta: Tensor, log_q: Tensor, bounds: Tensor, route: str, *, richest: bool = False
) -> DrawsReport:
    """The report of draws (S, n) from a density of log q (S,), fitted with these bounds (T,); warns if it is poor.

    No other guide is advised where the ``richest`` is in use.
    """
    quantities = rotation_free(model, theta[None])
    evidence = quantities["log_evidence"].flatten()
    ratio = evidence + quantities["log_prior"].flatten() - log_q
    weights = importance_weights(ratio[:, None])
    k_hat = float(weights.k_hat[0])
    problems = []
    if not k_hat <= MAX_K_HAT:
        problems.append(
            f"Pareto k-hat of the guide is {k_hat:.2f}, above {MAX_K_HAT}: it misses much of the posterior of the "
            "parameters; use method 'nuts'" + ("" if richest else ", or a richer guide such as guide='full'")
        )
    warn_unreliable(problems)
    trace = Trace(
        log_likelihood=evidence,
        objective=bounds,
        num_iterations=len(bounds),
        converged=not problems,
        stop_reason="; ".join(problems) or "all steps taken",
        criterion=k_hat,
        tolerance=MAX_K_HAT,
        form=model.form.route,
    )
    diagnostics: dict[str, Any] = {
        "k_hat": k_hat,
        "elbo": float(ratio.mean()),
        "log_evidence": float(weights.log_evidence[0]),
        "log_evidence_error": float(weights.standard_error[0]),
    }
    return DrawsReport.of(model, theta[None], quantities, trace, route=route, diagnostics=diagnostics, independent=True)


@torch.enable_grad()
def _fit_guide(
    model: CollapsedModel,
    start: Tensor,
    make: Callable[..., AutoGuide],
    num_steps: int,
    learning_rate: float,
    num_particles: int,
    seed: int,
    callback: Callback | None,
) -> tuple[AutoGuide, Tensor]:
    """A fitted guide, and the bound at each step (T,)."""

    def joint() -> None:
        flat = dist.Normal(torch.zeros_like(start), 1.0).to_event(1).mask(False)  # the density is all in the factor
        pyro.factor("log_joint", model.log_joint(pyro.sample("theta", flat)))

    trace: list[float] = []
    lost = 0
    # parameters of the guide stay with the guide, and Pyro's global store is left alone
    with seeded(seed, start.device), pyro.settings.context(module_local_params=True):
        settings = {"init_scale": _START_SCALE} if make in GUIDES.values() else {}
        guide = make(joint, init_loc_fn=init_to_value(values={"theta": start}), **settings)
        elbo = Trace_ELBO(num_particles=num_particles)
        elbo.differentiable_loss(joint, guide)  # makes the parameters
        optimiser = torch.optim.Adam(guide.parameters(), lr=learning_rate)
        rate = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, num_steps, _LAST_RATE * learning_rate)
        for step in range(1, num_steps + 1):
            optimiser.zero_grad()
            loss = elbo.differentiable_loss(joint, guide)
            if bool(loss.isfinite()):
                loss.backward()
                optimiser.step()
                trace.append(-float(loss.detach()))
            else:
                lost += 1
            rate.step()
            if callback is not None and trace:
                callback(step, trace[-1])
        if lost > _MOST_LOST * num_steps:
            raise NumericalError(
                f"guide: the density was not finite at {lost} of {num_steps} draws; lower learning_rate, or bring the "
                "data to the scale that the priors expect."
            )
    return guide, torch.tensor(trace, dtype=torch.float64)


@torch.no_grad()
def _draws_of(guide: AutoGuide, num_draws: int, seed: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Draws (S, n) of a guide, and their log density (S,)."""
    draws, log_q = [], []
    with seeded(seed, device), pyro.settings.context(module_local_params=True):
        for _ in range(num_draws):
            drawn = poutine.trace(guide).get_trace()
            draws.append(torch.as_tensor(drawn.nodes["theta"]["value"]))
            log_q.append(torch.as_tensor(drawn.log_prob_sum()))
    return torch.stack(draws), torch.stack(log_q)


def _laplace(
    model: CollapsedModel, start: Tensor, num_draws: int, draw_seed: int, callback: Callback | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Draws (S, n) of the normal at the mode, their log density (S,), and the ascent to it (T,).

    Directions without curvature are rotations of the latent, along which no density of the data changes: draws stay at
    the mode in these, and the log density is that in the others.
    """
    if model.dim > _MOST_LAPLACE:
        raise ArgumentError(
            f"guide: Laplace's method needs the matrix of second derivatives, and {model.dim} unknowns are more than "
            f"{_MOST_LAPLACE}; use 'low_rank'."
        )
    end = climb(model, start, tolerance=1e-10, callback=callback)
    if end.runaway:
        raise NumericalError(f"guide: Laplace's method needs a mode. {advice(end.runaway, kept=False)}.")
    with torch.enable_grad():
        mode = end.theta.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(model.log_joint(mode), mode, create_graph=True)
        rows = [torch.autograd.grad(entry, mode, retain_graph=True)[0] for entry in gradient]
    curvature = -torch.stack(rows)
    eigenvalues, vectors = torch.linalg.eigh((curvature + curvature.mT) / 2)
    if not bool(eigenvalues.isfinite().all()) or float(eigenvalues[0]) < -1e-3 * float(eigenvalues[-1]):
        raise NumericalError("guide: the density is not curved downwards at the mode found; use another guide.")
    kept = eigenvalues > _FLAT * eigenvalues[-1]
    scale = eigenvalues[kept].rsqrt()
    generator = torch.Generator(device=start.device).manual_seed(draw_seed)
    noise = torch.randn(num_draws, len(scale), generator=generator, dtype=torch.float64, device=start.device)
    draws = end.theta + (noise * scale) @ vectors[:, kept].mT
    log_q = -0.5 * noise.square().sum(1) - scale.log().sum() - 0.5 * len(scale) * math.log(2 * math.pi)
    return draws, log_q, end.trace.objective
