"""Conjugacy discovered: the linear-Gaussian form of any Pyro model, or the reason why it has none.

A model is conjugate if, given the discrete latents of an instance, each continuous latent and each modality is Gaussian
with a mean affine in the latents and a covariance free of them. That is probed, not declared: the model is called a
handful of times on a few rows, with latents set to chosen values (``probing.py``), and

- instances must not see each other's latents, modalities not each other's values,
- means must be affine at random points of several scales, covariances and weights must not move,
- densities must be those of the form that was read, with what is absent left out,
- and the form must hold for other rows. Where it depends on covariates there is one form for each of their values, or,
  if only intercepts and prior means do, one form and an offset for each row.

Vocabulary after PyMC's ``marginalize``; the probing is this project's own.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from calmrl_prob._arguments import described
from calmrl_prob._watching import watched
from calmrl_prob.data import MultimodalData
from calmrl_prob.errors import ArgumentTypeError, ModelError, NotConjugateError
from calmrl_prob.linear_gaussian import LinearGaussian
from calmrl_prob.linear_gaussian.mixture import LinearGaussianMixture
from calmrl_prob.probing import Component, Evaluation, Prober, stack
from calmrl_prob.tracing import BoundModel, Call, PyroModel

#: Relative differences that are rounding, by type: in double precision too, parts of a model may run in single.
_TOLERANCE = {torch.float64: 3e-6, torch.float32: 1e-4, torch.float16: 1e-2}
#: Scales of the random latents at which means must be affine.
_SCALES = (0.1, 1.0, 5.0, 30.0)
#: Rows that the form is verified on, besides one for each distinct value of the covariates read.
_ROWS = 48
#: With more distinct covariate values than this, intercepts may still vary by row, loadings are read for each row.
_MOST_VALUES = 256
#: Rows evaluated at once where all have to be.
_CHUNK = 4096


@dataclass(frozen=True)
class ConjugateForm:
    """The linear-Gaussian form of a model on some data.

    Attributes:
        latents: for each continuous latent site its columns in z.
        latent_dim: K, of the model's own latents; correlated noise has more (see ``structures``).
        globals: sites outside the plate: loadings, noise and so on with priors of their own.
        structures: for each distinct structure its form. Latents of correlated noise, if any, come after the model's
            own.
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
        """How the posterior is computed: "exact", "exact mixture", "exact by structure" or "scale mixture"."""
        if self.degrees_of_freedom:
            return "scale mixture"
        if isinstance(self.structures[0], LinearGaussianMixture):
            return "exact mixture" if len(self.structures) == 1 else "exact mixture by structure"
        return "exact" if self.structure_index is None and self.offsets is None else "exact by structure"

    def linear_gaussian(self, values: Mapping[str, Tensor] | None = None) -> LinearGaussian:
        """The one structure, read again: differentiable in the model's parameters and in ``values``.

        Costs one call of the model on K + 1 rows.

        Args:
            values: of global latents, in their sites' shapes; those fitted or drawn before where not given.

        Raises:
            NotConjugateError: there are several structures or components, or a Student-t site.
        """
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
        """All structures, and log p(values) of the global latents, (), nats: one call of the model for both."""
        calls: list[Call] = []
        found = self.prober.read(self.data, self.representatives, values, calls)
        terms = [site.scale * site.fn.log_prob(site.value).sum().double() for site in calls[0].globals.values()]
        log_prior = torch.stack(terms).sum() if terms else torch.zeros((), dtype=torch.float64)
        return tuple(_form(self.prober, components) for components in found), log_prior

    def read_offsets(
        self, values: Mapping[str, Tensor] | None = None
    ) -> tuple[Mapping[str, Tensor] | None, Tensor | None]:
        """``offsets`` and ``latent_offset``, read again by a pass over all rows; None and None if there are none."""
        if self.offsets is None:
            return None, None
        (component,) = self.prober.read(self.data, self.representatives, values)[0]
        return _offsets(_Probe(self.prober, self.data, values), component)

    def __repr__(self) -> str:
        sites = ", ".join(f"{name}: {part.stop - part.start}" for name, part in self.latents.items())
        first = self.structures[0]
        components = first.num_components if isinstance(first, LinearGaussianMixture) else 1
        counts = f"{len(self.structures)} structures, {components} components"
        return f"ConjugateForm({sites}; {counts}, route={self.route!r})"


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
    form = discover(model, data, values)
    if form.globals and not set(form.globals) <= {*form.bound.values, *(values or {})}:
        raise NotConjugateError(
            form.globals[0],
            "global latents",
            "It stands outside the plate and has a prior of its own, so the form depends on its value: give values=, "
            "or fit it.",
            "collapsed, by cal.fit with method 'map', 'svi' or 'nuts'",
        )
    return form.linear_gaussian(values)


