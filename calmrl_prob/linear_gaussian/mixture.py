"""Mixtures of linear-Gaussian models, and their exact posterior: a mixture of Gaussians again.

    c_n ~ Categorical(pi)                                          C components
    z_n | c ~ N(m_c, S_c)                                          K latents
    x_n^m | z_n, c ~ N(W_c^m z_n + mu_c^m, Psi_c^m)                D_m features, for each modality m that n has

With N(mean_nc, V_nc) and log p(x_n | c) the posterior and the evidence of component c alone (``posterior.py``),

    log p(x_n) = logsumexp_c (log pi_c + log p(x_n | c)),   r_nc = pi_c p(x_n | c) / p(x_n)
    z_n | x_n ~ sum_c r_nc N(mean_nc, V_nc)
    E[z_n | x_n] = sum_c r_nc mean_nc
    Cov[z_n | x_n] = sum_c r_nc (V_nc + (mean_nc - E[z_n]) (mean_nc - E[z_n])^T)

Components that share loadings, intercepts and noise, as under a mixture prior, share every product with the data; what
each adds is K-dimensional. Sources: Bishop, Pattern Recognition and Machine Learning (2006), section 9.2, for the
responsibilities; Ghahramani & Hinton, The EM algorithm for mixtures of factor analyzers (1996), for components that
differ in everything.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from calmrl_prob.errors import ArgumentError
from calmrl_prob.linear_gaussian.blocks import FeatureBlocks, ObservedBlocks
from calmrl_prob.linear_gaussian.posterior import Posterior, Predictive, posterior, project_data
from calmrl_prob.linear_gaussian.products import row_chunks
from calmrl_prob.linear_gaussian.structure import LinearGaussian


@dataclass(frozen=True, eq=False, repr=False)
class LinearGaussianMixture:
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
        shared = (linear_gaussian.loadings, linear_gaussian.intercepts, linear_gaussian.noise_variance)
        return cls(
            log_weights, tuple(LinearGaussian(*shared, *prior) for prior in zip(means, covariances, strict=True))
        )

    @property
    def names(self) -> tuple[str, ...]:
        """The modalities."""
        return self.components[0].names

    @property
    def dims(self) -> dict[str, int]:
        """Number of features D_m of each modality."""
        return self.components[0].dims

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
        """Where the parameters live."""
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
        return len(set(map(_likelihood_key, self.components))) == 1

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
            key = _likelihood_key(component)
            if key not in likelihoods:
                likelihoods[key] = component.map(function)
            known = likelihoods[key]
            prior = (function(component.prior_mean), function(component.prior_covariance))
            mapped.append(LinearGaussian(known.loadings, known.intercepts, known.noise_variance, *prior))
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

    def sample(
        self, num_instances: int, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Draw instances: component, latent, all modalities.

        Args:
            num_instances: N, how many.
            generator: source of randomness; torch's global one if not given.

        Returns:
            The components (N,) int64, the latents (N, K) and, for each modality, the features (N, D_m).
        """
        labels = torch.multinomial(self.log_weights.exp(), num_instances, replacement=True, generator=generator)
        latents = self.means.new_empty(num_instances, self.latent_dim)
        features = {name: latents.new_empty(num_instances, width) for name, width in self.dims.items()}
        for c, component in enumerate(self.components):
            rows = (labels == c).nonzero().squeeze(1)
            drawn, values = component.sample(len(rows), generator)
            latents[rows] = drawn
            for name, value in values.items():
                features[name][rows] = value
        return labels, latents, features


