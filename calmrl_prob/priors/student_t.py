"""The Student-t prior: z ~ t_nu(m0, S0), for latents with heavy tails."""

from __future__ import annotations

from typing import ClassVar

import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution
from torch import Tensor, nn

from calmrl_prob._support.arguments import checked_dtype, described, real_number, whole_number
from calmrl_prob.data import MultimodalData
from calmrl_prob.errors import ArgumentError, ArgumentTypeError
from calmrl_prob.linear_gaussian import LinearGaussian, ScaleMixture, Structure, StructuresByInstance
from calmrl_prob.priors.prior import Prior, with_prior


class StudentTPrior(Prior):
    """z ~ t_nu(0, I): a Gaussian whose scale is each instance's own, z | u ~ N(0, I / u), u ~ Gamma(nu/2, nu/2).

    Not conjugate to normal noise, but Gaussian given u: a scale mixture. nu is learned with the model.

    Source: Liu & Rubin, ML estimation of the t distribution using EM and its extensions, ECM and ECME (1995).

    Args:
        latent_dim: K.
        degrees_of_freedom: nu, to start from; above 2, so that there is a variance.
        dtype: of its parameters.

    Raises:
        ArgumentError: K is below 1, or nu is not above 2.
        ArgumentTypeError: an argument is of another type.

    Example:
        >>> prior = StudentTPrior(2, degrees_of_freedom=5)
        >>> round(prior.degrees_of_freedom.item(), 6), prior.distribution().event_shape
        (5.0, torch.Size([2]))
    """

    name: ClassVar[str] = "student_t"
    #: What fits keep the degrees of freedom above.
    least: ClassVar[float] = 2.01
    origin: Tensor

    def __init__(self, latent_dim: int, degrees_of_freedom: float = 5.0, dtype: torch.dtype = torch.float64) -> None:
        super().__init__(whole_number("latent_dim", latent_dim, least=1))
        freedom = real_number("degrees_of_freedom", degrees_of_freedom, 5.0)
        if not freedom > 2:
            raise ArgumentError(f"degrees_of_freedom: expected a number above 2, got {freedom}.")
        kind = checked_dtype(dtype)
        self.log_excess = nn.Parameter(torch.tensor(freedom - 2, dtype=kind).log())
        self.register_buffer("origin", torch.zeros(self.latent_dim, dtype=kind))

    @property
    def degrees_of_freedom(self) -> Tensor:
        """nu, ()."""
        return 2 + self.log_excess.exp()

    def structure(self, likelihood: LinearGaussian, data: MultimodalData | None = None) -> ScaleMixture:
        """A scale mixture: all latents of an instance share one scale."""
        del data
        identity = torch.eye(self.latent_dim, dtype=self.origin.dtype, device=self.origin.device)
        freedom = self.degrees_of_freedom.to(likelihood.dtype)
        return ScaleMixture(with_prior(likelihood, self.origin, identity), {}, [(slice(0, self.latent_dim), freedom)])

    @torch.no_grad()
    def load(self, structure: Structure | StructuresByInstance) -> None:
        """Take over nu, above 2, of a scale mixture whose latents share one scale.

        Raises:
            ArgumentTypeError: it is no scale mixture.
            ArgumentError: nu is not above 2.
        """
        if not isinstance(structure, ScaleMixture) or not structure.prior_degrees_of_freedom:
            raise ArgumentTypeError(
                f"structure: expected a ScaleMixture with Student-t latents, got {described(structure)}."
            )
        freedom = structure.prior_degrees_of_freedom[0][1]
        if not float(freedom) > 2:
            raise ArgumentError(f"degrees_of_freedom: expected a number above 2, got {float(freedom)}.")
        self.log_excess.copy_((freedom - 2).log())

    def distribution(self, data: MultimodalData | None = None) -> TorchDistribution:
        """t_nu(0, I), the same for all instances."""
        del data
        identity = torch.eye(self.latent_dim, dtype=self.origin.dtype, device=self.origin.device)
        student: TorchDistribution = dist.MultivariateStudentT(self.degrees_of_freedom, self.origin, identity)
        return student

    def __repr__(self) -> str:
        """One line."""
        freedom = float(self.degrees_of_freedom.detach())
        return f"StudentTPrior(latent_dim={self.latent_dim}, degrees_of_freedom={freedom:.3g})"
