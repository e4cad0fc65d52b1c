"""The linear-Gaussian structure: a shared Gaussian latent seen through one affine map per modality.

    z   ~ N(prior_mean, prior_covariance)                                     K latents
    x^m | z ~ N(loadings^m z + intercepts^m, Psi^m)                           D_m features

with Psi^m = diag(noise_variance^m) or, where noise is correlated within a modality, B^m B^mT with noise_variance^m put
on its diagonal. With diagonal noise this is probabilistic PCA (Tipping & Bishop, Probabilistic Principal Component
Analysis, 1999) or factor analysis, with features in named groups; with correlated noise probabilistic canonical
correlation analysis (Bach & Jordan, A probabilistic interpretation of canonical correlation analysis, 2005); as the
generative part of CalMRL: Liu et al., Calibrated Multimodal Representation Learning with Missing Modalities, arXiv
2511.12034.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import torch
from torch import Tensor

from calmrl_prob._support.frozen import FrozenMapping, TravelsDetached
from calmrl_prob._support.sizes import require_memory
from calmrl_prob.errors import ArgumentError, SchemaError
from calmrl_prob.linear_gaussian.feature_names import FeatureNames
from calmrl_prob.linear_gaussian.noise import CorrelatedNoise


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
class LinearGaussian(TravelsDetached):
    """Parameters of the model above, for M named modalities.

    Args:
        loadings: for each modality the map from latent to features, shape (D_m, K).
        intercepts: for each modality the mean of its features at z = 0, shape (D_m,), in the data's units.
        noise_variance: for each modality the noise variance of each feature, diag(Psi^m), shape (D_m,) or a scalar
            (isotropic; expanded here), in the data's units squared.
        prior_mean: shape (K,); zeros if not given.
        prior_covariance: shape (K, K), positive definite; the identity if not given.
        noise_factor: for each modality B^m, shape (D_m, R_m), where its noise is correlated: Psi^m is B^m B^mT off the
            diagonal and ``noise_variance`` on it. R_m of 0 for one whose noise is not; R_m = D_m can say any
            covariance. None, the default, where no modality's is.
        feature_names: for each modality the D_m names of its features, or None; columns of data that have names are put
            in their order. None, the default, where no names are known.

    Raises:
        ArgumentError: a shape does not fit, modalities differ between the mappings, a noise variance is not positive,
            or below what ``noise_factor`` says that the feature shares with others.

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
    noise_factor: Mapping[str, Tensor] | None = None
    feature_names: FeatureNames | None = None

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
        _refuse_unusable(self.loadings[names[0]])
        noise: dict[str, Tensor] = {}
        for name in names:
            shape = tuple(self.loadings[name].shape)
            if len(shape) != 2 or shape[1] != latent_dim or 0 in shape:
                raise ArgumentError(f"loadings['{name}']: expected shape (D_m, {latent_dim}), got {shape}.")
            if self.intercepts[name].shape != (shape[0],):
                got = tuple(self.intercepts[name].shape)
                raise ArgumentError(f"intercepts['{name}']: expected shape ({shape[0]},), got {got}.")
            noise[name] = self._expand_noise(name, shape[0])
        object.__setattr__(self, "loadings", FrozenMapping(dict(self.loadings)))
        object.__setattr__(self, "intercepts", FrozenMapping({name: self.intercepts[name] for name in names}))
        object.__setattr__(self, "noise_variance", FrozenMapping(noise))
        object.__setattr__(self, "noise_factor", self._checked_factors())
        object.__setattr__(self, "feature_names", self._checked_feature_names())
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

    def _checked_factors(self) -> Mapping[str, Tensor] | None:
        given = self.noise_factor
        if given is None:
            return None
        if set(given) != set(self.loadings):
            raise ArgumentError(
                f"noise_factor: expected the modalities of loadings, {list(self.loadings)}, got {list(given)}."
            )
        for name, variance in self.noise_variance.items():
            shape = tuple(given[name].shape)
            if len(shape) != 2 or shape[0] != len(variance):
                raise ArgumentError(f"noise_factor['{name}']: expected shape ({len(variance)}, R_m), got {shape}.")
            rest = variance - given[name].square().sum(1)
            if not bool((rest > 0).all()):
                raise ArgumentError(
                    f"noise_factor['{name}']: expected rows whose squares sum to less than noise_variance['{name}'], "
                    f"which is their sum and the feature's own; got a remainder of {float(rest.detach().min()):.3g}. "
                    "Use float64, or give more of the variance to noise_variance."
                )
        return FrozenMapping({name: given[name] for name in self.loadings})

    def _checked_feature_names(self) -> FeatureNames | None:
        if self.feature_names is None:
            return None
        found = {name: self.feature_names.get(name) for name in self.loadings}
        for name, names in found.items():
            if names is not None and len(names) != len(self.loadings[name]):
                raise ArgumentError(
                    f"feature_names[{name!r}]: expected {len(self.loadings[name])} names, got {len(names)}."
                )
        return FrozenMapping({name: None if names is None else tuple(names) for name, names in found.items()})

    def correlated_noise(self, name: str) -> CorrelatedNoise | None:
        """The noise of a modality where it is correlated between features; None where it is diagonal."""
        if self.noise_factor is None or self.noise_factor[name].shape[1] == 0:
            return None
        factor = self.noise_factor[name]
        return CorrelatedNoise(self.noise_variance[name] - factor.square().sum(1), factor)

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
            None if self.noise_factor is None else {n: function(factor) for n, factor in self.noise_factor.items()},
            self.feature_names,
        )

    def to(self, dtype: torch.dtype | None = None, device: torch.device | str | None = None) -> LinearGaussian:
        """A copy in another floating-point type, on another device, or both."""
        return self.map(lambda value: value.to(dtype=dtype, device=device))

    def detach(self) -> LinearGaussian:
        """A copy cut off from the autograd graph."""
        new = object.__new__(type(self))  # of values that were checked: not again, it is done for every posterior
        for parameter in fields(self):
            held = getattr(self, parameter.name)
            if isinstance(held, Tensor):
                held = held.detach()
            elif held is not None and parameter.name != "feature_names":
                held = FrozenMapping({name: value.detach() for name, value in held.items()})
            object.__setattr__(new, parameter.name, held)
        return new

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
            None if self.noise_factor is None else {name: self.noise_factor[name] for name in names},
            self.feature_names,
        )

    def expanded(self) -> LinearGaussian:
        """The same density of the data, with correlated noise written as latents of its own.

        x^m = W^m z + mu^m + B^m y^m + e^m with y^m ~ N(0, I) of R_m dimensions and e^m of the variance that B^m leaves:
        latents (z, y^1, .., y^M), K of the model's own first, and diagonal noise. It is what to use where single
        features are missing. The same model where no noise is correlated.

        Example:
            >>> import torch
            >>> one = {"x": torch.ones(2)}
            >>> lg = LinearGaussian({"x": torch.ones(2, 1)}, one, {"x": 2 * torch.ones(2)}, None, None,
            ...                     {"x": torch.ones(2, 1)})
            >>> lg.expanded().loadings["x"].tolist(), torch.equal(lg.expanded().joint()[1], lg.joint()[1])
            ([[1.0, 1.0], [1.0, 1.0]], True)
        """
        if self.noise_factor is None:
            return self
        ranks = [factor.shape[1] for factor in self.noise_factor.values()]
        loadings, variance = {}, {}
        for m, (name, factor) in enumerate(self.noise_factor.items()):
            own = [factor if m == other else factor.new_zeros(len(factor), rank) for other, rank in enumerate(ranks)]
            loadings[name] = torch.cat([self.loadings[name], *own], dim=1)
            variance[name] = self.noise_variance[name] - factor.square().sum(1)
        identity = torch.eye(sum(ranks), dtype=self.dtype, device=self.device)
        return LinearGaussian(
            loadings,
            self.intercepts,
            variance,
            torch.cat([self.prior_mean, self.prior_mean.new_zeros(sum(ranks))]),
            torch.block_diag(self.prior_covariance, identity),
            feature_names=self.feature_names,
        )

    def joint(self, names: Sequence[str] | None = None) -> tuple[Tensor, Tensor]:
        """Mean and covariance of the stacked modalities with z integrated out.

        With W and mu stacked over ``names``: mean W m0 + mu and covariance W S0 W^T + Psi. Dense in the
        number of features: an oracle and a teaching aid, not the way anything is computed here.

        Returns:
            The mean (D,) and the covariance (D, D), where D sums the widths of ``names`` (all by default).
        """
        chosen = self.select(self.names if names is None else names)
        loadings = torch.cat(list(chosen.loadings.values()))
        mean = loadings @ self.prior_mean + torch.cat(list(chosen.intercepts.values()))
        noise = torch.diag(torch.cat(list(chosen.noise_variance.values())))
        if chosen.noise_factor is not None:
            shared = torch.block_diag(*(factor @ factor.mT for factor in chosen.noise_factor.values()))
            noise = noise + shared - torch.diag(shared.diagonal())
        return mean, loadings @ self.prior_covariance @ loadings.mT + noise

    def require_room(self, num_instances: int) -> None:
        """Refuse more instances to draw than the memory of the machine holds.

        Raises:
            ArgumentError: there are.
        """
        numbers = self.latent_dim + sum(self.dims.values())
        require_memory("num_instances", num_instances, numbers, self.dtype.itemsize, "draw fewer at a time")

    def sample(self, num_instances: int, generator: torch.Generator | None = None) -> Sample:
        """N instances drawn: the latent first, then all modalities given it.

        Args:
            num_instances: N, how many.
            generator: source of randomness; torch's global one if not given.

        Raises:
            ArgumentError: they take more than the memory of the machine.
        """
        self.require_room(num_instances)

        def normal(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator, dtype=self.dtype, device=self.device)

        scale = torch.linalg.cholesky(self.prior_covariance)
        latents = self.prior_mean + normal(num_instances, self.latent_dim) @ scale.mT
        features = {
            name: latents @ self.loadings[name].mT
            + self.intercepts[name]
            + draw_noise(self, name, num_instances, generator)
            for name in self.names
        }
        return Sample(latents, features)


