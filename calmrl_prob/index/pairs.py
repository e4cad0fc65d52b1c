"""Pairs of a pattern of queries and a shelf of candidates: the exact likelihood ratio as an inner product.

For queries of pattern i and candidates of pattern j, with precisions P_i = S0^-1 + A_i, P_j = S0^-1 + A_j and
V_ij = (S0^-1 + A_i + A_j)^-1,

    log p(q, c) - log p(q) - log p(c) = h_q^T V_ij h_c + b_c + a_q
    b_c = h_c^T (V_ij - P_j^-1) h_c / 2
    a_q = h_q^T (V_ij - P_i^-1) h_q / 2 + (logdet P_i + logdet P_j + logdet V_ij - logdet S0^-1) / 2

so that the ranking is that of [v, 1] . [g_c, b_c] with v = L^T V_ij h_q and g_c = L^-1 h_c, for any L. With L L^T the
precision given all modalities that candidates have, both are in units of the root of nats and their lengths bound
the rounding of float32. Since b_c = -|R g_c|^2 / 2 with R^T R = L^T (P_j^-1 - V_ij) L, whose range holds v, it is the
ranking of distances too: of y_c = R g_c from y_q, where R^T y_q = v.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from calmrl_prob.index.measured import Floats, Instrument, Mask
from calmrl_prob.index.shelves import CHUNK, Shelf
from calmrl_prob.linear_gaussian.posterior import factorize

#: Numbers of (K, K) matrices that are kept for one pattern of queries: 256 MB. Those of further shelves are made anew.
_KEPT_NUMBERS = 2**25
#: Half of the distance from 1 to the next number of float32.
_ROUNDING = 2.0**-24


@dataclass(frozen=True, eq=False)
class Pair:
    """Queries of one pattern against one shelf.

    Attributes:
        joint: V_ij, (K, K).
        alone: P_i^-1, (K, K), the same for all shelves.
        constant: the last term of a_q, nats.
    """

    joint: Floats
    alone: Floats
    constant: float

    def asked(self, natural: Floats, scale: Floats) -> tuple[Floats, Floats]:
        """The v (n, K) and a (n,) of queries with natural means (n, K); ``scale`` is L."""
        together = natural @ self.joint
        own = ((together - natural @ self.alone) * natural).sum(1)
        return together @ scale, 0.5 * own + self.constant


def log_determinant(factor: Tensor) -> float:
    """Logdet of L L^T."""
    return 2 * float(factor.diagonal().log().sum())


@dataclass(eq=False)
class Asked:
    """One pattern of queries against all shelves: what can be known before a query comes.

    Attributes:
        pattern: (D,) bool.
        information: A_i, (K, K).
        terms: b of each shelf, (n,) float64 each.
        kept: whether it was asked for by name, and so goes into files and is never dropped.
    """

    instrument: Instrument
    scale: Floats
    pattern: Mask
    kept: bool = False
    information: Floats = field(init=False)
    terms: list[Floats] = field(default_factory=list)
    _pairs: list[Pair | None] = field(default_factory=list)
    _largest: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Make what does not depend on candidates."""
        self.information = self.instrument.information(self.pattern)
        factor = factorize(torch.from_numpy(self.instrument.prior_precision + self.information))
        self._alone: Floats = torch.cholesky_inverse(factor).numpy()
        prior = factorize(torch.from_numpy(self.instrument.prior_precision))
        self._logdet = log_determinant(factor) - log_determinant(prior)

    def catch_up(self, shelves: list[Shelf]) -> None:
        """Make what is still lacking, for shelves and candidates that are new: n K^2 multiplications for n of them."""
        for j, shelf in enumerate(shelves):
            if j == len(self.terms):
                self.take_terms([*self.terms, np.empty(0)])
            if len(self.terms[j]) < len(shelf):
                new = self._new_terms(shelf, len(self.terms[j]))
                self._largest[j] = max(self._largest[j], float(np.abs(new).max()))
                self.terms[j] = np.concatenate([self.terms[j], new])

    def take_terms(self, terms: list[Floats]) -> None:
        """Take over b of all shelves, made before."""
        self.terms = terms
        self._largest = [float(np.abs(part).max(initial=0)) for part in terms]
        self._pairs += [None] * (len(terms) - len(self._pairs))

    def pair(self, j: int, shelf: Shelf) -> Pair:
        """The matrices for one shelf: kept, as far as there is room."""
        found = self._pairs[j]
        if found is None:
            found = self._make(shelf)[0]
            if j * found.joint.size <= _KEPT_NUMBERS:
                self._pairs[j] = found
        return found

    def spread(self, shelf: Shelf) -> Floats:
        """L^T (P_j^-1 - V_ij) L, (K, K), positive semidefinite: b_c is -1/2 of its square form in g_c."""
        pair, factor = self._make(shelf)
        spread: Floats = self.scale.T @ (torch.cholesky_inverse(factor).numpy() - pair.joint) @ self.scale
        return spread

    def margin(self, j: int, shelf: Shelf, v: Floats, a: Floats) -> Floats:
        """By how much a score in float32 can be off, (n,): |fl(x . y) - x . y| <= K u |x| |y| in any order of sums."""
        lengths = np.linalg.norm(v, axis=1) * shelf.longest
        margin: Floats = _ROUNDING * 1.01 * ((v.shape[1] + 6) * lengths + 4 * (self._largest[j] + np.abs(a)))
        return margin

    def _make(self, shelf: Shelf) -> tuple[Pair, Tensor]:
        """The matrices for one shelf, and the factor of P_j."""
        own = self.instrument.prior_precision + self.instrument.information(shelf.pattern)
        factor, together = (factorize(torch.from_numpy(part)) for part in (own, own + self.information))
        constant = 0.5 * (self._logdet + log_determinant(factor) - log_determinant(together))
        return Pair(torch.cholesky_inverse(together).numpy(), self._alone, constant), factor

    def _new_terms(self, shelf: Shelf, start: int) -> Floats:
        spread, parts = self.spread(shelf), []
        for first in range(start, len(shelf), CHUNK):
            g = shelf.numbers(slice(first, first + CHUNK))
            parts.append(-0.5 * ((g @ spread) * g).sum(1))
        return np.concatenate(parts)