class MixturePosterior:
    """The posterior sum_c r_nc N(mean_nc, V_nc) of the latent of each of N instances.

    Attributes:
        mixture: the model it belongs to.
        components: the posterior of each component alone.
        log_responsibilities: log r_nc, shape (N, C), nats.
        log_marginal: log p(x_n), shape (N,), nats.
    """

    def __init__(
        self,
        mixture: LinearGaussianMixture,
        components: Sequence[Posterior],
        log_responsibilities: Tensor,
        log_marginal: Tensor,
    ) -> None:
        self.mixture = mixture
        self.components = tuple(components)
        self.log_responsibilities = log_responsibilities
        self.log_marginal = log_marginal

    @cached_property
    def responsibilities(self) -> Tensor:
        """r_nc, shape (N, C): the probability of each component given what the instance has."""
        return self.log_responsibilities.exp()

    @cached_property
    def mean(self) -> Tensor:
        """E[z_n | x_n], shape (N, K), latent units."""
        return _average(self.responsibilities, (part.mean for part in self.components))

    @property
    def covariance(self) -> Tensor:
        """Cov[z_n | x_n], shape (N, K, K): within components and between them. N K^2 numbers, made when asked for."""
        out = self.mean.new_zeros(*self.mean.shape, self.mean.shape[1])
        for weight, part in zip(self.responsibilities.mT[:, :, None], self.components, strict=True):
            spread = part.mean - self.mean
            out = out + weight[:, :, None] * part.covariance
            out = out + (weight * spread)[:, :, None] * spread[:, None, :]
        return out

    def sample(self, num_draws: int, generator: torch.Generator | None = None) -> Tensor:
        """Draw latents.

        Returns:
            Shape (S, N, K); draws are independent.
        """
        return self.sample_given(self.sample_components(num_draws, generator), generator)

    def sample_components(self, num_draws: int, generator: torch.Generator | None = None) -> Tensor:
        """Draw components, shape (S, N) int64."""
        return torch.multinomial(self.responsibilities, num_draws, replacement=True, generator=generator).mT

    def sample_given(self, labels: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Draw latents given components.

        Args:
            labels: (S, N) int64, from ``sample_components``.
            generator: source of randomness; torch's global one if not given.

        Returns:
            Shape (S, N, K).
        """
        shape = (*labels.shape, self.mixture.latent_dim)
        noise = torch.randn(*shape, generator=generator, dtype=self.mean.dtype, device=self.mean.device).flatten(0, 1)
        draws = torch.empty_like(noise)
        for c, part in enumerate(self.components):
            chosen = (labels.flatten() == c).nonzero().squeeze(1)
            rows = chosen % labels.shape[1]
            draws[chosen] = part.mean[rows] + part.deviate(noise[chosen], rows)
        return draws.view(shape)


def mixture_posterior(mixture: LinearGaussianMixture, blocks: ObservedBlocks | FeatureBlocks) -> MixturePosterior:
    """The exact posterior under a mixture: one Cholesky factorisation per component and missing pattern.

    Differentiable in all parameters. The products with the data are made once for components that share loadings,
    intercepts and noise.

    Args:
        mixture: the model, in the floating-point type that the K-dimensional algebra is to use.
        blocks: N instances with any modalities, or any features, missing; modalities as in the model.

    Raises:
        NumericalError: a precision is not positive definite, or the evidence of an instance is not finite.

    Example:
        >>> import torch
        >>> from calmrl_prob.linear_gaussian import LinearGaussian, ObservedBlocks
        >>> lg = LinearGaussian({"x": torch.ones(1, 1)}, {"x": torch.zeros(1)}, {"x": torch.tensor(1.0)})
        >>> two = LinearGaussianMixture.from_prior(
        ...     lg, torch.tensor([0.5, 0.5]).log(), torch.tensor([[-3.0], [3.0]]), torch.ones(2, 1, 1)
        ... )
        >>> data = ObservedBlocks.from_arrays({"x": torch.tensor([[3.0], [0.0]])}, torch.ones(2, 1).bool())
        >>> [[round(r, 4) for r in row] for row in mixture_posterior(two, data).responsibilities.tolist()]
        [[0.0001, 0.9999], [0.5, 0.5]]
    """
    projections = {_likelihood_key(part): part for part in mixture.components}
    made = {key: project_data(part, blocks) for key, part in projections.items()}
    parts = [posterior(part, blocks, made[_likelihood_key(part)]) for part in mixture.components]
    log_joint = torch.stack([part.log_marginal for part in parts], dim=1) + mixture.log_weights
    log_marginal = log_joint.logsumexp(1)
    return MixturePosterior(mixture, parts, log_joint - log_marginal[:, None], log_marginal)


def predict_mixture(given: MixturePosterior, names: Sequence[str] | None = None) -> Predictive:
    """Mean and variance of the posterior predictive of modalities, which is itself a mixture of normals.

    With mu_nc = W_c mean_nc + mu_c, feature by feature:

        mean = sum_c r_nc mu_nc
        latent_variance = sum_c r_nc (diag(W_c V_nc W_c^T) + (mu_nc - mean)^2)
        noise_variance = sum_c r_nc psi_c

    Args:
        given: the posterior of the latents.
        names: which modalities; all by default.

    Returns:
        As for a single component; the noise variance has shape (N, D_m) where components differ in it.

    Raises:
        SchemaError: a name is not a modality of the model.
    """
    chosen = given.mixture.select(given.mixture.names if names is None else names)
    mean: dict[str, Tensor] = {}
    latent: dict[str, Tensor] = {}
    noise: dict[str, Tensor] = {}
    for name in chosen.names:
        mean[name], latent[name] = _feature_moments(given, [part.loadings[name] for part in chosen.components], name)
        variances = [part.noise_variance[name] for part in chosen.components]
        same = all(variance is variances[0] for variance in variances)
        noise[name] = variances[0] if same else given.responsibilities @ torch.stack(variances)
    return Predictive(mean, latent, noise)


def _feature_moments(given: MixturePosterior, loadings: Sequence[Tensor], name: str) -> tuple[Tensor, Tensor]:
    weights, parts = given.responsibilities, given.components
    within = [part.feature_variance(rows) for part, rows in zip(parts, loadings, strict=True)]
    means, variances = [], []
    for rows in row_chunks(len(weights), len(loadings[0])):
        centres = [
            torch.addmm(part.linear_gaussian.intercepts[name], part.mean[rows], loading.mT)
            for part, loading in zip(parts, loadings, strict=True)
        ]
        mean = _average(weights[rows], centres)
        spread = (
            variance[part.pattern_index[rows]] + (centre - mean).square()
            for variance, part, centre in zip(within, parts, centres, strict=True)
        )
        means.append(mean)
        variances.append(_average(weights[rows], spread))
    return torch.cat(means), torch.cat(variances)


def _average(weights: Tensor, values: Iterable[Tensor]) -> Tensor:
    """sum_c weights[:, c] values[c], shape (N, D), without stacking the values."""
    terms = (weight[:, None] * value for weight, value in zip(weights.mT, values, strict=True))
    return sum(terms, start=weights.new_zeros(()))


def _likelihood_key(part: LinearGaussian) -> tuple[int, ...]:
    """Equal for components that have the same tensors in their likelihood."""
    mappings: tuple[Mapping[str, Tensor], ...] = (part.loadings, part.intercepts, part.noise_variance)
    return tuple(id(value) for mapping in mappings for value in mapping.values())
