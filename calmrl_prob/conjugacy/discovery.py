"""Conjugacy discovered: the linear-Gaussian form of any Pyro model, or the reason why it has none.

A model is conjugate if, given the discrete latents of an instance, each continuous latent and each modality is Gaussian
with a mean affine in the latents and a covariance free of them. That is probed, not declared: the model is called a
handful of times on a few rows, with latents set to chosen values (``probing.py``, ``checks.py``), and

- instances must not see each other's latents, modalities not each other's values,
- means must be affine at random points of several scales, covariances and weights must not move,
- densities must be those of the form that was read, with what is absent left out,
- and the form must hold for other rows (``structures.py``). Where it depends on covariates there is one form for each
  of their values, or, if only intercepts and prior means do, one form and an offset for each row.

Vocabulary after PyMC's ``marginalize``; the probing is this project's own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from calmrl_prob._support.exactness import route_in_words
from calmrl_prob.conjugacy.affine_sites import Component
from calmrl_prob.conjugacy.checks import Probe, extra_factor
from calmrl_prob.conjugacy.probing import Prober
from calmrl_prob.conjugacy.structures import find_structures, row_offsets
from calmrl_prob.conjugacy.watching import watched
from calmrl_prob.data import MultimodalData
from calmrl_prob.data.stream import require_data
from calmrl_prob.errors import NotConjugateError
from calmrl_prob.linear_gaussian import LinearGaussian
from calmrl_prob.linear_gaussian.blocks import ObservedBlocks
from calmrl_prob.linear_gaussian.mixture.model import LinearGaussianMixture
from calmrl_prob.programs.bound import BoundModel, PyroModel
from calmrl_prob.programs.gate import require_observed, telling_rows
from calmrl_prob.programs.sites import Call


@dataclass(frozen=True)
class ConjugateForm:
    """The linear-Gaussian form of a model on some data.

    Attributes:
        latents: for each continuous latent site its columns in z.
        latent_dim: K, of the model's own latents; mixtures whose noise is correlated have more (see ``structures``).
        globals: sites outside the plate: loadings, noise and so on with priors of their own.
        structures: for each distinct structure its form. Of mixtures, latents of correlated noise, if any, come after
            the model's own.
        structure_index: (N,) int64, the structure of each instance; None if there is one.
        offsets: for each modality what is added to its mean row by row, (N, D_m); None if nothing is.
        latent_offset: what is added to the prior mean row by row, (N, K); None if nothing is.
        degrees_of_freedom: for each site that is a Student-t, not a Gaussian, its degrees of freedom. The structures
            then hold its scale, and the route is a scale mixture.
    """

    bound: BoundModel
    data: MultimodalData
    prober: Prober
    representatives: Tensor
    structures: tuple[LinearGaussian | LinearGaussianMixture, ...]
    structure_index: Tensor | None
    offsets: Mapping[str, Tensor] | None
    latent_offset: Tensor | None
    globals: tuple[str, ...]
    degrees_of_freedom: Mapping[str, Tensor]

    @property
    def latents(self) -> Mapping[str, slice]:
        """For each continuous latent site its columns in z."""
        return self.prober.latents

    @property
    def latent_dim(self) -> int:
        """K, of the model's own latents."""
        return self.prober.latent_dim

    @property
    def route(self) -> str:
        """Route of the posterior: "exact", "exact mixture", "exact by structure" or "scale mixture"."""
        if self.degrees_of_freedom:
            return "scale mixture"
        if isinstance(self.structures[0], LinearGaussianMixture):
            return "exact mixture" if len(self.structures) == 1 else "exact mixture by structure"
        return "exact" if self.structure_index is None and self.offsets is None else "exact by structure"

    def linear_gaussian(self, values: Mapping[str, Tensor] | None = None) -> LinearGaussian:
        """The one structure, read again: differentiable in the model's parameters and in ``values``.

        Costs one call of the model on K + 1 rows.

        Args:
            values: of global latents, in their sites' shapes; those fitted before where not given.

        Raises:
            NotConjugateError: there are several structures or components, a Student-t site, or a global latent
                without a value.
        """
        known = {*self.bound.values, *(values or {})}
        if not self.degrees_of_freedom and not set(self.globals) <= known:
            raise NotConjugateError(
                self.globals[0],
                "global latents",
                "It stands outside the plate and has a prior of its own, so the form depends on its value: give "
                "values=, or fit it.",
                "collapsed, by cal.fit with method 'map', 'svi' or 'nuts'",
            )
        site = next(iter(self.latents))
        first = self.structures[0]
        if isinstance(first, LinearGaussianMixture):
            name, condition = self.prober.mixed
            raise NotConjugateError(
                name,
                condition,
                f"The form has {first.num_components} Gaussian components, not one.",
                "exact mixture, by cal.posterior",
            )
        if self.route == "scale mixture":
            name = next(iter(self.degrees_of_freedom))
            raise NotConjugateError(
                name,
                "non-gaussian prior" if name in self.latents else "non-gaussian likelihood",
                "A Student-t is Gaussian only given its scale.",
                "scale mixture, by cal.posterior",
            )
        if self.route == "exact by structure":
            raise NotConjugateError(
                site,
                "structure varies by instance",
                "Loadings, intercepts, noise or prior depend on covariates.",
                "exact by structure, by cal.posterior",
            )
        (component,) = self.prober.read(self.data, self.representatives, values)[0]
        return self.prober.assemble(component)

    def read(self, values: Mapping[str, Tensor] | None = None) -> tuple[LinearGaussian | LinearGaussianMixture, ...]:
        """All structures, read again like :meth:`linear_gaussian`."""
        return tuple(_form(self.prober, found) for found in self.prober.read(self.data, self.representatives, values))

    def read_with_prior(
        self, values: Mapping[str, Tensor]
    ) -> tuple[tuple[LinearGaussian | LinearGaussianMixture, ...], Tensor]:
        """All structures, and log p(values) of the global latents, (), nats: one call of the model for both.

        What is observed outside the plate counts with it, penalties of parameters by ``pyro.factor`` among them.
        """
        calls: list[Call] = []
        found = self.prober.read(self.data, self.representatives, values, calls)
        return tuple(_form(self.prober, components) for components in found), calls[0].log_prior()

    def read_offsets(
        self, values: Mapping[str, Tensor] | None = None
    ) -> tuple[Mapping[str, Tensor] | None, Tensor | None]:
        """``offsets`` and ``latent_offset``, read again by a pass over all rows; None and None if there are none."""
        if self.offsets is None:
            return None, None
        (component,) = self.prober.read(self.data, self.representatives, values)[0]
        return row_offsets(Probe(self.prober, self.data, values), component)

    def __repr__(self) -> str:
        sites = ", ".join(f"{name}: {part.stop - part.start}" for name, part in self.latents.items())
        first = self.structures[0]
        components = first.num_components if isinstance(first, LinearGaussianMixture) else 1
        counts = f"{len(self.structures)} structures, {components} components"
        unknown = [name for name in self.globals if name not in self.bound.values]
        given = f", given {', '.join(unknown[:3])}{' ...' if len(unknown) > 3 else ''}" if unknown else ""
        return f"ConjugateForm({sites}; {counts}, {route_in_words(self.route, self._how())}{given})"

    @property
    def is_plain(self) -> bool:
        """Whether it is one Gaussian structure for all instances, of uncorrelated noise, scales of Student-t aside."""
        structure = self.structures[0]
        if len(self.structures) > 1 or self.offsets is not None or not isinstance(structure, LinearGaussian):
            return False
        return structure.noise_factor is None

    def _how(self) -> str | None:
        """The way a Student-t's scales are integrated over, for the text; None where that is by draws."""
        if self.route == "scale mixture" and not self.is_plain:
            return "by svi"
        if len(self.degrees_of_freedom) != 1:
            return None
        ((name, freedom),) = self.degrees_of_freedom.items()
        whole = name in self.latents or isinstance(self.data.blocks, ObservedBlocks)
        return "by quadrature" if freedom.ndim == 0 and whole else None


