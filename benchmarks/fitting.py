"""From arrays to a fitted model: CPU seconds, distance from the best evidence, and how well new rows are predicted."""

from __future__ import annotations

import torch
from torch import Tensor

import calmrl_prob as cal
from benchmarks.clock import cpu_seconds
from benchmarks.problems import Problem
from benchmarks.tables import Row
from calmrl_prob.data.missingness import mcar
from calmrl_prob.linear_gaussian import LinearGaussian, fit_em
from calmrl_prob.linear_gaussian import posterior as exact_posterior
from calmrl_prob.posteriors.gaussian import GaussianPosterior


def held_out_nll(
    model: LinearGaussian, truth: LinearGaussian, missing_rate: float = 0.3, num_rows: int = 2000
) -> float:
    """Negative log density of masked values of new rows, nats for each value, by the predictive of each feature."""
    _, features = truth.sample(num_rows, torch.Generator().manual_seed(10**6))
    complete = cal.MultimodalData(features)
    seen = complete.mask(mcar(complete, missing_rate, seed=10**6))
    model = model.to(torch.float64)
    found = GaussianPosterior(exact_posterior(model, seen.blocks))
    losses: list[Tensor] = []
    for m, name in enumerate(complete.names):
        hidden = ~seen.observed_mask[:, m]
        losses.append(-found.predictive(name).log_density(features[name])[hidden].flatten())
    return float(torch.cat(losses).mean())


def measure(problem: Problem, dtype: torch.dtype = torch.float64, repeats: int = 3) -> Row:
    """The library's own fit, with its defaults.

    The best evidence is that of fits carried on to a gain of 1e-12 for each value, from this fit and from the truth.
    """
    synthetic = problem.make()
    arrays = {name: synthetic.data[name].to(dtype).numpy() for name in synthetic.data.names}
    models: list[tuple[cal.SharedLatentModel, cal.FitResult]] = []

    def fit() -> None:
        data = cal.MultimodalData(arrays)
        model = cal.SharedLatentModel(data.dims, latent_dim=problem.latent_dim)
        models.append((model, cal.fit(model, data)))

    seconds = min(cpu_seconds(fit) for _ in range(repeats))
    model, result = models[-1]
    blocks = cal.MultimodalData(arrays).blocks
    fitted = model.linear_gaussian().detach()
    best = max(
        float(fit_em(blocks, problem.latent_dim, start=start, tolerance=1e-12).log_likelihood[-1])
        for start in (fitted, synthetic.truth)
    )
    return {
        "problem": problem.name,
        "data": str(dtype).removeprefix("torch."),
        "cpu_s": seconds,
        "target_s": problem.target_seconds,
        "iterations": result.num_iterations,
        "short_of_best": (best - float(result.log_likelihood[-1])) / abs(best),
        "nll": held_out_nll(fitted, synthetic.truth, problem.missing_rate),
        "nll_of_truth": held_out_nll(synthetic.truth, synthetic.truth, problem.missing_rate),
    }
