"""The exact route where the linear-Gaussian form varies between instances: one posterior for each structure.

Intercepts and prior means that vary by row need no structure of their own: with x_n^m = W^m z_n + mu^m + o_n^m + noise
and z_n = l_n + z'_n, the model of x_n - o_n - W^m l_n is the same for all rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from torch import Tensor

from calmrl_prob.posteriors.posterior import Draw, PosteriorResult
from calmrl_prob.posteriors.predictive import Predictive


class StructuredPosterior(PosteriorResult):
    """Posteriors of disjoint sets of rows, put together.

    Args:
        parts: for each structure its rows, (n_g,) int64, and the posterior of these rows alone.
        offsets: for each modality what is added to the mean of each row, (N, D_m); none by default.
        latent_offset: what is added to each row's latents, (N, K); none by default.
        route: how it was computed.

    Attributes:
        parts, offsets: as given; offsets empty if there are none.
    """

    def __init__(
        self,
        parts: Sequence[tuple[Tensor, PosteriorResult]],
        offsets: Mapping[str, Tensor] | None = None,
        latent_offset: Tensor | None = None,
        route: str = "exact by structure",
    ) -> None:
        self.route = route
        self.parts = tuple(parts)
        self.dims = self.parts[0][1].dims
        self.offsets, self._latent_offset = offsets or {}, latent_offset

    def _gather(self, values: Callable[[PosteriorResult], Tensor]) -> Tensor:
        return self._place([values(part) for _, part in self.parts])

    def _place(self, values: Sequence[Tensor]) -> Tensor:
        return _in_places([rows for rows, _ in self.parts], values)

    @property
    def mean(self) -> Tensor:
        """E[z_n | x_n], shape (N, K), in units of the prior."""
        mean = self._gather(lambda part: part.mean)
        return mean if self._latent_offset is None else mean + self._latent_offset

    @property
    def covariance(self) -> Tensor:
        """Cov[z_n | x_n], shape (N, K, K)."""
        return self._gather(lambda part: part.covariance)

    @property
    def log_marginal(self) -> Tensor:
        """log p(x_n) of what each instance has, shape (N,), nats."""
        return self._gather(lambda part: part.log_marginal)

    def predictive(self, name: str, dtype: torch.dtype | None = None) -> Predictive:
        """The predictives of the parts, put together."""
        parts = [(rows, part.predictive(name, dtype)) for rows, part in self.parts]
        return _Gathered(parts, self.offsets.get(name))

    def log_density(self, latents: Tensor) -> Tensor:
        """log p(z_n | x_n) at ``latents`` (N, K), nats, shape (N,)."""
        centred = latents if self._latent_offset is None else latents - self._latent_offset
        return self._place([part.log_density(centred[rows]) for rows, part in self.parts])

    def draws(self, num_draws: int, generator: torch.Generator, names: Sequence[str] = ()) -> Iterator[Draw]:
        """Joint draws of all parts side by side."""
        streams = [part.draws(num_draws, generator, names) for _, part in self.parts]
        for drawn in zip(*streams, strict=True):
            latents = self._place([draw.latents for draw in drawn])
            if self._latent_offset is not None:
                latents = latents + self._latent_offset
            location = {name: self._place([draw.location[name] for draw in drawn]) for name in names}
            for name in set(names) & set(self.offsets):
                location[name] = location[name] + self.offsets[name]
            noise = {
                name: self._place([draw.noise_variance[name].expand_as(draw.location[name]) for draw in drawn])
                for name in names
            }
            yield Draw(latents, location, noise)


class _Gathered(Predictive):
    """Predictives of disjoint sets of rows as one."""

    def __init__(self, parts: Sequence[tuple[Tensor, Predictive]], offset: Tensor | None) -> None:
        self._parts, self._offset = parts, offset

    def _gather(self, values: Callable[[Tensor, Predictive], Tensor]) -> Tensor:
        return _in_places([rows for rows, _ in self._parts], [values(rows, part) for rows, part in self._parts])

    def _shifted(self, values: Tensor) -> Tensor:
        return values if self._offset is None else values + self._offset.to(values.dtype)

    @property
    def mean(self) -> Tensor:
        """(N, D)."""
        return self._shifted(self._gather(lambda _, part: part.mean))

    @property
    def latent_variance(self) -> Tensor:
        """(N, D)."""
        return self._gather(lambda _, part: part.latent_variance)

    @property
    def noise_variance(self) -> Tensor:
        """(N, D)."""
        return self._gather(lambda rows, part: part.noise_variance.expand(len(rows), -1))

    def quantile(self, probability: float) -> Tensor:
        """(N, D)."""
        return self._shifted(self._gather(lambda _, part: part.quantile(probability)))

    def log_density(self, values: Tensor) -> Tensor:
        """(N, D), nats."""
        centred = values if self._offset is None else values - self._offset.to(values.dtype)
        return self._gather(lambda rows, part: part.log_density(centred[rows]))

    @property
    def normal(self) -> bool:  # type: ignore[override]  # a constant of most classes
        """Whether those of all rows are."""
        return all(part.normal for _, part in self._parts)

    def cdf(self, values: Tensor) -> Tensor:
        """P(x_nd below ``values``), (N, D)."""
        centred = values if self._offset is None else values - self._offset.to(values.dtype)
        return self._gather(lambda rows, part: part.cdf(centred[rows]))


def _in_places(rows: Sequence[Tensor], values: Sequence[Tensor]) -> Tensor:
    """Values of disjoint sets of rows, together all rows, each in its place."""
    out = values[0].new_empty(sum(len(chosen) for chosen in rows), *values[0].shape[1:])
    for chosen, value in zip(rows, values, strict=True):
        out[chosen] = value
    return out