def linear_gaussian(
    model: PyroModel, data: MultimodalData, values: Mapping[str, Tensor] | None = None
) -> LinearGaussian:
    """Read a LinearGaussian out of any Pyro model.

    The model takes the data and has a plate "instances", one or several latent sites in it (they are concatenated into
    one z, in order), and one observed site for each modality, named as the modality. However it is spelled, it has a
    linear-Gaussian form if its priors are Gaussian, its locations affine in z and its scales free of z. The result is
    differentiable in the model's parameters.

    Args:
        model: a Pyro callable, PyroModule or torch module.
        data: some instances, with the modalities and covariates that the model reads.
        values: of global latents (sites outside the plate), which by themselves have no one value.

    Raises:
        NotConjugateError: it has no such form, or not one for all instances; names site, condition and the route that
            serves. ``calmrl_prob.posterior`` takes that route by itself.
        ModelError: the model breaks the form that every route needs.
        ArgumentTypeError: ``model`` cannot be called, or ``data`` is not MultimodalData.

    Example:
        >>> import pyro, pyro.distributions as dist
        >>> loadings = torch.tensor([[1.0, 2.0], [0.0, 3.0]])
        >>> def model(data):
        ...     with pyro.plate("instances", len(data)):
        ...         z = pyro.sample("z", dist.MultivariateNormal(torch.ones(2), torch.eye(2)))
        ...         x = dist.Normal(z @ loadings.T + 5, 0.5).to_event(1)
        ...         pyro.sample("image", x.mask(data.observed("image")), obs=data.filled("image"))
        >>> lg = linear_gaussian(model, MultimodalData({"image": torch.randn(4, 2)}))
        >>> lg.loadings["image"].tolist(), lg.prior_mean.tolist(), lg.noise_variance["image"].tolist()
        ([[1.0, 2.0], [0.0, 3.0]], [1.0, 1.0], [0.25, 0.25])
    """
    return discover(model, data, values).linear_gaussian(values)


