"""Integrating out the one scale of each instance, exactly but for a quadrature error far below rounding of the data.

Where a single factor of the model is Student-t, with one scale u for each instance, let A be its precision and B that
of all else (``scale_mixture.py``). One eigendecomposition for each missing pattern makes every u cheap: with
A + B = L L^T, L^-1 A L^-T = Q diag(lambda) Q^T, T = L^-T Q and y_A, y_B the natural means A- and B-part in that basis,

    P(u) = T^-T diag(w) T^-1,   w_k = 1 + (u - 1) lambda_k
    log p(x_n | u) = D/2 log u - 1/2 (s_B + u s_A) + 1/2 sum_k ((y_B + u y_A)_k^2 / w_k - log w_k) + const
    z_n | x_n, u ~ N(T (y_B + u y_A) / w, T diag(1 / w) T^T)

a few operations on K numbers. The integral over t = log u is taken about its mode, in units of the curvature there, by
the trapezoidal rule after t = mode + sd sinh(v): the integrand and all its derivatives vanish at both ends, so that the
error falls geometrically with the number of nodes.

Sources: Naylor & Smith, Applications of a method for the efficient computation of posterior distributions (1982), for
quadrature about the mode; Takahasi & Mori, Double exponential formulas for numerical integration (1974).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from calmrl_prob.linear_gaussian.posterior import factorize
from calmrl_prob.linear_gaussian.scale_mixture.factors import Whole
from calmrl_prob.linear_gaussian.scale_mixture.model import Chunk

#: Nodes, and how far they reach: sinh(4) = 27 standard deviations to each side.
NUM_NODES, _REACH = 41, 4.0
#: Newton steps to the mode at most, the longest of them, and the shortest that is worth another.
_STEPS, _LONGEST, _SHORTEST = 100, 1.0, 1e-6


@dataclass(frozen=True)
class Quadrature:
    """The posterior of a chunk of n instances, at J scales for each.

    Attributes:
        basis: T, (p, K, K), for each missing pattern; pattern: (n,) int64, the pattern of each instance.
        eigenvalues: lambda, (p, K), from 0 to 1.
        fixed, scaled: y_B and y_A, (n, K).
        log_scale: t, (J, n).
        log_weight: log posterior probability of each node, (J, n), normalised over nodes.
        log_marginal: log p(x_n), (n,), nats.
    """

    basis: Tensor
    pattern: Tensor
    eigenvalues: Tensor
    fixed: Tensor
    scaled: Tensor
    log_scale: Tensor
    log_weight: Tensor
    log_marginal: Tensor

    def node(self, log_scale: Tensor) -> tuple[Tensor, Tensor]:
        """Mean (n, K) and variance (n, K) in the basis, at one scale for each instance, (n,)."""
        return _turned(self, log_scale)

    @property
    def weight(self) -> Tensor:
        """(J, n), summing to 1 over nodes."""
        return self.log_weight.exp()


def integrate(chunk: Chunk, patterns: Tensor, num_nodes: int = NUM_NODES) -> Quadrature:
    """Integrate out the scale of each instance.

    Args:
        chunk: n instances; their one factor with scales has one for each instance.
        patterns: (n,) int64, instances of one pattern have the same precisions.
        num_nodes: J.
    """
    (factor,) = chunk.factors
    assert isinstance(factor, Whole)
    assert factor.freedom is not None
    nu = factor.freedom
    base_precision, base_natural, base_squares = chunk.base
    distinct, pattern = torch.unique(patterns, return_inverse=True)
    first = torch.zeros_like(distinct).scatter_reduce(
        0, pattern, torch.arange(len(pattern), device=pattern.device), "amin", include_self=False
    )
    scaled_precision = (factor.count[first] > 0)[:, None, None] * factor.gram
    root = factorize(base_precision[first] + scaled_precision)
    half = torch.linalg.solve_triangular(root, scaled_precision, upper=False)
    whitened = torch.linalg.solve_triangular(root, half.mT, upper=False)
    eigenvalues, vectors = torch.linalg.eigh((whitened + whitened.mT) / 2)
    basis = torch.linalg.solve_triangular(root.mT, vectors, upper=True)
    fixed, scaled = _turn(base_natural, basis, pattern), _turn(factor.natural, basis, pattern)
    logdet = root.diagonal(dim1=-2, dim2=-1).log().sum(-1)[pattern]
    part = Quadrature(basis, pattern, eigenvalues.clamp(0, 1), fixed, scaled, fixed[:, 0], fixed[:, 0], fixed[:, 0])
    mode, width = _mode(part, factor.squares + nu, (factor.count + nu) / 2)
    v = torch.linspace(-_REACH, _REACH, num_nodes, dtype=mode.dtype, device=mode.device)[:, None]
    log_scale = mode + width * v.sinh()
    log_volume = (2 * _REACH / (num_nodes - 1) * width * v.cosh()).log()
    terms = torch.stack([_log_integrand(part, t, factor.squares + nu, (factor.count + nu) / 2) for t in log_scale])
    terms = terms + log_volume
    total = terms.logsumexp(0)
    log_prior = nu / 2 * (nu / 2).log() - torch.lgamma(nu / 2)
    log_marginal = chunk.constant - 0.5 * base_squares - logdet + log_prior + total
    return Quadrature(basis, pattern, part.eigenvalues, fixed, scaled, log_scale, terms - total, log_marginal)


def _turn(natural: Tensor, basis: Tensor, pattern: Tensor) -> Tensor:
    """T^T h of each instance, pattern by pattern."""
    out = torch.empty_like(natural)
    for p in range(len(basis)):
        rows = (pattern == p).nonzero().squeeze(1)
        out[rows] = natural[rows] @ basis[p]
    return out


def _turned(part: Quadrature, log_scale: Tensor) -> tuple[Tensor, Tensor]:
    scale = log_scale.exp()[:, None]
    variance = 1 / (1 + (scale - 1) * part.eigenvalues[part.pattern])
    return (part.fixed + scale * part.scaled) * variance, variance


def _log_integrand(part: Quadrature, log_scale: Tensor, squares: Tensor, half_count: Tensor) -> Tensor:
    """log of p(x | u) p(u) u at u = exp(t), up to what does not depend on t; (n,)."""
    mean, variance = _turned(part, log_scale)
    inner = (mean.square() / variance + variance.log()).sum(1)
    return half_count * log_scale - 0.5 * log_scale.exp() * squares + 0.5 * inner


def _mode(part: Quadrature, squares: Tensor, half_count: Tensor) -> tuple[Tensor, Tensor]:
    """The t at which the integrand is greatest, and its standard deviation by the curvature there; (n,) each."""
    t = torch.zeros_like(squares)
    eigenvalues = part.eigenvalues[part.pattern]
    curvature = torch.full_like(t, -1.0)
    for _ in range(_STEPS):
        scale = t.exp()
        mean, variance = _turned(part, t)
        pull = part.scaled - mean * eigenvalues
        slope = (mean * part.scaled - 0.5 * (mean.square() + variance) * eigenvalues).sum(1)
        bend = (pull.square() * variance + 0.5 * (eigenvalues * variance).square()).sum(1)
        first = half_count - 0.5 * scale * squares + scale * slope
        curvature = -0.5 * scale * squares + scale * slope + scale.square() * bend
        concave = curvature < 0
        step = torch.where(concave, -first / torch.where(concave, curvature, -1.0), first.sign())
        t = t + step.clamp(-_LONGEST, _LONGEST)
        if bool((step.abs() < _SHORTEST).all()):
            break
    return t, torch.where(curvature < 0, -curvature, 1.0).rsqrt()


def gamma_nodes(freedom: Tensor, num_nodes: int) -> tuple[Tensor, Tensor]:
    """Log weights and nodes, (J,) each, of Gamma(nu / 2, nu / 2): a t distribution as a mixture of J normals.

    By the trapezoidal rule in log u about its mode 0, as above; the weights sum to one.

    Args:
        freedom: nu, ().
        num_nodes: J.

    Example:
        >>> log_weight, scale = gamma_nodes(torch.tensor(4.0), 33)
        >>> round(float((log_weight.exp() / scale).sum()), 3)  # E[1 / u] = nu / (nu - 2)
        2.0
    """
    half = freedom.double() / 2
    v = torch.linspace(-4, 4, num_nodes, dtype=torch.float64, device=freedom.device)
    t = half.rsqrt() * v.sinh()
    log_weight = half * (t - t.exp()) + v.cosh().log()
    return log_weight - log_weight.logsumexp(0), t.exp()
