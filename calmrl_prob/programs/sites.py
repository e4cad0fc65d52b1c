"""The sample sites of one call of a Pyro model, sorted by role: latents, modalities, what stands outside the plate."""

from __future__ import annotations

from collections.abc import Mapping, Set
from dataclasses import dataclass, field
from typing import Any

import torch
from pyro import poutine
from pyro.distributions import TorchDistribution, Unit
from pyro.distributions.torch_distribution import MaskedDistribution
from torch import Tensor

from calmrl_prob.data import MultimodalData
from calmrl_prob.errors import ModelError

#: The plate that a model's instances stand in.
PLATE = "instances"
#: What Pyro adds to the names of the two halves of a site with ``obs_mask``.
_OBSERVED, _UNOBSERVED = "_observed", "_unobserved"


@dataclass(frozen=True)
class Site:
    """A sample site of one call.

    Attributes:
        name: of the site, without what Pyro appends for ``obs_mask``.
        fn: its distribution.
        value: what it took.
        axis: where the instances stand in its batch shape, from the right (negative); None outside the plate.
        log_density: of each instance (or of all, outside the plate), if asked for.
        scale: what the density is multiplied by (subsampling, ``poutine.scale``).
        mask: of a handler around it (``poutine.mask``); that of ``fn.mask`` is in ``fn``. None where there is none.
    """

    name: str
    fn: TorchDistribution
    value: Tensor
    axis: int | None
    log_density: Tensor | None
    scale: float
    mask: Tensor | bool | None = None

    def place(self) -> int:
        """The axis of the instances, counted from the left of batch and event shape."""
        assert self.axis is not None
        return len(self.fn.batch_shape) + self.axis

    def rows(self, values: Tensor) -> Tensor:
        """Values in the site's shape as (n, F): one row for each instance."""
        moved = values.expand(self.fn.shape()).movedim(self.place(), 0)
        return moved.reshape(len(moved), -1)

    def shaped(self, rows: Tensor) -> Tensor:
        """The inverse of ``rows`` for any number of instances: (n, F) in the site's shape."""
        others = list(self.fn.shape())
        place = self.place()
        del others[place]
        return rows.reshape(len(rows), *others).movedim(0, place)

    def family(self) -> str:
        """The name of its distribution, without masks and event dimensions around it."""
        return type(self._inner()).__name__

    def taken(self) -> Tensor | None:
        """Mask of the entries of the value that its distribution takes; None where it does not say.

        Constraints on several entries together, such as that they sum to 1, are left out: they are a matter of
        rounding.
        """
        inner = self._inner()
        if hasattr(inner, "transforms"):
            return None
        try:
            support: Any = inner.support
            taken: Tensor = support.check(self.value)
        except (NotImplementedError, AttributeError, RuntimeError):
            return None
        return taken if support.event_dim == 0 and taken.shape == self.value.shape else None

    def _inner(self) -> Any:  # noqa: ANN401 - any distribution
        inner: Any = self.fn
        while hasattr(inner, "base_dist") and not hasattr(inner, "transforms"):
            inner = inner.base_dist
        return inner

    def instance_log_density(self) -> Tensor:
        """The log density by instance, (n,), summed over whatever other plates the site stands in."""
        assert self.log_density is not None
        density = self.log_density.expand(self.fn.batch_shape).movedim(self.place(), 0)
        return density.reshape(len(density), -1).sum(1)


