"""Posterior of the latents: the base class of the results of ``calmrl_prob.posterior``."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from calmrl_prob._support.arguments import checked_seed, whole_number
from calmrl_prob._support.exactness import route_in_words
from calmrl_prob._support.frozen import FrozenMapping
from calmrl_prob._support.sizes import require_memory
from calmrl_prob.errors import ArgumentError
from calmrl_prob.linear_gaussian import CorrelatedNoise, LinearGaussian
from calmrl_prob.posteriors.predictive import Predictive

_FEWER_DRAWS = "ask for fewer, take them one at a time (impute(...).draws), or give fewer instances (data.subset)"


class GivenSite(Protocol):
    """The distribution of a modality given one draw of the latents, where that is no normal."""

    def sample(self, seed: int) -> Tensor:
        """A draw of it, (1, N, D_m)."""

    def log_density(self, values: Tensor) -> Tensor:
        """log p(x_nd | z_n) at (N, D_m), nats, (1, N, D_m)."""

    def joint_log_density(self, values: Tensor) -> Tensor:
        """log p(x_n | z_n) of whole rows at T values of each, (T, N, D_m), nats, (T, N)."""


@dataclass(frozen=True)
class Draw:
    """One joint draw of all instances: the latents, and what the modalities are distributed as given them.

    Attributes:
        latents: (N, K).
        location: for each modality E[x_n^m | z_n], shape (N, D_m), data units; may be made when it is first read.
        noise_variance: for each modality, (D_m,) or (N, D_m), data units squared; the noise is normal, save of
            modalities in ``sites``.
        number: of the draw of the parameters that it was made under; None where these are fixed.
        signal: E[x_n^m | z_n] where ``location`` has a draw of noise that is correlated between features added to it;
            ``noise_variance`` is then what is left.
        correlated: that noise of each modality which has some.
        sites: the distribution of each modality that is no normal, of which location and noise are the moments.
        likelihood: the model by whose loadings, intercepts and noise alone modalities follow from ``latents``, where
            all draws have the same; None elsewhere.
    """

    latents: Tensor
    location: Mapping[str, Tensor]
    noise_variance: Mapping[str, Tensor]
    number: int | None = None
    signal: Mapping[str, Tensor] = field(default_factory=dict)
    correlated: Mapping[str, CorrelatedNoise] = field(default_factory=dict)
    sites: Mapping[str, GivenSite] = field(default_factory=dict)
    likelihood: LinearGaussian | None = None


class Deferred(Mapping[str, Tensor]):
    """Tensors by name, each made when it is first read, and kept.

    Args:
        makers: what makes each.
    """

    def __init__(self, makers: Mapping[str, Callable[[], Tensor]]) -> None:
        self._makers, self._made = makers, dict[str, Tensor]()

    def __getitem__(self, name: str) -> Tensor:
        """The tensor."""
        if name not in self._made:
            self._made[name] = self._makers[name]()
        return self._made[name]

    def __contains__(self, name: object) -> bool:
        """Whether there is one; it is not made for that."""
        return name in self._makers

    def __iter__(self) -> Iterator[str]:
        """The names."""
        return iter(self._makers)

    def __len__(self) -> int:
        """Number of them."""
        return len(self._makers)


class PosteriorResult(ABC):
    """The posterior p(z_n | x_n) of the latents of N instances, by whatever route it was found.

    Attributes:
        route: how it was computed; "exact" is closed form, with no error but rounding.
        how: what is approximate about it, where its route does not say so by itself.
        dims: number of features D_m of each modality that it can predict.
        diagnostics: what the route has to report of itself: R-hat, divergences, k-hat, iterations ... Empty if exact.
        fingerprint: of the model that it is the posterior of, by which a recalibration knows its own; None if unknown.
        rows: what the instances that it is the posterior of are known by; None if unknown.
    """

    route: str
    how: str | None = None
    dims: Mapping[str, int]
    diagnostics: Mapping[str, Any] = FrozenMapping()
    fingerprint: str | None = None
    rows: Any = None

    @property
    @abstractmethod
    def mean(self) -> Tensor:
        """E[z_n | x_n], shape (N, K), in units of the prior."""

    @property
    @abstractmethod
    def covariance(self) -> Tensor:
        """Cov[z_n | x_n], shape (N, K, K)."""

    @property
    @abstractmethod
    def log_marginal(self) -> Tensor:
        """log p(x_n) of what each instance has, shape (N,), nats."""

    @abstractmethod
    def predictive(self, name: str, dtype: torch.dtype | None = None) -> Predictive:
        """p(x_n^m | x_n) of one modality, feature by feature, for all N instances.

        For a modality that the instance has, this is the distribution of a second, independent measurement of it.

        Args:
            name: the modality.
            dtype: of the (N, D_m) results; the model's own if not given.
        """

    @abstractmethod
    def draws(self, num_draws: int, generator: torch.Generator, names: Sequence[str] = ()) -> Iterator[Draw]:
        """Independent joint draws, one at a time, with what the named modalities are distributed as given each."""

    def log_density(self, latents: Tensor) -> Tensor:
        """log p(z_n | x_n) at ``latents`` (N, K), nats, shape (N,).

        By an exact route, log p(x_n, z_n) less this is ``log_marginal`` whatever the latents are.

        Raises:
            ArgumentError: the route has draws but no density.
        """
        raise ArgumentError(f"posterior: route {self.route!r} has no density of the latents; use sample.")

    def sample(self, num_draws: int, seed: int = 0) -> Tensor:
        """Independent draws of the latents, shape (S, N, K).

        Raises:
            ArgumentError: ``num_draws`` is below 1 or takes more than the memory, or ``seed`` is negative.
            ArgumentTypeError: one of them is not a whole number.
        """
        generator = seeded_generator(seed, self.mean.device)
        num_draws = checked_draws(num_draws, self.mean.numel(), self.mean.dtype)
        return torch.stack([draw.latents for draw in self.draws(num_draws, generator)])

    def __repr__(self) -> str:
        num_instances, latent_dim = self.mean.shape
        return (
            f"PosteriorResult({num_instances} instances, {latent_dim} latents, {route_in_words(self.route, self.how)})"
        )


def checked_draws(num_draws: int, numbers: int = 0, dtype: torch.dtype = torch.float64) -> int:
    """A number of draws, if it is one, and if the draws may be in memory.

    Args:
        num_draws: S.
        numbers: that each draw keeps in memory.
        dtype: of these.

    Raises:
        ArgumentError: it is below 1, or takes more than the memory of the machine.
        ArgumentTypeError: it is not a number.
    """
    num_draws = whole_number("num_draws", num_draws, least=1)
    return require_memory("num_draws", num_draws, numbers, dtype.itemsize, _FEWER_DRAWS)


def drawn_modality(draw: Draw, name: str, generator: torch.Generator, dtype: torch.dtype) -> Tensor:
    """One modality drawn given a draw of the latents, (N, D_m): from its own distribution."""
    location = draw.location[name].to(dtype)
    if name in draw.sites:
        seed = torch.randint(2**62, (), generator=generator, device=location.device)
        return draw.sites[name].sample(int(seed))[0].to(dtype)
    scale = draw.noise_variance[name].sqrt().to(dtype)
    return torch.empty_like(location).normal_(generator=generator).mul_(scale).add_(location)


def seeded_generator(seed: int, device: torch.device) -> torch.Generator:
    """A generator on a device, at the start of the stream that ``seed`` names.

    Raises:
        ArgumentError: the seed is negative or too large.
        ArgumentTypeError: it is not a whole number.
    """
    return torch.Generator(device=device).manual_seed(checked_seed(seed))