@torch.no_grad()
def discover(
    model: PyroModel, data: MultimodalData, values: Mapping[str, Tensor] | None = None, *, check: bool = True
) -> ConjugateForm:
    """Find the linear-Gaussian form of a Pyro model on some data.

    Args:
        model: a Pyro callable, PyroModule or torch module.
        data: the instances.
        values: of global latents; without them, a draw from their priors.
        check: probe for all conditions. Without it the form is only read: for a model that was checked before.

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
    if not isinstance(data, MultimodalData):
        raise ArgumentTypeError(f"data: expected MultimodalData, got {described(data)}; wrap it in MultimodalData.")
    bound = model if isinstance(model, BoundModel) else BoundModel(model)
    seen, reads = watched(data)
    few = _spread_rows(data, 5)
    call = bound.call(seen.subset(few), values, densities=True)
    if call.factors:
        raise NotConjugateError(
            next(iter(call.factors)),
            "extra factor",
            "A pyro.factor statement adds to the density what no Gaussian site accounts for.",
            "svi",
        )
    prober = Prober(bound, call)
    prober.require_gaussian(call)
    probe = _Probe(prober, seen, values)
    if check:
        _check_stable(bound, seen, few, call, values)
        probe.check_instances(few)
        probe.check_modalities(few)
        probe.check_affine(few)
        probe.check_density(few)
    return _structures(probe, reads, tuple(call.globals), data, check=check)


class _Probe:
    """The checks, each on a few rows and naming the site that fails."""

    def __init__(self, prober: Prober, data: MultimodalData, values: Mapping[str, Tensor] | None) -> None:
        self.prober, self.data, self.values = prober, data, values
        self._generator = torch.Generator().manual_seed(0)
        self.assignment = next(iter(prober.assignments()))

    def noise(self, rows: int) -> Tensor:
        drawn = torch.randn(rows, self.prober.latent_dim, generator=self._generator, dtype=torch.float64)
        return drawn.to(self.data.device, self.prober.dtype)

    def at(self, data: MultimodalData, latents: Tensor) -> list[Evaluation]:
        """The evaluations of all components, at every joint value of the discrete sites."""
        return [
            evaluation
            for assignment in self.prober.assignments()
            for evaluation in self.prober.evaluate(data, latents, assignment, self.values)[0]
        ]

    def check_instances(self, rows: Tensor) -> None:
        """The latents of one instance must not move the sites of another."""
        batch = self.data.subset(torch.cat([rows, rows])[: max(3, len(rows))])
        latents = self.noise(len(batch))
        moved = latents.clone()
        moved[0] += 3 * self.noise(1)[0] + 1
        for before, after in zip(self.at(batch, latents), self.at(batch, moved), strict=True):
            for name, parts in _differences(before, after):
                if any(bool((rows_differ[1:]).any()) for rows_differ in parts.values()):
                    raise NotConjugateError(
                        name,
                        "instances coupled",
                        "It depends on the latents of other instances than its own.",
                        "cal.priors' GaussianProcessPrior for latents coupled through a covariate; else svi",
                    )

    def check_modalities(self, rows: Tensor) -> None:
        """What a modality's values are must not move another site."""
        batch = self.data.subset(rows)
        altered = _altered(batch, self._generator)
        latents = self.noise(len(batch))
        for before, after in zip(self.at(batch, latents), self.at(altered, latents), strict=True):
            for name, parts in _differences(before, after):
                if any(bool(rows_differ.any()) for rows_differ in parts.values()):
                    raise NotConjugateError(
                        name,
                        "modalities coupled",
                        "It depends on the observed values of a modality, which is missing for some instances and must "
                        "enter through the latents.",
                        "svi",
                    )

    def check_affine(self, rows: Tensor) -> None:
        """Means must be affine in z, covariances and weights free of it, at several scales."""
        number = len(rows)
        points = []
        for scale in _SCALES:
            one, other = scale * self.noise(number), scale * self.noise(number)
            points += [one, other, (one + other) / 2]
        batch = self.data.subset(rows.repeat(len(points)))
        for evaluation in self.at(batch, torch.cat(points)):
            for name, site in evaluation.sites.items():
                latent = name in self.prober.latents
                mean = site.mean.reshape(len(_SCALES), 3, number, -1)
                middle = (mean[:, 0] + mean[:, 1]) / 2
                size = mean.abs().amax(dim=(1, 2, 3)) + 1e-30
                gap = (mean[:, 2] - middle).abs().amax(dim=(1, 2)) / size
                if not bool((gap <= _tolerance(mean)).all()):
                    raise NotConjugateError(
                        name,
                        "location not affine",
                        "Its location is not an affine function of the latents: halfway between two points it is not "
                        "halfway between the values.",
                        "svi",
                    )
                parts = {"diagonal": site.diagonal, "factor": site.factor, "freedom": site.degrees_of_freedom}
                for part in parts.values():
                    if part is not None and _moves(part.reshape(len(points), -1)):
                        raise NotConjugateError(
                            name,
                            "scale depends on the latent",
                            f"The {'prior covariance' if latent else 'noise variance'} changes with the latents.",
                            "svi",
                        )
            if _moves(evaluation.log_weight.reshape(len(points), -1)):
                raise NotConjugateError(
                    next(iter(self.prober.discrete), next(iter(self.prober.latents))),
                    "discrete site",
                    "The probabilities of the components change with the continuous latents.",
                    "svi",
                )

    def check_density(self, rows: Tensor) -> None:
        """Each observed site must have the density of the Gaussian that was read, over what is present alone."""
        rows = rows.repeat(4)
        batch = self.data.subset(rows)
        latents = 2 * self.noise(len(batch))
        evaluations, call = self.prober.evaluate(batch, latents, self.assignment, self.values, densities=True)
        for name in self.prober.modalities:
            site, gaussian = call.observed[name], evaluations[0].sites[name]
            if site.scale != 1.0:
                raise NotConjugateError(
                    name, "density rescaled", f"Its log density is multiplied by {site.scale:g}.", "svi"
                )
            values, present = site.rows(site.value), batch.feature_mask(name)
            expected = batch.filled(name).to(values.dtype)
            wrong = ((values - expected).abs() > 1e-4 * (1 + expected.abs())) & present
            if values.shape != expected.shape or bool(wrong.any()):
                raise ModelError(
                    f"site {name!r}: it observes other values than the data have; pass obs=data.filled({name!r}) and "
                    "transform the data themselves before, if they are to be transformed."
                )
            actual = site.instance_log_density()
            absent = ~batch.observed(name)
            if bool((actual[absent].abs() > 0).any()):
                row = int(rows[absent][0])
                raise ModelError(
                    f"site {name!r}: it is not masked where the modality is missing (row {row}, say), so that its "
                    f"density counts values that are not there; use .mask(data.observed({name!r}))."
                )
            if gaussian.degrees_of_freedom is None and not batch.has_partial_rows:
                should = _log_density(expected, gaussian.mean, gaussian.diagonal, gaussian.factor)
                gap = ((actual - should).abs() / (1 + should.abs()))[~absent]
                if not bool((gap <= 100 * _tolerance(should)).all()):
                    raise NotConjugateError(
                        name,
                        "density differs",
                        "Its log density is not that of the Gaussian with its location and scale; something else, a "
                        "mask or a factor, changes it.",
                        "svi",
                    )


