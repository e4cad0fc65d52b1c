"""Likelihood of the latents, free of the number of features: a K-dimensional Gaussian factor for each instance.

With Omega_n the modalities that instance n has,

    log p(x_n | z_n) = c_n + h_n^T z_n - 1/2 z_n^T P_n z_n
    P_n = sum_{m in Omega_n} W^mT Psi^m^-1 W^m                            depends on the missing pattern only
    h_n = sum_{m in Omega_n} W^mT Psi^m^-1 (x_n^m - mu^m)
    c_n = sum_{m in Omega_n} log N(x_n^m; mu^m, Psi^m)

so that h_n and P_n are all that a prior which couples instances ever sees of x_n, whatever D is. In this natural form
an instance whose P_n is singular, or zero, is nothing special; as a pseudo-observation P_n^-1 h_n with noise covariance
P_n^-1 it could not be written down.

Source: Bishop, Pattern Recognition and Machine Learning (2006), section 12.2; the projection as in Tipping & Bishop,
Probabilistic Principal Component Analysis (1999).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from calmrl_prob.linear_gaussian.blocks import FeatureBlocks, ObservedBlocks
from calmrl_prob.linear_gaussian.layout import PatternLayout
from calmrl_prob.linear_gaussian.posterior import (
    assemble_precision,
    factorize,
    project_data,
)
from calmrl_prob.linear_gaussian.products import row_chunks
from calmrl_prob.linear_gaussian.structure import LinearGaussian, require_diagonal_noise


@dataclass(frozen=True, eq=False)
class LatentLikelihood:
    """The factors of N instances in P patterns.

    Attributes:
        constant: c_n, shape (N,), nats.
        natural_mean: h_n, shape (N, K), zero for an instance that has nothing.
        pattern_precision: P_n of each pattern, shape (P, K, K), positive semidefinite.
        pattern_index: the pattern of each instance, (N,) int64.
        pattern_counts: how many instances have each pattern, (P,) int64.

    Example:
        >>> import torch
        >>> lg = LinearGaussian({"x": torch.ones(3, 1)}, {"x": torch.zeros(3)}, {"x": torch.tensor(0.5)})
        >>> data = ObservedBlocks.from_arrays({"x": torch.ones(2, 3)}, torch.tensor([[True], [False]]))
        >>> likelihood = LatentLikelihood.of(lg, data)
        >>> likelihood.natural_mean.tolist(), likelihood.row_precision.flatten().tolist()
        ([[6.0], [0.0]], [6.0, 0.0])
    """

    constant: Tensor
    natural_mean: Tensor
    pattern_precision: Tensor
    pattern_index: Tensor
    pattern_counts: Tensor

    @classmethod
    def of(cls, linear_gaussian: LinearGaussian, blocks: ObservedBlocks | FeatureBlocks) -> LatentLikelihood:
        """The factors of data under a model, differentiable in its parameters; its prior plays no part.

        Args:
            linear_gaussian: the model, in the floating-point type that the K-dimensional algebra is to use.
            blocks: N instances, modalities as in the model.
        """
        require_diagonal_noise(linear_gaussian, "linear_gaussian")
        projection = project_data(linear_gaussian, blocks)
        noise = linear_gaussian.noise_variance
        density = -0.5 * (math.log(2 * math.pi) + torch.cat(list(noise.values())).log())
        constants = blocks.group_patterns.to(density.dtype) @ blocks.grouping.sums(density)
        nothing = torch.zeros_like(projection.group_precision[:1])  # where a prior's would stand
        return cls(
            constants[blocks.pattern_index] - 0.5 * projection.squares,
            projection.natural,
            assemble_precision(blocks.group_patterns, torch.cat([projection.group_precision, nothing])),
            blocks.pattern_index,
            blocks.pattern_counts,
        )

    @classmethod
    def nothing(cls, num_instances: int, like: Tensor) -> LatentLikelihood:
        """The factors of instances that have no modality at all: 1.

        Args:
            num_instances: N.
            like: something (..., K) of the type and on the device to use.
        """
        latent_dim = like.shape[-1]
        index = torch.zeros(num_instances, dtype=torch.int64, device=like.device)
        return cls(
            like.new_zeros(num_instances),
            like.new_zeros(num_instances, latent_dim),
            like.new_zeros(1, latent_dim, latent_dim),
            index,
            index.new_full((1,), num_instances),
        )

    def followed_by(self, other: LatentLikelihood) -> LatentLikelihood:
        """The factors of these instances and then of others."""
        return LatentLikelihood(
            torch.cat([self.constant, other.constant]),
            torch.cat([self.natural_mean, other.natural_mean]),
            torch.cat([self.pattern_precision, other.pattern_precision]),
            torch.cat([self.pattern_index, other.pattern_index + len(self.pattern_precision)]),
            torch.cat([self.pattern_counts, other.pattern_counts]),
        )

    def log_average(self, mean: Tensor, covariance: Tensor) -> Tensor:
        """log of the integral of p(x_n | z_n) N(z_n; mean_n, covariance_n), for each instance by itself.

        With g = h - P mean and A = I + covariance P:

            c + h^T mean - 1/2 mean^T P mean + 1/2 g^T A^-1 covariance g - 1/2 logdet A

        Args:
            mean: (N, K).
            covariance: (N, K, K), positive semidefinite.

        Returns:
            Shape (N,), nats.
        """
        out = []
        for chunk in row_chunks(len(mean), self.latent_dim**2):
            m, S = mean[chunk], covariance[chunk]
            P = self.pattern_precision[self.pattern_index[chunk]]
            force = (P @ m[:, :, None]).squeeze(2)
            gradient = self.natural_mean[chunk] - force
            identity = torch.eye(self.latent_dim, dtype=m.dtype, device=m.device)
            grown, pivots = torch.linalg.lu_factor(identity + S @ P)
            moved = torch.linalg.lu_solve(grown, pivots, S @ gradient[:, :, None]).squeeze(2)
            logdet = grown.diagonal(dim1=-2, dim2=-1).abs().log().sum(1)
            linear = ((self.natural_mean[chunk] - 0.5 * force) * m).sum(1)
            out.append(self.constant[chunk] + linear + 0.5 * (gradient * moved).sum(1) - 0.5 * logdet)
        return torch.cat(out)

    @property
    def num_instances(self) -> int:
        """N."""
        return len(self.natural_mean)

    @property
    def latent_dim(self) -> int:
        """K."""
        return int(self.natural_mean.shape[1])

    @property
    def row_precision(self) -> Tensor:
        """P_n of each instance, shape (N, K, K): N K^2 numbers."""
        return self.pattern_precision[self.pattern_index]

    @property
    def precision_diagonal(self) -> Tensor:
        """diag(P_n) of each instance, shape (N, K)."""
        return self.pattern_precision.diagonal(dim1=-2, dim2=-1)[self.pattern_index]

    @cached_property
    def _layout(self) -> PatternLayout:
        return PatternLayout(self.pattern_index, self.pattern_counts, self.latent_dim)

    def apply(self, matrices: Tensor, rows: Tensor) -> Tensor:
        """A_p v_n for every instance, from a matrix for each pattern: batched, without gathering a matrix for each row.

        Args:
            matrices: A of each pattern, shape (P, J, K).
            rows: v of each instance, shape (..., N, K).

        Returns:
            Shape (..., N, J).
        """
        if len(matrices) == 1:
            return rows @ matrices[0].mT
        layout = self._layout
        padded = rows.new_zeros(*rows.shape[:-2], layout.num_slots, rows.shape[-1]).index_copy(-2, layout.slot, rows)
        done = []
        for bucket in layout.buckets:
            part = padded[..., bucket.start : bucket.stop, :]
            part = part.unflatten(-2, (len(bucket.patterns), bucket.capacity))
            done.append((part @ matrices[bucket.patterns].mT).flatten(-3, -2))
        return torch.cat(done, dim=-2)[..., layout.slot, :]

    def marginalize(self, variance: Tensor) -> Conditional:
        """Integrate out noise of the latent itself: z_n = f_n + e_n with e_n ~ N(0, E), E diagonal, apart for each n.

            V_p = (P_p + E^-1)^-1
            P'_p = P_p - P_p V_p P_p = (P_p^-1 + E)^-1,   h'_n = h_n - P_p V_p h_n
            c'_n = c_n + 1/2 h_n^T V_p h_n - 1/2 logdet(I + E P_p)

        Args:
            variance: diag(E), shape (K,), at least 0; at 0 nothing changes.

        Returns:
            The factors of f, and what leads from f back to z.
        """
        root = variance.sqrt()
        identity = torch.eye(self.latent_dim, dtype=root.dtype, device=root.device)
        factor = factorize(identity + root[:, None] * self.pattern_precision * root)
        half = torch.linalg.solve_triangular(factor, torch.diag(root).expand_as(factor), upper=False)
        covariance = half.mT @ half
        back = identity - covariance @ self.pattern_precision
        natural_mean = self.apply(back.mT, self.natural_mean)
        logdet = 2 * factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        local_mean = self.apply(covariance, self.natural_mean)
        constant = self.constant + 0.5 * (self.natural_mean * local_mean).sum(1) - 0.5 * logdet[self.pattern_index]
        precision = self.pattern_precision @ back
        outer = replace(
            self,
            constant=constant,
            natural_mean=natural_mean,
            pattern_precision=0.5 * (precision + precision.mT),
        )
        return Conditional(outer, half.mT, covariance, local_mean, back)


@dataclass(frozen=True, eq=False)
class Conditional:
    """The factors of f where z_n = f_n + e_n, and z_n | f_n, x_n ~ N(V_p h_n + (I - V_p P_p) f_n, V_p).

    Attributes:
        likelihood: log p(x_n | f_n), of f.
        root: a square root of V_p, V_p = root root^T, shape (P, K, K).
        covariance: V_p, shape (P, K, K).
        offset: V_p h_n, shape (N, K).
        slope: I - V_p P_p, shape (P, K, K).
    """

    likelihood: LatentLikelihood
    root: Tensor
    covariance: Tensor
    offset: Tensor
    slope: Tensor
