"""``python -m benchmarks.parameter_uncertainty``: bootstrap and Laplace beside NUTS, and what they cost.

Cost on `small` (N 2,000, 4 x 64, K 16), 50 draws. Against collapsed NUTS on its first 200 rows, over the missing cells
of 200 new rows: by how much the predictive standard deviation of a cell differs (median, and the 90% quantile over
cells), that of its parameter part alone, and the negative log density of the truth; and one chain of NUTS against the
other in the same way, which says how far the oracle can be trusted. NUTS has about 4,400 unknowns there and takes some
minutes, a quarter of an hour with ``--nuts-draws 400``: ``--rows``, ``--width`` and ``--latents`` make it smaller,
``--nuts-draws 0`` leaves it out.
"""

from __future__ import annotations

import argparse
import time
import warnings
from dataclasses import replace

import pyro
import pyro.distributions as dist
import torch
from rich.console import Console
from torch import Tensor

import calmrl_prob as cal
from benchmarks.clock import cpu_seconds
from benchmarks.problems import PROBLEMS, Problem
from benchmarks.tables import Row, show
from calmrl_prob.data.missingness import mcar
from calmrl_prob.programs.bound import PyroModel

Cells = dict[str, Tensor]


def wide_priors(data: cal.MultimodalData, latent_dim: int) -> PyroModel:
    """The model with priors of loadings, intercepts and noise that say next to nothing, in units of the data."""
    scale = {name: float(data[name][data.observed(name)].var().sqrt()) for name in data.names}
    zero = torch.zeros((), dtype=torch.float64)

    def model(batch: cal.MultimodalData) -> None:
        loadings, means, noise = {}, {}, {}
        for name, width in batch.dims.items():
            s = scale[name]
            loadings[name] = pyro.sample(f"w_{name}", dist.Normal(zero, s).expand([width, latent_dim]).to_event(2))
            means[name] = pyro.sample(f"mu_{name}", dist.Normal(zero, 10 * s).expand([width]).to_event(1))
            noise[name] = s * pyro.sample(f"sigma_{name}", dist.LogNormal(zero, 2.0))
        with pyro.plate("instances", len(batch)):
            z = pyro.sample("z", dist.Normal(zero, 1.0).expand([latent_dim]).to_event(1))
            for name in batch.names:
                x = dist.Normal(z @ loadings[name].mT + means[name], noise[name]).to_event(1)
                pyro.sample(name, x.mask(batch.observed(name)), obs=batch.filled(name))

    return model


def cells(imputed: cal.Imputation, values: dict[str, Tensor], chosen: Tensor) -> Tensor:
    """The values of the cells that the data lacked, one after another."""
    return torch.cat([values[name][chosen[:, m]].flatten() for m, name in enumerate(imputed.names)])


def predictions(model: object, seen: cal.MultimodalData, complete: cal.MultimodalData) -> Cells:
    """Of the missing cells: standard deviation, the parameter part of the variance, and the negative log density."""
    imputed = cal.impute(model, seen)  # type: ignore[arg-type]
    missing = ~seen.observed_mask
    part = imputed.parameter_variance
    names = imputed.names
    density = imputed.log_density(complete)
    return {
        "mean": cells(imputed, {name: imputed.mean[name] for name in names}, missing),
        "sd": cells(imputed, {name: imputed.variance[name] for name in names}, missing).sqrt(),
        "parameter": cells(
            imputed, {n: torch.zeros_like(imputed.mean[n]) if part is None else part[n] for n in names}, missing
        ).sqrt(),
        "nll": -cells(imputed, {name: density[name] for name in names}, missing),
    }


def against(oracle: Cells, found: Cells) -> Row:
    """Distance from the oracle."""
    off = (found["sd"] / oracle["sd"] - 1).abs()
    part = found["parameter"] / oracle["parameter"]
    return {
        "sd_ratio": float((found["sd"] / oracle["sd"]).median()),
        "sd_off_median": float(off.median()),
        "sd_off_90%": float(off.quantile(0.9)),
        "parameter_sd_ratio": float(part.median()),
    }


def problem_of(problem: Problem, rows: int) -> tuple[cal.MultimodalData, cal.MultimodalData, cal.MultimodalData]:
    """The first rows of a problem, and as many new ones: as they are seen, and complete."""
    synthetic = problem.make()
    _, features = synthetic.truth.sample(rows, torch.Generator().manual_seed(99))
    complete = cal.MultimodalData(features)
    return synthetic.data.subset(slice(0, rows)), complete.mask(mcar(complete, problem.missing_rate, seed=5)), complete


def sampled(data: cal.MultimodalData, latent_dim: int, draws: int) -> cal.FitResult:
    """Collapsed NUTS."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", cal.CalmrlWarning)  # its diagnostics are shown
        return cal.fit(
            wide_priors(data, latent_dim),
            data,
            "nuts",
            num_draws=draws,
            num_warmup=draws,
            num_chains=2,
            max_tree_depth=6,
            progress=True,
        )


def measure(num_draws: int = 50) -> list[Row]:
    """Cost of draws on `small`, CPU seconds."""
    problem = PROBLEMS["small"]
    data = problem.make().data
    model = cal.SharedLatentModel(data.dims, problem.latent_dim)
    fit = cal.fit(model, data)
    rows: list[Row] = []
    for method in ("bootstrap", "laplace"):
        seconds = cpu_seconds(lambda method=method: cal.parameter_draws(fit, data, method, num_draws=num_draws))
        rows.append({"method": method, "rows": len(data), "draws": num_draws, "cpu_s": seconds})
    return rows


def compare(problem: Problem, rows: int, nuts_draws: int, num_draws: int = 200) -> list[Row]:
    """Against NUTS."""
    data, seen, complete = problem_of(problem, rows)
    model = cal.SharedLatentModel(data.dims, problem.latent_dim)
    fit = cal.fit(model, data)
    found = {"fitted as one value": predictions(fit, seen, complete)}
    for method in ("bootstrap", "laplace"):
        found[method] = predictions(cal.parameter_draws(fit, data, method, num_draws=num_draws), seen, complete)
    if not nuts_draws:
        return [{"method": name, "nll": float(cell["nll"].mean())} for name, cell in found.items()]
    start = time.process_time()
    chains = sampled(data, problem.latent_dim, nuts_draws)
    seconds = time.process_time() - start
    oracle = predictions(chains, seen, complete)
    one, other = (predictions(chains.report.draws.chain(number), seen, complete) for number in (0, 1))
    table: list[Row] = [
        {"method": name, "nll": float(cell["nll"].mean()), **against(oracle, cell)} for name, cell in found.items()
    ]
    nll = float(oracle["nll"].mean())
    return [
        *table,
        {"method": f"nuts, R-hat {chains.criterion:.2f}, {seconds:.0f} CPU s", "nll": nll},
        {"method": "nuts, one chain against the other", "nll": float(one["nll"].mean()), **against(other, one)},
    ]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.parameter_uncertainty", description=__doc__)
    parser.add_argument("--rows", type=int, default=200)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--latents", type=int, default=16)
    parser.add_argument("--nuts-draws", type=int, default=100)
    options = parser.parse_args()
    torch.set_num_threads(1)
    console = Console(width=140)
    show(console, "Draws of the parameters, CPU seconds", measure())
    small = PROBLEMS["small"]
    problem = replace(small, widths=(options.width,) * len(small.widths), latent_dim=options.latents)
    title = f"Predictive sd of missing cells, {options.rows} rows, against NUTS"
    show(console, title, compare(problem, options.rows, options.nuts_draws))


if __name__ == "__main__":
    main()
