"""Joint draws of a posterior as arrays for ArviZ, within a budget of memory.

The wide arrays are those over draws, instances and features. Where they would not fit the budget, signals are left out
(they follow from z and the loadings) and predictions are made of some of the draws, evenly spaced in each chain.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from calmrl_prob.arviz.densities import Densities
from calmrl_prob.data import MultimodalData
from calmrl_prob.posteriors.posterior import Draw, PosteriorResult, drawn_modality


@dataclass(frozen=True)
class Plan:
    """Choice of draws, of S dealt to C chains, that wide arrays are made of.

    Attributes:
        places: of each chain, counted from its start, ascending.
        num_chains: C.
        length: draws of each chain, S / C.
        signals: whether there is room for signals.
        cells: for each modality where predictions are wanted, (N, D_m) bool; None for all of them.
    """

    places: NDArray[np.int64]
    num_chains: int
    length: int
    signals: bool
    cells: Mapping[str, Tensor] | None

    @classmethod
    def within(
        cls,
        budget: int,
        data: MultimodalData,
        names: Sequence[str],
        num_draws: int,
        num_chains: int,
        *,
        missing_only: bool,
    ) -> Plan:
        """The largest that fits ``budget`` bytes; at least one draw of each chain, whatever that takes."""
        length = num_draws // num_chains
        cells = {name: ~data.feature_mask(name) for name in names} if missing_only else None
        numbers = sum(len(data) * data.dims[n] if cells is None else int(cells[n].sum()) for n in names)
        size = max(1, numbers * data.dtype.itemsize * num_chains)
        signals = cells is None and 2 * size * length <= budget
        few = length if signals else max(1, min(length, budget // size))
        return cls(np.linspace(0, length - 1, few).round().astype(np.int64), num_chains, length, signals, cells)

    @property
    def thinned(self) -> bool:
        """Whether predictions are of some draws only."""
        return len(self.places) < self.length

    def slots(self) -> dict[int, int]:
        """For the number of each draw that is kept, over all chains, its place among those kept."""
        numbers = (np.arange(self.num_chains)[:, None] * self.length + self.places).ravel().tolist()
        return {number: slot for slot, number in enumerate(numbers)}

    def note(self, budget: int) -> str:
        """Note of what was left out; empty if nothing was."""
        if self.signals or (self.cells is not None and not self.thinned):
            return ""
        kept = f"{self.num_chains * len(self.places)} of {self.num_chains * self.length} draws"
        spread = ", evenly spaced in each chain" if self.thinned else ""
        left = "" if self.cells is not None else ", and posterior has no signals"
        return f"posterior_predictive holds {kept}{spread}{left}, to stay within max_bytes = {budget}"


@dataclass(frozen=True)
class Drawn:
    """Arrays of S draws, of which T are kept for wide arrays.

    Attributes:
        latents: (S, N, K).
        signals: for each modality asked for its location, (S, N, D_m), if there is room.
        predictions: for each of these a draw about it, (T, N, D_m), or (T, cells) where only some are wanted.
        imputed: where only some are wanted, all of these side by side, (T, cells), of which ``predictions`` are parts.
        densities: for each modality log p(x_n^m | z_n), (S, N), nats, NaN where missing.
        under: the numbers of the draws of the parameters that they are under; empty where these are fixed.
    """

    latents: Tensor
    signals: Mapping[str, Tensor]
    predictions: Mapping[str, Tensor]
    imputed: Tensor | None
    densities: Mapping[str, Tensor]
    under: list[int]


def draw_arrays(
    source: Iterable[Draw],
    result: PosteriorResult,
    data: MultimodalData,
    num_draws: int,
    generator: torch.Generator,
    names: Sequence[str],
    plan: Plan,
) -> Drawn:
    """Go through the draws once, one in memory at a time besides what is kept."""
    device, slots = data.device, plan.slots()
    dims = {name: result.dims[name] for name in names}
    imputed: Tensor | None = None
    if plan.cells is None:
        predictions = {
            n: torch.empty(len(slots), len(data), d, dtype=data.dtype, device=device) for n, d in dims.items()
        }
    else:  # one array from the start: putting parts together would take it twice
        sizes = [int(plan.cells[name].sum()) for name in dims]
        imputed = torch.empty(len(slots), sum(sizes), dtype=data.dtype, device=device)
        predictions = dict(zip(dims, imputed.split(sizes, dim=1), strict=True))
    wide = dims if plan.signals else {}
    signals = {n: torch.empty(num_draws, len(data), d, dtype=data.dtype, device=device) for n, d in wide.items()}
    densities = {n: torch.empty(num_draws, len(data), dtype=torch.float64, device=device) for n in result.dims}
    latents: Tensor | None = None
    densities_of = Densities(data, result.dims)
    under = []
    for s, draw in enumerate(source):  # (S, N, D) may not fit
        if latents is None:
            latents = draw.latents.new_empty(num_draws, *draw.latents.shape)
        latents[s] = draw.latents
        if draw.number is not None:
            under.append(draw.number)
        for name in draw.location:
            density = densities_of(draw, name)
            densities[name][s] = density.masked_fill(~data.observed(name), torch.nan)
            if name in signals:
                signals[name][s] = draw.signal[name] if name in draw.signal else draw.location[name]
            if name in predictions and s in slots:
                drawn = drawn_modality(draw, name, generator, data.dtype)
                predictions[name][slots[s]] = drawn if plan.cells is None else drawn[plan.cells[name]]
    assert latents is not None
    return Drawn(latents, signals, predictions, imputed, densities, under)
