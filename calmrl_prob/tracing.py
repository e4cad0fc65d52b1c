"""One call of a user's Pyro model, with latents set to given values, and its sample sites sorted by role.

Nothing global is touched: Pyro's parameter store is set aside for the call, ``pyro.param`` statements are answered from
the :class:`BoundModel`'s own parameters, and torch's random numbers go on afterwards as if nothing had been drawn.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.distributions import TorchDistribution, Unit, constraints
from pyro.distributions.torch_distribution import MaskedDistribution
from pyro.poutine.messenger import Messenger
from torch import Tensor, nn
from torch.distributions import transform_to

from calmrl_prob._arguments import described
from calmrl_prob._randomness import seeded
from calmrl_prob.data import MultimodalData
from calmrl_prob.errors import ArgumentTypeError, CalmrlError, ModelError

#: The plate that a model's instances stand in.
PLATE = "instances"
#: What Pyro adds to the names of the two halves of a site with ``obs_mask``.
_OBSERVED, _UNOBSERVED = "_observed", "_unobserved"

#: Relative size of a perturbation of parameters; its square is added for those at 0.
_PERTURBATION = 0.01

PyroModel = Callable[..., Any]


class BoundModel(nn.Module):
    """A Pyro callable together with the values of its ``pyro.param`` statements and of its global latents.

    A torch or Pyro module keeps the parameters it has; what a plain function states by ``pyro.param`` is kept here,
    not in Pyro's global store. Global latents (sites outside the plate: loadings with a prior, say) that were fitted as
    one value are kept too.

    Args:
        model: the callable; it takes the data.

    Attributes:
        model: the same.
        values: global latents that have been fitted, by site.

    Raises:
        ArgumentTypeError: it cannot be called.

    Example:
        >>> import pyro.distributions as dist
        >>> def model(data):
        ...     scale = pyro.param("scale", torch.tensor(2.0), constraint=constraints.positive)
        ...     with pyro.plate("instances", len(data)):
        ...         z = pyro.sample("z", dist.Normal(0.0, 1.0).expand([1]).to_event(1))
        ...         pyro.sample("x", dist.Normal(z, scale).to_event(1), obs=data.filled("x"))
        >>> bound = BoundModel(model)
        >>> call = bound.call(MultimodalData({"x": torch.ones(3, 1)}))
        >>> list(call.latents), list(call.observed), bound.parameter_values()["scale"].detach()
        (['z'], ['x'], tensor(2.))
    """

    def __init__(self, model: PyroModel) -> None:
        super().__init__()
        if not callable(model) or isinstance(model, type):
            raise ArgumentTypeError(
                f"model: expected a Pyro model, a callable that takes the data, got {described(model)}."
            )
        self.model = model
        self.own = nn.ParameterDict()
        self.values: dict[str, Tensor] = {}
        self._constraints: dict[str, constraints.Constraint] = {}
        self._keys: dict[str, str] = {}

    def forward(self, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 - whatever the model takes and returns
        """Run the model with its own parameters; handlers around the call see its sites.

        Raises:
            ModelError: the model writes to Pyro's global parameter store.
        """
        store = pyro.get_param_store()
        answers = _Parameters(self, dict(store.items()))
        with store.scope() as left, answers:
            result = self.model(*args, **kwargs)
        known = {id(parameter) for parameter in self.parameters()}
        for name, value in left["params"].items():
            if isinstance(value, nn.Parameter) and id(value) not in known:  # of a module that the model closes over
                self.own[_key(name)] = value
            if name not in answers.stated:
                raise ModelError(
                    f"site {name!r}: the model writes to Pyro's global parameter store. State parameters by pyro.param "
                    "or as attributes of a PyroModule or torch module; they are kept with the model then."
                )
        return result

    def parameter_values(self) -> dict[str, Tensor]:
        """What the ``pyro.param`` statements met so far give, by name; differentiable."""
        return {name: self._constrained(name) for name in self._keys}

    def _constrained(self, name: str) -> Tensor:
        unconstrained = self.own[self._keys[name]]
        value: Tensor = transform_to(self._constraints[name])(unconstrained)
        return value

    def _parameter(self, name: str, initial: object, constraint: constraints.Constraint) -> Tensor:
        """The value of a ``pyro.param`` statement; the first time, what it starts from."""
        if name not in self._keys:
            if callable(initial):
                initial = initial()
            if not isinstance(initial, Tensor):
                raise ModelError(
                    f"pyro.param {name!r}: expected a tensor to start from, got {described(initial)}; pass one as the "
                    "second argument."
                )
            with torch.no_grad():
                start = transform_to(constraint).inv(initial.detach())
            key = _key(name)
            self.own[key] = nn.Parameter(start.clone())
            self._keys[name], self._constraints[name] = key, constraint
        return self._constrained(name)

    @contextmanager
    def perturbed(self) -> Iterator[None]:
        """The model with every parameter moved by a little, always in the same way, until the end of the block."""
        parameters = list(self.parameters())
        kept = [parameter.detach().clone() for parameter in parameters]
        generator = torch.Generator().manual_seed(0)
        try:
            with torch.no_grad():
                for parameter in parameters:
                    noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64).to(parameter)
                    parameter.add_(noise * (_PERTURBATION * parameter.abs() + _PERTURBATION**2))
            yield
        finally:
            with torch.no_grad():
                for parameter, value in zip(parameters, kept, strict=True):
                    parameter.copy_(value)

    def call(
        self,
        data: MultimodalData,
        values: Mapping[str, Tensor] | None = None,
        *,
        densities: bool = False,
        seed: int = 0,
    ) -> Call:
        """Run the model on data with some latents set, and sort its sites.

        Args:
            data: the instances.
            values: for latent sites the value to take, in the site's shape; the rest is drawn.
            densities: compute the log density of every site too.
            seed: of what is drawn.

        Raises:
            ModelError: the model raises an error of its own, has no plate "instances", writes to Pyro's global
                parameter store, or has a site whose density is not finite.
        """
        given = {**self.values, **(values or {})}
        with (
            seeded(seed, data.device),
            pyro.validation_enabled(False),  # what is wrong is found below, and named by site
            poutine.block(),  # handlers around this call have nothing to do with it
            poutine.trace() as tracer,
            _Substitute(given),
        ):
            try:
                self(data)
                _require_shapes(tracer.trace)
                if densities:
                    tracer.trace.compute_log_prob()
            except CalmrlError:
                raise
            except Exception as error:
                raise ModelError(
                    f"model: it raised {type(error).__name__} when called with {len(data)} instances of the data: "
                    f"{error}. It is called as model(data), also with some rows of the data, repeated perhaps: read "
                    "what differs between instances from data.covariates, and end the observed sites in .to_event(1)."
                ) from error
        return Call.sort(tracer.trace, data)


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
    """

    name: str
    fn: TorchDistribution
    value: Tensor
    axis: int | None
    log_density: Tensor | None
    scale: float

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
                name, node["fn"], node["value"], frame.dim if frame else None, density, _farthest(node["scale"])
            )
            if density is not None and not bool(density.isfinite().all()):
                kind = "NaN" if bool(density.isnan().any()) else "infinite"
                raise ModelError(
                    f"site {name!r}: its log density is {kind}. Look for parameters that are NaN, infinite or, "
                    "of a scale, not positive; or observe data.filled(name) under .mask(data.observed(name)) where "
                    "modalities may be missing."
                )
            call._put(site, node["is_observed"], data)
        call._require(plates, data)
        return call

    def log_prior(self) -> Tensor:
        """The log density of what stands outside the plate, (), nats: global latents, and what is observed there."""
        sites = [*self.globals.values(), *self.constants.values()]
        terms = [site.scale * site.fn.log_prob(site.value).sum().double() for site in sites]
        return torch.stack(terms).sum() if terms else torch.zeros((), dtype=torch.float64)

    def _put(self, site: Site, is_observed: bool, data: MultimodalData) -> None:
        stem = site.name.removesuffix(_OBSERVED)
        named = site.name in data or stem in data
        if isinstance(site.fn, MaskedDistribution) and site.fn._mask is False and not named:
            return  # what a reparametrising handler leaves of a site that it replaced
        if is_observed and site.axis is None and not named:
            self.constants[site.name] = site
        elif isinstance(site.fn, Unit):
            self.factors[site.name] = site
        elif is_observed:
            modality = site.name if site.name in data else stem
            if modality not in data and modality in _columns(data):
                self.factors[site.name] = site
                return
            if modality not in data:
                raise ModelError(
                    f"site {site.name!r}: it is observed, but no modality of the data is called so; they are "
                    f"{list(data.names)}. Name each observed site as its modality."
                )
            self.observed[modality] = site
        elif site.name.endswith(_UNOBSERVED) and site.name.removesuffix(_UNOBSERVED) in data:
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
        for site in (*self.latents.values(), *self.observed.values()):
            if site.place() < 0 or site.fn.batch_shape[site.place()] != len(data):
                raise ModelError(
                    f"site {site.name!r}: expected {len(data)} instances along the plate {PLATE!r}, got the batch "
                    f"shape {tuple(site.fn.batch_shape)}; give the plate the size len(data)."
                )