@torch.no_grad()
def discover(
    model: PyroModel,
    data: MultimodalData,
    values: Mapping[str, Tensor] | None = None,
    *,
    check: bool = True,
    generic: bool = False,
) -> ConjugateForm:
    """Find the linear-Gaussian form of a Pyro model on some data.

    Args:
        model: a Pyro callable, PyroModule or torch module.
        data: the instances.
        values: of global latents; without them, a draw from their priors.
        check: probe for all conditions. Without it the form is only read: for a model that was checked before.
        generic: look for the form that holds for other parameter values too, as fitting needs it: what the form depends
            on is probed with parameters moved a little, so that a coefficient that stands at 0 hides nothing.

    Raises:
        NotConjugateError, ModelError, ArgumentTypeError: as :func:`linear_gaussian` does, save that mixtures,
            structures that vary by instance, and global latents are described and not refused.

    Example:
        >>> import pyro, pyro.distributions as dist
        >>> means = torch.tensor([[-2.0], [2.0]])
        >>> def model(data):
        ...     with pyro.plate("instances", len(data)):
        ...         group = pyro.sample("group", dist.Categorical(torch.ones(2)))
        ...         z = pyro.sample("z", dist.Normal(means[group], 1.0).to_event(1))
        ...         pyro.sample("image", dist.Normal(z, 0.5).to_event(1), obs=data.filled("image"))
        >>> discover(model, MultimodalData({"image": torch.randn(4, 1)}))
        ConjugateForm(z: 1; 1 structures, 2 components, route='exact mixture')
    """
    require_data(data)
    bound = model if isinstance(model, BoundModel) else BoundModel(model)
    if generic:
        bound.call(data.subset(slice(0, 1)), values)  # makes the parameters that pyro.param statements are yet to make
        with bound.perturbed():
            form = _probed(bound, data, values, check=check)
        offsets, latent_offset = form.read_offsets(values)
        return replace(form, structures=form.read(values), offsets=offsets, latent_offset=latent_offset)
    return _probed(bound, data, values, check=check)


def _probed(
    bound: BoundModel, data: MultimodalData, values: Mapping[str, Tensor] | None, *, check: bool
) -> ConjugateForm:
    """The form at the parameters as they stand."""
    seen, reads = watched(data)
    few = telling_rows(data, 5)
    call = bound.call(seen.subset(few), values, densities=True)
    if check:
        require_observed(call, seen.subset(few), few)
    if call.factors:
        raise extra_factor(next(iter(call.factors)))
    prober = Prober(bound, call)
    prober.require_gaussian(call)
    probe = Probe(prober, seen, values)
    if check:
        probe.check_stable(few, call)
        probe.check_instances(few)
        probe.check_modalities(few)
        probe.check_company(few)
        probe.check_affine(few)
        probe.check_density(few.repeat(4))
        if call.constants:
            probe.check_constants(few)
    found = find_structures(probe, reads, check=check)
    return ConjugateForm(
        bound,
        data,
        prober,
        found.representatives,
        tuple(_form(prober, components) for components in found.components),
        found.index,
        found.offsets,
        found.latent_offset,
        tuple(call.globals),
        _freedom(found.components[0][0]),
    )


def _form(prober: Prober, components: list[Component]) -> LinearGaussian | LinearGaussianMixture:
    """One structure; components with the same likelihood share its tensors, so that the engine works them out once."""
    forms = [prober.assemble(component) for component in components]
    if len(forms) == 1:
        return forms[0]
    forms = [form.expanded() for form in forms]  # mixtures have correlated noise as latents
    first = forms[0]
    shared = []
    for form in forms:
        same = all(
            torch.equal(getattr(form, part)[name], getattr(first, part)[name])
            for part in ("loadings", "intercepts", "noise_variance")
            for name in first.names
        )
        likelihood = first if same else form
        shared.append(replace(likelihood, prior_mean=form.prior_mean, prior_covariance=form.prior_covariance))
    weights = torch.stack([component.log_weight.double() for component in components])
    return LinearGaussianMixture(weights, tuple(shared))


def _freedom(component: Component) -> dict[str, Tensor]:
    return {
        name: site.degrees_of_freedom for name, site in component.sites.items() if site.degrees_of_freedom is not None
    }
