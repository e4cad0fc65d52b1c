"""A predictive drawn out about its mean: what recalibration of variances makes of it."""

from __future__ import annotations

import torch
from torch import Tensor

from calmrl_prob.posteriors.predictive import Predictive


class Rescaled(Predictive):
    """A predictive drawn out about its mean, so that the variances of each feature are multiplied by a factor.

        x' = mean + sqrt(factor) (x - mean)

    Args:
        base: p(x).
        factor: (D,) or (N, D), positive.

    Example:
        >>> import torch
        >>> from calmrl_prob.posteriors.predictive import NormalPredictive
        >>> twice = Rescaled(NormalPredictive(torch.zeros(1, 1), torch.ones(1, 1), torch.ones(1)), torch.tensor([2.0]))
        >>> twice.variance.tolist(), round(float(twice.quantile(0.975)), 2)
        ([[4.0]], 3.92)
    """

    def __init__(self, base: Predictive, factor: Tensor) -> None:
        self.base, self.factor = base, factor

    @property
    def normal(self) -> bool:  # type: ignore[override]  # a constant of most classes
        """Whether the base is."""
        return self.base.normal

    @property
    def mean(self) -> Tensor:
        """(N, D)."""
        return self.base.mean

    @property
    def latent_variance(self) -> Tensor:
        """(N, D)."""
        return self.base.latent_variance * self.factor

    @property
    def noise_variance(self) -> Tensor:
        """(D,) or (N, D)."""
        return self.base.noise_variance * self.factor

    @property
    def parameter_variance(self) -> Tensor | None:
        """(N, D), or None."""
        return None if self.base.parameter_variance is None else self.base.parameter_variance * self.factor

    def spread(self, values: Tensor) -> Tensor:
        """Values (N, D) of the base drawn out about its mean, to the nearest that the base takes."""
        return self.base.settle(self.mean + (values - self.mean) * self.factor.sqrt())

    @property
    def whole(self) -> bool:
        """Whether the values are whole numbers: of counts the drawn-out values are rounded."""
        return self.base.whole

    def restore(self, values: Tensor) -> Tensor:
        """The values of the base that ``spread`` turns into these, (N, D)."""
        return self.mean + (values - self.mean) / self.factor.sqrt()

    def quantile(self, probability: float) -> Tensor:
        """The value that each feature stays below with this probability, (N, D)."""
        return self.spread(self.base.quantile(probability))

    def log_density(self, values: Tensor) -> Tensor:
        """log p(x_nd) at ``values`` (N, D), nats, shape (N, D)."""
        if self.whole:  # of the values that are rounded to these; the least takes all below it
            above, below = self.base.cdf(self.restore(values + 0.5)), self.base.cdf(self.restore(values - 0.5))
            below = torch.where(self.base.settle(values - 1) == values, 0.0, below)
            return (above - below).clamp(min=torch.finfo(above.dtype).tiny).log()
        return self.base.log_density(self.restore(values)) - 0.5 * self.factor.log()

    def cdf(self, values: Tensor) -> Tensor:
        """P(x_nd below ``values``), (N, D)."""
        return self.base.cdf(self.restore(values.floor() + 0.5 if self.whole else values))
