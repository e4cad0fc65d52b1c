"""Model of the noise of an EM fit: its form, its floor, its prior."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from calmrl_prob.linear_gaussian.em.parameters import Parameters, Shape


@dataclass(frozen=True)
class NoiseModel:
    """Model of the noise variances: isotropic or not, their floor, their prior.

    Attributes:
        isotropic: one variance for each modality, or one for each feature.
        floor: (D,) the least noise variance allowed.
        pseudo_count: nu, the weight of the prior in observations of each feature; 0 for none.
        pseudo_variance: (D,) s_d^2, the variance that those observations had.
    """

    isotropic: bool
    floor: Tensor
    pseudo_count: float
    pseudo_variance: Tensor

    def pooler(self, shape: Shape) -> Callable[[Tensor], Tensor]:
        """The map from a variance for each feature to the variances that the model allows."""
        if not self.isotropic:
            return lambda variance: variance

        def pool(variance: Tensor) -> Tensor:
            return torch.cat([variance[part].mean().expand(part.stop - part.start) for part in shape.slices])

        return pool

    def maximum(self, shape: Shape, squares: Tensor, weights: Tensor) -> Tensor:
        """The variances that raise -(w_d log psi_d + squares_d / psi_d) / 2 most, (D,).

        Args:
            shape: the stacked layout.
            squares: (D,) sums of squared residuals.
            weights: (D,) w_d, the numbers that these are sums of: they differ where single features are missing.
        """
        if not self.isotropic:
            return squares / weights
        pool = self.pooler(shape)
        first = torch.cat([weights[part][:1].expand(part.stop - part.start) for part in shape.slices])
        share = weights / first  # ones, and exact, where all features of a modality have as many values
        return pool(squares / weights * share) / pool(share)

    def log_prior(self, noise_variance: Tensor) -> float:
        """Log density of the noise variances under the prior, up to a constant; nats."""
        if self.pseudo_count == 0:
            return 0.0
        terms = -0.5 * self.pseudo_count * (noise_variance.log() + self.pseudo_variance / noise_variance)
        return float(terms.sum())

    def log_prior_at(self, parameters: Parameters) -> float:
        """The same of parameters."""
        return self.log_prior(parameters.noise_variance)
