"""Calls of a user's Pyro model, with latents set to given values and with parameters of its own.

Nothing global differs after a call, and calls by several threads wait for each other: Pyro's parameter store is set
aside for the call, ``pyro.param`` statements are answered from the :class:`BoundModel`'s own parameters, and torch's
random numbers go on afterwards as if nothing had been drawn.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import pyro
import torch
from pyro import poutine
from pyro.distributions import constraints
from pyro.poutine.messenger import Messenger
from torch import Tensor, nn
from torch.distributions import transform_to

from calmrl_prob._support.arguments import described
from calmrl_prob._support.global_state import exclusive
from calmrl_prob._support.normal_mode import normal_mode
from calmrl_prob._support.randomness import seeded
from calmrl_prob.data import MultimodalData
from calmrl_prob.errors import ArgumentTypeError, CalmrlError, ModelError
from calmrl_prob.programs.sites import PLATE, Call, require_shapes
from calmrl_prob.programs.unvalidated import unvalidated

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
        seed: of what ``pyro.param(name, lambda: torch.randn(...))`` draws to start from, for each name by itself.

    Attributes:
        model: the same.
        values: global latents that have been fitted, by site.
        fitted_dims: the modalities that it was fitted on and their widths; None before a fit.
        drawn: names of the parameters that started from draws.

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

    def __init__(self, model: PyroModel, seed: int = 0) -> None:
        super().__init__()
        if not callable(model) or isinstance(model, type):
            raise ArgumentTypeError(
                f"model: expected a Pyro model, a callable that takes the data, got {described(model)}."
            )
        self.model = model
        self.own = nn.ParameterDict()
        self.values: dict[str, Tensor] = {}
        self.fitted_dims: dict[str, int] | None = None
        self.drawn: set[str] = set()
        self._seed, self._device = seed, torch.device("cpu")
        self._constraints: dict[str, constraints.Constraint] = {}
        self._keys: dict[str, str] = {}
        self._told: dict[str, str] = {}  # of a restored model: constraints in words, of parameters not met so far
        self._unmet: set[str] = set()  # and what it has values for, until its first call

    def parts(self) -> dict[str, Any]:
        """Parts of which, with the callable, :meth:`restored` makes the same again."""
        return {
            "own": {key: self.own[key] for key in sorted(self.own.keys())},
            "values": dict(self.values),
            "fitted_dims": self.fitted_dims,
            "drawn": sorted(self.drawn),
            "seed": self._seed,
            "told": {name: self._told.get(name) or str(self._constraints[name]) for name in self._keys},
        }

    @classmethod
    def restored(
        cls,
        model: PyroModel,
        own: Mapping[str, Tensor],
        values: Mapping[str, Tensor],
        fitted_dims: dict[str, int] | None,
        drawn: Iterable[str],
        seed: int,
        told: Mapping[str, str],
    ) -> BoundModel:
        """A model with what :meth:`parts` found of another one's: what a file keeps of it.

        The callable says at its first call how its parameters are constrained, and whether it has all of them.

        Args:
            model: the callable.
            own: unconstrained parameters, by key.
            values: the attribute, as are the next two.
            fitted_dims: of the fit.
            drawn: names.
            seed: of what further parameters start from.
            told: for each ``pyro.param`` its constraint in words, which the callable's own is compared with.
        """
        bound = cls(model, seed)
        bound.own.update({key: nn.Parameter(value.detach().clone()) for key, value in own.items()})
        bound.values, bound.fitted_dims, bound.drawn = dict(values), fitted_dims, set(drawn)
        bound._told, bound._keys = dict(told), {name: _key(name) for name in told}
        bound._unmet = {*bound.values, *bound.own.keys()}
        return bound

    def forward(self, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 - whatever the model takes and returns
        """Run the model with its own parameters; handlers around the call see its sites.

        Raises:
            ModelError: the model writes to Pyro's global parameter store.
        """
        store = pyro.get_param_store()
        with exclusive():
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
        """Values of the ``pyro.param`` statements met so far, by name; differentiable."""
        return {name: self._constrained(name) for name in self._keys if name in self._constraints}

    def _constrained(self, name: str) -> Tensor:
        unconstrained = self.own[self._keys[name]]
        value: Tensor = transform_to(self._constraints[name])(unconstrained)
        return value

    def _parameter(self, name: str, initial: object, constraint: constraints.Constraint) -> Tensor:
        """The value of a ``pyro.param`` statement; the first time, what it starts from."""
        if name in self._told:
            told = self._told[name]
            if str(constraint) != told:
                raise ModelError(
                    f"pyro.param {name!r}: it was saved with the constraint {told}, and the model given has "
                    f"{constraint}; load it with the model that was fitted."
                )
            self._constraints[name] = constraint
            del self._told[name]
        if name not in self._keys:
            if self.fitted_dims is not None:
                raise ModelError(
                    f"pyro.param {name!r}: the fit did not know it, so that it has no value. The model was fitted on "
                    f"{self.fitted_dims}; leave other modalities out with data.select, or fit it to data with them."
                )
            if callable(initial):
                # by name, so that neither the number of rows nor other parameters change what is drawn
                words = np.random.SeedSequence([self._seed, *name.encode()]).generate_state(1, np.uint64)
                with seeded(int(words[0] >> np.uint64(1)), self._device):
                    before = torch.get_rng_state()
                    initial = initial()
                    random = not torch.equal(before, torch.get_rng_state())
                if random:
                    self.drawn.add(name)
            if not isinstance(initial, Tensor):
                raise ModelError(
                    f"pyro.param {name!r}: expected a tensor to start from, got {described(initial)}; pass one as the "
                    "second argument."
                )
            if not initial.is_floating_point():
                raise ModelError(
                    f"pyro.param {name!r}: it starts from {initial.dtype}, which has no gradient; write 1.0 for 1."
                )
            if not bool(constraint.check(initial.detach()).all()):
                raise ModelError(
                    f"pyro.param {name!r}: what it starts from breaks its constraint, {constraint}; start within it."
                )
            with torch.no_grad():
                start = transform_to(constraint).inv(initial.detach())
            key = _key(name)
            self.own[key] = nn.Parameter(start.clone())
            self._keys[name], self._constraints[name] = key, constraint
        return self._constrained(name)

    def _take_back(self, name: str, parameter: nn.Parameter) -> None:
        """Give a parameter of a module that the callable closes over the value that it was saved with."""
        key = _key(name)
        if key not in self._unmet:
            return
        if parameter.shape != self.own[key].shape:
            raise ModelError(
                f"parameter {name!r}: it was saved with shape {tuple(self.own[key].shape)}, and the model given has "
                f"{tuple(parameter.shape)}; load it with the model that was fitted."
            )
        with torch.no_grad():
            parameter.copy_(self.own[key])
        self.own[key] = parameter

    def _require_met(self, names: Iterable[str]) -> None:
        """Refuse a callable that has not all that a restored model has values for."""
        lost = sorted(self._unmet - {key for name in names for key in (name, _key(name))})
        if lost:
            raise ModelError(
                f"site {lost[0]!r}: the file has a value for it, but the model given neither samples it nor states it "
                "by pyro.param; load it with the model that was fitted."
            )
        self._unmet = set()

    def conform(self, data: MultimodalData) -> MultimodalData:
        """The data with all modalities that the model was fitted on; as they are before a fit.

        Raises:
            SchemaError: a modality that the fit did not know, or one of another width.
        """
        return data if self.fitted_dims is None else data.conform(self.fitted_dims)

    @contextmanager
    def perturbed(self) -> Iterator[None]:
        """The model with every parameter moved by a little, always in the same way, until the end of the block."""
        with exclusive():  # another thread must not meet the model so
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
        if torch.is_inference_mode_enabled():
            with normal_mode(), torch.no_grad():  # else parameters that it states could never be fitted afterwards
                return self.call(data, values, densities=densities, seed=seed)
        given = {**self.values, **(values or {})}
        self._device = data.device
        with (
            seeded(seed, data.device),
            unvalidated(),
            poutine.block(),  # handlers around this call have nothing to do with it
            poutine.trace() as tracer,
            _Substitute(given),
        ):
            try:
                self(data)
                if self._unmet:
                    self._require_met(tracer.trace.nodes)
                require_shapes(tracer.trace)
                if densities:
                    tracer.trace.compute_log_prob()
            except CalmrlError:
                raise
            except Exception as error:
                raise ModelError(
                    f"model: it raised {type(error).__name__} when called with {len(data)} instances of the data: "
                    f"{error}. {_advice(error)}"
                ) from error
        return Call.sort(tracer.trace, data)


def _advice(error: Exception) -> str:
    """Advice on an error that a model raised."""
    if isinstance(error, KeyError):
        return f"If it is a covariate: these data lack covariate {error}; give MultimodalData covariates= with it."
    if "dtype" in str(error):
        return (
            "Bring all to one type: parameters and prior to that of the data, or data to theirs with data.to(dtype=)."
        )
    return (
        "It is called as model(data), also with some rows of the data, repeated perhaps: read what differs between "
        "instances from data.covariates, and end the observed sites in .to_event(1)."
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
                self._owner._take_back(name, initial)
                return
            # what SVI has made of a parameter in the global store counts for more than where it started
            message["value"] = self._owner._parameter(name, self._trained.get(name, initial), constraint)
            message["done"] = True