def _check_stable(
    bound: BoundModel, data: MultimodalData, rows: Tensor, first: Call, values: Mapping[str, Tensor] | None
) -> None:
    """The same sites in every call, none outside the plate that grows with the data, and no chance besides sites."""
    again = bound.call(data.subset(torch.cat([rows, rows[:1], rows[:1]])), values)
    for role in ("latents", "observed", "globals"):
        before, after = getattr(first, role), getattr(again, role)
        if list(before) != list(after):
            changed = sorted(set(before) ^ set(after)) or list(before)
            raise ModelError(
                f"site {changed[0]!r}: the model changes its sites from call to call ({list(before)}, then "
                f"{list(after)}); give sites fixed names, and no branches that depend on chance."
            )
    for name, site in first.globals.items():
        if site.fn.shape() != again.globals[name].fn.shape():
            raise ModelError(
                f"site {name!r}: it stands outside the plate 'instances' but grows with the number of instances; "
                "sample it inside the plate. For latents coupled between instances use a Gaussian process prior."
            )
    drawn = {name: site.value for role in (first.latents, first.globals) for name, site in role.items()}
    other = bound.call(data.subset(rows), {**(values or {}), **drawn}, densities=True, seed=1)
    for name, site in first.observed.items():
        if _apart(site.instance_log_density(), other.observed[name].instance_log_density()).any():
            raise ModelError(
                f"site {name!r}: for the same latents it differs from call to call; leave out what is random beside "
                "the sample sites, such as dropout (module.eval() switches it off)."
            )


