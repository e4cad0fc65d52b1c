"""``python -m benchmarks.neighbours``: do neighbours help? The emoji in their Unicode order, half of the cells missing.

Two models of the same family: z ~ N(0, I) for each emoji by itself, and latents that are Gaussian processes over the
place in the order. For each, the number of latents and the weight of the noise prior are chosen on validation rows, a
part of the training rows; the score is the negative log-likelihood of the test rows' missing cells, nats per value,
given the rest of their row, and for the process also given the training rows, which are most of their neighbours.
Seeds change what is missing and the validation rows. People made the order and put alike emoji side by side, so this
covariate is worth something.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator

import numpy as np
import torch
from rich.console import Console

from benchmarks.__main__ import show
from calmrl_prob.data import MultimodalData
from calmrl_prob.datasets import load_emoji
from calmrl_prob.inference import PosteriorResult, posterior
from calmrl_prob.inference.gaussian_process import gaussian_process_posterior
from calmrl_prob.inference.gaussian_process_fit import GaussianProcessOptions, fit_gaussian_process
from calmrl_prob.linear_gaussian import LinearGaussian, fit_em
from calmrl_prob.missingness import mcar
from calmrl_prob.priors import GaussianProcessPrior

Fitted = tuple[LinearGaussian, GaussianProcessPrior | None]

#: K, and the weight of the noise prior in observations of each feature.
INDEPENDENT = [(k, weight) for k in (32, 64, 96) for weight in (0.0, 100.0, 300.0)]
#: Fits of processes take minutes, so there are fewer to choose from.
PROCESS = [(16, 100.0), (32, 100.0)]


def emoji(seed: int) -> tuple[MultimodalData, MultimodalData, MultimodalData]:
    """Complete rows to fit to, to choose by and to test by, with their place in the order."""
    data = load_emoji(dtype=torch.float64)
    placed = MultimodalData(
        {name: data[name] for name in data.names},
        partition=data.partition,
        covariates={"place": np.arange(len(data), dtype=float)},
    )
    fit_rows, validation = placed.train.split(0.85, seed=seed)
    return fit_rows, validation, placed.test


def hide(data: MultimodalData, seed: int) -> MultimodalData:
    """Half of the cells missing completely at random."""
    return data.mask(mcar(data, 0.5, seed=seed))


def score(given: PosteriorResult, hidden: MultimodalData, complete: MultimodalData) -> float:
    """Mean negative log-likelihood of the hidden cells, nats per value."""
    total, count = 0.0, 0
    for name in hidden.names:
        missing = ~hidden.observed(name)
        density = given.predictive(name).log_density(complete[name])[missing]
        total, count = total - float(density.sum()), count + density.numel()
    return total / count


def fit(train: MultimodalData, latent_dim: int, weight: float, *, process: bool, max_rank: int) -> Fitted:
    """Loadings and noise, and the prior if it is a process."""
    if not process:
        return fit_em(train.blocks, latent_dim, tolerance=1e-4, noise_pseudo_count=weight).linear_gaussian, None
    prior = GaussianProcessPrior(latent_dim, covariate="place")
    options = GaussianProcessOptions(noise_pseudo_count=weight, max_rank=max_rank)
    return fit_gaussian_process(prior, train, options=options).linear_gaussian, prior


def infer(fitted: Fitted, data: MultimodalData, train: MultimodalData | None, max_rank: int) -> PosteriorResult:
    """The posterior of the rows of ``data``; a process is conditioned on ``train`` too, if that is given."""
    lg, prior = fitted
    if prior is None:
        return posterior(lg, data)
    return gaussian_process_posterior(lg, prior, data, given=train, max_rank=max_rank)


def measure(seeds: list[int], max_rank: int) -> Iterator[dict[str, object]]:
    """Rows of the table, one for each model and seed."""
    for seed in seeds:
        fit_rows, validation, test = emoji(seed)
        train, choose, ask = hide(fit_rows, 3 * seed), hide(validation, 3 * seed + 1), hide(test, 3 * seed + 2)
        for process, settings in ((False, INDEPENDENT), (True, PROCESS)):
            start, found = time.process_time(), []
            for setting in settings:
                fitted = fit(train, *setting, process=process, max_rank=max_rank)
                found.append((score(infer(fitted, choose, train, max_rank), choose, validation), setting, fitted))
            _, (latent_dim, weight), fitted = min(found, key=lambda item: item[0])
            row = {
                "prior": "Gaussian process" if process else "standard normal",
                "seed": seed,
                "K": latent_dim,
                "noise prior": weight,
                "test NLL": score(infer(fitted, ask, train, max_rank), ask, test),
                "test rows alone": score(infer(fitted, ask, None, max_rank), ask, test),
            }
            yield {**row, "CPU s": time.process_time() - start}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.neighbours", description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--max-rank", type=int, default=300, help="inducing points of each latent")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = list(measure(options.seeds, options.max_rank))
    show(Console(width=120), "Emoji in their order: negative log-likelihood of missing cells, nats per value", rows)


if __name__ == "__main__":
    main()
