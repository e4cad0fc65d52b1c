"""Collapsed inference: global latents of a conjugate model, with the latents of instances marginalised exactly.

Loadings, intercepts, noise variances or ARD scales that have priors of their own stand outside the plate of instances.
Given them the model is conjugate, so that the latents z_1 .. z_N integrate out in closed form and what is left is

    log p(globals, x) = log p(globals) + sum_n log p(x_n | globals)

The second term comes from sufficient statistics where these serve: a gradient of it costs the same for a million
instances as for a thousand, and there is nothing of dimension N to explore. A :class:`CollapsedModel` is this density
over one vector theta of unconstrained reals, with the Jacobians of the transforms counted in, ready for an optimiser, a
guide or a sampler. ``marginalize`` makes it, and draws of theta have ``posterior(data)``, which recovers z: vocabulary
after PyMC's ``marginalize`` and ``recover_marginals``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.distributions import biject_to

from calmrl_prob.conjugacy import ConjugateForm, discover
from calmrl_prob.data import MultimodalData
from calmrl_prob.errors import ArgumentError, CalmrlError, ModelError, NotConjugateError
from calmrl_prob.inference.exact.evidence import FormEvidence, Structure
from calmrl_prob.linear_gaussian import SufficientStatistics
from calmrl_prob.programs.bound import BoundModel, PyroModel
from calmrl_prob.programs.sites import Site

#: Evaluations to expect of a fit, for choosing between rows and statistics.
_EVALUATIONS = 1000


@dataclass(frozen=True)
class GlobalSite:
    """A global latent and its place in theta.

    Attributes:
        shape: of its value.
        free_shape: of the unconstrained value.
        dtype: of its value.
        transform: from the unconstrained value to the value.
        place: the part of theta.
    """

    shape: torch.Size
    free_shape: torch.Size
    dtype: torch.dtype
    transform: Any
    place: slice


@dataclass(frozen=True)
class JointTerms:
    """The terms of the log joint density at one theta, each (), nats.

    Attributes:
        evidence: sum_n log p(x_n | globals).
        log_prior: log p(globals) plus the log Jacobian of the transforms.
        structures: the linear-Gaussian form there.
    """

    evidence: Tensor
    log_prior: Tensor
    structures: tuple[Structure, ...]

    @property
    def log_joint(self) -> Tensor:
        """Their sum."""
        return self.evidence + self.log_prior


class CollapsedModel:
    """The joint density of global latents and data, with the latents of instances integrated out.

    Made by :func:`marginalize`.

    Attributes:
        bound: the model, with the parameters it owns.
        form: its linear-Gaussian form on the data, given global latents.
        sites: the global latents.
        dim: length of theta.
        num_values: how many numbers of the data are observed.
    """

    def __init__(
        self, bound: BoundModel, form: ConjugateForm, data: MultimodalData, statistics: SufficientStatistics | None
    ) -> None:
        self.bound, self.form, self.data, self.statistics = bound, form, data, statistics
        self.sites: dict[str, GlobalSite] = {}
        start = 0
        for name, site in self._sites(seed=0).items():
            transform, free = _free(site)
            place = slice(start, start + free.numel())
            self.sites[name] = GlobalSite(site.value.shape, free.shape, site.value.dtype, transform, place)
            start = place.stop
        self.dim = start
        self._evidence = FormEvidence(form, data, _EVALUATIONS, statistics)
        if form.offsets is None:  # all that is read of the data from now on are the few rows that stand for the others
            rows, representatives = torch.unique(form.representatives, return_inverse=True)
            self.form = replace(form, data=form.data.subset(rows), representatives=representatives)
        if statistics is None:
            self.num_values = float(sum(int(data.feature_mask(name).sum()) for name in data.names))
        else:
            self.num_values = sum(float(part[-1, -1]) * (len(part) - 1) for part in statistics.scatters.values())

    def _sites(self, seed: int) -> dict[str, Site]:
        """The global sites of one call in which they are drawn, whatever values have been fitted."""
        fitted, self.bound.values = self.bound.values, {}
        try:
            return self.bound.call(self.data.subset(slice(0, 1)), seed=seed).globals
        finally:
            self.bound.values = fitted

    def priors(self, values: Mapping[str, Tensor]) -> dict[str, Site]:
        """The global sites, with the distributions that they have given these values of all of them."""
        return self.bound.call(self.data.subset(slice(0, 1)), values).globals

    def draw(self, seed: int) -> Tensor:
        """One draw of the global latents from their prior, as theta (n,)."""
        with torch.no_grad():
            return self.pack({name: site.value for name, site in self._sites(seed).items()})

    def pack(self, values: Mapping[str, Tensor]) -> Tensor:
        """theta (n,) from values of all global latents, each in its site's shape."""
        free = [self.sites[name].transform.inv(value.double()).flatten() for name, value in values.items()]
        return torch.cat(free)

    def values(self, theta: Tensor) -> dict[str, Tensor]:
        """The value of each global latent, (..., *shape), from theta (..., n)."""
        found = {}
        for name, site in self.sites.items():
            free = theta[..., site.place].reshape((*theta.shape[:-1], *site.free_shape))
            found[name] = site.transform(free).to(site.dtype)
        return found

    def terms(self, theta: Tensor) -> JointTerms:
        """Evidence and log prior at theta (n,), differentiable; one call of the model.

        Raises:
            NumericalError, ArgumentError, ModelError: something is not finite or not positive there.
        """
        values, jacobian = {}, theta.new_zeros(())
        for name, site in self.sites.items():
            free = theta[site.place].view(site.free_shape)
            value = site.transform(free)
            jacobian = jacobian + site.transform.log_abs_det_jacobian(free, value).sum()
            values[name] = value.to(site.dtype)
        structures, log_prior = self.form.read_with_prior(values)
        return JointTerms(self._evidence.of(structures, values), log_prior + jacobian, structures)

    def log_joint(self, theta: Tensor) -> Tensor:
        """log p(globals, x) in unconstrained coordinates at theta (n,); NaN where theta is out of all range."""
        try:
            return self.terms(theta).log_joint
        except CalmrlError:  # a noise variance that underflowed to zero, a precision that overflowed
            return theta.sum() * math.nan

    def structures(self, theta: Tensor) -> tuple[Structure, ...]:
        """The linear-Gaussian form at theta (n,)."""
        return self.form.read(self.values(theta))

    def __repr__(self) -> str:
        sites = ", ".join(f"{name}: {tuple(site.shape)}" for name, site in self.sites.items())
        return f"CollapsedModel({self.dim} unknowns; {sites}; given these {self.form.route})"