def _structures(
    probe: _Probe, reads: Iterable[str], global_sites: tuple[str, ...], data: MultimodalData, *, check: bool
) -> ConjugateForm:
    """Find what the form depends on: nothing, the values of covariates, or each row."""
    prober, everyone = probe.prober, torch.arange(len(data))
    sample = _spread_rows(data, _ROWS)
    read_columns = sorted(set(reads))  # a set that grows with each call: what was read while checking
    keys = _keys(data, read_columns) if read_columns else None
    if keys is not None:  # one row for each value, so that rare ones are seen too
        first = torch.as_tensor(np.unique(keys.numpy(), return_index=True)[1])
        sample = torch.unique(torch.cat([sample, first[: 4 * _MOST_VALUES]]))
    nothing = torch.zeros_like(everyone)
    representatives = _representatives(data, nothing)
    raw = prober.read(probe.data, representatives, probe.values)

    def form(
        index: Tensor | None, offsets: Mapping[str, Tensor] | None = None, latent_offset: Tensor | None = None
    ) -> ConjugateForm:
        structures = tuple(_form(prober, components) for components in raw)
        return ConjugateForm(
            prober.bound, data, prober, representatives, structures, index, offsets, latent_offset, global_sites,
            _freedom(raw[0][0]),
        )  # fmt: skip

    if not check or _holds(probe, raw, nothing, sample):
        return form(None)
    # some rows are unlike those looked at so far: they have to pass the same checks
    prober.bound.call(probe.data.subset(sample), probe.values, densities=True)
    probe.check_affine(sample)
    patterned = _keys(data, [*read_columns, "observed_mask"])
    for candidate in (keys, patterned):
        if candidate is None or int(candidate.max()) >= _MOST_VALUES:
            continue
        representatives = _representatives(data, candidate)
        raw = prober.read(probe.data, representatives, probe.values)
        if _holds(probe, raw, candidate, sample):
            return form(candidate.to(data.device))
    representatives = _representatives(data, nothing)
    raw = prober.read(probe.data, representatives, probe.values)
    if len(raw[0]) == 1 and _holds(probe, raw, nothing, sample, intercepts=False):
        offsets, latent_offset = _offsets(probe, raw[0][0])
        return form(None, offsets, latent_offset)
    representatives = _representatives(data, everyone)
    raw = prober.read(probe.data, representatives, probe.values)
    if not _holds(probe, raw, everyone, sample):
        raise ModelError(
            "model: for the same instance and latents it gives different densities from call to call; remove what "
            "changes between calls."
        )
    return form(everyone.to(data.device))


