"""Cost of a leapfrog step of collapsed inference.

It is that of NUTS over loadings, intercepts, noise and ARD precisions: one gradient of the log joint density, latents
integrated out. The larger data have the same patterns, and come as statistics gathered chunk by chunk.
"""

from __future__ import annotations

import torch
from pyro.ops.integrator import velocity_verlet

import calmrl_prob as cal
from benchmarks.clock import paired
from benchmarks.problems import Problem
from benchmarks.tables import Row
from calmrl_prob.inference.parameters.collapsed import CollapsedModel
from calmrl_prob.linear_gaussian import LinearGaussian, SufficientStatistics
from models.group_ard import GroupARD


def repeated(model: LinearGaussian, like: cal.MultimodalData, times: int) -> SufficientStatistics:
    """Statistics of many instances drawn from a model, which lack what those of ``like`` lack, chunk by chunk."""
    statistics = SufficientStatistics(like.dims)
    for chunk in range(times):
        _, features = model.sample(len(like), torch.Generator().manual_seed(chunk))
        statistics.update(cal.MultimodalData(features, observed_mask=like.observed_mask).blocks)
    return statistics


def leapfrog(problem: Problem, times: int = 100) -> list[Row]:
    """CPU milliseconds of a leapfrog step on the problem's data and on ``times`` as many rows."""
    synthetic = problem.make()
    program = GroupARD(synthetic.data.dims, problem.latent_dim)
    models = {
        problem.num_instances: cal.marginalize(program, synthetic.data),
        times * problem.num_instances: cal.marginalize(
            program, synthetic.data, statistics=repeated(synthetic.truth, synthetic.data, times)
        ),
    }
    costs = paired({str(count): _step(model) for count, model in models.items()})
    few = costs[str(problem.num_instances)]
    return [
        {
            "rows": count,
            "patterns": synthetic.data.patterns.shape[0],
            "unknowns": model.dim,
            "form": model._evidence._prepared[0].form,  # type: ignore[attr-defined]  # an Evidence
            "leapfrog_ms": 1e3 * costs[str(count)],
            "ratio": costs[str(count)] / few,
        }
        for count, model in models.items()
    ]


def _step(model: CollapsedModel):  # noqa: ANN202 - a function of nothing
    position = {"theta": model.draw(0)}
    momentum = {"theta": torch.zeros_like(position["theta"])}

    def run() -> None:
        velocity_verlet(position, momentum, lambda at: -model.log_joint(at["theta"]), dict, 1e-6)

    return run
