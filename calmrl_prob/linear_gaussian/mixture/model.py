"""Mixtures of linear-Gaussian models; ``mixture_posterior.py`` has their exact posterior.

    c_n ~ Categorical(pi)                                          C components
    z_n | c ~ N(m_c, S_c)                                          K latents
    x_n^m | z_n, c ~ N(W_c^m z_n + mu_c^m, Psi_c^m)                D_m features, for each modality m that n has

Source: Ghahramani & Hinton, The EM algorithm for mixtures of factor analyzers (1996), for components that differ in
everything; under a mixture prior they share loadings, intercepts and noise.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from calmrl_prob._support.frozen import TravelsDetached
from calmrl_prob.errors import ArgumentError
from calmrl_prob.linear_gaussian.feature_names import FeatureNames
from calmrl_prob.linear_gaussian.structure import LinearGaussian, Sample, require_diagonal_noise


@dataclass(frozen=True, eq=False, repr=False)
class LinearGaussianMixture(TravelsDetached):
    """C weighted linear-Gaussian models of the same modalities, with the same number of latents.

    Args:
        log_weights: log pi, shape (C,), nats; normalised here. -inf switches a component off.
        components: the models. Those whose loadings, intercepts and noise variances are the same tensors, as
            :meth:`from_prior` makes them, share the products with the data.

    Raises:
        ArgumentError: there is no component, their modalities, widths or latents differ, or the weights do not fit.

    Example:
        >>> import torch
        >>> lg = LinearGaussian({"x": torch.ones(2, 1)}, {"x": torch.zeros(2)}, {"x": torch.tensor(0.5)})
        >>> mixture = LinearGaussianMixture.from_prior(
        ...     lg, torch.tensor([0.5, 0.5]).log(), torch.tensor([[-2.0], [2.0]]), torch.ones(2, 1, 1)
        ... )
        >>> mixture
        LinearGaussianMixture(2 components of x: 2; latent_dim=1, dtype=torch.float32)
        >>> mean, covariance = mixture.prior_moments()
        >>> mean.tolist(), covariance.tolist()  # 1 within components and 4 between them
        ([0.0], [[5.0]])
    """

    log_weights: Tensor
    components: tuple[LinearGaussian, ...]

    def __post_init__(self) -> None:
        """Check that the components fit together, and normalise the weights."""
        components = tuple(self.components)
        if not components:
            raise ArgumentError("components: expected at least one, got none.")
        first = components[0]
        require_diagonal_noise(first, "components")
        for c, component in enumerate(components):
            if component.dims != first.dims or component.latent_dim != first.latent_dim:
                raise ArgumentError(
                    f"components[{c}]: expected modalities {first.dims} and {first.latent_dim} latents as those of "
                    f"components[0], got {component.dims} and {component.latent_dim}."
                )
        weights = self.log_weights
        if weights.shape != (len(components),):
            raise ArgumentError(
                f"log_weights: expected shape ({len(components)},), one for each component, got {tuple(weights.shape)}."
            )
        if not bool((weights < torch.inf).all()) or not bool((weights > -torch.inf).any()):
            raise ArgumentError(
                f"log_weights: expected logarithms of weights that can be normalised, got {weights.tolist()}."
            )
        object.__setattr__(self, "components", tuple(component.select(first.names) for component in components))
        object.__setattr__(self, "log_weights", weights.log_softmax(0))

    @classmethod
    def from_prior(
        cls, linear_gaussian: LinearGaussian, log_weights: Tensor, means: Tensor, covariances: Tensor
    ) -> LinearGaussianMixture:
        """One model under a mixture-of-Gaussians prior; the prior that it had is left out.

        Args:
            linear_gaussian: loadings, intercepts and noise, which all components share.
            log_weights: log pi, shape (C,).
            means: m_c, shape (C, K).
            covariances: S_c, shape (C, K, K), positive definite.

        Raises:
            ArgumentError: a shape does not fit.
        """
        count, latent_dim = len(log_weights), linear_gaussian.latent_dim
        expected = ((count, latent_dim), (count, latent_dim, latent_dim))
        if (tuple(means.shape), tuple(covariances.shape)) != expected:
            raise ArgumentError(
                f"means, covariances: expected shapes {expected[0]} and {expected[1]}, got {tuple(means.shape)} and "
                f"{tuple(covariances.shape)}."
            )
        require_diagonal_noise(linear_gaussian, "linear_gaussian")
        shared = (linear_gaussian.loadings, linear_gaussian.intercepts, linear_gaussian.noise_variance)
        names, priors = linear_gaussian.feature_names, zip(means, covariances, strict=True)
        return cls(log_weights, tuple(LinearGaussian(*shared, *prior, feature_names=names) for prior in priors))

    @property
    def names(self) -> tuple[str, ...]:
        """The modalities."""
        return self.components[0].names

    @property
    def dims(self) -> dict[str, int]:
        """Number of features D_m of each modality."""
        return self.components[0].dims

    @property
    def feature_names(self) -> FeatureNames | None:
        """Names of the D_m features of each modality, where they are known."""
        return self.components[0].feature_names

    @property
    def latent_dim(self) -> int:
        """Number of latents K."""
        return self.components[0].latent_dim

    @property
    def num_components(self) -> int:
        """Number of components C."""
        return len(self.components)

    @property
    def dtype(self) -> torch.dtype:
        """The floating-point type of the parameters."""
        return self.components[0].dtype

    @property
    def device(self) -> torch.device:
        """Device of the parameters."""
        return self.components[0].device

    @property
    def means(self) -> Tensor:
        """m_c, shape (C, K)."""
        return torch.stack([component.prior_mean for component in self.components])

    @property
    def covariances(self) -> Tensor:
        """S_c, shape (C, K, K)."""
        return torch.stack([component.prior_covariance for component in self.components])

    @property
    def shares_likelihood(self) -> bool:
        """Whether all components have the same loadings, intercepts and noise: only the prior is a mixture."""
        return len(set(map(likelihood_key, self.components))) == 1

    def __repr__(self) -> str:
        """One line: components, modalities with their widths, K and dtype."""
        widths = ", ".join(f"{name}: {width}" for name, width in self.dims.items())
        settings = f"latent_dim={self.latent_dim}, dtype={self.dtype}"
        return f"LinearGaussianMixture({self.num_components} components of {widths}; {settings})"

    def map(self, function: Callable[[Tensor], Tensor]) -> LinearGaussianMixture:
        """A copy with ``function`` applied to every parameter tensor; what components share, they go on sharing."""
        likelihoods: dict[tuple[int, ...], LinearGaussian] = {}
        mapped = []
        for component in self.components:
            key = likelihood_key(component)
            if key not in likelihoods:
                likelihoods[key] = component.map(function)
            known = likelihoods[key]
            prior = (function(component.prior_mean), function(component.prior_covariance))
            mapped.append(replace(known, prior_mean=prior[0], prior_covariance=prior[1]))
        return LinearGaussianMixture(function(self.log_weights), tuple(mapped))

    def to(self, dtype: torch.dtype | None = None, device: torch.device | str | None = None) -> LinearGaussianMixture:
        """A copy in another floating-point type, on another device, or both."""
        return self.map(lambda value: value.to(dtype=dtype, device=device))

    def detach(self) -> LinearGaussianMixture:
        """A copy cut off from the autograd graph."""
        return self.map(lambda value: value.detach())

    def select(self, names: Sequence[str]) -> LinearGaussianMixture:
        """The mixture of some of its modalities.

        Raises:
            SchemaError: a name is not a modality of the model.
        """
        return LinearGaussianMixture(self.log_weights, tuple(part.select(names) for part in self.components))

    def prior_moments(self) -> tuple[Tensor, Tensor]:
        """Mean (K,) and covariance (K, K) of the prior of z as a whole."""
        weights, means = self.log_weights.exp(), self.means
        mean = weights @ means
        spread = means - mean
        within = torch.einsum("c,ckl->kl", weights, self.covariances)
        return mean, within + spread.mT @ (spread * weights[:, None])

    def sample(self, num_instances: int, generator: torch.Generator | None = None) -> Sample:
        """N instances drawn: component, latent, all modalities.

        Args:
            num_instances: N, how many.
            generator: source of randomness; torch's global one if not given.

        Raises:
            ArgumentError: they take more than the memory of the machine.
        """
        self.components[0].require_room(num_instances)
        labels = torch.multinomial(self.log_weights.exp(), num_instances, replacement=True, generator=generator)
        latents = self.means.new_empty(num_instances, self.latent_dim)
        features = {name: latents.new_empty(num_instances, width) for name, width in self.dims.items()}
        for c, component in enumerate(self.components):
            rows = (labels == c).nonzero().squeeze(1)
            drawn, values = component.sample(len(rows), generator)
            latents[rows] = drawn
            for name, value in values.items():
                features[name][rows] = value
        return Sample(latents, features, labels=labels)


def likelihood_key(part: LinearGaussian) -> tuple[int, ...]:
    """Equal for components that have the same tensors in their likelihood."""
    mappings: tuple[Mapping[str, Tensor], ...] = (part.loadings, part.intercepts, part.noise_variance)
    return tuple(id(value) for mapping in mappings for value in mapping.values())
