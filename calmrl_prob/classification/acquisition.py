"""Gains about the class of an instance by a modality that it lacks.

Of an instance with modalities O, y is what the directions' posterior mean will be once modality m is there too. Under
the fitted model, with T_O the posterior covariance of u = U^T z and D = T_O - T_Om,

    (u, y) | x_O ~ N of means both E[u | x_O], Cov[u] = T_O, Var[y] = Cov[u, y] = D
    y | u ~ N(E[u | x_O] + D T_O^-1 (u - E[u | x_O]), D - D T_O^-1 D)

and u | c, x_O ~ N(P^-1 h, P^-1) (``labelled.py``). y is sufficient for the class, so that draws of c, u and y give

    I(c; x^m | x_O) = H(c | x_O) - E[H(c | x_O, x^m)]

all in R dimensions, however wide the modality is. Classes are drawn by systematic sampling: S draws of an instance have
the shares p(c | x_O) to 1 / S.

Source: Lindley, On a measure of the information provided by an experiment (1956).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from calmrl_prob.linear_gaussian import Posterior
from calmrl_prob.linear_gaussian.mixture.expectation import LatentComponents
from calmrl_prob.linear_gaussian.mixture.labelled import DirectionEvidence, direction_covariance
from calmrl_prob.linear_gaussian.posterior import factorize

#: What keeps the variance of y given u from rounding below 0.
_LEAST = 1e-12
#: log p(c | x), (n, C), of log p(x | c) up to a constant of each of n instances and their observed mask (n, M).
Stated = Callable[[Tensor, Tensor], Tensor]


def class_gain(
    given: Posterior,
    directions: Tensor,
    classes: LatentComponents,
    observed_mask: Tensor,
    modality: int,
    stated: Stated,
    num_draws: int,
    generator: torch.Generator,
) -> tuple[Tensor, Tensor]:
    """The expected drop of the entropy of the class by a modality, nats.

    Args:
        given: the posterior under the fitted model, of prior N(0, I) and diagonal noise.
        directions: U, (K, R).
        classes: Gaussians along U.
        observed_mask: (N, M), True = PRESENT.
        modality: number of m.
        stated: what is said of the class.
        num_draws: S.
        generator: of draws.

    Returns:
        (N,), NaN where the modality is there, and the standard error of each.
    """
    out = given.mean.new_full((2, len(given.mean)), torch.nan)
    before = DirectionEvidence.of(given, directions)
    now = stated(before.log_ratios(classes), observed_mask)
    entropy, shares = _entropy(now), now.exp()
    lg, name = given.linear_gaussian, list(given.linear_gaussian.loadings)[modality]
    told = lg.loadings[name].mT @ (lg.loadings[name] / lg.noise_variance[name].expand(len(lg.loadings[name]))[:, None])
    for pattern, rows in before.by_pattern(num_draws * classes.means.numel()):
        rows = rows[~observed_mask[rows, modality]]
        if not len(rows):
            continue
        precision = given.precision_of(slice(pattern, pattern + 1))
        both = torch.cholesky_inverse(factorize(torch.cat([precision, precision + told])))
        old, new = direction_covariance(both, directions)
        after = _acquired(before, classes, rows, shares[rows], (old, new), num_draws, generator)
        there = observed_mask[rows].clone()
        there[:, modality] = True
        left = _entropy(stated(after.log_ratios(classes), there.repeat_interleave(num_draws, 0)))
        drawn = entropy[rows, None] - left.view(len(rows), num_draws)
        out[0, rows], out[1, rows] = drawn.mean(1), drawn.std(1) / num_draws**0.5
    return out[0], out[1]


def _acquired(
    before: DirectionEvidence,
    classes: LatentComponents,
    rows: Tensor,
    shares: Tensor,
    covariances: tuple[Tensor, Tensor],
    num_draws: int,
    generator: torch.Generator,
) -> DirectionEvidence:
    """Evidence of instances of one pattern once the modality is there, S draws of each, (n S,)."""
    old, new = covariances
    natural, drop = before.natural[rows], old - new
    width, gain = len(old), torch.linalg.solve(old, drop).mT  # D T_O^-1
    centre = natural @ old
    start = torch.rand(len(rows), 1, generator=generator, dtype=shares.dtype).to(shares)
    places = (torch.arange(num_draws, device=shares.device) + start) / num_draws
    drawn = torch.searchsorted(shares.cumsum(1), places).clamp(max=shares.shape[1] - 1)  # (n, S)
    inner = factorize(classes.precision + before.precision[before.pattern_index[rows[0]]])  # (C, R, R)
    spread = drop - gain @ drop + _LEAST * torch.eye(width, dtype=drop.dtype, device=drop.device)
    outer = factorize((spread + spread.mT) / 2)
    noise = torch.randn(2, len(rows), num_draws, width, generator=generator, dtype=shares.dtype).to(shares)
    latent = torch.empty_like(noise[0])
    for c in drawn.unique().tolist():
        row, draw = (drawn == c).nonzero(as_tuple=True)
        mean = torch.cholesky_solve((natural[row] + classes.natural[c]).mT, inner[c]).mT
        latent[row, draw] = mean + torch.linalg.solve_triangular(inner[c].mT, noise[0, row, draw].mT, upper=True).mT
    seen = centre[:, None] + (latent - centre[:, None]) @ gain.mT + noise[1] @ outer.mT
    index = torch.zeros(len(rows) * num_draws, dtype=torch.int64, device=new.device)
    return DirectionEvidence.at(seen.flatten(0, 1), new[None], index)


def _entropy(log_probabilities: Tensor) -> Tensor:
    return -(log_probabilities.exp() * log_probabilities.clamp(min=-700.0)).sum(1)