@torch.no_grad()
def marginalize(
    model: PyroModel, data: MultimodalData, *, statistics: SufficientStatistics | None = None
) -> CollapsedModel:
    """Integrate the latents of instances out of a Pyro model with global latents.

    Args:
        model: a Pyro callable, PyroModule or torch module, conjugate given its global latents: sample sites outside the
            plate "instances", such as loadings with a prior.
        data: N instances.
        statistics: sufficient statistics of all instances, where ``data`` are only some of them because all do not fit
            in memory; with the modalities in the model's order.

    Returns:
        The log joint density over unconstrained reals, whose evaluation costs one call of the model on K + 1 rows and
        one pass over the sufficient statistics (or the rows, where that is cheaper).

    Raises:
        NotConjugateError: given its global latents the model has no exact evidence, or one of them is discrete.
        ModelError: the model breaks the form that every route needs, or has no global latents.
        ArgumentError: statistics for a form that varies by instance.
        ArgumentTypeError: ``model`` or ``data`` is of another type.

    Example:
        >>> import pyro, pyro.distributions as dist
        >>> def model(data):
        ...     w = pyro.sample("w", dist.Normal(torch.zeros(3, 1).double(), 1.0).to_event(2))
        ...     with pyro.plate("instances", len(data)):
        ...         z = pyro.sample("z", dist.Normal(torch.zeros(1).double(), 1.0).to_event(1))
        ...         pyro.sample("x", dist.Normal(z @ w.T, 0.5).to_event(1), obs=data.filled("x"))
        >>> collapsed = marginalize(model, MultimodalData({"x": torch.ones(20, 3).double()}))
        >>> collapsed
        CollapsedModel(3 unknowns; w: (3, 1); given these exact)
        >>> collapsed.log_joint(torch.ones(3).double()) > collapsed.log_joint(torch.zeros(3).double())
        tensor(True)
    """
    bound = model if isinstance(model, BoundModel) else BoundModel(model)
    form = discover(bound, data, _moderate_values(bound, data))
    if form.degrees_of_freedom:
        form.linear_gaussian()  # raises, naming the site
    if not form.globals:
        raise ModelError(
            "model: it has no global latents, that is sample sites outside the plate 'instances', so there is nothing "
            "to infer but the latents of instances: use calmrl_prob.posterior, or fit with method 'gradient' or 'em'."
        )
    if statistics is not None and (len(form.structures) > 1 or form.route != "exact"):
        raise ArgumentError(
            f"statistics: this model's form on the data is {form.route!r}; sufficient statistics serve where it is "
            "'exact', the same linear-Gaussian one for all instances."
        )
    return CollapsedModel(bound, form, data, statistics)


def _moderate_values(bound: BoundModel, data: MultimodalData) -> dict[str, Tensor]:
    """Values of the global latents to look at the model with: priors with heavy tails may draw such as overflow."""
    generator = torch.Generator().manual_seed(0)
    found = {}
    for name, site in bound.call(data.subset(slice(0, 1))).globals.items():
        transform, free = _free(site)
        point = 2 * torch.rand(free.shape, generator=generator, dtype=torch.float64) - 1
        found[name] = transform(point.to(free.device)).to(site.value.dtype)
    return found


def _free(site: Site) -> tuple[Any, Tensor]:
    """The transform of a global latent, and the unconstrained value of what was drawn."""
    if getattr(site.fn.support, "is_discrete", False):
        raise NotConjugateError(
            site.name,
            "discrete global latent",
            "It stands outside the plate and has discrete values, which neither optimisers nor samplers can move.",
            "svi with the site marginalised by hand",
        )
    transform = biject_to(site.fn.support)
    free: Tensor = transform.inv(site.value.double())
    return transform, free