def solve_noise(linear_gaussian: LinearGaussian, name: str, right: Tensor) -> Tensor:
    """Psi^-1 Y of one modality, for Y of shape (D_m, L)."""
    correlated = linear_gaussian.correlated_noise(name)
    return right / linear_gaussian.noise_variance[name][:, None] if correlated is None else correlated.solve(right)


def draw_noise(
    linear_gaussian: LinearGaussian, name: str, num_rows: int, generator: torch.Generator | None = None
) -> Tensor:
    """Noise of one modality, n rows of it, (n, D_m)."""
    correlated, variance = linear_gaussian.correlated_noise(name), linear_gaussian.noise_variance[name]
    if correlated is not None:
        return correlated.draw(num_rows, generator)
    shape = (num_rows, len(variance))
    return torch.randn(shape, generator=generator, dtype=variance.dtype, device=variance.device) * variance.sqrt()


def require_diagonal_noise(linear_gaussian: LinearGaussian, argument: str) -> None:
    """Refuse noise that is correlated within a modality, where it has no closed form.

    Args:
        linear_gaussian: the model.
        argument: that does not go with such noise, for the message.

    Raises:
        ArgumentError: the noise is correlated.
    """
    if linear_gaussian.noise_factor is not None:
        raise ArgumentError(
            f"{argument}: noise that is correlated within a modality, as noise='full' and 'low_rank' make it, is for "
            "whole modalities and a normal prior; here expected diagonal noise. linear_gaussian.expanded() says the "
            "same with latents in its place."
        )


class AboutGaussian(TravelsDetached):
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
    def feature_names(self) -> FeatureNames | None:
        """Names of the D_m features of each modality, where they are known."""
        return self.linear_gaussian.feature_names

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


def _refuse_unusable(loadings: Tensor) -> None:
    """Refuse parameters in half precision, or without values, which a whole module may have been brought to."""
    kind = loadings.dtype
    if loadings.is_meta:
        raise ArgumentError(
            "loadings: expected parameters with values, got some on device 'meta', which has none; make the model on "
            "another device, or load one from a file."
        )
    if kind in (torch.float16, torch.bfloat16):
        raise ArgumentError(
            f"loadings: expected torch.float32 or torch.float64, got {kind}, too coarse for covariances; call .float() "
            "or .double() on the model, and fit it again if it was fitted so."
        )
