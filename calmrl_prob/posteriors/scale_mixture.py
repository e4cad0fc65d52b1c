"""The posterior predictive of features under the scale-mixture route: a mixture of normals over nodes of the scale."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cached_property

import torch
from torch import Tensor

from calmrl_prob.linear_gaussian import ScalePosterior
from calmrl_prob.linear_gaussian.scale_mixture.quadrature import gamma_nodes
from calmrl_prob.posteriors.predictive import MixturePredictive, Predictive

#: Nodes of the posterior that predictives are mixtures over, and that a fresh scale of the noise is taken at.
NODES, _NOISE_NODES = 17, 17
#: Numbers that the components of a chunk of rows may hold, and those that are kept from one question to the next.
_CHUNK_BUDGET, _KEPT = 2**22, 2**23


class ScaleMixturePredictive(Predictive):
    """The predictive of one modality over the nodes of a quadrature, put together chunk of rows by chunk.

    Args:
        given: the posterior of the latents.
        name: the modality.
        dtype: of the results.
    """

    normal = False

    def __init__(self, given: ScalePosterior, name: str, dtype: torch.dtype) -> None:
        self._given, self._name, self._dtype = given, name, dtype
        self._noise = given.model.linear_gaussian.noise_variance[name]
        self._freedom = given.model.degrees_of_freedom.get(name)

    def _components(self, rows: slice, *, fresh: bool) -> MixturePredictive:
        """Nodes of the posterior times, for the shape of Student-t noise, nodes of a fresh scale."""
        parts = [torch.stack(part) for part in zip(*self._given.features(self._name, rows), strict=True)]
        log_weight, location, variance = (part.to(self._dtype) for part in parts)
        count = len(log_weight)
        if self._freedom is None or not fresh:
            noise = self._noise.to(self._dtype).expand(count, -1)
            return MixturePredictive(log_weight, location, variance, noise)
        log_share, scale = (part.to(self._dtype) for part in gamma_nodes(self._freedom, _NOISE_NODES))
        log_weight = (log_weight[:, None] + log_share[:, None]).flatten(0, 1)
        noise = (self._noise.to(self._dtype) / scale[:, None]).repeat(count, 1)
        return MixturePredictive(
            log_weight,
            location.repeat_interleave(len(scale), dim=0),
            variance.repeat_interleave(len(scale), dim=0),
            noise,
        )

    def _gather(self, values: Callable[[MixturePredictive, slice], Tensor], *, fresh: bool) -> Tensor:
        if self._size(fresh=fresh) <= _KEPT:
            return torch.cat([values(part, rows) for rows, part in (self._fresh if fresh else self._plain)])
        return torch.cat([values(part, rows) for rows, part in self._chunks(fresh=fresh)])

    def _size(self, *, fresh: bool) -> int:
        """Numbers that all components of all rows hold."""
        nodes = NODES * (_NOISE_NODES if fresh and self._freedom is not None else 1)
        return nodes * len(self._noise) * len(self._given.mean)

    def _chunks(self, *, fresh: bool) -> Iterator[tuple[slice, MixturePredictive]]:
        size = max(1, _CHUNK_BUDGET * len(self._given.mean) // self._size(fresh=fresh))
        for rows in self._given.chunks(size):
            yield rows, self._components(rows, fresh=fresh)

    @cached_property
    def _plain(self) -> list[tuple[slice, MixturePredictive]]:
        return list(self._chunks(fresh=False))

    @cached_property
    def _fresh(self) -> list[tuple[slice, MixturePredictive]]:
        return list(self._chunks(fresh=True))

    @cached_property
    def _moments(self) -> Tensor:
        return self._gather(lambda part, _: torch.stack([part.mean, part.latent_variance], dim=1), fresh=False)

    @property
    def mean(self) -> Tensor:
        """(N, D)."""
        return self._moments[:, 0]

    @property
    def latent_variance(self) -> Tensor:
        """(N, D)."""
        return self._moments[:, 1]

    @property
    def noise_variance(self) -> Tensor:
        """(D,); of Student-t noise nu / (nu - 2) times its scale, infinite where nu is 2 or less."""
        if self._freedom is None:
            return self._noise.to(self._dtype)
        excess = self._freedom - 2
        factor = torch.where(excess > 0, self._freedom / excess.clamp(min=1e-300), torch.inf)
        return (self._noise * factor).to(self._dtype)

    def quantile(self, probability: float) -> Tensor:
        """The value that each feature stays below with this probability, (N, D)."""
        return self._gather(lambda part, _: part.quantile(probability), fresh=True)

    def log_density(self, values: Tensor) -> Tensor:
        """log p(x_nd | x_n) at ``values`` (N, D), nats, shape (N, D)."""
        return self._gather(lambda part, rows: part.log_density(values[rows]), fresh=True)

    def cdf(self, values: Tensor) -> Tensor:
        """P(x_nd below ``values``), (N, D)."""
        return self._gather(lambda part, rows: part.cdf(values[rows]), fresh=True)