@dataclass(frozen=True)
class Call:
    """The sites of one call by role, each in the order of the model.

    Attributes:
        latents: unobserved, in the plate "instances".
        observed: for each modality of the data its site.
        globals: unobserved, outside the plate.
        factors: ``pyro.factor`` statements in the plate, and observed labels and covariates.
        constants: observed sites and factors outside the plate, such as a global latent that was conditioned on.
        unobserved: what ``obs_mask`` made of absent values: sites that nothing depends on.
    """

    latents: dict[str, Site] = field(default_factory=dict)
    observed: dict[str, Site] = field(default_factory=dict)
    globals: dict[str, Site] = field(default_factory=dict)
    factors: dict[str, Site] = field(default_factory=dict)
    constants: dict[str, Site] = field(default_factory=dict)
    unobserved: dict[str, Site] = field(default_factory=dict)

    @classmethod
    def sort(cls, trace: poutine.Trace, data: MultimodalData) -> Call:
        """Sort the sites of a trace.

        Raises:
            ModelError: the plate is missing or is a loop, a modality has no observed site in it, or a site is observed
                that is no modality.
        """
        call = cls()
        plates: set[str] = set()
        modalities = frozenset(data.names)
        nodes: Mapping[str, Any] = trace.nodes
        for name, node in nodes.items():
            if node["type"] != "sample" or type(node["fn"]).__name__ == "_Subsample":
                continue
            frames = {frame.name: frame for frame in node["cond_indep_stack"]}
            plates |= set(frames)
            if node["infer"].get("_deterministic"):
                continue
            frame = frames.get(PLATE)
            if frame is not None and not frame.vectorized:
                raise ModelError(
                    f"plate {PLATE!r}: it is used as a loop over instances; use it as a context, with pyro.plate("
                    f"{PLATE!r}, len(data)): ..., and sample all instances at once."
                )
            density = node.get("log_prob")
            site = Site(
                name,
                node["fn"],
                node["value"],
                frame.dim if frame else None,
                density,
                _farthest(node["scale"]),
                node["mask"],
            )
            if density is not None and not bool(density.isfinite().all()):
                kind = "NaN" if bool(density.isnan().any()) else "infinite"
                wrong = _first_not_taken(site) if node["is_observed"] else ""
                raise ModelError(
                    f"site {name!r}: its log density is {kind}{wrong}. Look for parameters that are NaN, infinite or, "
                    "of a scale, not positive; for values that its distribution does not reach, such as 0 of a Gamma; "
                    "or observe data.filled(name) under .mask(data.observed(name)) where modalities may be missing."
                )
            call._put(site, node["is_observed"], modalities, data)
        call._require(plates, data)
        return call

    def log_prior(self) -> Tensor:
        """The log density of what stands outside the plate, (), nats: global latents, and what is observed there."""
        sites = [*self.globals.values(), *self.constants.values()]
        terms = [site.scale * site.fn.log_prob(site.value).sum().double() for site in sites]
        return torch.stack(terms).sum() if terms else torch.zeros((), dtype=torch.float64)

    def _put(self, site: Site, is_observed: bool, modalities: Set[str], data: MultimodalData) -> None:
        stem = site.name.removesuffix(_OBSERVED)
        named = site.name in modalities or stem in modalities
        if isinstance(site.fn, MaskedDistribution) and site.fn._mask is False and not named:
            return  # what a reparametrising handler leaves of a site that it replaced
        if is_observed and site.axis is None and not named:
            self.constants[site.name] = site
        elif isinstance(site.fn, Unit):
            self.factors[site.name] = site
        elif is_observed:
            modality = site.name if site.name in modalities else stem
            if modality not in modalities and modality in _columns(data):
                self.factors[site.name] = site
                return
            if modality not in modalities:
                raise ModelError(
                    f"site {site.name!r}: it is observed, but no modality of the data is called so; they are "
                    f"{list(data.names)}. Name each observed site as its modality."
                )
            self.observed[modality] = site
        elif site.name.endswith(_UNOBSERVED) and site.name.removesuffix(_UNOBSERVED) in modalities:
            self.unobserved[site.name] = site
        elif site.axis is None:
            self.globals[site.name] = site
        else:
            self.latents[site.name] = site

    def _require(self, plates: set[str], data: MultimodalData) -> None:
        if PLATE not in plates:
            found = f"its plates are {sorted(plates)}" if plates else "it has none"
            raise ModelError(
                f"model: expected a plate called {PLATE!r} around the latents and the observed sites, but {found}; "
                f"write with pyro.plate({PLATE!r}, len(data)): ..."
            )
        everything = {**self.latents, **self.globals}
        for name in data.names:
            if name in everything:
                raise ModelError(
                    f"site {name!r}: it is named as a modality but not observed; pass obs=data.filled({name!r})."
                )
            if name not in self.observed:
                raise ModelError(
                    f"site {name!r}: the model has no observed site for this modality; its sites are "
                    f"{[*everything, *self.observed]}. Observe it, or leave it out with data.select."
                )
            if self.observed[name].axis is None:
                raise ModelError(
                    f"site {name!r}: it stands outside the plate {PLATE!r}; move it into the plate, to its latent."
                )
        if not self.latents:
            outside = f"; {list(self.globals)} stand outside it" if self.globals else ""
            raise ModelError(
                f"model: it has no latent site in the plate {PLATE!r}{outside}. Sample what belongs to one instance "
                "inside the plate."
            )
        count = len(data)
        for site in (*self.latents.values(), *self.observed.values()):
            if site.place() < 0 or site.fn.batch_shape[site.place()] != count:
                raise ModelError(
                    f"site {site.name!r}: expected {count} instances along the plate {PLATE!r}, got the batch "
                    f"shape {tuple(site.fn.batch_shape)}; give the plate the size len(data)."
                )


def require_shapes(trace: poutine.Trace) -> None:
    """Every observed value must have the shape of its site's distribution, which alone would broadcast."""
    nodes: Mapping[str, Any] = trace.nodes
    for name, node in nodes.items():
        if node["type"] == "sample" and node["is_observed"] and not node["infer"].get("_deterministic"):
            shape, value = tuple(node["fn"].shape()), tuple(node["value"].shape)
            if len(value) > len(shape) or any(v not in (1, s) for v, s in zip(value[::-1], shape[::-1], strict=False)):
                raise ModelError(
                    f"site {name!r}: its distribution has the shape {shape}, what it observes {value}; they must agree."
                )


def _farthest(scale: float | Tensor) -> float:
    """A scale, or of several the one that is farthest from 1."""
    if not isinstance(scale, Tensor):
        return float(scale)
    flat = torch.as_tensor(scale, dtype=torch.float64).flatten()
    return float(flat[(flat - 1).abs().argmax()])


def _columns(data: MultimodalData) -> set[str]:
    """Columns of the data under any name that a site may have: labels and covariates."""
    return {"label", "labels", *dict.keys(data.covariates)}


def _first_not_taken(site: Site) -> str:
    """Words for the first value that the distribution of a site cannot take; none if it takes all."""
    taken = site.taken()
    if taken is None or bool(taken.all()):
        return ""
    return f", for its distribution, {site.family()}, cannot take {float(site.value[~taken][0]):g}"
