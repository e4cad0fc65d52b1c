"""Weighted draws of the latents of a Gaussian scale mixture whose instances have several scales.

Where factors have one scale for all features, scales are drawn from Gamma distributions near their posterior, with the
latents integrated out given each draw. Where every feature has its own, latents are drawn, from a multivariate t near
their posterior, with all scales integrated out. Either way the draws carry their importance ratio, whose mean is the
evidence without bias.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from calmrl_prob.linear_gaussian.blocks import FeatureBlocks, ObservedBlocks
from calmrl_prob.linear_gaussian.scale_mixture.factors import Whole
from calmrl_prob.linear_gaussian.scale_mixture.model import Chunk, ScaleMixture
from calmrl_prob.linear_gaussian.scale_mixture.shared_scale import sample_gamma
from calmrl_prob.linear_gaussian.scale_mixture.updates import Variational, update

#: Degrees of freedom, and scale relative to the posterior's, of the multivariate t that latents are drawn from.
_PROPOSALS = ((10.0, 1.1), (3.0, 2.0))
#: The scale from which updates start that suspect a factor of being the outlier.
_SUSPECTED = 0.01
#: What the shapes of Gamma proposals are divided by: their variances are these times that at the mode.
_WIDTHS = (1.0, 3.0)


def scale_draws(
    model: ScaleMixture,
    blocks: ObservedBlocks | FeatureBlocks,
    num_draws: int,
    generator: torch.Generator | None = None,
) -> tuple[Tensor, Tensor]:
    """Weighted draws of the latents of any scale mixture.

    Args:
        model: the model.
        blocks: N instances; modalities as in the model.
        num_draws: S.
        generator: source of randomness; torch's global one if not given.

    Returns:
        Draws (S, N, K), and the log of their importance ratios (S, N): the mean of the ratios estimates p(x_n).
    """
    shape = (num_draws, blocks.num_instances)
    latents = model.linear_gaussian.prior_mean.new_empty(*shape, model.linear_gaussian.latent_dim)
    log_ratio = latents.new_empty(shape)
    for chunk in model.chunks(blocks):
        if all(isinstance(factor, Whole) or factor.tied for factor in chunk.factors):
            draw: Callable[[], tuple[Tensor, Tensor]] = partial(_draw_scales, chunk, _modes(chunk), generator)
        else:
            draw = partial(_draw_latents, chunk, update(chunk), generator)
        for s in range(num_draws):
            latents[s, chunk.rows], log_ratio[s, chunk.rows] = draw()
    return latents, log_ratio


@dataclass(frozen=True)
class _Proposal:
    """Gamma distributions near a mode of p(u | x): shape and mean of each factor's scale, (n,)."""

    shape: list[Tensor]
    mean: list[Tensor]

    @classmethod
    def at(cls, chunk: Chunk, found: Variational, width: float) -> _Proposal:
        """From q(u) of coordinate updates, which takes z for better known than it is.

        Less the degrees of freedom that z takes up, u tr(A V), it has the curvature that log p(x, u) has about its mode
        when z is integrated out.
        """
        shape = []
        for factor, scale in zip(chunk.factors, found.scales, strict=True):
            assert factor.freedom is not None
            taken = scale * factor.spread(found.covariance)
            shape.append(torch.maximum((factor.freedom + factor.count - taken) / 2, factor.freedom / 2) / width)
        return cls(shape, found.scales)

    def sample(self, generator: torch.Generator | None) -> list[Tensor]:
        return [mean * sample_gamma(2 * a, generator) for a, mean in zip(self.shape, self.mean, strict=True)]

    def log_density(self, scales: Sequence[Tensor]) -> Tensor:
        parts = []
        for shape, mean, u in zip(self.shape, self.mean, scales, strict=True):
            rate = shape / mean
            parts.append(shape * rate.log() - torch.lgamma(shape) + (shape - 1) * u.log() - rate * u)
        return torch.stack(parts).sum(0)


