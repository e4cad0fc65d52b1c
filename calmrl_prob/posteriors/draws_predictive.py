"""The predictive over draws of the parameters: an equally weighted mixture, one draw in memory at a time.

With mean_s, latent_s and noise_s the parts of the predictive given draw s, for each feature of each instance,

    mean = 1/S sum_s mean_s      parameter = 1/S sum_s (mean_s - mean)^2      latent, noise = averages over s
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import cached_property

import torch
from torch import Tensor

from calmrl_prob.posteriors.predictive import Predictive
from calmrl_prob.posteriors.quantiles import mixture_quantile

#: Numbers that the locations of all draws for some rows may hold at once, where quantiles need them together.
_CHUNK_BUDGET = 2**22

#: The predictives given each draw: of a modality, in a type, for all rows or some.
Source = Callable[[str, torch.dtype, slice | None], Iterator[Predictive]]


class DrawsPredictive(Predictive):
    """A mixture of S predictives of N instances and D features, made when asked for and dropped after.

    Args:
        num_draws: S.
        source: gives the predictives draw by draw; those of exact routes are normal, and mixtures count as normal.
        name: the modality.
        dtype: of the results.
        num_instances: N.
    """

    normal = False

    def __init__(self, num_draws: int, source: Source, name: str, dtype: torch.dtype, num_instances: int) -> None:
        self._num_draws, self._num_instances = num_draws, num_instances
        self._source, self._name, self._dtype = source, name, dtype

    def _each(self, rows: slice | None = None) -> Iterator[Predictive]:
        # moments are summed in double precision: differences between draws are small
        return self._source(self._name, torch.float64, rows)

    @cached_property
    def _moments(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Mean, latent, noise and parameter variance, each (N, D), in one pass."""
        mean = latent = noise = spread = None
        for count, part in enumerate(self._each(), start=1):
            if mean is None or latent is None or noise is None or spread is None:
                mean, latent = part.mean.clone(), part.latent_variance.clone()
                noise, spread = part.noise_variance.expand_as(mean).clone(), torch.zeros_like(mean)
                continue
            step = part.mean - mean
            mean += step / count
            spread += step * (part.mean - mean)  # Welford's update
            latent += (part.latent_variance - latent) / count
            noise += (part.noise_variance - noise) / count
        assert mean is not None
        assert latent is not None
        assert noise is not None
        assert spread is not None
        found = (mean, latent, noise, spread / self._num_draws)
        return tuple(part.to(self._dtype) for part in found)  # type: ignore[return-value]  # four of them

    @property
    def mean(self) -> Tensor:
        """(N, D)."""
        return self._moments[0]

    @property
    def latent_variance(self) -> Tensor:
        """(N, D), averaged over draws."""
        return self._moments[1]

    @property
    def noise_variance(self) -> Tensor:
        """(N, D), averaged over draws."""
        return self._moments[2]

    @property
    def parameter_variance(self) -> Tensor:
        """(N, D), of the mean between draws."""
        return self._moments[3]

    def log_density(self, values: Tensor) -> Tensor:
        """log 1/S sum_s p_s(x_nd), nats, shape (N, D)."""
        total: Tensor | None = None
        for part in self._each():
            density = part.log_density(values.to(torch.float64))
            total = density if total is None else torch.logaddexp(total, density)
        assert total is not None
        return (total - math.log(self._num_draws)).to(self._dtype)

    def cdf(self, values: Tensor) -> Tensor:
        """1/S sum_s P_s(x_nd below ``values``), (N, D)."""
        total = torch.zeros(self._num_instances, values.shape[-1], dtype=torch.float64, device=values.device)
        for part in self._each():
            total += part.cdf(values.to(torch.float64))
        return (total / self._num_draws).to(self._dtype)

    def quantile(self, probability: float) -> Tensor:
        """Of the mixture, (N, D), in chunks of rows."""
        width = self.mean.shape[1]
        step = max(1, _CHUNK_BUDGET // (self._num_draws * width))
        parts = []
        for start in range(0, self._num_instances, step):
            chosen = list(self._each(slice(start, start + step)))
            location = torch.stack([part.mean for part in chosen])
            scale = torch.stack([part.variance for part in chosen]).sqrt()
            parts.append(mixture_quantile(location, scale, probability))
        return torch.cat(parts).to(self._dtype)
