"""Rows of features as their latent sees them: a natural mean of each row, an information of each pattern.

    h_n = sum_m W^mT Psi^m^-1 (x_n^m - mu^m),   A = sum_m W^mT Psi^m^-1 W^m

over the features that a row has, with the latent measured from its prior mean. A pattern is a mask of all D features,
so that rows which lack single features are patterns like others; of correlated noise the rows and columns that are
there are what counts, Psi_oo.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from calmrl_prob.data import MultimodalData
from calmrl_prob.linear_gaussian import LinearGaussian
from calmrl_prob.linear_gaussian.blocks import find_patterns
from calmrl_prob.linear_gaussian.noise import CorrelatedNoise
from calmrl_prob.linear_gaussian.posterior import factorize

#: Rows that are brought to float64 at once.
_ROWS = 8192

Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]


class Measured(NamedTuple):
    """Rows of one pattern, as many as are worked on at once.

    Attributes:
        pattern: (D,) bool, True = PRESENT.
        rows: (n,) int64, which of the data.
        natural: h, (n, K).
    """

    pattern: Mask
    rows: NDArray[np.int64]
    natural: Floats


class Instrument:
    """A linear-Gaussian model as a measurement of its latent; float64, on the CPU.

    Args:
        linear_gaussian: the model.

    Attributes:
        linear_gaussian: the same in float64, on the CPU.
        dims: features of each modality.
        slices: the place of each modality among all D features.
        prior_precision: S0^-1, (K, K).

    Example:
        >>> one, zero = torch.ones(1, 1), torch.zeros(1)
        >>> lg = LinearGaussian({"a": one, "b": 2 * one}, {"a": zero, "b": zero}, {"a": zero + 1, "b": zero + 1})
        >>> instrument = Instrument(lg)
        >>> instrument.information(np.array([True, True])).tolist()
        [[5.0]]
        >>> [part.natural.tolist() for part in instrument.measure(MultimodalData({"b": np.array([[3.0]])}))]
        [[[6.0]]]
    """

    def __init__(self, linear_gaussian: LinearGaussian) -> None:
        lg = linear_gaussian.detach().to(torch.float64, "cpu")
        self.linear_gaussian, self.dims = lg, lg.dims
        stops = np.cumsum(list(self.dims.values())).tolist()
        self.slices = {n: slice(stop - w, stop) for (n, w), stop in zip(self.dims.items(), stops, strict=True)}
        self.width, self.latent_dim = int(stops[-1]), lg.latent_dim
        self.prior_precision: Floats = torch.cholesky_inverse(factorize(lg.prior_covariance)).numpy()
        self._centre = {n: (lg.intercepts[n] + lg.loadings[n] @ lg.prior_mean).numpy() for n in lg.names}
        self._whole = {n: self._part(n, np.ones(width, bool)) for n, width in self.dims.items()}

    def of_names(self, names: tuple[str, ...]) -> Mask:
        """The pattern of whole modalities, (D,)."""
        pattern = np.zeros(self.width, bool)
        for name in names:
            pattern[self.slices[name]] = True
        return pattern

    def names_of(self, pattern: Mask) -> tuple[str, ...]:
        """The modalities of which a pattern has features."""
        return tuple(name for name, place in self.slices.items() if pattern[place].any())

    def information(self, pattern: Mask) -> Floats:
        """A of a pattern, (K, K)."""
        found = np.zeros((self.latent_dim, self.latent_dim))
        for name in self.names_of(pattern):
            found += self._weights(name, pattern[self.slices[name]])[1]
        return found

    def natural_mean(self, vectors: Mapping[str, Floats]) -> Floats:
        """h of n rows that have the given modalities as wholes, (n, K), from (n, D_m) of each."""
        parts = [(values - self._centre[name]) @ self._whole[name][0] for name, values in vectors.items()]
        found: Floats = parts[0] if len(parts) == 1 else np.sum(parts, axis=0)
        return found

    def measure(self, data: MultimodalData) -> Iterator[Measured]:
        """Rows of data whose modalities the model knows, pattern by pattern, a few thousand at a time.

        Args:
            data: N instances with any modalities, or features, missing.
        """
        patterns, index, counts = self._patterns(data)
        order = torch.argsort(index, stable=True)
        for pattern, rows in zip(patterns, order.split(counts.tolist()), strict=True):
            for part in rows.split(_ROWS):
                yield Measured(pattern, part.numpy(), self._natural(data, pattern, part).numpy())

    def _patterns(self, data: MultimodalData) -> tuple[Mask, Tensor, Tensor]:
        """Distinct patterns (P, D), the pattern of each row (N,), and the number of rows of each (P,)."""
        if data.has_partial_rows:
            mask = torch.cat([data.feature_mask(name) for name in data.names], dim=1).cpu()
            found, index, counts = find_patterns(mask)
            columns = found.split(list(data.dims.values()), dim=1)
        else:
            found, index, counts = find_patterns(data.observed_mask.cpu())
            columns = tuple(found[:, m : m + 1] for m in range(len(data.names)))
        patterns = np.zeros((len(found), self.width), bool)
        for name, has in zip(data.names, columns, strict=True):
            patterns[:, self.slices[name]] = has.numpy()
        return patterns, index, counts

    def _natural(self, data: MultimodalData, pattern: Mask, rows: Tensor) -> Tensor:
        found = torch.zeros(len(rows), self.latent_dim, dtype=torch.float64)
        for name in self.names_of(pattern):
            has = pattern[self.slices[name]]
            values = data[name][rows.to(data.device)].cpu().double()
            if not has.all():
                values = values[:, torch.from_numpy(has)]
            found += (values - torch.from_numpy(self._centre[name][has])) @ torch.from_numpy(
                self._weights(name, has)[0]
            )
        return found

    def _weights(self, name: str, has: Mask) -> tuple[Floats, Floats]:
        """Psi_oo^-1 W_o of the features that are there, (d, K), and W_o^T Psi_oo^-1 W_o, (K, K)."""
        return self._whole[name] if has.all() else self._part(name, has)

    def _part(self, name: str, has: Mask) -> tuple[Floats, Floats]:
        lg, there = self.linear_gaussian, torch.from_numpy(has)
        loadings, noise = lg.loadings[name][there], lg.correlated_noise(name)
        if noise is None:
            weights = loadings / lg.noise_variance[name][there][:, None]
        else:
            weights = CorrelatedNoise(noise.specific[there], noise.factor[there]).solve(loadings)
        return weights.numpy(), (loadings.mT @ weights).numpy()
