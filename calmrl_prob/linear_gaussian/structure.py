"""The linear-Gaussian structure: a shared Gaussian latent seen through one affine map per modality.

    z   ~ N(prior_mean, prior_covariance)                                     K latents
    x^m | z ~ N(loadings^m z + intercepts^m, diag(noise_variance^m))          D_m features

This is probabilistic PCA (Tipping & Bishop, Probabilistic Principal Component Analysis, 1999) or factor analysis, with
features in named groups; as the generative part of CalMRL: Liu et al., Calibrated Multimodal Representation Learning
with Missing Modalities, arXiv 2511.12034.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from calmrl_prob.errors import ArgumentError, SchemaError


@dataclass(frozen=True)
class Sample:
    """Instances drawn from a structure, of whatever family. It unpacks into ``latents, features``.

    Attributes:
        latents: (N, K).
        features: for each modality (N, D_m), in its units.
        labels: of a mixture the components (N,) int64.
        scales: of a Student-t model the scales u (N,).
    """

    latents: Tensor
    features: dict[str, Tensor]
    labels: Tensor | None = None
    scales: Tensor | None = None

    def __iter__(self) -> Iterator[Any]:
        return iter((self.latents, self.features))


@dataclass(frozen=True, eq=False, repr=False)
class LinearGaussian:
    """Parameters of the model above, for M named modalities.

    Args:
        loadings: for each modality the map from latent to features, shape (D_m, K).
        intercepts: for each modality the mean of its features at z = 0, shape (D_m,), in the data's units.
        noise_variance: for each modality the noise variance, shape (D_m,) or a scalar (isotropic; expanded here), in
            the data's units squared.
        prior_mean: shape (K,); zeros if not given.
        prior_covariance: shape (K, K), positive definite; the identity if not given.

    Raises:
        ArgumentError: a shape does not fit, modalities differ between the mappings, or a noise variance is not
            positive.

    Example:
        >>> import torch
        >>> lg = LinearGaussian(
        ...     loadings={"image": torch.ones(3, 1), "text": torch.ones(2, 1)},
        ...     intercepts={"image": torch.zeros(3), "text": torch.zeros(2)},
        ...     noise_variance={"image": torch.tensor(0.5), "text": torch.ones(2)},
        ... )
        >>> lg
        LinearGaussian(image: 3, text: 2; latent_dim=1, dtype=torch.float32)
        >>> mean, covariance = lg.joint(["text"])
        >>> covariance
        tensor([[2., 1.],
                [1., 2.]])
    """

    loadings: Mapping[str, Tensor]
    intercepts: Mapping[str, Tensor]
    noise_variance: Mapping[str, Tensor]
    prior_mean: Tensor = field(default=None)  # type: ignore[assignment]  # filled in by __post_init__
    prior_covariance: Tensor = field(default=None)  # type: ignore[assignment]  # filled in by __post_init__

    def __post_init__(self) -> None:
        """Check shapes, expand scalar noise variances and fill in the standard normal prior."""
        names = tuple(self.loadings)
        if not names:
            raise ArgumentError("loadings: expected at least one modality, got none.")
        for argument in ("intercepts", "noise_variance"):
            given = tuple(getattr(self, argument))
            if set(given) != set(names):
                raise ArgumentError(
                    f"{argument}: expected the modalities of loadings, {list(names)}, got {list(given)}."
                )
        latent_dim = self.loadings[names[0]].shape[-1]
        noise: dict[str, Tensor] = {}
        for name in names:
            shape = tuple(self.loadings[name].shape)
            if len(shape) != 2 or shape[1] != latent_dim or 0 in shape:
                raise ArgumentError(f"loadings['{name}']: expected shape (D_m, {latent_dim}), got {shape}.")
            if self.intercepts[name].shape != (shape[0],):
                got = tuple(self.intercepts[name].shape)
                raise ArgumentError(f"intercepts['{name}']: expected shape ({shape[0]},), got {got}.")
            noise[name] = self._expand_noise(name, shape[0])
        object.__setattr__(self, "loadings", MappingProxyType(dict(self.loadings)))
        object.__setattr__(self, "intercepts", MappingProxyType({name: self.intercepts[name] for name in names}))
        object.__setattr__(self, "noise_variance", MappingProxyType(noise))
        like = self.loadings[names[0]]
        if self.prior_mean is None:
            object.__setattr__(self, "prior_mean", like.new_zeros(latent_dim))
        if self.prior_covariance is None:
            object.__setattr__(self, "prior_covariance", torch.eye(latent_dim, dtype=like.dtype, device=like.device))
        if self.prior_mean.shape != (latent_dim,) or self.prior_covariance.shape != (latent_dim, latent_dim):
            raise ArgumentError(
                f"prior: expected a mean of shape ({latent_dim},) and a covariance of shape "
                f"({latent_dim}, {latent_dim}), got {tuple(self.prior_mean.shape)} and "
                f"{tuple(self.prior_covariance.shape)}."
            )

    def _expand_noise(self, name: str, width: int) -> Tensor:
        variance = self.noise_variance[name]
        if variance.shape != (width,) and variance.numel() == 1:  # kept as it is if it fits: mixtures share tensors
            variance = variance.reshape(()).expand(width)
        if variance.shape != (width,):
            raise ArgumentError(
                f"noise_variance['{name}']: expected a scalar or shape ({width},), got {tuple(variance.shape)}."
            )
        if not bool((variance > 0).all()):
            raise ArgumentError(
                f"noise_variance['{name}']: expected positive values, got {float(variance.detach().min()):.3g}."
            )
        return variance

    @property
    def names(self) -> tuple[str, ...]:
        """The modalities, in the order of ``loadings``."""
        return tuple(self.loadings)

    @property
    def dims(self) -> dict[str, int]:
        """Number of features D_m of each modality."""
        return {name: loadings.shape[0] for name, loadings in self.loadings.items()}

    @property
    def latent_dim(self) -> int:
        """Number of latents K."""
        return int(self.prior_mean.shape[0])

    @property
    def dtype(self) -> torch.dtype:
        """The floating-point type of the parameters."""
        return self.prior_mean.dtype

    @property
    def device(self) -> torch.device:
        """Device of the parameters."""
        return self.prior_mean.device

    def __repr__(self) -> str:
        """One line: modalities with their widths, K and dtype."""
        widths = ", ".join(f"{name}: {width}" for name, width in self.dims.items())
        return f"LinearGaussian({widths}; latent_dim={self.latent_dim}, dtype={self.dtype})"

    def map(self, function: Callable[[Tensor], Tensor]) -> LinearGaussian:
        """A copy with ``function`` applied to every parameter tensor."""
        return LinearGaussian(
            {name: function(value) for name, value in self.loadings.items()},
            {name: function(value) for name, value in self.intercepts.items()},
            {name: function(value) for name, value in self.noise_variance.items()},
            function(self.prior_mean),
            function(self.prior_covariance),
        )

    def to(self, dtype: torch.dtype | None = None, device: torch.device | str | None = None) -> LinearGaussian:
        """A copy in another floating-point type, on another device, or both."""
        return self.map(lambda value: value.to(dtype=dtype, device=device))

    def detach(self) -> LinearGaussian:
        """A copy cut off from the autograd graph."""
        return self.map(lambda value: value.detach())

    def select(self, names: Sequence[str]) -> LinearGaussian:
        """The model of some of its modalities: the others are marginalised out, which here means left out.

        Raises:
            SchemaError: a name is not a modality of the model.
        """
        unknown = [name for name in names if name not in self.loadings]
        if unknown:
            raise SchemaError(f"names: the model has no modality {unknown}; it has {list(self.names)}.")
        return LinearGaussian(
            {name: self.loadings[name] for name in names},
            {name: self.intercepts[name] for name in names},
            {name: self.noise_variance[name] for name in names},
            self.prior_mean,
            self.prior_covariance,
        )

    def joint(self, names: Sequence[str] | None = None) -> tuple[Tensor, Tensor]:
        """Mean and covariance of the stacked modalities with z integrated out.

        With W, mu and psi stacked over ``names``: mean W m0 + mu and covariance W S0 W^T + diag(psi). Dense in the
        number of features: an oracle and a teaching aid, not the way anything is computed here.

        Returns:
            The mean (D,) and the covariance (D, D), where D sums the widths of ``names`` (all by default).
        """
        chosen = self.select(self.names if names is None else names)
        loadings = torch.cat(list(chosen.loadings.values()))
        mean = loadings @ self.prior_mean + torch.cat(list(chosen.intercepts.values()))
        noise = torch.cat(list(chosen.noise_variance.values()))
        return mean, loadings @ self.prior_covariance @ loadings.mT + torch.diag(noise)

    def sample(self, num_instances: int, generator: torch.Generator | None = None) -> Sample:
        """N instances drawn: the latent first, then all modalities given it.

        Args:
            num_instances: N, how many.
            generator: source of randomness; torch's global one if not given.
        """

        def normal(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator, dtype=self.dtype, device=self.device)

        scale = torch.linalg.cholesky(self.prior_covariance)
        latents = self.prior_mean + normal(num_instances, self.latent_dim) @ scale.mT
        features = {
            name: latents @ self.loadings[name].mT
            + self.intercepts[name]
            + normal(num_instances, width) * self.noise_variance[name].sqrt()
            for name, width in self.dims.items()
        }
        return Sample(latents, features)


class AboutGaussian:
    """Base class of structures that are one linear-Gaussian model given scales: its modalities, latents and type."""

    linear_gaussian: LinearGaussian

    @property
    def names(self) -> tuple[str, ...]:
        """The modalities."""
        return self.linear_gaussian.names

    @property
    def dims(self) -> dict[str, int]:
        """Number of features D_m of each modality."""
        return self.linear_gaussian.dims

    @property
    def latent_dim(self) -> int:
        """Number of latents K."""
        return self.linear_gaussian.latent_dim

    @property
    def dtype(self) -> torch.dtype:
        """The floating-point type of the parameters."""
        return self.linear_gaussian.dtype

    @property
    def device(self) -> torch.device:
        """Device of the parameters."""
        return self.linear_gaussian.device
