"""Dependence of the linear-Gaussian form of a model: on nothing, the values of covariates, or each row.

The cheapest description is taken that says what the model says: one structure for all rows; one for each distinct value
of the covariates that the model reads; one, with an offset for each row where only intercepts and prior means differ;
or one for each row. It is verified at random latents on a sample of rows with one of each distinct value, or on all
rows where the values are too many for that.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from calmrl_prob.conjugacy.affine_sites import Component, predicted_site
from calmrl_prob.conjugacy.checks import Probe
from calmrl_prob.data import MultimodalData
from calmrl_prob.errors import ModelError
from calmrl_prob.programs.gate import spread_rows

#: Rows that the form is verified on, besides one for each distinct value of the covariates read.
_ROWS = 48
#: With more distinct covariate values than this, intercepts may still vary by row, loadings are read for each row.
_MOST_VALUES = 256
#: With more than this, all rows are verified.
_MOST_VERIFIED = 1024
#: Rows evaluated at once where all have to be.
_CHUNK = 2048


@dataclass(frozen=True)
class Structures:
    """The distinct structures of a model on some data.

    Attributes:
        representatives: (G, 1 + M) int64, the instances that each was read at.
        components: for each structure its components.
        index: (N,) int64, the structure of each instance; None if there is one.
        offsets: for each modality what is added to its mean row by row, (N, D_m); None if nothing is.
        latent_offset: what is added to the prior mean row by row, (N, K); None if nothing is.
    """

    representatives: Tensor
    components: list[list[Component]]
    index: Tensor | None = None
    offsets: Mapping[str, Tensor] | None = None
    latent_offset: Tensor | None = None


def find_structures(probe: Probe, reads: Iterable[str], *, check: bool) -> Structures:
    """Find the cheapest description of what the form depends on.

    Args:
        probe: the model and its data.
        reads: the columns of the data that the model has read so far; it grows with each call.
        check: verify it. Without, there is one structure.

    Raises:
        NotConjugateError, ModelError: rows unlike those that were looked at before break a condition.
    """
    data, columns = probe.data, sorted(set(reads))
    nothing = torch.zeros(len(data), dtype=torch.int64)
    one = _read(probe, nothing)
    if not check:
        return one
    keys = _keys(data, columns) if columns else None
    rows = _VerifiedRows.of(probe, keys)
    odd = rows.odd(one.components, nothing)
    if len(odd):
        _check_odd(probe, odd)
    for part in rows.every.split(_CHUNK):
        probe.check_density(part)
    return _by_what_differs(probe, rows, one, keys, columns) if len(odd) else one


def _by_what_differs(
    probe: Probe, rows: _VerifiedRows, one: Structures, keys: Tensor | None, columns: list[str]
) -> Structures:
    """The cheapest description that holds where ``one`` structure for all rows does not."""
    data = probe.data
    everyone, nothing = torch.arange(len(data)), torch.zeros(len(data), dtype=torch.int64)
    for candidate in (keys, _keys(data, [*columns, "observed_mask"])):
        if candidate is not None and int(candidate.max()) < _MOST_VALUES:
            found = _read(probe, candidate)
            if not len(rows.odd(found.components, candidate)):
                return found
    if len(one.components[0]) == 1:
        odd = rows.odd(one.components, nothing, intercepts=False)
        if not len(odd):
            offsets, latent_offset = row_offsets(probe, one.components[0][0])
            return Structures(one.representatives, one.components, None, offsets, latent_offset)
        _check_odd(probe, odd)
    found = _read(probe, everyone)
    if len(rows.odd(found.components, everyone)):
        raise ModelError(
            "model: for the same instance and latents it gives different densities from call to call; remove what "
            "changes between calls."
        )
    return found


def _read(probe: Probe, index: Tensor) -> Structures:
    """The structures of the groups of rows that ``index`` (N,) tells apart."""
    representatives = _representatives(probe.data, index)
    found = probe.prober.read(probe.data, representatives, probe.values)
    return Structures(representatives, found, index.to(probe.data.device) if len(found) > 1 else None)


@dataclass(frozen=True)
class _VerifiedRows:
    """Rows that structures are verified on: a sample first and, where it shows nothing odd, all that have to be."""

    probe: Probe
    sample: Tensor
    every: Tensor

    @classmethod
    def of(cls, probe: Probe, keys: Tensor | None) -> _VerifiedRows:
        """Rows spread over the data, one of each distinct value of the covariates read, ``keys`` (N,), among them."""
        sample = spread_rows(probe.data, _ROWS)
        if keys is None:
            return cls(probe, sample, sample)
        # so that rare ones are seen too; of very many, some
        first = torch.as_tensor(np.unique(keys.numpy(), return_index=True)[1])
        sample = torch.unique(torch.cat([sample, _spaced(first, _MOST_VERIFIED)]))
        return cls(probe, sample, sample if int(keys.max()) < _MOST_VERIFIED else torch.arange(len(probe.data)))

    def odd(self, components: list[list[Component]], index: Tensor, *, intercepts: bool = True) -> Tensor:
        """Rows that are unlike, of the sample or, if it has none, of all that are to be verified."""
        odd = _unlike_rows(self.probe, components, index, self.sample, intercepts=intercepts)
        if len(odd) or self.every is self.sample:
            return odd
        return _unlike_rows(self.probe, components, index, self.every, intercepts=intercepts)


def _check_odd(probe: Probe, odd: Tensor) -> None:
    """Rows unlike those that were looked at before have to pass the same checks."""
    odd = _spaced(odd, _ROWS)
    probe.prober.bound.call(probe.data.subset(odd), probe.values, densities=True)
    probe.check_affine(odd)


def _spaced(rows: Tensor, number: int) -> Tensor:
    """At most so many of them, evenly, the first and the last among them."""
    return rows if len(rows) <= number else rows[torch.linspace(0, len(rows) - 1, number).long()]


def _representatives(data: MultimodalData, index: Tensor) -> Tensor:
    """For each structure, by ``index`` (N,), an instance of it and, for each modality, one that has it, (G, 1 + M)."""
    groups = int(index.max()) + 1
    out = torch.empty(groups, 1 + len(data.names), dtype=torch.int64)
    values = index.numpy()
    if groups == 1:
        first = data.observed_mask.byte().argmax(dim=0).cpu()  # zero where no instance has it
        return torch.cat([torch.zeros(1, dtype=torch.int64), first])[None]
    for m in range(len(data.names)):
        has = data.observed_mask[:, m].cpu().numpy()
        # of the rows of a structure, those that have the modality first, then the first of them
        order = np.lexsort((np.arange(len(data)), ~has, values))
        out[:, 1 + m] = torch.as_tensor(order[np.searchsorted(values[order], np.arange(groups))])
    order = np.argsort(values, kind="stable")
    out[:, 0] = torch.as_tensor(order[np.searchsorted(values[order], np.arange(groups))])
    return out


def _unlike_rows(
    probe: Probe, raw: list[list[Component]], index: Tensor, rows: Tensor, *, intercepts: bool = True
) -> Tensor:
    """The rows, of those given, of which the structures, by ``index`` (N,), do not say what the model says.

    At random latents; with ``intercepts`` False, intercepts and prior means may be any.
    """
    unlike = []
    for part in rows.split(_CHUNK):
        batch, latents = probe.data.subset(part), 2 * probe.noise(len(part))
        origin = probe.at(batch, torch.zeros_like(latents)) if not intercepts else None
        differ = torch.zeros(len(part), dtype=torch.bool, device=batch.device)
        groups, place = torch.unique(index[part], return_inverse=True)
        place = place.to(batch.device)
        for c, evaluation in enumerate(probe.at(batch, latents)):
            components = [raw[g][c] for g in groups.tolist()]
            log_weight = torch.stack([component.log_weight for component in components])[place]
            differ |= probe.apart(evaluation.log_weight, log_weight, 1.0)
            for name, site in evaluation.sites.items():
                middle = None if origin is None else origin[c].sites[name].mean
                expected = predicted_site(components, place, name, latents, middle)
                matters = batch.observed(name) if name in probe.prober.modalities else True
                differ |= probe.unlike(site, expected) & matters
        unlike.append(part[differ.cpu()])
    return torch.cat(unlike)


def row_offsets(probe: Probe, component: Component) -> tuple[dict[str, Tensor], Tensor]:
    """Offsets of each row's intercepts and prior mean from those that were read, by a pass over all rows."""
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