def _representatives(data: MultimodalData, index: Tensor) -> Tensor:
    """For each structure, by ``index`` (N,), an instance of it and, for each modality, one that has it, (G, 1 + M)."""
    groups = int(index.max()) + 1
    out = torch.empty(groups, 1 + len(data.names), dtype=torch.int64)
    values = index.numpy()
    for m in range(len(data.names)):
        has = data.observed_mask[:, m].cpu().numpy()
        # of the rows of a structure, those that have the modality first, then the first of them
        order = np.lexsort((np.arange(len(data)), ~has, values))
        out[:, 1 + m] = torch.as_tensor(order[np.searchsorted(values[order], np.arange(groups))])
    order = np.argsort(values, kind="stable")
    out[:, 0] = torch.as_tensor(order[np.searchsorted(values[order], np.arange(groups))])
    return out


def _holds(probe: _Probe, raw: list[list[Component]], index: Tensor, rows: Tensor, *, intercepts: bool = True) -> bool:
    """Whether the structures, by ``index`` (N,), say what the model says, at random latents on ``rows``."""
    prober, batch, latents = probe.prober, probe.data.subset(rows), 2 * probe.noise(len(rows))
    origin = torch.zeros_like(latents)
    chosen = index[rows]
    found, at_origin = probe.at(batch, latents), None if intercepts else probe.at(batch, origin)
    for c, evaluation in enumerate(found):
        components = [raw[g][c] for g in chosen.tolist()]
        log_weight = torch.stack([component.log_weight for component in components])
        if _apart(evaluation.log_weight, log_weight).any():
            return False
        for name, site in evaluation.sites.items():
            intercept, slope, diagonal, factor = stack(components, name)
            if at_origin is not None:
                intercept = at_origin[c].sites[name].mean
            mean = intercept + torch.einsum("nk,nkf->nf", latents.to(slope.dtype), slope)
            freedom = components[0].sites[name].degrees_of_freedom
            pairs = [(site.mean, mean), (site.diagonal, diagonal), (site.factor, factor)]
            if freedom is not None and site.degrees_of_freedom is not None:
                pairs.append((site.degrees_of_freedom, freedom.expand_as(site.degrees_of_freedom)))
            matters = batch.observed(name) if name in prober.modalities else slice(None)
            for one, other in pairs:
                if one is not None and other is not None and _apart(one[matters], other[matters]).any():
                    return False
    return True


def _offsets(probe: _Probe, component: Component) -> tuple[dict[str, Tensor], Tensor]:
    """How far each row's intercepts and prior mean are from those that were read, by a pass over all rows."""
    prober, data = probe.prober, probe.data
    parts: dict[str, list[Tensor]] = {name: [] for name in component.sites}
    for start in range(0, len(data), _CHUNK):
        batch = data.subset(slice(start, start + _CHUNK))
        origin = torch.zeros(len(batch), prober.latent_dim, dtype=prober.dtype, device=data.device)
        (evaluation,) = probe.at(batch, origin)
        for name, site in evaluation.sites.items():
            parts[name].append(site.mean.double() - component.sites[name].intercept.double())
    offsets = {name: torch.cat(rows) for name, rows in parts.items()}
    latent = torch.cat([offsets.pop(name) for name in prober.latents], dim=1)
    slope = torch.cat([component.sites[name].slope for name in prober.latents], dim=1).double()
    system = torch.eye(prober.latent_dim, dtype=slope.dtype, device=slope.device) - slope.mT
    latent = torch.linalg.solve(system, latent.mT).mT
    shifted = {
        name: offsets[name] + latent @ component.sites[name].slope.double() for name in prober.modalities
    }  # what a shift of the prior mean adds to the mean of each modality
    return shifted, latent


def _form(prober: Prober, components: list[Component]) -> LinearGaussian | LinearGaussianMixture:
    """One structure; components with the same likelihood share its tensors, so that the engine works them out once."""
    forms = [prober.assemble(component) for component in components]
    if len(forms) == 1:
        return forms[0]
    first = forms[0]
    shared = []
    for form in forms:
        same = all(
            torch.equal(getattr(form, part)[name], getattr(first, part)[name])
            for part in ("loadings", "intercepts", "noise_variance")
            for name in first.names
        )
        likelihood = first if same else form
        shared.append(
            LinearGaussian(
                likelihood.loadings,
                likelihood.intercepts,
                likelihood.noise_variance,
                form.prior_mean,
                form.prior_covariance,
            )
        )
    weights = torch.stack([component.log_weight.double() for component in components])
    return LinearGaussianMixture(weights, tuple(shared))


