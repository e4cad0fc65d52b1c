"""The anchor that an incomplete instance is expected to have: the leading direction of E[Z Z^T | observed].

With A (M x D) the representations where present and their predictive means elsewhere, V the posterior covariance of
the latents (K x K), and both sums over the missing modalities,

    E[Z Z^T | x]  =  A^T A + N,     N = sum_m W^m V W^mT + sum_m Psi^m

Unlike the imputed means alone, this counts how uncertain they are, and in which directions. N depends on the missing
pattern alone and is factored once for each: N = Q diag(L) Q^T + s I, with s I the noise where it is isotropic (it turns
no direction), from the singular values of [W^m V^1/2]; with diagonal noise from one D x D matrix for each pattern.

For a row, the leading eigenvalue is where the largest eigenvalue theta of an M x M matrix passes 1:

    T(lambda) = A (lambda - N)^-1 A^T,    theta(lambda) = 1,    u = (lambda - N)^-1 A^T v,   T v = v

The Rayleigh quotient of u, lambda + theta (theta - 1) / |u|^2, is Newton's step on 1 / theta, which is concave: from
below, the iteration rises to the root and never passes it.

Source: Golub, Some modified matrix eigenvalue problems (1973), for the equation; Liu et al., Calibrated Multimodal
Representation Learning with Missing Modalities, arXiv 2511.12034 (2026), for the generative model.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from calmrl_prob.alignment.anchors import GAP_FLOOR, Anchors, eigh_descending, unit
from calmrl_prob.alignment.completion import Completion
from calmrl_prob.linear_gaussian.posterior import factorize

#: Newton steps at most; it takes about five, and more only where the data hardly touch the leading direction of N.
_MOST_STEPS = 60
#: How close to the largest eigenvalue of N the search comes, as a share of it.
_MARGIN = 1e-9


@dataclass(frozen=True)
class ScatterFactor:
    """N = Q diag(L) Q^T + s I of one missing pattern, float64.

    Attributes:
        basis: Q, shape (D, r), orthonormal columns.
        spectrum: L, shape (r,), descending.
        shift: s, a scalar.
    """

    basis: Tensor
    spectrum: Tensor
    shift: Tensor


def expected_scatter_anchor(
    completion: Completion,
    *,
    factors: dict[tuple[bool, ...], ScatterFactor] | None = None,
    gap_floor: float = GAP_FLOOR,
) -> Anchors:
    """The leading direction of E[Z Z^T | observed] of each instance.

    Args:
        completion: what is known of B instances.
        factors: filled in with the factors of N by missing pattern, and read where it has them: pass the same one as
            long as the model stays the same, and they are made once. A new one for each call by default.
        gap_floor: as in ``leading_vector``.

    Returns:
        ``vector`` (B, D) of norm 1, turned so that it points with the sum of the modalities and the means, and
        ``values`` (B, 1), the leading eigenvalue alone. Gradients flow into ``completion.values``, not into N, with the
        same floor as those of ``leading_vector``. An instance that lacks nothing has its anchor.

    Raises:
        NumericalError: a representation is not finite.

    Example:
        >>> from calmrl_prob.linear_gaussian import LinearGaussian
        >>> lg = LinearGaussian(
        ...     {"image": torch.eye(2)[:, :1], "text": 2 * torch.eye(2)[:, 1:]},
        ...     {"image": torch.zeros(2), "text": torch.zeros(2)},
        ...     {"image": torch.tensor(1.0), "text": torch.tensor(1.0)},
        ... )
        >>> x = torch.tensor([[[1.0, 0.0], [0.0, 0.0]]])
        >>> completion = Completion.from_linear_gaussian(lg, x, torch.tensor([[True, False]]))
        >>> completion.values.tolist()  # representation and mean pull alike; the variance of the missing one decides
        [[[1.0, 0.0], [0.0, 1.0]]]
        >>> expected_scatter_anchor(completion).vector
        tensor([[0., 1.]])
    """
    if not len(completion.values):
        return Anchors(completion.values.sum(1), completion.values[:, :1, 0])
    factors = {} if factors is None else factors
    chosen = []
    for index, pattern in enumerate(map(tuple, completion.patterns.tolist())):
        if pattern not in factors:
            factors[pattern] = _predictive_scatter(completion, index)
        chosen.append(factors[pattern])
    members = completion.pattern_rows()
    rows = torch.cat(members)
    with torch.autocast(completion.values.device.type, enabled=False):
        bases = _Bases(chosen, [len(part) for part in members])
        vectors, values = _leading(completion.values[rows].double(), bases, gap_floor)
    order, kind = torch.argsort(rows), completion.values.dtype
    return Anchors(vectors[order].to(kind), values[order, None].to(kind))


class _Bases:
    """The factors of n rows that are sorted by pattern; where one has fewer directions than others, zeros fill up."""

    def __init__(self, factors: list[ScatterFactor], counts: list[int]) -> None:
        self._factors, self._counts = factors, counts
        self._most = max(len(factor.spectrum) for factor in factors)
        self.spectrum = self._by_row([self._fill(factor.spectrum) for factor in factors])
        self.shift = self._by_row([factor.shift for factor in factors])
        zero = factors[0].basis.new_zeros(len(factors[0].basis), 1)
        self.first = self._by_row([torch.cat([factor.basis, zero], dim=1)[:, 0] for factor in factors])

    def _by_row(self, by_pattern: list[Tensor]) -> Tensor:
        stacked = torch.stack(by_pattern)
        return stacked.repeat_interleave(torch.tensor(self._counts, device=stacked.device), dim=0)

    def _fill(self, coefficients: Tensor) -> Tensor:
        return torch.nn.functional.pad(coefficients, (0, self._most - coefficients.shape[-1]))

    def onto(self, vectors: Tensor) -> Tensor:
        """Coefficients (n, ..., r) of vectors (n, ..., D)."""
        parts = zip(vectors.split(self._counts), self._factors, strict=True)
        return torch.cat([self._fill(part @ factor.basis) for part, factor in parts])

    def back(self, coefficients: Tensor) -> Tensor:
        """Vectors (n, D) of coefficients (n, r)."""
        parts = zip(coefficients.split(self._counts), self._factors, strict=True)
        return torch.cat([part[:, : factor.basis.shape[1]] @ factor.basis.mT for part, factor in parts])


def _predictive_scatter(completion: Completion, pattern: int) -> ScatterFactor:
    """N of one pattern, without gradients."""
    lg = completion.linear_gaussian.detach().to(torch.float64)
    absent = [
        name for name, present in zip(lg.names, completion.patterns[pattern].tolist(), strict=True) if not present
    ]
    if not absent:
        empty = completion.values.new_zeros(completion.values.shape[2], 0, dtype=torch.float64)
        return ScatterFactor(empty, empty[0], empty.sum())
    root = factorize(completion.posterior.pattern_covariance[pattern].detach().double())
    factor = torch.cat([lg.loadings[name] @ root for name in absent], dim=1)
    correlated = {name: lg.correlated_noise(name) for name in absent}
    shared = [part.factor for part in correlated.values() if part is not None]
    factor = torch.cat([factor, *shared], dim=1)
    own = [lg.noise_variance[name] if part is None else part.specific for name, part in correlated.items()]
    noise = torch.stack(own).sum(0)
    shift = noise.min()
    if bool(noise.max() - shift <= 1e-12 * shift):
        basis, singular, _ = torch.linalg.svd(factor, full_matrices=False)
        return ScatterFactor(basis, singular.square(), shift)
    values, basis = eigh_descending((factor @ factor.mT + torch.diag(noise - shift))[None])
    return ScatterFactor(basis[0], values[0].clamp(min=0), shift)


def _leading(rows: Tensor, bases: _Bases, gap_floor: float) -> tuple[Tensor, Tensor]:
    """Leading eigenvector (n, D) and eigenvalue (n,) of A^T A + N, for A (n, M, D)."""
    fixed, spectrum = rows.detach(), bases.spectrum
    gram, inner = fixed @ fixed.mT, bases.onto(fixed)
    value, least = _leading_value(gram, inner, spectrum)
    theta, vectors, pull = _transfer(gram, inner, spectrum, value)
    combined = (vectors[:, None, :, 0] @ fixed).squeeze(1)
    leading = unit(combined + bases.back(pull * (vectors[:, None, :, 0] @ inner).squeeze(1)))
    # where the rows do not reach the leading direction of N, and it is above all that they do reach
    base_leads = (value <= least) & (theta[:, 0] < 1 - _MARGIN) & (least > 0)
    leading = torch.where(base_leads[:, None], bases.first, leading)
    leading = leading * torch.where((fixed.sum(1) * leading).sum(1) < 0, -1.0, 1.0)[:, None]

    seen = (rows @ leading[:, :, None]).squeeze(2)
    gained = seen.square().sum(1)
    value = value + gained - gained.detach()
    value = torch.where(leading.any(1), value, 0) + bases.shift
    if not rows.requires_grad:
        return leading, value
    change = (seen[:, None] @ rows).squeeze(1)
    change = _off(leading, change - change.detach())  # 0, with the gradient of (A^T A) u at fixed u
    return unit(
        leading + _off(leading, _response(change, fixed, bases, value.detach() - bases.shift, gap_floor))
    ), value


def _leading_value(gram: Tensor, inner: Tensor, spectrum: Tensor) -> tuple[Tensor, Tensor]:
    """lambda, shape (n,), less the shift, by Newton's steps from below; and the least value that it may have."""
    own_values, own_vectors = eigh_descending(gram)
    largest = own_values[:, 0]
    along = (own_vectors[:, None, :, 0] @ inner).squeeze(1)
    top = spectrum.amax(1) if spectrum.shape[1] else torch.zeros_like(largest)
    least = top * (1 + _MARGIN)
    # the Rayleigh quotient of the leading direction of A: not above the root
    start = largest + (along.square() * spectrum).sum(1) / torch.where(largest > 0, largest, 1)
    value = torch.maximum(start, least)
    value = torch.where(value > 0, value, 1)
    for _ in range(_MOST_STEPS):
        theta, vectors, pull = _transfer(gram, inner, spectrum, value)
        weight = (vectors[:, None, :, 0] @ inner).squeeze(1)
        length = (vectors[:, None, :, 0] @ gram @ vectors[:, :, :1]).flatten()
        length = (length + ((2 + pull) * pull * weight.square()).sum(1)) / value.square()
        step = torch.where(length > 0, theta[:, 0] * (theta[:, 0] - 1) / torch.where(length > 0, length, 1), 0)
        moved = torch.maximum(value + step, least)
        moved = torch.where(moved > 0, moved, value)
        # Newton's steps square the distance that is left, measured by that to the largest eigenvalue of N
        done = bool(((moved - value).abs() <= torch.maximum(1e-9 * (moved - top), 1e-15 * moved)).all())
        value = moved
        if done:
            break
    return value, least


