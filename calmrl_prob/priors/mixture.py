"""The mixture prior: z ~ sum_c pi_c N(m_c, S_c), whose posterior is a mixture too, exactly."""

from __future__ import annotations

from typing import Any, ClassVar

import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution
from torch import Tensor, nn

from calmrl_prob._support.arguments import checked_dtype, checked_seed, described, whole_number
from calmrl_prob.data import MultimodalData
from calmrl_prob.errors import ArgumentError, ArgumentTypeError
from calmrl_prob.linear_gaussian import LinearGaussian, LinearGaussianMixture, Structure, StructuresByInstance
from calmrl_prob.priors.components import Components
from calmrl_prob.priors.prior import Prior


class MixturePrior(Prior):
    """z ~ sum_c pi_c N(m_c, S_c), learned with the model: instances of C kinds, each with a mean and covariance.

    Source: Ghahramani & Hinton, The EM algorithm for mixtures of factor analyzers (1996), with one set of loadings.

    Args:
        latent_dim: K.
        num_components: C.
        seed: of the means that it starts from; ``calmrl_prob.fit`` starts from clusters of the data instead.
        dtype: of its parameters.

    Raises:
        ArgumentError: K or C is below 1.
        ArgumentTypeError: an argument is of another type.

    Example:
        >>> prior = MixturePrior(2, num_components=3)
        >>> prior
        MixturePrior(latent_dim=2, num_components=3)
        >>> prior.distribution().sample().shape, prior.log_weights.exp().sum().item()
        (torch.Size([2]), 1.0)
    """

    name: ClassVar[str] = "mixture"

    def __init__(
        self, latent_dim: int, num_components: int = 4, seed: int = 0, dtype: torch.dtype = torch.float64
    ) -> None:
        super().__init__(whole_number("latent_dim", latent_dim, least=1))
        count = whole_number("num_components", num_components, least=1)
        kind = checked_dtype(dtype)
        self.logits = nn.Parameter(torch.zeros(count, dtype=kind))
        self.components = Components(count, self.latent_dim, 1.0, checked_seed(seed), kind)

    @property
    def num_components(self) -> int:
        """C."""
        return len(self.logits)

    @property
    def log_weights(self) -> Tensor:
        """log pi, (C,), nats."""
        return self.logits.log_softmax(0)

    def distribution(self, data: MultimodalData | None = None) -> TorchDistribution:
        """The mixture, the same for all instances."""
        del data
        parts = dist.MultivariateNormal(self.components.means, scale_tril=self.components.scale_tril())
        mixture: TorchDistribution = dist.MixtureSameFamily(dist.Categorical(logits=self.logits), parts)
        return mixture

    def structure(self, likelihood: LinearGaussian, data: MultimodalData | None = None) -> LinearGaussianMixture:
        """A mixture whose components share the likelihood."""
        del data
        components = self.components
        return LinearGaussianMixture.from_prior(
            likelihood, self.log_weights, components.means, components.covariances()
        )

    @torch.no_grad()
    def load(self, structure: Structure | StructuresByInstance) -> None:
        """Take over weights, means and covariances of a mixture of as many components.

        Raises:
            ArgumentTypeError: it is no mixture.
            ArgumentError: the number of components or latents differs, or a covariance is not positive definite.
        """
        if not isinstance(structure, LinearGaussianMixture):
            raise ArgumentTypeError(f"structure: expected a LinearGaussianMixture, got {described(structure)}.")
        if structure.num_components != self.num_components:
            raise ArgumentError(
                f"structure: expected {self.num_components} components, got {structure.num_components}; make a prior "
                "with as many."
            )
        self.components.set(structure.means, structure.covariances)
        self.logits.copy_(structure.log_weights)

    @classmethod
    def least_numbers(cls, latent_dim: int, num_components: int = 4, **config: Any) -> int:
        """C + C K (K + 2): weights, means and covariances."""
        del config
        count = whole_number("num_components", num_components, least=1)
        return count + Components.numbers(count, latent_dim)

    def config(self) -> dict[str, Any]:
        """The number of components."""
        return {"num_components": self.num_components}

    def __repr__(self) -> str:
        """One line."""
        return f"MixturePrior(latent_dim={self.latent_dim}, num_components={self.num_components})"