def _freedom(component: Component) -> dict[str, Tensor]:
    return {
        name: site.degrees_of_freedom for name, site in component.sites.items() if site.degrees_of_freedom is not None
    }


def _spread_rows(data: MultimodalData, number: int) -> Tensor:
    """Up to ``number`` rows: one of each missing pattern first, then at random, always the same."""
    generator = torch.Generator().manual_seed(0)
    index = data.pattern_index.cpu()
    first = torch.as_tensor(np.unique(index.numpy(), return_index=True)[1])
    order = torch.cat([first[: max(1, number // 2)], torch.randperm(len(data), generator=generator)[: 2 * number]])
    return torch.as_tensor(list(dict.fromkeys(order.tolist()))[:number]).sort().values


def _keys(data: MultimodalData, columns: Iterable[str]) -> Tensor:
    """(N,) int64: which distinct joint value of some columns each instance has."""
    codes = []
    for column in columns:
        array: Any = data.observed_mask.cpu().numpy() if column == "observed_mask" else None
        if array is None:
            array = getattr(data, column) if column in ("ids", "labels", "partition") else data.covariates[column]
        flat = np.asarray(array).reshape(len(data), -1)
        codes.append(np.unique(flat, axis=0, return_inverse=True)[1].reshape(-1))
    return torch.as_tensor(np.unique(np.stack(codes, axis=1), axis=0, return_inverse=True)[1].reshape(-1))


def _altered(data: MultimodalData, generator: torch.Generator) -> MultimodalData:
    """The same instances with other values in every modality."""
    values = {}
    for name in data.names:
        drawn = torch.randn(len(data), data.dims[name], generator=generator, dtype=torch.float64)
        values[name] = torch.where(data.feature_mask(name), drawn.to(data.device, data.dtype), data[name])
    return data._derive(_values=values)


def _differences(before: Evaluation, after: Evaluation) -> Iterable[tuple[str, dict[str, Tensor]]]:
    """For each site, part by part, which rows (n,) differ between two evaluations."""
    for name, one in before.sites.items():
        other = after.sites[name]
        parts = {}
        for part in ("mean", "diagonal", "factor", "degrees_of_freedom"):
            left, right = getattr(one, part), getattr(other, part)
            if left is not None and right is not None:
                parts[part] = _apart(left, right)
        yield name, parts
    weights = _apart(before.log_weight, after.log_weight)
    yield next(iter(before.sites)), {"log_weight": weights}


def _apart(one: Tensor, other: Tensor) -> Tensor:
    """Rows (n,) where two tensors differ by more than rounding; NaN differs from everything."""
    if not one.numel():
        return torch.zeros(len(one), dtype=torch.bool, device=one.device)
    size = torch.maximum(one.abs(), other.abs()).amax() + 1e-30
    gap = ((one - other).abs() / size).reshape(len(one), -1)
    return ~(gap <= _tolerance(one)).all(dim=1)


def _moves(values: Tensor) -> bool:
    """Whether (n, ...) differs between its first axis by more than rounding."""
    size = values.abs().amax() + 1e-30
    return not bool((((values - values[:1]).abs() / size) <= _tolerance(values)).all())


def _tolerance(values: Tensor) -> float:
    return _TOLERANCE.get(values.dtype, 1e-4)


def _log_density(values: Tensor, mean: Tensor, diagonal: Tensor, factor: Tensor | None) -> Tensor:
    """log N(x; mean, diag(diagonal) + factor factor^T) by row, dense: for a few rows."""
    if factor is None:
        density: Tensor = torch.distributions.Normal(mean, diagonal.sqrt(), validate_args=False).log_prob(values)
        return density.sum(1)
    covariance = torch.diag_embed(diagonal) + factor @ factor.mT
    density = torch.distributions.MultivariateNormal(mean, covariance, validate_args=False).log_prob(values)
    return density