def _modes(chunk: Chunk) -> list[_Proposal]:
    """Modes of p(u | x): coordinate updates from scales of 1, and from each scale in turn near 0.

    Modalities that contradict each other leave open which of them is the outlier, and updates from one start find one
    answer alone. Each mode has a narrow and a wide proposal, so that no ratio is large in the tails.
    """
    starts: list[list[Tensor] | None] = [None]
    if len(chunk.factors) > 1:
        for f in range(len(chunk.factors)):
            scales = [torch.ones_like(factor.count) for factor in chunk.factors]
            scales[f] = scales[f] * _SUSPECTED
            starts.append(scales)
    found = [update(chunk, start) for start in starts]
    return [_Proposal.at(chunk, mode, width) for mode in found for width in _WIDTHS]


def _draw_scales(
    chunk: Chunk, proposals: Sequence[_Proposal], generator: torch.Generator | None
) -> tuple[Tensor, Tensor]:
    """Scales from one of the proposals, latents given them; the ratio is p(x, u) / q(u), q all proposals together."""
    place = int(torch.randint(len(proposals), (), generator=generator, device=chunk.constant.device))
    scales = proposals[place].sample(generator)
    log_proposal = torch.stack([proposal.log_density(scales) for proposal in proposals]).logsumexp(0)
    log_ratio = math.log(len(proposals)) - log_proposal
    for factor, u in zip(chunk.factors, scales, strict=True):
        assert factor.freedom is not None
        prior = factor.freedom / 2
        log_ratio = log_ratio + prior * prior.log() - torch.lgamma(prior) + (prior - 1) * u.log() - prior * u
    given = chunk.given(scales)
    noise = torch.randn(given.mean.shape, generator=generator, dtype=given.mean.dtype, device=given.mean.device)
    deviation = torch.linalg.solve_triangular(given.factor.mT, noise[:, :, None], upper=True).squeeze(2)
    return given.mean + deviation, log_ratio + given.evidence + chunk.half_counts([u.log() for u in scales])


def _draw_latents(chunk: Chunk, found: Variational, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
    """Latents from two multivariate t, a narrow and a wide one; the ratio is p(x, z) / q(z), all scales integrated out.

    q(z) of the coordinate updates is too narrow where an instance has little to say: the wide one is there for that,
    and where it is not needed costs half of the draws.
    """
    mean, factor = found.given.mean, found.given.factor
    latent_dim, wide = mean.shape[1], bool(torch.rand((), generator=generator, device=mean.device) < 0.5)
    freedom, width = _PROPOSALS[wide]
    noise = torch.randn(mean.shape, generator=generator, dtype=mean.dtype, device=mean.device)
    noise = noise * width * sample_gamma(mean.new_full((len(mean),), freedom), generator).rsqrt()[:, None]
    latents = mean + torch.linalg.solve_triangular(factor.mT, noise[:, :, None], upper=True).squeeze(2)
    distance, densities = noise.square().sum(1), []
    for nu, size in _PROPOSALS:
        constant = math.lgamma((nu + latent_dim) / 2) - math.lgamma(nu / 2)
        constant -= latent_dim / 2 * math.log(nu * math.pi * size**2)
        densities.append(constant - (nu + latent_dim) / 2 * torch.log1p(distance / (nu * size**2)))
    log_proposal = torch.stack(densities).logsumexp(0) - math.log(len(_PROPOSALS))
    log_proposal = log_proposal + factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)
    precision, natural, squares = chunk.base
    quadratic = ((precision @ latents[:, :, None]).squeeze(2) * latents).sum(1)
    log_joint = chunk.constant - 0.5 * (squares - 2 * (natural * latents).sum(1) + quadratic)
    log_joint = log_joint - latent_dim / 2 * math.log(2 * math.pi)
    for part in chunk.factors:
        assert part.freedom is not None
        half, count = part.freedom / 2, part.count
        terms = torch.lgamma(half + count / 2) - torch.lgamma(half) + half * half.log()
        terms = terms - (half + count / 2) * (half + part.distance(latents).clamp(min=0) / 2).log()
        log_joint = log_joint + terms.reshape(chunk.size, -1).sum(1)
    return latents, log_joint - log_proposal
