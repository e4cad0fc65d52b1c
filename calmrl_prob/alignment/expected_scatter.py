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

import torch
from torch import Tensor

from calmrl_prob.alignment.anchors import GAP_FLOOR, Anchors, eigh_descending, unit
from calmrl_prob.alignment.completion import Completion
from calmrl_prob.linear_gaussian.posterior import factorize

#: Newton steps at most; it takes about five, and more only where the data hardly touch the leading direction of N.
_MOST_STEPS = 60
#: How close to the largest eigenvalue of N the search comes, as a share of it.
_MARGIN = 1e-9


def expected_scatter_anchor(completion: Completion, *, gap_floor: float = GAP_FLOOR) -> Anchors:
    """The leading direction of E[Z Z^T | observed] of each instance.

    Args:
        completion: what is known of B instances.
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
    members = completion.pattern_rows()
    vectors, values = [], []
    with torch.autocast(completion.values.device.type, enabled=False):
        for pattern, rows in enumerate(members):
            basis, spectrum, shift = _predictive_scatter(completion, pattern)
            vector, value = _leading(completion.values[rows].double(), basis, spectrum, gap_floor)
            vectors.append(vector)
            values.append(value + shift)
    order = torch.argsort(torch.cat(members))
    kind = completion.values.dtype
    return Anchors(torch.cat(vectors)[order].to(kind), torch.cat(values)[order, None].to(kind))


def _predictive_scatter(completion: Completion, pattern: int) -> tuple[Tensor, Tensor, Tensor]:
    """Q (D, r), L (r,) descending, and s, of N = Q diag(L) Q^T + s I; all in float64, without gradients."""
    lg = completion.linear_gaussian.detach().to(torch.float64)
    absent = [
        name for name, present in zip(lg.names, completion.patterns[pattern].tolist(), strict=True) if not present
    ]
    if not absent:
        empty = completion.values.new_zeros(completion.values.shape[2], 0, dtype=torch.float64)
        return empty, empty[0], empty.sum()
    root = factorize(completion.posterior.pattern_covariance[pattern].detach().double())
    factor = torch.cat([lg.loadings[name] @ root for name in absent], dim=1)
    noise = torch.stack([lg.noise_variance[name] for name in absent]).sum(0)
    shift = noise.min()
    if bool(noise.max() - shift <= 1e-12 * shift):
        basis, singular, _ = torch.linalg.svd(factor, full_matrices=False)
        return basis, singular.square(), shift
    values, basis = eigh_descending((factor @ factor.mT + torch.diag(noise - shift))[None])
    return basis[0], values[0].clamp(min=0), shift


def _leading(rows: Tensor, basis: Tensor, spectrum: Tensor, gap_floor: float) -> tuple[Tensor, Tensor]:
    """Leading eigenvector (n, D) and eigenvalue (n,) of A^T A + Q diag(L) Q^T, for A (n, M, D)."""
    fixed = rows.detach()
    gram, inner = fixed @ fixed.mT, fixed @ basis
    own_values, own_vectors = eigh_descending(gram)
    largest = own_values[:, 0]
    along = (own_vectors[:, None, :, 0] @ inner).squeeze(1)
    scale = torch.where(largest > 0, largest, 1)
    least = (spectrum.max() if len(spectrum) else spectrum.sum()) * (1 + _MARGIN)
    value = torch.maximum(
        largest + (along.square() @ spectrum) / scale, least
    )  # a Rayleigh quotient: not above the root
    value = torch.where(value > 0, value, 1)
    for _ in range(_MOST_STEPS):
        theta, vectors, pull = _transfer(gram, inner, spectrum, value)
        weight = (vectors[:, None, :, 0] @ inner).squeeze(1)
        length = (vectors[:, None, :, 0] @ gram @ vectors[:, :, :1]).flatten()
        length = (length + ((2 + pull) * pull * weight.square()).sum(1)) / value.square()
        step = torch.where(length > 0, theta[:, 0] * (theta[:, 0] - 1) / torch.where(length > 0, length, 1), 0)
        moved = torch.maximum(value + step, least)
        done = bool(((moved - value).abs() <= 4 * torch.finfo(value.dtype).eps * value).all())
        value = torch.where(moved > 0, moved, value)
        if done:
            break
    theta, vectors, pull = _transfer(gram, inner, spectrum, value)
    combined = (vectors[:, None, :, 0] @ fixed).squeeze(1)
    leading = unit(combined + (pull * (combined @ basis)) @ basis.mT)
    if len(spectrum):  # the rows do not reach the leading direction of N, which is above all that they reach
        base_leads = (value <= least) & (theta[:, 0] < 1 - _MARGIN)
        leading = torch.where(base_leads[:, None], basis[:, 0], leading)
    leading = leading * torch.where((fixed.sum(1) * leading).sum(1) < 0, -1.0, 1.0)[:, None]

    seen = (rows @ leading[:, :, None]).squeeze(2)
    change = (seen[:, None] @ rows).squeeze(1)
    change = _off(leading, change - change.detach())  # 0, with the gradient of (A^T A) u at fixed u
    pull = spectrum / torch.maximum(value[:, None] - spectrum, gap_floor * value[:, None])

    def resolve(vector: Tensor) -> Tensor:
        return (vector + (pull * (vector @ basis)) @ basis.mT) / value[:, None]

    others, gaps = vectors[:, :, 1:], (1 - theta[:, 1:]).clamp(min=gap_floor)
    response = resolve(change)
    within = (others.mT @ (fixed @ response[:, :, None])).squeeze(2) / gaps
    response = response + resolve(((others @ within[:, :, None]).mT @ fixed).squeeze(1))
    vector = unit(leading + _off(leading, response))
    gained = seen.square().sum(1)
    return vector, torch.where(largest + least > 0, value, 0) + gained - gained.detach()


def _off(direction: Tensor, vector: Tensor) -> Tensor:
    """The part of a vector that is orthogonal to a unit direction; both (n, D)."""
    return vector - direction * (direction * vector).sum(1, keepdim=True)


def _transfer(gram: Tensor, inner: Tensor, spectrum: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Eigenvalues and vectors of T(lambda), and L / (lambda - L), shape (n, r)."""
    pull = spectrum / (value[:, None] - spectrum)
    theta, vectors = eigh_descending((gram + (inner * pull[:, None]) @ inner.mT) / value[:, None, None])
    return theta, vectors, pull
