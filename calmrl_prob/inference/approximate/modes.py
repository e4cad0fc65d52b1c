"""Normals at the modes of the latents, by Newton's method for all instances at once: where guides of instances start.

    z_n <- z_n + A_n^-1 g_n,   g_n = d/dz log p(x_n, z_n),   A_n = -d2/dz2 log p(x_n, z_n),   q_n = N(z_n, A_n^-1)

Where the density is not curved downwards, A_n has the absolute values of its curvatures, none below a share of the
prior's, so that every step leads uphill.

Source: Tierney & Kadane, Accurate Approximations for Posterior Moments and Marginal Densities (1986), for the normal at
the mode; Dauphin et al., Identifying and attacking the saddle point problem (2014), for the absolute values.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.distributions import MultivariateNormal

from calmrl_prob._support.randomness import seeded
from calmrl_prob.data import MultimodalData
from calmrl_prob.errors import ModelError
from calmrl_prob.inference.approximate.guides import PerInstanceGuide
from calmrl_prob.linear_gaussian import LinearGaussian
from calmrl_prob.posteriors.instances import InstanceModel

#: Steps, and times that one is halved where it does not lead uphill.
_STEPS, _HALVINGS = 20, 8
#: Gain still to come, in nats for each instance, that counts as none: a normal start is all that is wanted.
_SETTLED = 1e-3
#: The least curvature, as a share of the prior's.
_LEAST_CURVATURE = 0.1
#: Draws of each instance by which two normals are compared, and of how many the second must be better.
_DRAWS, _MOST_DRAWS = 8, 7
#: Instances at once, and the most latents: each needs a pass of its own for its row of second derivatives.
_ROWS, _MOST_LATENTS = 4096, 32


@torch.no_grad()
def bring_to_modes(
    guide: PerInstanceGuide, model: InstanceModel, data: MultimodalData, prior: LinearGaussian, seed: int
) -> float:
    """Replace a guide's normals by those at the modes, where nearly every draw says that the lower bound gains.

    Nothing happens where there are more than 32 latents.

    Args:
        guide: of the N instances, changed in place.
        model: the model as densities of instances.
        data: N instances.
        prior: the model nearest to it, whose prior is about its own. Modes are looked for from the guide's means, or
            from the prior's where that is more probable.
        seed: of the draws by which the two are compared.

    Returns:
        The gain over all instances, nats.
    """
    if prior.latent_dim > _MOST_LATENTS:
        return 0.0
    total = 0.0
    for rows in torch.arange(len(data), device=data.device).split(_ROWS):
        part = data if len(rows) == len(data) else data.subset(rows.cpu())
        q = guide(rows)
        start = _likelier(model, part, q.mean, prior.prior_mean.expand_as(q.mean))
        found = normals_at_modes(model, part, start, prior.prior_covariance)
        if found is None:
            continue
        found = guide.nearest(found)
        gain = _bounds(model, part, found, seed) - _bounds(model, part, q, seed)
        # by their number: of a bad normal some draws are so improbable that a mean is all noise
        better = (gain.mean(0) > 0) & ((gain > 0).sum(0) >= _MOST_DRAWS)
        total += float(gain.mean(0)[better].sum())
        guide.place(rows[better], found.mean[better], found.scale_tril[better])
    return total


def _likelier(model: InstanceModel, data: MultimodalData, one: Tensor, other: Tensor) -> Tensor:
    """Of two places (N, K) for each instance the one of higher density."""
    density = []
    for at in (one, other):
        try:
            density.append(model.log_joint(data, at)[0])
        except ModelError:
            density.append(at.new_full((len(at),), -math.inf))
    return torch.where((density[0] >= density[1])[:, None], one, other)


def _bounds(model: InstanceModel, data: MultimodalData, q: MultivariateNormal, seed: int) -> Tensor:
    """The lower bound of each instance by each of some draws, (S, N); minus infinity where one has no density."""
    with seeded(seed, data.device):
        draws = q.rsample((_DRAWS,))
    try:
        density = model.log_joint_of_draws(data, draws)[0]
    except ModelError:
        density = draws.new_full(draws.shape[:2], -math.inf)
    bounds: Tensor = density - q.log_prob(draws)
    return bounds


@torch.enable_grad()
def normals_at_modes(
    model: InstanceModel, data: MultimodalData, start: Tensor, prior_covariance: Tensor
) -> MultivariateNormal | None:
    """The normal at the mode of each instance's latents, with the curvature there.

    Args:
        model: the model as densities of instances.
        data: N instances.
        start: (N, K), where to begin.
        prior_covariance: (K, K), of the latents.

    Returns:
        Batch shape (N,); None where the model's density cannot be differentiated twice, or is not finite on the way.
        Mode and curvature of an instance may be unsuited (flat, or far from the mass), so compare before use.

    Example:
        >>> from calmrl_prob.linear_gaussian import posterior
        >>> from calmrl_prob.model import SharedLatentModel
        >>> data = MultimodalData({"x": torch.ones(2, 3, dtype=torch.float64)})
        >>> model = InstanceModel(SharedLatentModel({"x": 3}, latent_dim=1, seed=1), data)
        >>> found = normals_at_modes(model, data, torch.zeros(2, 1).double(), torch.eye(1).double())
        >>> exact = posterior(model.bound.model.linear_gaussian(), data.blocks)
        >>> bool((found.mean - exact.mean).abs().max() < 1e-6)
        True
    """
    root = torch.linalg.cholesky(prior_covariance)
    at = start.detach()
    try:
        for step in range(_STEPS + 1):
            value, gradient, curvature = _derivatives(model, data, at)
            levels, vectors = torch.linalg.eigh(root.mT @ curvature @ root)
            levels = levels.abs().clamp(min=_LEAST_CURVATURE)
            axes = root @ vectors  # A^-1 = axes diag(1 / levels) axes^T
            slope = (axes.mT @ gradient[..., None]).squeeze(-1)
            if step == _STEPS or bool((0.5 * (slope.square() / levels).sum(1) <= _SETTLED).all()):
                break
            at = _uphill(model, data, at, value, (axes @ (slope / levels)[..., None]).squeeze(-1))
        covariance = (axes / levels[:, None]) @ axes.mT
        factor, failed = torch.linalg.cholesky_ex(covariance)
    except (ModelError, RuntimeError):  # kinks without a second derivative, or densities that are not finite
        return None
    return None if bool(failed.any()) else MultivariateNormal(at, scale_tril=factor, validate_args=False)


def _derivatives(model: InstanceModel, data: MultimodalData, at: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """log p(x_n, z_n) (N,), its gradient (N, K) and its curvature, minus the second derivative, (N, K, K)."""
    at = at.clone().requires_grad_()
    value = model.log_joint(data, at)[0]
    # instances do not depend on each other's latents, so that sums have the derivatives of each
    (gradient,) = torch.autograd.grad(value.sum(), at, create_graph=True)
    rows = [torch.autograd.grad(column.sum(), at, retain_graph=True)[0] for column in gradient.unbind(1)]
    curvature = -torch.stack(rows, dim=1)
    return value.detach(), gradient.detach(), (curvature + curvature.mT) / 2


@torch.no_grad()
def _uphill(model: InstanceModel, data: MultimodalData, at: Tensor, value: Tensor, step: Tensor) -> Tensor:
    """The places after a step, halved for the instances that it would lead downhill, until it leads nowhere."""
    share = value.new_ones(len(at), 1)
    for _ in range(_HALVINGS):
        try:
            worse = ~(model.log_joint(data, at + share * step)[0] >= value)
        except ModelError:  # a density that is not finite somewhere: which instance it is, is not said
            worse = torch.ones_like(value, dtype=torch.bool)
        if not bool(worse.any()):
            return at + share * step
        share = torch.where(worse[:, None], 0.5 * share, share)
    return at + torch.where(worse[:, None], 0.0, share) * step
