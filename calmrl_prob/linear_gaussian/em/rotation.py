"""The rotation of the latents that a prior which switches them off by modality likes best.

    maximise  - sum_mk weight_m log(b + (R^T G_m R)_kk / 2)   over rotations R,   G_m = W^mT W^m

The evidence is the same for all R, so EM, which follows the evidence, would crawl here. Latents are turned two at a
time by their best angle, as in Jacobi's scheme: in each round disjoint pairs, those with the largest gains first. It
works on the M Gram matrices alone, at a cost free of N and D.

Source: Virtanen, Klami, Khan & Kaski, Bayesian group factor analysis (2012), optimise the rotation explicitly too.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

#: Angles tried between two latents: first over a quarter turn, then three times more finely about the best.
_ANGLES = (33, 9, 9, 9)
#: Least gain of a turn, as a share of the log prior; below it there is rounding.
_LEAST_GAIN = 1e-8


def best_rotation(gram: Tensor, weights: Tensor, b: float, most_rounds: int) -> Tensor | None:
    """Turn pairs of latents until no turn gains anything, or for some rounds.

    Args:
        gram: G, shape (M, K, K).
        weights: shape (M,).
        b: keeps the logarithm finite where a latent is switched off.
        most_rounds: rounds at most.

    Returns:
        R, shape (K, K); None if nothing is gained by turning.

    Example:
        >>> import torch
        >>> loadings = torch.eye(2, dtype=torch.float64)  # one latent for each of two modalities of one feature ...
        >>> mixed = loadings @ torch.tensor([[0.8, -0.6], [0.6, 0.8]]).double()  # ... hidden by a rotation
        >>> gram = torch.stack([row[:, None] * row for row in mixed])
        >>> (mixed @ best_rotation(gram, torch.ones(2).double(), 1e-6, most_rounds=10)).abs().round(decimals=2)
        tensor([[1., 0.],
                [0., 1.]], dtype=torch.float64)
    """
    latent_dim = gram.shape[-1]
    first, second = torch.triu_indices(latent_dim, latent_dim, offset=1, device=gram.device)
    identity = torch.eye(latent_dim, dtype=gram.dtype, device=gram.device)
    total = None
    least = _LEAST_GAIN * float((weights[:, None] * (b + gram.diagonal(dim1=1, dim2=2) / 2).log()).sum().abs())
    for _ in range(most_rounds if latent_dim > 1 else 0):
        angle, gain = _best_angle(gram[:, first, first], gram[:, second, second], gram[:, first, second], weights, b)
        chosen = _disjoint(first.tolist(), second.tolist(), gain.tolist(), least)
        if not chosen:
            break
        one, other, angle = first[chosen], second[chosen], angle[chosen]
        turn = identity.clone()
        turn[one, one] = turn[other, other] = angle.cos()
        turn[other, one], turn[one, other] = angle.sin(), -angle.sin()
        gram = turn.mT @ gram @ turn
        total = turn if total is None else total @ turn
    return total


def _disjoint(first: list[int], second: list[int], gain: list[float], least: float) -> list[int]:
    """Pairs that share no latent, the largest gains first."""
    taken: set[int] = set()
    chosen = []
    for pair in sorted(range(len(gain)), key=lambda pair: -gain[pair]):
        if gain[pair] <= least:
            break
        if first[pair] not in taken and second[pair] not in taken:
            taken |= {first[pair], second[pair]}
            chosen.append(pair)
    return chosen


def _best_angle(one: Tensor, other: Tensor, between: Tensor, weights: Tensor, b: float) -> tuple[Tensor, Tensor]:
    """For pairs with Gram entries (M, pairs) the best angle in -pi/4 .. pi/4 and its gain, each (pairs,)."""
    middle, half = (one + other) / 2, (one - other) / 2
    floor, weight = 2 * b, weights[:, None]

    def value(angle: Tensor) -> Tensor:
        # the strengths of the turned pair are middle +/- swing; rounding may take the smaller below 0
        swing = (2 * angle).cos()[:, None] * half + (2 * angle).sin()[:, None] * between
        product = (middle + swing).clamp(min=0).add_(floor).mul_((middle - swing).clamp(min=0).add_(floor))
        return -(weight * product.log_()).sum(1)

    centre = one.new_zeros(one.shape[1])
    reach = math.pi / 4
    for count in _ANGLES:
        grid = centre + torch.linspace(-reach, reach, count, dtype=one.dtype, device=one.device)[:, None]
        values = value(grid)
        best = values.argmax(0, keepdim=True)
        centre = grid.gather(0, best).squeeze(0)
        reach = 2 * reach / (count - 1)
    still = value(one.new_zeros(1, one.shape[1]))
    return centre, (values.gather(0, best) - still).squeeze(0)
