"""Conditions of the exact routes on a Pyro model: each probed on a few rows, the failing site named."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from calmrl_prob.conjugacy.gaussian_sites import Gaussian, read_site
from calmrl_prob.conjugacy.probing import Prober, SiteGaussians
from calmrl_prob.data import MultimodalData
from calmrl_prob.errors import ModelError, NotConjugateError
from calmrl_prob.programs.gate import spread_rows
from calmrl_prob.programs.sites import Call

#: Relative differences that are rounding, by type.
_TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4, torch.float16: 1e-2}
#: Scales of the random latents at which means must be affine.
_SCALES = (0.1, 1.0, 5.0, 30.0)


class Probe:
    """The checks of one model on some data.

    Args:
        prober: the model.
        data: its instances.
        values: of global latents.
    """

    def __init__(self, prober: Prober, data: MultimodalData, values: Mapping[str, Tensor] | None) -> None:
        self.prober, self.data, self.values = prober, data, values
        self._generator = torch.Generator().manual_seed(0)
        self._assignment = next(iter(prober.assignments()))
        self._route = "svi, with the discrete sites summed out by hand" if prober.discrete else "svi"

    def noise(self, rows: int) -> Tensor:
        """Standard normal latents (n, K), the next of a fixed stream."""
        drawn = torch.randn(rows, self.prober.latent_dim, generator=self._generator, dtype=torch.float64)
        return drawn.to(self.data.device, self.prober.dtype)

    def at(self, data: MultimodalData, latents: Tensor) -> list[SiteGaussians]:
        """The evaluations of all components, at every joint value of the discrete sites."""
        return [
            evaluation
            for assignment in self.prober.assignments()
            for evaluation in self.prober.evaluate(data, latents, assignment, self.values)[0]
        ]

    def apart(self, one: Tensor, other: Tensor, floor: Tensor | float = 0.0) -> Tensor:
        """Rows (n,) where two tensors (n, F, ...) differ by more than rounding; NaN differs from everything.

        Rounding is judged feature by feature, since units may differ, against the largest value or ``floor``; and by
        the coarser of the types of the values and of the latents that they were computed from.
        """
        if not one.numel():
            return torch.zeros(len(one), dtype=torch.bool, device=one.device)
        size = torch.maximum(one.abs(), other.abs()).amax(0) + floor
        tolerance = max(_TOLERANCE.get(kind, 1e-4) for kind in (one.dtype, self.prober.dtype))
        return ~((one - other).abs() <= tolerance * size).reshape(len(one), -1).all(dim=1)

    def unlike(self, one: Gaussian, other: Gaussian) -> Tensor:
        """Rows (n,) where two Gaussians differ by more than rounding, in units of their deviations too."""
        deviation = one.deviation()
        differ = self.apart(one.mean, other.mean, deviation)
        differ |= self.apart(one.diagonal, other.diagonal, deviation.square())
        if one.factor is not None or other.factor is not None:
            none = one.diagonal.new_zeros(*one.diagonal.shape, 1)
            left, right = (none if gaussian.factor is None else gaussian.factor for gaussian in (one, other))
            floor = deviation[:, :, None] * deviation[:, None, :]
            differ |= self.apart(left @ left.mT, right @ right.mT, floor)
        if one.degrees_of_freedom is not None and other.degrees_of_freedom is not None:
            differ |= self.apart(one.degrees_of_freedom, other.degrees_of_freedom)
        return differ

    def _differences(self, before: SiteGaussians, after: SiteGaussians) -> Iterable[tuple[str, Tensor]]:
        """For each site, which rows (n,) differ between two evaluations."""
        for name, one in before.sites.items():
            yield name, self.unlike(one, after.sites[name])
        yield next(iter(before.sites)), self.apart(before.log_weight, after.log_weight, 1.0)

    def check_stable(self, rows: Tensor, first: Call) -> None:
        """The same sites in every call, none outside the plate that grows with the data, and no other chance."""
        again = self.prober.bound.call(self.data.subset(torch.cat([rows, rows[:1], rows[:1]])), self.values)
        for role in ("latents", "observed", "globals"):
            had, has = getattr(first, role), getattr(again, role)
            if list(had) != list(has):
                changed = sorted(set(had) ^ set(has)) or list(had)
                raise ModelError(
                    f"site {changed[0]!r}: the model changes its sites from call to call ({list(had)}, then "
                    f"{list(has)}); give sites fixed names, and no branches that depend on chance."
                )
        for name, site in first.globals.items():
            if site.fn.shape() != again.globals[name].fn.shape():
                raise ModelError(
                    f"site {name!r}: it stands outside the plate 'instances' but grows with the number of instances; "
                    "sample it inside the plate. For latents coupled between instances use a Gaussian process prior."
                )
        drawn = {name: site.value for role in (first.latents, first.globals) for name, site in role.items()}
        other = self.prober.bound.call(self.data.subset(rows), {**(self.values or {}), **drawn}, densities=True, seed=1)
        for name, site in first.observed.items():
            before, after = site.instance_log_density(), other.observed[name].instance_log_density()
            if bool(self.apart(before, after, 1.0).any()):
                raise ModelError(
                    f"site {name!r}: for the same latents it differs from call to call; leave out what is random "
                    "beside the sample sites, such as dropout (module.eval() switches it off)."
                )

    def check_instances(self, rows: Tensor) -> None:
        """The latents of one instance must not move the sites of another."""
        batch = self.data.subset(torch.cat([rows, rows])[: max(3, len(rows))])
        latents = self.noise(len(batch))
        moved = latents.clone()
        moved[0] += 3 * self.noise(1)[0] + 1
        for before, after in zip(self.at(batch, latents), self.at(batch, moved), strict=True):
            for name, differ in self._differences(before, after):
                if bool(differ[1:].any()):
                    raise NotConjugateError(
                        name,
                        "instances coupled",
                        "It depends on the latents of other instances than its own.",
                        "a GaussianProcessPrior where a covariate couples them, else pyro.infer on the whole model",
                    )

    def check_modalities(self, rows: Tensor) -> None:
        """Refuse a site that is moved by the values of another modality."""
        batch = self.data.subset(rows)
        altered = _altered(batch, self._generator)
        latents = self.noise(len(batch))
        for before, after in zip(self.at(batch, latents), self.at(altered, latents), strict=True):
            for name, differ in self._differences(before, after):
                if bool(differ.any()):
                    raise NotConjugateError(
                        name,
                        "modalities coupled",
                        "It depends on the observed values of a modality, which is missing for some instances and must "
                        "enter through the latents.",
                        self._route,
                    )

    def check_company(self, rows: Tensor) -> None:
        """Refuse a site that is moved by the other instances of the call."""
        others = spread_rows(self.data, 3 * len(rows)).flip(0)
        latents = self.noise(len(rows) + len(others))
        alone = self.at(self.data.subset(rows), latents[: len(rows)])
        beside = self.at(self.data.subset(torch.cat([rows, others])), latents)
        for one, other in zip(alone, beside, strict=True):
            for name, differ in self._differences(one, other.first(len(rows))):
                if bool(differ.any()):
                    raise ModelError(
                        f"site {name!r}: it depends on which other instances are in the call, as where a covariate is "
                        "standardised by its mean over them; work such numbers out of all data beforehand."
                    )

    def check_constants(self, rows: Tensor) -> None:
        """Refuse observations outside the plate that depend on the latents."""
        batch = self.data.subset(rows)
        one, other = (
            self.prober.evaluate(batch, self.noise(len(rows)), self._assignment, self.values, densities=True)[1]
            for _ in range(2)
        )
        for name, site in one.constants.items():
            before, after = site.log_density, other.constants[name].log_density
            assert before is not None
            assert after is not None
            if bool(self.apart(before.reshape(1, -1), after.reshape(1, -1), 1.0).any()):
                raise extra_factor(name, "pyro.infer on the whole model, since it ties all instances together")

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
                deviation = site.deviation().amax(dim=0)
                for one, other, middle in mean:  # each scale by itself: rounding grows with it
                    halfway, size = (one + other) / 2, one.abs().amax(0) + other.abs().amax(0) + deviation
                    if bool(self.apart(middle, halfway, size).any()):
                        raise NotConjugateError(
                            name,
                            "location not affine",
                            "Its location is not an affine function of the latents: halfway between two points it is "
                            "not halfway between the values.",
                            self._route,
                        )
                still = site.map(lambda part: part[:number].repeat(len(points), *[1] * (part.ndim - 1)))
                if bool(self.unlike(site, dataclasses.replace(still, mean=site.mean)).any()):
                    raise NotConjugateError(
                        name,
                        "scale depends on the latent",
                        f"The {'prior covariance' if latent else 'noise variance'} changes with the latents.",
                        self._route,
                    )
            weight = evaluation.log_weight
            if bool(self.apart(weight, weight[:number].repeat(len(points)), 1.0).any()):
                raise NotConjugateError(
                    next(iter(self.prober.discrete), next(iter(self.prober.latents))),
                    "discrete site",
                    "The probabilities of the components change with the continuous latents.",
                    self._route,
                )

    def check_density(self, rows: Tensor) -> None:
        """Each site must have the density of the Gaussian that was read, over what is present alone."""
        batch = self.data.subset(rows)
        latents = 2 * self.noise(len(batch))
        call = self.prober.evaluate(batch, latents, self._assignment, self.values, densities=True)[1]
        for name in (*self.prober.latents, *self.prober.modalities):
            site = {**call.latents, **call.observed}[name]
            values, present = site.rows(site.value), None
            if site.scale != 1.0:
                raise NotConjugateError(
                    name, "density rescaled", f"Its log density is multiplied by {site.scale:g}.", self._route
                )
            if name in self.prober.modalities:
                present = batch.feature_mask(name)
            found = read_site(site)
            should = None if found is None else found.log_density(values, present)
            if should is None:
                continue
            wrong = self.apart(site.instance_log_density(), should, 100.0)
            if present is not None and bool((wrong & present.any(1) & ~present.all(1)).any()):
                raise ModelError(
                    f"site {name!r}: its density counts features that are missing; use .mask(data.feature_mask("
                    f"{name!r})).to_event(1), with the mask before to_event."
                )
            if bool(wrong.any()):
                raise NotConjugateError(
                    name,
                    "density differs",
                    "Its log density is not that of the Gaussian with its location and scale; something else, a mask "
                    "or a factor, changes it.",
                    self._route,
                )


def extra_factor(name: str, route: str = "svi") -> NotConjugateError:
    """The refusal of a site that is neither a latent nor a modality."""
    return NotConjugateError(name, "extra factor", "It adds to the density what no Gaussian site accounts for.", route)


def _altered(data: MultimodalData, generator: torch.Generator) -> MultimodalData:
    """The same instances with other values in every modality."""
    values = {}
    for name in data.names:
        drawn = torch.randn(len(data), data.dims[name], generator=generator, dtype=torch.float64)
        values[name] = torch.where(data.feature_mask(name), drawn.to(data.device, data.dtype), data[name])
    return data._derive(_values=values)
