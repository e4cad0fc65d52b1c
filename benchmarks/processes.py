"""Gaussian-process latents: CPU seconds of the posterior of all instances, covariances included, and how exact it is.

Four modalities of 64 features, a third of them missing, 4 latents over a covariate drawn evenly from [0, 1]. "slack" is
what the evidence lacks, in nats; "dense" conditions the N K latents by one factorisation of their covariance.
"""

from __future__ import annotations

import time

import gpytorch
import torch

from benchmarks.clock import cpu_seconds
from calmrl_prob.data import MultimodalData
from calmrl_prob.datasets import make_synthetic
from calmrl_prob.inference.exact.process import gaussian_process_posterior
from calmrl_prob.inference.exact.process_places import places_of
from calmrl_prob.linear_gaussian import LinearGaussian
from calmrl_prob.linear_gaussian.process.latent_likelihood import LatentLikelihood
from calmrl_prob.priors import GaussianProcessPrior

#: N, smoothness of the kernel (None is infinitely smooth), length scale, most inducing points of a latent.
CASES = (
    (1000, None, 0.1, 1000),
    (1000, 2.5, 0.1, 1000),
    (5000, None, 0.1, 1000),
    (5000, 2.5, 0.1, 1000),
    (5000, 0.5, 0.1, 1000),
    (20000, 2.5, 0.1, 300),
)


def measure() -> list[dict[str, object]]:
    """One row for each case, and dense conditioning of the smallest."""
    rows = [_row(*case) for case in CASES]
    lg, prior, data = _problem(1000, 2.5, 0.1)
    seconds = cpu_seconds(lambda: dense(lg, prior, data))
    rows.append(
        {"N": 1000, "kernel": "Matern-2.5, dense", "CPU s": seconds, "weights": 4000, "joint": True, "slack": 0.0}
    )
    return rows


def _problem(
    num_instances: int, smoothness: float | None, lengthscale: float
) -> tuple[LinearGaussian, GaussianProcessPrior, MultimodalData]:
    synthetic = make_synthetic(num_instances, {f"m{i}": 64 for i in range(4)}, 4, missing_rate=0.3, seed=0)
    place = torch.rand(num_instances, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    data = MultimodalData({name: synthetic.data[name] for name in synthetic.data.names}, covariates={"place": place})
    kernels = gpytorch.kernels
    kernel = kernels.RBFKernel() if smoothness is None else kernels.MaternKernel(nu=smoothness)
    kernel.lengthscale = lengthscale
    return synthetic.truth, GaussianProcessPrior(4, kernel, "place"), data


def _row(num_instances: int, smoothness: float | None, lengthscale: float, max_rank: int) -> dict[str, object]:
    lg, prior, data = _problem(num_instances, smoothness, lengthscale)
    start = time.process_time()
    result = gaussian_process_posterior(lg, prior, data, max_rank=max_rank)
    assert bool(result.covariance.isfinite().all())
    seconds = time.process_time() - start
    found = result.diagnostics
    return {
        "N": num_instances,
        "kernel": "squared exponential" if smoothness is None else f"Matern-{smoothness}",
        "CPU s": seconds,
        "weights": found["num_weights"],
        "joint": found["joint"],
        "slack": found["slack"],
    }


@torch.no_grad()
def dense(lg: LinearGaussian, prior: GaussianProcessPrior, data: MultimodalData) -> torch.Tensor:
    """Covariance of all N K latents given the data, (N K, N K)."""
    places, likelihood = places_of(data, prior), LatentLikelihood.of(lg, data.blocks)
    size, latents = len(data), prior.latent_dim
    covariance = torch.zeros(size, latents, size, latents, dtype=torch.float64)
    for k in range(latents):
        covariance[:, k, :, k] = prior.covariance(k, places, places) + prior.nugget[k] * torch.eye(size).double()
    flat = covariance.view(size * latents, -1)
    root = torch.linalg.cholesky(likelihood.row_precision + 1e-10 * torch.eye(latents).double())
    whitened = (root.mT @ covariance.flatten(2)).view(size * latents, -1)
    inner = torch.eye(len(flat)).double() + torch.einsum(
        "rnk,nkj->rnj", whitened.view(-1, size, latents), root
    ).reshape(len(flat), -1)
    solved = torch.linalg.solve_triangular(torch.linalg.cholesky(inner), whitened, upper=False)
    return flat - solved.mT @ solved
