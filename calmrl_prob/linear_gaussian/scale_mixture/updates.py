"""Coordinate updates for Gaussian scale mixtures: q(z_n) Gaussian, q(u_nf) Gamma, each in closed form given the other.

    q(z_n)  = N(P_n(E u)^-1 h_n(E u), P_n(E u)^-1)
    q(u_nf) = Gamma(a, b),    a = (nu_f + D_f) / 2,    b = (nu_f + E |x - W z - mu|^2_Psi) / 2

with the expectation over q(z): the squared distance at its mean plus tr(A_f V_n). Each update raises the evidence lower
bound, which at q(z) best given q(u) is

    L_n = log p(x_n | E u) - 1/2 sum_f D_f (log E u_nf - E log u_nf) - sum_f KL(Gamma(a, b) || Gamma(nu/2, nu/2)),

p(x_n | u) as in ``scale_mixture.py``. Source: Tipping & Lawrence, Variational inference for Student-t models: robust
Bayesian interpolation and generalised component analysis (2005).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from calmrl_prob.linear_gaussian.scale_mixture.model import Chunk, Given

#: Sweeps at most, and the relative change of a scale at which they stop.
_SWEEPS, _TOLERANCE = 100, 1e-8


@dataclass(frozen=True)
class Variational:
    """q of a chunk of n instances.

    Attributes:
        shape, rate: a and b of each factor's scales.
        given: q(z), and the evidence at the expected scales.
        covariance: of q(z), (n, K, K).
        bound: L_n, (n,), nats.
    """

    shape: list[Tensor]
    rate: list[Tensor]
    given: Given
    covariance: Tensor
    bound: Tensor

    @property
    def scales(self) -> list[Tensor]:
        """E u of each factor."""
        return [a / b for a, b in zip(self.shape, self.rate, strict=True)]


def update(chunk: Chunk, start: Sequence[Tensor] | None = None, sweeps: int = _SWEEPS) -> Variational:
    """Coordinate updates until the scales stand still.

    Args:
        chunk: the instances.
        start: expected scales to start from; 1 by default.
        sweeps: how many at most.
    """
    freedoms = [_freedom(factor.freedom) for factor in chunk.factors]
    shape = [(nu + factor.count) / 2 for nu, factor in zip(freedoms, chunk.factors, strict=True)]
    scales = [torch.ones_like(a) for a in shape] if start is None else list(start)
    rate = [a / u for a, u in zip(shape, scales, strict=True)]
    for _ in range(sweeps):
        given = chunk.given(scales)
        covariance = given.covariance
        rate = [
            (nu + factor.distance(given.mean).clamp(min=0) + factor.spread(covariance)) / 2
            for nu, factor in zip(freedoms, chunk.factors, strict=True)
        ]
        before, scales = scales, [a / b for a, b in zip(shape, rate, strict=True)]
        if all(bool(((u / v - 1).abs() < _TOLERANCE).all()) for u, v in zip(scales, before, strict=True)):
            break
    given = chunk.given(scales)
    expected_log = [torch.digamma(a) - b.log() for a, b in zip(shape, rate, strict=True)]
    bound = given.evidence + chunk.half_counts(expected_log)
    for nu, a, b in zip(freedoms, shape, rate, strict=True):
        bound = bound - gamma_divergence(a, b, nu / 2).reshape(chunk.size, -1).sum(1)
    return Variational(shape, rate, given, given.covariance, bound)


def gamma_divergence(shape: Tensor, rate: Tensor, prior: Tensor) -> Tensor:
    """KL(Gamma(a, b) || Gamma(c, c)), elementwise, nats.

    Example:
        >>> import torch
        >>> from torch.distributions import Gamma, kl_divergence
        >>> a, b, c = torch.tensor(3.0), torch.tensor(2.0), torch.tensor(1.5)
        >>> round(float(gamma_divergence(a, b, c) - kl_divergence(Gamma(a, b), Gamma(c, c))), 6)
        0.0
    """
    return (
        (shape - prior) * torch.digamma(shape)
        - torch.lgamma(shape)
        + torch.lgamma(prior)
        + prior * (rate.log() - prior.log())
        + shape * (prior - rate) / rate
    )


def _freedom(freedom: Tensor | None) -> Tensor:
    assert freedom is not None  # the factors of a chunk are those that have one
    return freedom
