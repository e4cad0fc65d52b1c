"""A Pyro program seen as densities log p(x_n, z_n), one for each instance, and as predictions E[x_n^m | z_n].

What the approximate routes need of a model, whatever it is: its latent sites stacked into K real numbers for each
instance, the joint density at given values of them, and location and variance of each modality's site.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import pyro
import torch
from pyro import poutine
from torch import Tensor
from torch.distributions import Transform, biject_to, constraints

from calmrl_prob._arguments import described
from calmrl_prob.data import MultimodalData
from calmrl_prob.errors import ArgumentError, ArgumentTypeError, NumericalError, SchemaError
from calmrl_prob.inference.parameters import ParameterKeeper

#: The plate of the instances, by which a program is understood.
PLATE = "instances"


@dataclass(frozen=True)
class LatentSite:
    """One latent site: which of the K numbers are its own, and how they become its value."""

    name: str
    columns: slice
    shape: torch.Size
    bijector: Transform | None


class InstanceModel:
    """A Pyro program as densities of instances.

    Args:
        program: takes the data; a plate "instances", all latent sites in it, and one observed site per modality, named
            as the modality. It is called with subsets of the data, in which rows may come twice.
        data: what it is to be called with; the first rows are looked at.
        keeper: where its ``pyro.param`` statements are kept; a new one if not given.

    The latent sites are stacked in the order in which the program draws them, and stretched to all real numbers where
    they are constrained (a positive scale becomes its logarithm); K counts the stretched numbers. Draws that the
    program makes come from torch's global generator, so callers seed it.

    Attributes:
        sites: the latent sites. latent_dim: K.
        dims: number of features D_m of each modality that the program has.

    Raises:
        ArgumentTypeError: the program cannot be called, or ``data`` is not MultimodalData.
        ArgumentError: there is no plate "instances" of the right size, no latent in it, or a latent outside or discrete.
        SchemaError: the sites are not the modalities.
    """

    def __init__(
        self, program: Callable[..., Any], data: MultimodalData, keeper: ParameterKeeper | None = None
    ) -> None:
        if not callable(program) or isinstance(program, type):
            raise ArgumentTypeError(f"model: expected a Pyro program, got {described(program)}; pass a callable.")
        if not isinstance(data, MultimodalData):
            raise ArgumentTypeError(f"data: expected MultimodalData, got {described(data)}; wrap it in MultimodalData.")
        self.program = program
        self.keeper = ParameterKeeper() if keeper is None else keeper
        self._schema: Mapping[str, int] | None = getattr(program, "dims", None)
        few = self.conform(data).subset(slice(0, 3))
        nodes = self._run(few, {}).nodes
        self.sites: tuple[LatentSite, ...] = ()
        self.latent_dim = 0
        self.dims: dict[str, int] = {}
        for name, node in _sample_sites(nodes):
            if node["is_observed"]:
                self._note_modality(name, node, few)
            elif not _is_filled_in(name, nodes):
                self._note_latent(name, node, few)
        absent = [name for name in few.names if name not in self.dims]
        if absent or not self.dims:
            raise SchemaError(
                f"model: it has no observed site for {absent or 'any modality'}; name each observed site as its "
                f"modality, and give it the value data.filled(name). Its sites are {sorted(nodes)}."
            )
        if not self.sites:
            raise ArgumentError(f"model: it has no latent site in the plate {PLATE!r}.")

    def conform(self, data: MultimodalData) -> MultimodalData:
        """The data with the program's modalities, if it says which they are (``dims``)."""
        return data if self._schema is None else data.conform(self._schema)

    def _run(self, data: MultimodalData, values: Mapping[str, Tensor]) -> poutine.Trace:
        """The trace of the program at given values of its latent sites."""
        conditioned = poutine.condition(self.program, data=dict(values))
        with self.keeper, pyro.validation_enabled(False):
            return poutine.trace(conditioned).get_trace(data)

    def _note_modality(self, name: str, node: Any, data: MultimodalData) -> None:  # noqa: ANN401 - a node of a trace
        modality = name.removesuffix("_observed") if name not in data and name.endswith("_observed") else name
        if modality not in data:
            return  # a factor, or an observation of something else: it only adds to the density
        value = node["value"]
        if value.shape != (len(data), data.dims[modality]):
            raise SchemaError(
                f"model: the site of modality {modality!r} has values of shape {tuple(value.shape)}, expected "
                f"{(len(data), data.dims[modality])}; use .to_event(1) for its features."
            )
        self.dims[modality] = int(value.shape[-1])

    def _note_latent(self, name: str, node: Any, data: MultimodalData) -> None:  # noqa: ANN401
        plates = {frame.name: frame for frame in node["cond_indep_stack"]}
        if PLATE not in plates:
            raise ArgumentError(
                f"model: its latent site {name!r} is outside the plate {PLATE!r}, so all instances share it; these "
                "routes take one latent for each instance. Make it a parameter, or marginalise the others exactly."
            )
        if plates[PLATE].size != len(data) or node["value"].shape[:1] != (len(data),):
            raise ArgumentError(
                f"model: its latent site {name!r} has shape {tuple(node['value'].shape)} for {len(data)} instances; "
                f"give the plate {PLATE!r} the size len(data), and let its dimension be the first."
            )
        support = node["fn"].support
        if support.is_discrete:
            raise ArgumentError(f"model: its latent site {name!r} is discrete; sum it out, as a mixture's component.")
        free = isinstance(support, constraints.independent) and support.base_constraint is constraints.real
        bijector = None if free or support is constraints.real else biject_to(support)
        shape = node["value"].shape[1:]
        if bijector is not None:
            shape = bijector.inverse_shape(node["value"].shape)[1:]
        size = math.prod(shape)
        self.sites += (LatentSite(name, slice(self.latent_dim, self.latent_dim + size), shape, bijector),)
        self.latent_dim += size

    # ---- densities and predictions ------------------------------------------------------------------------------

    def log_joint(self, data: MultimodalData, latents: Tensor) -> tuple[Tensor, Tensor]:
        """log p(x_n, z_n) of what each instance has, and what the program adds once for all.

        Args:
            data: N instances.
            latents: (N, K), stretched.

        Returns:
            (N,), nats, as a density of the stretched latents; and a scalar: factors outside the plate, such as the log
            prior of parameters.
        """
        values, total = self._values(latents)
        trace = self._run(data, values)
        filled_in = [name for name, _ in _sample_sites(trace.nodes) if _is_filled_in(name, trace.nodes)]
        trace.compute_log_prob(lambda name, _: name not in filled_in)  # the density of those integrates to one
        shared = latents.new_zeros(())
        for name, node in _sample_sites(trace.nodes):
            if name in filled_in:
                continue
            plates = {frame.name: frame for frame in node["cond_indep_stack"]}
            density = torch.as_tensor(node["log_prob"], dtype=total.dtype, device=total.device)
            if PLATE not in plates:
                shared = shared + density.sum()
            elif density.ndim:
                by_instance = density.movedim(plates[PLATE].dim, 0)
                total = total + by_instance.reshape(len(by_instance), -1).sum(dim=1)
        return total, shared

    def require_finite(self, data: MultimodalData, latents: Tensor) -> None:
        """Refuse a program whose density is NaN.

        Raises:
            NumericalError: it is, naming the first site.
        """
        trace = self._run(data, self._values(latents)[0])
        for name, node in _sample_sites(trace.nodes):
            density = node["fn"].log_prob(node["value"])
            if bool(density.isnan().any()):
                raise NumericalError(
                    f"model: the log density of its site {name!r} is NaN; look for parameters that are not finite, "
                    "scales that are not positive, and NaN data (use data.filled(name) before .mask)."
                )

    def moments(self, data: MultimodalData, latents: Tensor, names: tuple[str, ...]) -> dict[str, tuple[Tensor, Tensor]]:
        """Mean and variance of x_n^m given z_n: of each named modality two tensors (N, D_m).

        Raises:
            ArgumentError: a site's distribution has no mean or variance.
        """
        nodes: Mapping[str, Any] = self._run(data, self._values(latents)[0]).nodes
        found = {}
        for name in names:
            node = nodes[name] if name in nodes and nodes[name]["is_observed"] else nodes[f"{name}_observed"]
            shape = node["value"].shape
            try:
                found[name] = node["fn"].mean.expand(shape), node["fn"].variance.expand(shape)
            except NotImplementedError as error:
                raise ArgumentError(
                    f"model: the distribution of its site {name!r} states no mean and variance, so that the modality "
                    "cannot be imputed."
                ) from error
        return found

    def prior_draws(self, data: MultimodalData) -> Tensor:
        """One draw of the stretched latents of each instance from the prior, (N, K)."""
        nodes: Mapping[str, Any] = self._run(data, {}).nodes
        parts = []
        for site in self.sites:
            value = nodes[site.name]["value"]
            value = value if site.bijector is None else site.bijector.inv(value)
            parts.append(value.reshape(len(data), -1))
        return torch.cat(parts, dim=1).detach()

    def constrain(self, latents: Tensor) -> Tensor:
        """Stretched latents (..., N, K) in the program's own units, sites one after another."""
        values = self._values(latents.reshape(-1, self.latent_dim))[0]
        flat = torch.cat([values[site.name].reshape(latents.shape[:-1].numel(), -1) for site in self.sites], dim=1)
        return flat.reshape(*latents.shape[:-1], -1)

    def _values(self, latents: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """The value of each site, and log |dvalue / dlatents| of each instance, (N,)."""
        values, stretch = {}, latents.new_zeros(len(latents))
        for site in self.sites:
            free = latents[:, site.columns].reshape(len(latents), *site.shape)
            if site.bijector is None:
                values[site.name] = free
                continue
            values[site.name] = value = site.bijector(free)
            change = site.bijector.log_abs_det_jacobian(free, value)
            stretch = stretch + change.reshape(len(latents), -1).sum(dim=1)
        return values, stretch


def _sample_sites(nodes: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """The sample sites of a trace, plates left out."""
    return [
        (name, node)
        for name, node in nodes.items()
        if node["type"] == "sample" and type(node["fn"]).__name__ != "_Subsample"
    ]


def _is_filled_in(name: str, nodes: Mapping[str, Any]) -> bool:
    """Whether a site is the absent half of one that was observed with ``obs_mask``: nothing has to be inferred of it."""
    return name.endswith("_unobserved") and f"{name.removesuffix('_unobserved')}_observed" in nodes