def _key(name: str) -> str:
    """The name of a parameter as torch takes it: without dots."""
    return name.replace(".", "%2E")


class _Substitute(Messenger):
    """Sets latent sites to given values."""

    def __init__(self, values: Mapping[str, Tensor]) -> None:
        super().__init__()
        self._values = values

    def _pyro_sample(self, message: Any) -> None:  # noqa: ANN401 - Pyro's messages are dicts without a type
        fn = message["fn"]
        if message["name"] == PLATE and getattr(fn, "subsample_size", None) not in (None, getattr(fn, "size", None)):
            raise ModelError(
                f"plate {PLATE!r}: it subsamples {fn.subsample_size} of {fn.size} instances; leave subsample_size out, "
                "and give the model data.subset(rows) where it is to see some of them."
            )
        if not message["is_observed"] and message["name"] in self._values:
            message["value"] = self._values[message["name"]]
            message["done"] = True


class _Parameters(Messenger):
    """Answers ``pyro.param`` statements from a model's own parameters."""

    def __init__(self, owner: BoundModel, trained: Mapping[str, Tensor]) -> None:
        super().__init__()
        self._owner, self._trained = owner, trained
        self.stated: set[str] = set()

    def _pyro_param(self, message: Any) -> None:  # noqa: ANN401
        store, name = pyro.get_param_store(), message["name"]
        self.stated.add(name)
        initial = message["args"][1] if len(message["args"]) > 1 else None
        # modules state their parameters by the same kind of message, but keep the values themselves
        if getattr(message["fn"], "__self__", None) is store and name not in store:
            constraint = message["kwargs"].get("constraint", constraints.real)
            if isinstance(initial, nn.Parameter) and constraint is constraints.real:
                return
            # what SVI has made of a parameter in the global store counts for more than where it started
            message["value"] = self._owner._parameter(name, self._trained.get(name, initial), constraint)
            message["done"] = True


def _require_shapes(trace: poutine.Trace) -> None:
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
    """What else the data know of each instance, under any name that a site may have: labels and covariates."""
    return {"label", "labels", *dict.keys(data.covariates)}
