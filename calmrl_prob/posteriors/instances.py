"""A Pyro model seen as densities log p(x_n, z_n), one for each instance, with z_n any K real numbers.

What the approximate routes need of a model, whatever it is: its latent sites stacked into K numbers and stretched to
the whole real line where they are constrained, the joint density at given values of them, and the mean and variance
of each modality's site.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import torch
from pyro.distributions import Delta
from torch import Tensor
from torch.distributions import Transform, biject_to, constraints
from torch.distributions.transforms import identity_transform

from calmrl_prob.conjugacy.gaussian_sites import unwrap
from calmrl_prob.data import MultimodalData
from calmrl_prob.errors import ModelError
from calmrl_prob.posteriors.site_given import SiteGiven, features_of
from calmrl_prob.programs.bound import BoundModel, PyroModel
from calmrl_prob.programs.gate import require_sound
from calmrl_prob.programs.sites import Call, Site

#: Rows that are looked at to learn the shapes of the sites.
_ROWS = 3
#: Rows that a model is called with at once, where it could be more.
_CALL_ROWS = 4096


@dataclass(frozen=True)
class LatentBlock:
    """One latent site: which of the K numbers are its own, and how they become its value.

    Attributes:
        site: as it was when the model was looked at, for its shape.
        columns: among the K numbers.
        bijector: from them to the site's support.
    """

    site: Site
    columns: slice
    bijector: Transform

    @property
    def is_free(self) -> bool:
        """Whether the site takes all real numbers, so that nothing is stretched."""
        return self.bijector is identity_transform

    def value(self, latents: Tensor) -> tuple[Tensor, Tensor]:
        """The site's value at (n, K), and log |dvalue / dlatents| by instance, (n,)."""
        own = latents[:, self.columns].to(self.site.value.dtype)
        if self.is_free:
            return self.site.shaped(own), latents.new_zeros(len(latents))
        unconstrained_shape = self.bijector.inverse_shape(self.site.value.shape)
        # the plate stands to the left of everything that a bijector may change the size of
        others = list(unconstrained_shape)
        place = self.site.place()
        del others[place]
        free = own.reshape(len(own), *others).movedim(0, place)
        value = self.bijector(free)
        change = self.bijector.log_abs_det_jacobian(free, value).movedim(place, 0)
        return value, change.reshape(len(own), -1).sum(dim=1)

    def stretched(self, value: Tensor) -> Tensor:
        """The inverse: the site's value as (n, width) real numbers."""
        free: Tensor = self.bijector.inv(value).movedim(self.site.place(), 0)
        return free.reshape(len(free), -1)


