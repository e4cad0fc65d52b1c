"""Start of the fit of Gaussian process latents.

It starts from the fit for independent instances, whose latents are free up to rotation: they are turned so that the
first varies most smoothly over the covariate, the next most smoothly of what is left, and so on. Length scale and
nugget of each then start from the best of a grid.

Source: Switzer & Green, Min/max autocorrelation factors for multivariate spatial imagery (1984).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from calmrl_prob.data import MultimodalData
from calmrl_prob.linear_gaussian import LinearGaussian, fit_em, posterior
from calmrl_prob.priors.gaussian_process import GaussianProcessPrior

#: Instances that the start is found from: a neighbourhood, since it needs their covariance in full.
_START_ROWS = 800
#: Length scales to start from, as multiples of the distance to the tenth neighbour; and nuggets.
_LENGTHSCALES = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0)
_NUGGETS = (0.02, 0.05, 0.1, 0.2, 0.35, 0.5, 0.65, 0.8, 0.9, 0.97)


@torch.no_grad()
def smooth_start(
    prior: GaussianProcessPrior,
    data: MultimodalData,
    places: Tensor,
    *,
    noise: str,
    seed: int,
    noise_floor: float,
    noise_pseudo_count: float,
) -> LinearGaussian:
    """The fit for independent instances, turned to smooth latents; sets the prior's nuggets, and default kernels.

    Args:
        prior: the processes, K latents.
        data: N instances.
        places: where they are, (N, d).
        noise: "isotropic" or "diagonal".
        seed: of the spectral start of the fit for independent instances.
        noise_floor: of that fit, see ``fit_em``.
        noise_pseudo_count: of that fit, see ``fit_em``.
    """
    independent = fit_em(
        data.blocks,
        prior.latent_dim,
        noise=noise,
        seed=seed,
        tolerance=1e-4,
        noise_floor=noise_floor,
        noise_pseudo_count=noise_pseudo_count,
    ).linear_gaussian
    latents = posterior(independent, data.blocks).mean
    centre = (places - places.median(dim=0).values).square().sum(1)
    near = centre.argsort()[:_START_ROWS]
    places, latents = places[near], latents[near] - latents[near].mean(0)
    typical = _neighbour_distance(places)
    rotation = torch.empty(prior.latent_dim, 0, dtype=latents.dtype)
    rest = torch.eye(prior.latent_dim, dtype=latents.dtype)
    matrix: Tensor | None = None
    for k in range(prior.latent_dim):
        if prior.default_kernel:
            prior.set_lengthscale(k, typical)
        if matrix is None or not prior.default_kernel:
            matrix = _correlation(prior, k, places)
        part = latents @ rest
        direction = torch.linalg.eigh(part.mT @ (matrix @ part - part)).eigenvectors[:, -1]
        column = rest @ direction
        rotation = torch.cat([rotation, column[:, None]], dim=1)
        rest = torch.linalg.qr(rotation, mode="complete").Q[:, k + 1 :]
    turned = latents @ rotation
    _start_kernels(prior, places, turned / turned.square().mean(0).sqrt().clamp(min=1e-12), typical)
    loadings = {name: weights @ rotation for name, weights in independent.loadings.items()}
    return LinearGaussian(loadings, independent.intercepts, independent.noise_variance)


@torch.no_grad()
def _start_kernels(prior: GaussianProcessPrior, places: Tensor, latents: Tensor, typical: float) -> None:
    """Length scale and nugget of each latent that make its estimated course likeliest, out of a grid."""
    learned = prior.nugget_logit.requires_grad
    nuggets = [float(prior.nugget[0])] if not learned else list(_NUGGETS)
    best = torch.full((prior.latent_dim,), -math.inf, dtype=latents.dtype)
    chosen: list[tuple[float, float]] = [(typical, nuggets[0])] * prior.latent_dim
    for scale in [multiple * typical for multiple in _LENGTHSCALES] if prior.default_kernel else [typical]:
        values, vectors = torch.empty(0), torch.empty(0)
        for k in range(prior.latent_dim):
            if prior.default_kernel:
                prior.set_lengthscale(k, scale)
            if k == 0 or not prior.default_kernel:
                values, vectors = torch.linalg.eigh(_correlation(prior, k, places))
            square = (vectors.mT @ latents[:, k]).square()
            for nugget in nuggets:
                variance = (1 - nugget) * values.clamp(min=0) + max(nugget, 0.02)
                evidence = float(-0.5 * (square / variance + variance.log()).sum())
                if evidence > best[k]:
                    best[k], chosen[k] = evidence, (scale, nugget)
    for k, (scale, nugget) in enumerate(chosen):
        if prior.default_kernel:
            prior.set_lengthscale(k, scale)
        if learned:
            prior.nugget_logit[k] = math.log(nugget / (1 - nugget))


def _correlation(prior: GaussianProcessPrior, latent: int, places: Tensor) -> Tensor:
    """The kernel's matrix with a unit diagonal, (n, n)."""
    spread = prior.variance(latent, places).clamp(min=1e-300).rsqrt()
    return prior.covariance(latent, places, places) * spread[:, None] * spread


def _neighbour_distance(places: Tensor) -> float:
    """The median distance to the tenth neighbour: a scale on which instances could be alike."""
    distances = torch.cdist(places, places).sort(dim=1).values[:, min(10, len(places) - 1)]
    positive = distances[distances > 0]
    return float(positive.median()) if len(positive) else 1.0