def _response(change: Tensor, fixed: Tensor, bases: _Bases, value: Tensor, gap_floor: float) -> Tensor:
    """The change of u with (A^T A) u: (lambda - N - A^T A)^+ change, by Woodbury's identity, with floors; (n, D)."""
    spectrum, value = bases.spectrum, torch.where(value > 0, value, 1)
    theta, vectors, _ = _transfer(fixed @ fixed.mT, bases.onto(fixed), spectrum, value)
    pull = spectrum / torch.maximum(value[:, None] - spectrum, gap_floor * value[:, None])

    def resolve(vector: Tensor) -> Tensor:
        return (vector + bases.back(pull * bases.onto(vector))) / value[:, None]

    others, gaps = vectors[:, :, 1:], (1 - theta[:, 1:]).clamp(min=gap_floor)
    response = resolve(change)
    within = (others.mT @ (fixed @ response[:, :, None])).squeeze(2) / gaps
    return response + resolve(((others @ within[:, :, None]).mT @ fixed).squeeze(1))


def _off(direction: Tensor, vector: Tensor) -> Tensor:
    """The part of a vector that is orthogonal to a unit direction; both (n, D)."""
    return vector - direction * (direction * vector).sum(1, keepdim=True)


def _transfer(gram: Tensor, inner: Tensor, spectrum: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Eigenvalues and vectors of T(lambda), and L / (lambda - L), shape (n, r)."""
    pull = spectrum / (value[:, None] - spectrum)
    theta, vectors = eigh_descending((gram + (inner * pull[:, None]) @ inner.mT) / value[:, None, None])
    return theta, vectors, pull
