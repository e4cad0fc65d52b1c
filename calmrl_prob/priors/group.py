"""The group prior: instances in known groups share a mean and a covariance."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, ClassVar

import numpy as np
import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution
from torch import Tensor

from calmrl_prob._support.arguments import checked_dtype, described, whole_number
from calmrl_prob.data import MultimodalData
from calmrl_prob.errors import ArgumentError, ArgumentTypeError, DataError
from calmrl_prob.linear_gaussian import LinearGaussian, LinearGaussianMixture, Structure, StructuresByInstance
from calmrl_prob.priors.components import Components
from calmrl_prob.priors.prior import Prior, with_prior


class GroupPrior(Prior):
    """z_n ~ N(m_g, S_g) with g the group of instance n, which the data tell; means and covariances are learned.

    Given the groups everything is Gaussian: the posterior is exact, by the route "exact by structure". Hospitals,
    batches, species: what their instances have in common goes into the prior instead of the noise.

    Args:
        latent_dim: K.
        groups: the names of the groups.
        column: what tells the group of an instance: "labels", or the name of a covariate.
        dtype: of its parameters.

    Raises:
        ArgumentError: K is below 1, or there is no group, or one twice.
        ArgumentTypeError: an argument is of another type.

    Example:
        >>> prior = GroupPrior(2, groups=["north", "south"], column="hospital")
        >>> data = MultimodalData({"x": torch.ones(3, 1)}, covariates={"hospital": ["south", "north", "south"]})
        >>> prior.index(data).tolist(), prior.distribution(data).batch_shape
        ([1, 0, 1], torch.Size([3]))
    """

    name: ClassVar[str] = "group"

    def __init__(
        self,
        latent_dim: int,
        groups: Iterable[Any],
        column: str = "labels",
        dtype: torch.dtype = torch.float64,
    ) -> None:
        super().__init__(whole_number("latent_dim", latent_dim, least=1))
        if isinstance(groups, str) or not isinstance(groups, Iterable):
            raise ArgumentTypeError(f"groups: expected the names of the groups, got {described(groups)}.")
        if not isinstance(column, str):
            raise ArgumentTypeError(f"column: expected 'labels' or the name of a covariate, got {described(column)}.")
        self.groups = tuple(str(group) for group in groups)
        self.column = column
        if not self.groups or len(set(self.groups)) < len(self.groups):
            raise ArgumentError(f"groups: expected distinct names, at least one, got {list(self.groups)}.")
        self.components = Components(len(self.groups), self.latent_dim, 0.0, 0, checked_dtype(dtype))

    def index(self, data: MultimodalData) -> Tensor:
        """The group of each instance, (N,) int64.

        Raises:
            DataError: the data lack the column, or have a group that is not among those known.
        """
        column = data.labels if self.column == "labels" else data.covariates.get(self.column)
        if column is None:
            raise DataError(
                f"data: they have no {self.column!r}, by which the prior tells groups apart; the covariates are "
                f"{sorted(data.covariates)}."
            )
        known = {group: g for g, group in enumerate(self.groups)}
        names, place = np.unique(np.asarray(column).astype(str), return_inverse=True)
        unknown = [name for name in names.tolist() if name not in known]
        if unknown:
            raise DataError(
                f"data: group {unknown[0]!r} of {self.column!r} is unknown to the prior, which has "
                f"{list(self.groups)}; leave these instances out, or fit anew with all groups."
            )
        codes = torch.tensor([known[name] for name in names.tolist()], dtype=torch.int64)
        return codes[torch.as_tensor(place.reshape(-1))].to(data.device)

    def distribution(self, data: MultimodalData | None = None) -> TorchDistribution:
        """The Gaussian of each instance's group.

        Raises:
            ArgumentError: no data are given, so that there are no groups.
        """
        if data is None:
            raise ArgumentError("data: a group prior needs the groups of the instances; give data that have them.")
        index = self.index(data)
        factor = self.components.scale_tril()
        normal: TorchDistribution = dist.MultivariateNormal(self.components.means[index], scale_tril=factor[index])
        return normal

    def structure(self, likelihood: LinearGaussian, data: MultimodalData | None = None) -> StructuresByInstance | None:
        """One structure for each group, which share the likelihood; None without instances, which tell their groups.

        Raises:
            DataError: as :meth:`index` does.
        """
        if data is None:
            return None
        covariances = self.components.covariances()
        priors = zip(self.components.means, covariances, strict=True)
        structures = tuple(with_prior(likelihood, *prior) for prior in priors)
        return StructuresByInstance(structures, self.index(data), self.groups, self.column)

    @torch.no_grad()
    def load(self, structure: Structure | StructuresByInstance) -> None:
        """Take over the means and covariances of the components of a mixture, one for each group.

        Raises:
            ArgumentTypeError: it is no mixture.
            ArgumentError: the number of components or latents differs, or a covariance is not positive definite.
        """
        if not isinstance(structure, LinearGaussianMixture):
            raise ArgumentTypeError(f"structure: expected a LinearGaussianMixture, got {described(structure)}.")
        self.components.set(structure.means, structure.covariances)

    @classmethod
    def least_numbers(cls, latent_dim: int, groups: Sequence[Any] = (), **config: Any) -> int:
        """G K (K + 2): means and covariances."""
        del config
        return Components.numbers(len(groups), latent_dim)

    def config(self) -> dict[str, Any]:
        """The groups and where they stand."""
        return {"groups": list(self.groups), "column": self.column}

    def __repr__(self) -> str:
        """One line."""
        return f"GroupPrior(latent_dim={self.latent_dim}, {len(self.groups)} groups by {self.column!r})"
