"""Evaluating a Pyro model's sites at chosen latents, and reading the affine maps out of them.

At z = 0 and at multiples of the unit vectors, for K + 1 copies of one instance in a single call, the location of every
site gives its intercept and its loadings; so reading them costs one call on K + 1 rows, whatever N is. Everything is
differentiable in the model's parameters and global latents.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from calmrl_prob.conjugacy.affine_sites import AffineSite, Component, assemble
from calmrl_prob.conjugacy.gaussian_sites import MAX_COMPONENTS, Gaussian, Mixture, read_site, unwrap
from calmrl_prob.data import MultimodalData
from calmrl_prob.errors import ModelError, NotConjugateError
from calmrl_prob.linear_gaussian import LinearGaussian
from calmrl_prob.programs.bound import BoundModel
from calmrl_prob.programs.sites import Call, Site

#: Where along each axis a site is probed: far enough out that a large intercept takes few digits from the loadings,
#: and a power of two, so that dividing by it rounds nothing.
_REACH = 64.0

#: Rows of one call, at most, where many instances are read.
_MOST_ROWS = 16384

Assignment = Mapping[str, Tensor]


@dataclass(frozen=True)
class SiteGaussians:
    """The Gaussians of all sites at given latents, for n instances.

    Attributes:
        log_weight: (n,) log probability of the discrete sites' values, and of the components chosen of each mixture.
        sites: latent sites in order, then modalities.
    """

    log_weight: Tensor
    sites: Mapping[str, Gaussian]

    def first(self, number: int) -> SiteGaussians:
        """Of the first instances alone."""
        sites = {name: gaussian.map(lambda part: part[:number]) for name, gaussian in self.sites.items()}
        return SiteGaussians(self.log_weight[:number], sites)


class Prober:
    """A model whose latents can be set.

    Args:
        bound: the model.
        call: any call of it, for the shapes of its sites.

    Attributes:
        latents: for each continuous latent site its columns in z.
        discrete: for each discrete latent site the values it can take, (V, ...).
        modalities: the observed sites.
        latent_dim: K.
    """

    def __init__(self, bound: BoundModel, call: Call) -> None:
        self.bound = bound
        self._sites = {**call.latents, **call.observed}
        self.latents: dict[str, slice] = {}
        self.discrete: dict[str, Tensor] = {}
        #: the site that makes the form a mixture, and how, if one does
        self.mixed = ("", "")
        self.modalities = tuple(call.observed)
        start = 0
        for name, site in call.latents.items():
            values = _enumerated(site)
            if values is not None:
                self.discrete[name] = values
                self.mixed = (name, "discrete site")
                continue
            width = site.rows(site.value).shape[1]
            self.latents[name] = slice(start, start + width)
            start += width
        self.latent_dim = start
        sizes = [len(values) for values in self.discrete.values()]
        if math.prod(sizes) > MAX_COMPONENTS:
            name = next(iter(self.discrete))
            raise NotConjugateError(
                name,
                "discrete site",
                f"The discrete sites have {math.prod(sizes)} joint values, too many to sum over.",
                "svi",
            )

    @property
    def dtype(self) -> torch.dtype:
        """The floating-point type of the latents."""
        return self._sites[next(iter(self.latents))].value.dtype if self.latents else torch.float64

    def event_shape(self, name: str) -> tuple[int, ...] | None:
        """The event shape of a latent site; None where it stands in further plates inside that of the instances."""
        fn = self._sites[name].fn
        return tuple(fn.event_shape) if len(fn.batch_shape) == 1 else None

    def assignments(self) -> Iterator[Assignment]:
        """Every joint value of the discrete sites; one empty assignment if there are none."""
        for values in itertools.product(*self.discrete.values()):
            yield dict(zip(self.discrete, values, strict=True))

    def evaluate(
        self,
        data: MultimodalData,
        latents: Tensor,
        assignment: Assignment,
        values: Mapping[str, Tensor] | None = None,
        *,
        densities: bool = False,
    ) -> tuple[list[SiteGaussians], Call]:
        """Call the model with latents z (n, K) and read every site: one evaluation for each choice of components.

        Raises:
            NotConjugateError: a site is neither Gaussian nor a mixture of Gaussians.
            ModelError: the model breaks its form.
        """
        given = dict(values or {})
        for name, columns in self.latents.items():
            given[name] = self._sites[name].shaped(latents[:, columns].to(self._sites[name].value.dtype))
        for name, value in assignment.items():
            given[name] = self._sites[name].shaped(value.reshape(1, -1).expand(len(data), -1))
        call = self.bound.call(data, given, densities=densities or bool(self.discrete))
        changed = {*call.latents, *call.observed} ^ set(self._sites)
        if changed:
            raise ModelError(
                f"site {sorted(changed)[0]!r}: whether the model has it depends on the latents or on the call; give it "
                "the same sites in every call."
            )
        log_weight = latents.new_zeros(len(data))
        for name in self.discrete:
            log_weight = log_weight + call.latents[name].instance_log_density()
        read: dict[str, Gaussian | Mixture] = {}
        read |= {name: self._read(name, call.latents[name]) for name in self.latents}
        read |= {name: self._read(name, call.observed[name]) for name in self.modalities}
        return list(_choices(log_weight, read)), call

    def require_gaussian(self, call: Call) -> None:
        """Check the families of all sites.

        Raises:
            NotConjugateError: a site is neither Gaussian nor a mixture of Gaussians.
        """
        for name in (*self.latents, *self.modalities):
            self._read(name, {**call.latents, **call.observed}[name])

    def _read(self, name: str, site: Site) -> Gaussian | Mixture:
        found = read_site(site)
        if found is None:
            latent = name in self.latents
            raise NotConjugateError(
                name,
                "non-gaussian prior" if latent else "non-gaussian likelihood",
                f"It is distributed as {type(unwrap(site.fn)).__name__}; Normal, MultivariateNormal, "
                "LowRankMultivariateNormal and finite mixtures of these are Gaussian.",
                "svi",
            )
        if isinstance(found, Mixture) and not self.discrete:
            self.mixed = (name, "mixture prior" if name in self.latents else "mixture likelihood")
        return found

    def read(
        self,
        data: MultimodalData,
        rows: Tensor,
        values: Mapping[str, Tensor] | None = None,
        calls: list[Call] | None = None,
    ) -> list[list[Component]]:
        """The affine maps as they are for each of some instances: for each, its components.

        Args:
            data: the instances.
            rows: (G, 1 + M) int64: the instance to read the latents' priors at, and one for each modality, which has
                it: a model need not give a sensible location where a modality is missing.
            values: of global latents.
            calls: takes in the calls of the model that were made, for what else they hold.
        """
        count = self.latent_dim + 1
        probes = _REACH * torch.eye(count, self.latent_dim, dtype=self.dtype, device=data.device).roll(1, 0)
        distinct, place = torch.unique(rows, return_inverse=True)
        found: list[list[Component]] = [[] for _ in range(len(rows))]
        for assignment in self.assignments():
            read: list[list[Component]] = []  # of each instance, its components
            for some in distinct.split(max(1, _MOST_ROWS // count)):
                batch = data.subset(some.repeat_interleave(count))
                evaluations, call = self.evaluate(batch, probes.repeat(len(some), 1), assignment, values)
                if calls is not None:
                    calls.append(call)
                for u in range(len(some)):
                    read.append([_component(each, slice(u * count, (u + 1) * count)) for each in evaluations])
            for g, (own, *others) in enumerate(place.tolist()):
                for c, component in enumerate(read[own]):
                    sites = {name: component.sites[name] for name in self.latents}
                    sites |= {name: read[u][c].sites[name] for name, u in zip(self.modalities, others, strict=True)}
                    found[g].append(Component(component.log_weight, sites))
        return found

    def assemble(self, component: Component) -> LinearGaussian:
        """A component as the engine takes it."""
        return assemble(component, self.latents)


def _enumerated(site: Site) -> Tensor | None:
    """The values of a discrete site, (V, ...); None for a continuous one.

    Raises:
        NotConjugateError: it is discrete, and its values are too many or not one for each instance.
    """
    if not getattr(site.fn.support, "is_discrete", False):
        return None
    single = site.rows(site.value).shape[1] == max(1, math.prod(site.fn.event_shape))
    if not site.fn.has_enumerate_support or not single:
        raise NotConjugateError(
            site.name,
            "discrete site",
            "Only one discrete value with finitely many choices for each instance can be summed over.",
            "svi with the site marginalised by hand",
        )
    values: Tensor = site.fn.enumerate_support(expand=False)
    return values.reshape(len(values), -1)


def _choices(log_weight: Tensor, read: Mapping[str, Gaussian | Mixture]) -> Iterator[SiteGaussians]:
    """One evaluation for each joint choice of a component of every mixture."""
    options = [range(len(found.components)) if isinstance(found, Mixture) else range(1) for found in read.values()]
    for chosen in itertools.product(*options):
        weight, sites = log_weight, {}
        for (name, found), c in zip(read.items(), chosen, strict=True):
            if isinstance(found, Mixture):
                weight = weight + found.log_weight[:, c]
                found = found.components[c]
            sites[name] = found
        yield SiteGaussians(weight, sites)


def _component(evaluation: SiteGaussians, rows: slice) -> Component:
    sites = {}
    for name, gaussian in evaluation.sites.items():
        mean, freedom = gaussian.mean[rows], gaussian.degrees_of_freedom
        sites[name] = AffineSite(
            mean[0],
            (mean[1:] - mean[0]) / _REACH,
            gaussian.diagonal[rows.start],
            None if gaussian.factor is None else gaussian.factor[rows.start],
            None if freedom is None else freedom[rows.start],
        )
    return Component(evaluation.log_weight[rows.start], sites)
