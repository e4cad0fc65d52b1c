"""What the linear-Gaussian form of a model depends on: nothing, the values of covariates, or each row.

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

from calmrl_prob.checks import Probe, spread_rows
from calmrl_prob.data import MultimodalData
from calmrl_prob.errors import ModelError
from calmrl_prob.probing import Component, stack

#: Rows that the form is verified on, besides one for each distinct value of the covariates read.
_ROWS = 48
#: With more distinct covariate values than this, intercepts may still vary by row, loadings are read for each row.
_MOST_VALUES = 256
#: With more than this, all rows are verified.
_MOST_VERIFIED = 1024
#: Rows evaluated at once where all have to be.
_CHUNK = 4096


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
    prober, data = probe.prober, probe.data
    everyone, nothing = torch.arange(len(data)), torch.zeros(len(data), dtype=torch.int64)
    sample = spread_rows(data, _ROWS)
    columns = sorted(set(reads))
    keys = _keys(data, columns) if columns else None
    if keys is not None and int(keys.max()) < _MOST_VERIFIED:  # one row for each value, so that rare ones are seen too
        sample = torch.unique(torch.cat([sample, torch.as_tensor(np.unique(keys.numpy(), return_index=True)[1])]))
    elif keys is not None:
        sample = everyone

    def read(index: Tensor) -> Structures:
        representatives = _representatives(data, index)
        found = prober.read(data, representatives, probe.values)
        return Structures(representatives, found, index.to(data.device) if len(found) > 1 else None)

    one = read(nothing)
    if not check:
        return one
    odd = _unlike_rows(probe, one.components, nothing, sample)
    if len(odd):  # these rows have to pass the same checks
        odd = odd[torch.linspace(0, len(odd) - 1, min(len(odd), _ROWS)).long()]
        prober.bound.call(data.subset(odd), probe.values, densities=True)
        probe.check_affine(odd)
    for rows in sample.split(_CHUNK):
        probe.check_density(rows)
    if not len(odd):
        return one
    for candidate in (keys, _keys(data, [*columns, "observed_mask"])):
        if candidate is not None and int(candidate.max()) < _MOST_VALUES:
            found = read(candidate)
            if not len(_unlike_rows(probe, found.components, candidate, sample)):
                return found
    if len(one.components[0]) == 1 and not len(_unlike_rows(probe, one.components, nothing, sample, intercepts=False)):
        offsets, latent_offset = row_offsets(probe, one.components[0][0])
        return Structures(one.representatives, one.components, None, offsets, latent_offset)
    found = read(everyone)
    if len(_unlike_rows(probe, found.components, everyone, sample)):
        raise ModelError(
            "model: for the same instance and latents it gives different densities from call to call; remove what "
            "changes between calls."
        )
    return found


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
        for c, evaluation in enumerate(probe.at(batch, latents)):
            components = [raw[g][c] for g in index[part].tolist()]
            log_weight = torch.stack([component.log_weight for component in components])
            differ |= probe.apart(evaluation.log_weight, log_weight, 1.0)
            for name, site in evaluation.sites.items():
                expected = stack(components, name, latents, None if origin is None else origin[c].sites[name].mean)
                matters = batch.observed(name) if name in probe.prober.modalities else True
                differ |= probe.unlike(site, expected) & matters
        unlike.append(part[differ.cpu()])
    return torch.cat(unlike)


def row_offsets(probe: Probe, component: Component) -> tuple[dict[str, Tensor], Tensor]:
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
