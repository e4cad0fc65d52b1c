"""A training step's share that the objective takes: milliseconds forward and backward, float32, on unit views.

B 512 instances, M 4 modalities of width 256, all present; and with a third of the views absent. "products" are the
inner products of all views with all, forward and backward, which most objectives cannot do without.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from benchmarks.clock import paired
from calmrl_prob.alignment.objectives import OBJECTIVES, Combined, Matching, Objective, Pairwise, make_objective
from calmrl_prob.alignment.views import Views


def step(objective: Callable[[Views], Tensor], values: Tensor, observed: Tensor) -> Callable[[], object]:
    """One evaluation and its gradient."""

    def run() -> None:
        values.grad = None
        objective(Views.observed(values, observed)).backward()

    return run


def products(views: Views) -> Tensor:
    """The inner products of every view with every other, summed."""
    rows = views.values.flatten(0, 1)
    return (rows @ rows.T).sum()


def every_objective() -> dict[str, Objective]:
    """One of each, with its defaults."""
    objectives = {name: make_objective(name) for name in OBJECTIVES if name != Combined.name}
    combined = Combined({"pairwise": Pairwise(), "matching": Matching()}, {"pairwise": 1.0, "matching": 0.1})
    return {**objectives, Combined.name: combined}


def measure(instances: int = 512, modalities: int = 4, width: int = 256, rounds: int = 5) -> list[dict[str, object]]:
    """One row for each objective."""
    generator = torch.Generator().manual_seed(0)
    values = torch.nn.functional.normalize(torch.randn(instances, modalities, width, generator=generator), dim=-1)
    values.requires_grad_()
    complete = torch.ones(instances, modalities, dtype=torch.bool)
    partial = torch.rand(instances, modalities, generator=generator) > 1 / 3
    works = {"products": step(products, values, complete)}
    for name, objective in every_objective().items():
        works[name] = step(objective, values, complete)
        works[f"{name}, a third absent"] = step(objective, values, partial)
    times = paired(works, rounds=rounds)
    return [
        {"objective": name, "ms": 1e3 * seconds, "of products": seconds / times["products"]}
        for name, seconds in times.items()
    ]