class InstanceModel:
    """A Pyro model as densities of instances.

    Args:
        model: takes the data; a plate "instances", all latent sites in it, and one observed site per modality, named as
            the modality. It is called with subsets of the data, in which rows may come twice.
        data: what it is to be called with; the first rows are looked at.

    Attributes:
        bound: the model with the parameters that it states.
        blocks: the latent sites, in the order in which the model draws them.
        latent_dim: K, the numbers that they take when stretched.
        dims: number of features D_m of each modality.

    Raises:
        ArgumentTypeError: the model cannot be called.
        ModelError: it breaks the form that every route needs, or has a latent outside the plate or a discrete one.

    Example:
        >>> import pyro, pyro.distributions as dist
        >>> def model(data):
        ...     with pyro.plate("instances", len(data)):
        ...         z = pyro.sample("z", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
        ...         scale = pyro.sample("scale", dist.LogNormal(0.0, 1.0))
        ...         pyro.sample("x", dist.Normal(z, scale[:, None]).to_event(1), obs=data.filled("x"))
        >>> instances = InstanceModel(model, MultimodalData({"x": torch.ones(5, 2)}))
        >>> instances.latent_dim, [block.columns for block in instances.blocks]
        (3, [slice(0, 2, None), slice(2, 3, None)])
    """

    def __init__(self, model: PyroModel | BoundModel, data: MultimodalData) -> None:
        self.bound = model if isinstance(model, BoundModel) else BoundModel(model)
        self._schema: Mapping[str, int] | None = getattr(self.bound.model, "dims", None)
        data = self.conform(data)
        with torch.no_grad():  # its sites are kept for their shapes, and travel with every result
            call = self.bound.call(data.subset(slice(0, _ROWS)))
        unfitted = [name for name in call.globals if name not in self.bound.values]
        if unfitted:
            raise ModelError(
                f"site {unfitted[0]!r}: it is a latent outside the plate 'instances', which all instances share; this "
                "route has one latent for each instance. Make it a parameter, or fit it first, by cal.fit with method "
                "'map'."
            )
        self.blocks: tuple[LatentBlock, ...] = ()
        self.latent_dim = 0
        for name, site in call.latents.items():
            support = site.fn.support
            if support is None or support.is_discrete:
                raise ModelError(
                    f"site {name!r}: its values are discrete, and this route has only continuous latents; sum it out "
                    "(dist.MixtureSameFamily), or let cal.posterior find the exact mixture."
                )
            if isinstance(unwrap(site.fn), Delta):
                raise ModelError(
                    f"site {name!r}: it is a point mass, which is no latent but a value; state it by "
                    f"pyro.deterministic({name!r}, value), or use the value itself."
                )
            bijector = biject_to(_of_components(support))
            if getattr(bijector, "base_transform", bijector) is identity_transform:
                bijector = identity_transform
            width = bijector.inverse_shape(site.value.shape).numel() // site.value.shape[site.place()]
            self.blocks += (LatentBlock(site, slice(self.latent_dim, self.latent_dim + width), bijector),)
            self.latent_dim += width
        self.dims = {name: site.rows(site.value).shape[1] for name, site in call.observed.items()}
        self.dtype: torch.dtype = self.blocks[0].site.value.dtype
        require_sound(self.bound, data)

    def conform(self, data: MultimodalData) -> MultimodalData:
        """The data with all modalities of the model, if it says which they are (``dims``)."""
        return data if self._schema is None else data.conform(self._schema)

    def _call(self, data: MultimodalData, latents: Tensor, *, densities: bool) -> tuple[Call, Tensor]:
        values, stretch = {}, latents.new_zeros(len(latents))
        for block in self.blocks:
            values[block.site.name], change = block.value(latents)
            stretch = stretch + change
        return self.bound.call(data, values, densities=densities), stretch

    def log_joint(self, data: MultimodalData, latents: Tensor) -> tuple[Tensor, Tensor]:
        """log p(x_n, z_n) of what each instance has, and what the model adds once for all.

        Args:
            data: N instances.
            latents: (N, K), stretched.

        Returns:
            (N,), nats, as a density of the stretched latents; and a scalar: ``pyro.factor`` statements outside the
            plate, such as the log prior of parameters.

        Raises:
            ModelError: a site's density is not finite, or the model breaks its form.
        """
        call, total = self._call(data, latents, densities=True)
        shared = latents.new_zeros(())
        everything = (call.latents, call.observed, call.factors, call.constants)
        for site in (site for role in everything for site in role.values()):
            if site.axis is None:
                assert site.log_density is not None
                shared = shared + site.log_density.sum()
            else:
                total = total + site.instance_log_density()
        return total, shared

    def log_joint_of_draws(self, data: MultimodalData, draws: Tensor) -> tuple[Tensor, Tensor]:
        """:meth:`log_joint` of several draws (S, N, K): densities (S, N), and the scalar."""
        shared, found = draws.new_zeros(()), []
        for rows, latents in _together(data, draws):
            density, shared = self.log_joint(rows, latents)
            found.append(density)
        return torch.cat(found).reshape(draws.shape[:2]), shared

    def moments(self, data: MultimodalData, latents: Tensor, names: Iterable[str]) -> dict[str, tuple[Tensor, Tensor]]:
        """Mean and variance of x_n^m given z_n: of each named modality two tensors (N, D_m).

        Raises:
            ModelError: a site's distribution has no mean or variance.
        """
        call, _ = self._call(data, latents, densities=False)
        found = {}
        for name in names:
            site = call.observed[name]
            try:
                found[name] = site.rows(site.fn.mean), site.rows(site.fn.variance)
            except NotImplementedError as error:
                raise ModelError(
                    f"site {name!r}: its distribution, {type(unwrap(site.fn)).__name__}, states no mean or "
                    "variance, so the modality cannot be imputed; observe one that does."
                ) from error
        return found

    def moments_of_draws(self, data: MultimodalData, draws: Tensor, name: str) -> tuple[Tensor, Tensor]:
        """:meth:`moments` of one modality for several draws (S, N, K): two tensors (S, N, D_m)."""
        found = [self.moments(rows, latents, (name,))[name] for rows, latents in _together(data, draws)]
        mean, variance = (torch.cat(parts).reshape(*draws.shape[:2], -1) for parts in zip(*found, strict=True))
        return mean, variance

    def site_of_draws(self, data: MultimodalData, draws: Tensor, name: str) -> list[SiteGiven] | None:
        """One modality's site given several draws (S, N, K), in parts; None where normals with its moments serve."""
        found = []
        for rows, latents in _together(data, draws):
            site = self._call(rows, latents, densities=False)[0].observed[name]
            features = features_of(site)
            if features is None:
                return None
            found.append(SiteGiven(site, features, len(data)))
        return found

    def constrain(self, latents: Tensor) -> Tensor:
        """Stretched latents (N, K) in the model's own units, site after site."""
        values = [block.value(latents)[0].movedim(block.site.place(), 0) for block in self.blocks]
        return torch.cat([value.reshape(len(latents), -1) for value in values], dim=1)


def _together(data: MultimodalData, draws: Tensor) -> Iterator[tuple[MultimodalData, Tensor]]:
    """Several draws (S, N, K) as rows that come once for each draw, and their latents, in chunks.

    One call of a model on many rows costs much less than many calls on few.
    """
    num_instances = len(data)
    repeated, rows = data, torch.arange(num_instances)
    for chunk in draws.split(max(1, _CALL_ROWS // num_instances)):
        if len(repeated) != len(chunk) * num_instances:
            repeated = data.subset(rows.repeat(len(chunk)))
        yield repeated, chunk.reshape(-1, draws.shape[2])


def _of_components(support: constraints.Constraint) -> constraints.Constraint:
    """The support of a mixture's components in place of its own, which torch has no bijector for."""
    if isinstance(support, constraints.MixtureSameFamilyConstraint):
        return support.base_constraint
    if isinstance(support, constraints.independent):
        return constraints.independent(_of_components(support.base_constraint), support.reinterpreted_batch_ndims)
    return support
