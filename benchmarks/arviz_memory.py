"""``python -m benchmarks.arviz_memory``: peak memory and CPU seconds of ``to_arviz``.

1,000 draws of `small` (2,000 x 4 x 64), and 500 of 75 instances x 20,000 features ("wide"; "wide, low rank" with noise
of rank 16). In a process of its own for each route, so that one's peak is not another's: resident memory before and at
its highest.
"""

from __future__ import annotations

import json
import sys
import time

import torch
from rich.console import Console

import calmrl_prob as cal
from benchmarks.clock import peak_megabytes
from benchmarks.problems import PROBLEMS
from benchmarks.tables import Row, in_own_process, show
from calmrl_prob.datasets import make_synthetic

ROUTES = ("point", "laplace", "bootstrap", "missing cells", "wide", "wide, low rank")


def fitted(route: str) -> tuple[cal.FitResult, cal.MultimodalData]:
    """A fit, and its data."""
    if not route.startswith("wide"):
        problem = PROBLEMS["small"]
        data = problem.make().data
        return cal.fit(cal.SharedLatentModel(data.dims, problem.latent_dim), data), data
    data = make_synthetic(75, {"rna": 12_000, "methylation": 8_000}, 20, missing_rate=0.3, seed=0).data
    low_rank = {"noise": "low_rank", "noise_rank": 16} if "low rank" in route else {}
    return cal.fit(cal.SharedLatentModel(data.dims, 20, **low_rank), data, max_iterations=5), data


def measure(route: str) -> Row:
    """Peak megabytes, CPU seconds, and what was left out."""
    fit, data = fitted(route)
    num_draws = 500 if route.startswith("wide") else 1_000
    model = cal.parameter_draws(fit, data, route) if route in ("laplace", "bootstrap") else fit
    before, start = peak_megabytes(), time.process_time()
    idata = cal.to_arviz(model, data, num_draws=num_draws, cells="missing" if route == "missing cells" else "all")
    return {
        "route": route,
        "draws": idata["posterior"].sizes["chain"] * idata["posterior"].sizes["draw"],
        "predictive": idata["posterior_predictive"].sizes["chain"] * idata["posterior_predictive"].sizes["draw"],
        "before_mb": before,
        "peak_mb": peak_megabytes(),
        "cpu_s": time.process_time() - start,
    }


def main() -> None:
    """Measure and print; with the name of a route, that one alone, as JSON."""
    torch.set_num_threads(1)
    if len(sys.argv) > 1:
        Console(width=1000).print_json(json.dumps(measure(" ".join(sys.argv[1:]))), indent=None)
        return
    rows = [in_own_process("benchmarks.arviz_memory", route) for route in ROUTES]
    show(Console(width=120), "to_arviz, 1,000 draws of 2,000 x 4 x 64 features, and 500 of 75 x 20,000", rows)


if __name__ == "__main__":
    main()
