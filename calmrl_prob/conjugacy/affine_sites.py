"""Sites that are affine in the latents, as probing reads them, and the linear-Gaussian model that they make."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from calmrl_prob.conjugacy.gaussian_sites import Gaussian
from calmrl_prob.linear_gaussian import LinearGaussian


@dataclass(frozen=True)
class AffineSite:
    """A site whose mean is intercept + z slope, with a covariance free of z: diag(diagonal) + factor factor^T.

    Attributes:
        intercept: (F,); slope: (K, F); diagonal: (F,); factor: (F, R) or None.
        degrees_of_freedom: () or (F,), where the site is a Student-t with this scale.
    """

    intercept: Tensor
    slope: Tensor
    diagonal: Tensor
    factor: Tensor | None
    degrees_of_freedom: Tensor | None


@dataclass(frozen=True)
class Component:
    """One linear-Gaussian component: log weight () and the affine sites, latents first."""

    log_weight: Tensor
    sites: Mapping[str, AffineSite]


def assemble(component: Component, latents: Collection[str]) -> LinearGaussian:
    """A component as the engine takes it: one latent, noise diagonal or within modalities, all in float64.

    Latents that depend on earlier ones, z = m + A z + e, are solved for: mean (I - A)^-1 m, covariance (I - A)^-1 S
    (I - A)^-T. Noise of a modality may be correlated, diag(d) + F F^T.

    Args:
        component: its sites.
        latents: which of them are latents, in order; the others are modalities.
    """
    sites = component.sites
    modalities = [name for name in sites if name not in latents]
    prior = [sites[name] for name in latents]
    mean = torch.cat([site.intercept for site in prior]).double()
    latent_dim = len(mean)
    covariance = torch.block_diag(*(_covariance(site) for site in prior)).double()
    slope = torch.cat([site.slope for site in prior], dim=1).double()
    if bool((slope != 0).any()):
        system = torch.eye(latent_dim, dtype=slope.dtype, device=slope.device) - slope.mT
        mean = torch.linalg.solve(system, mean)
        covariance = torch.linalg.solve(system, torch.linalg.solve(system, covariance).mT)
        covariance = (covariance + covariance.mT) / 2
    noise = {name: _split_noise(sites[name]) for name in modalities}
    factors = {name: factor for name, (_, factor) in noise.items()}
    correlated = any(factor.shape[1] for factor in factors.values())
    return LinearGaussian(
        # as strided, products with the data take a fifth longer
        {name: sites[name].slope.mT.double().contiguous() for name in modalities},
        {name: sites[name].intercept.double() for name in modalities},
        {name: diagonal + factor.square().sum(1) for name, (diagonal, factor) in noise.items()}
        if correlated
        else {name: diagonal for name, (diagonal, _) in noise.items()},
        mean,
        covariance,
        factors if correlated else None,
    )


def _covariance(site: AffineSite) -> Tensor:
    diagonal = torch.diag(site.diagonal)
    return diagonal if site.factor is None else diagonal + site.factor @ site.factor.mT


def _split_noise(site: AffineSite) -> tuple[Tensor, Tensor]:
    """Noise as a positive diagonal (F,) and a factor (F, R), R = 0 where it is diagonal."""
    diagonal = site.diagonal.double()
    if site.factor is None:
        return diagonal, diagonal.new_zeros(len(diagonal), 0)
    factor = site.factor.double()
    factor = factor[:, (factor != 0).any(dim=0)]
    if bool((diagonal > 0).all()):
        return diagonal, factor
    covariance = torch.diag(diagonal) + factor @ factor.mT
    # half of the least eigenvalue on the diagonal, the rest correlated: the split is free, the sum is what counts
    floor = 0.5 * torch.linalg.eigvalsh(covariance)[0]
    identity = torch.eye(len(covariance), dtype=covariance.dtype, device=covariance.device)
    return floor.expand(len(covariance)), torch.linalg.cholesky(covariance - floor * identity)


def predicted_site(
    components: Sequence[Component], place: Tensor, name: str, latents: Tensor, origin: Tensor | None = None
) -> Gaussian:
    """One site of n instances at given latents, as some components say that it is.

    Args:
        components: G of them.
        place: (n,) int64, which of them each instance has.
        name: the site.
        latents: (n, K).
        origin: its means at z = 0, (n, F), in place of the components' intercepts.
    """
    sites = [component.sites[name] for component in components]
    latents = latents.to(sites[0].slope.dtype)
    if len(sites) == 1:
        mean = latents @ sites[0].slope
    else:
        mean = latents.new_empty(len(latents), sites[0].slope.shape[-1])
        members = torch.argsort(place).split(torch.bincount(place, minlength=len(sites)).tolist())
        for site, rows in zip(sites, members, strict=True):
            mean[rows] = latents[rows] @ site.slope
    rank = max(0 if site.factor is None else site.factor.shape[-1] for site in sites)
    factor = mean.new_zeros(len(sites), mean.shape[-1], rank)
    for g, site in enumerate(sites):
        if site.factor is not None:
            factor[g, :, : site.factor.shape[-1]] = site.factor
    freedom = [site.degrees_of_freedom for site in sites if site.degrees_of_freedom is not None]
    return Gaussian(
        mean + (torch.stack([site.intercept for site in sites])[place] if origin is None else origin),
        torch.stack([site.diagonal for site in sites])[place],
        factor[place] if rank else None,
        torch.stack(freedom)[place] if freedom else None,
    )
