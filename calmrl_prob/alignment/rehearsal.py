"""Rehearsals: rows that lose modalities on purpose, so that what calibration makes of them can be compared with truth.

Of a row with the modalities Omega, of which there are at least two, some are hidden, and at least one is left. Its
anchor over Omega is known, and so are the shift of the local anchor of what is left and that of the calibrated one. On
rows that no encoder and no model was fitted to, that is an honest measure of both, to choose settings by and to
calibrate certificates with; rows whose own modalities are missing serve as well, over those that they have.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from calmrl_prob._support.arguments import checked_seed, whole_number
from calmrl_prob.alignment.anchors import ShiftDistance, anchor_shift, leading_vector
from calmrl_prob.alignment.completion import Completion
from calmrl_prob.alignment.views import require_matching
from calmrl_prob.errors import DataError
from calmrl_prob.linear_gaussian import LinearGaussian


@dataclass(frozen=True, eq=False)
class Rehearsal:
    """n cases of instances that have the same m modalities, of which some are hidden.

    Attributes:
        complete: (n, m, D), what there is.
        completion: what the model knows of it when the hidden modalities are missing.
        rows: (n,), the row number of each case.
    """

    complete: Tensor
    completion: Completion
    rows: Tensor

    def local_shift(self, distance: ShiftDistance = "vector") -> Tensor:
        """From the anchor of all m modalities to that of those not hidden, shape (n,)."""
        return self.shift(leading_vector(self.complete, self.completion.observed_mask).vector, distance)

    def shift(self, anchors: Tensor, distance: ShiftDistance = "vector") -> Tensor:
        """From the anchor of all m modalities to any other (n, D), shape (n,)."""
        return anchor_shift(leading_vector(self.complete).vector, anchors, distance)


@torch.no_grad()
def rehearse(
    linear_gaussian: LinearGaussian,
    representations: Tensor,
    observed_mask: Tensor,
    *,
    times: int = 1,
    seed: int = 0,
) -> list[Rehearsal]:
    """Hide one, two ... modalities of each row, which ones at random, as long as one is left.

    A row with o modalities gives ``times`` (o - 1) cases, one for each number hidden.

    Args:
        linear_gaussian: of M modalities of D features each.
        representations: (B, M, D), not used to fit it; entries of absent modalities are arbitrary.
        observed_mask: (B, M) bool, True = PRESENT.
        times: how often each number is hidden.
        seed: of which are.

    Returns:
        One rehearsal for each set of modalities that rows have, in float64.

    Raises:
        ArgumentError: shapes or options do not fit.
        DataError: no row has two modalities.

    Example:
        >>> generator = torch.Generator().manual_seed(0)
        >>> lg = LinearGaussian(
        ...     {"image": torch.eye(2), "text": torch.eye(2)},
        ...     {"image": torch.zeros(2), "text": torch.zeros(2)},
        ...     {"image": torch.tensor(0.1), "text": torch.tensor(0.1)},
        ... )
        >>> x = torch.stack(list(lg.sample(100, generator).features.values()), dim=1)
        >>> (found,) = rehearse(lg, x, torch.ones(100, 2, dtype=torch.bool))
        >>> found.completion.observed_mask.sum(dim=1).unique().tolist(), len(found.rows)
        ([1], 100)
    """
    require_matching(representations, observed_mask)
    times = whole_number("times", times, least=1)
    generator = torch.Generator().manual_seed(checked_seed(seed))
    linear_gaussian = linear_gaussian.detach().to(torch.float64)
    found = []
    for pattern in torch.unique(observed_mask, dim=0):
        present = pattern.nonzero().flatten()
        rows = (observed_mask == pattern).all(1).nonzero().flatten()
        if len(present) < 2:
            continue
        complete = representations[rows][:, present].double()
        kept = []
        for _ in range(times):
            for hidden in range(1, len(present)):
                order = torch.rand(len(rows), len(present), generator=generator).argsort(dim=1)
                kept.append(order >= hidden)
        cases = len(kept)
        model = linear_gaussian.select([linear_gaussian.names[m] for m in present.tolist()])
        complete = complete.repeat(cases, 1, 1)
        completion = Completion.from_linear_gaussian(model, complete, torch.cat(kept).to(complete.device))
        found.append(Rehearsal(complete, completion, rows.repeat(cases)))
    if not found:
        raise DataError(
            "representations: expected rows that have two modalities or more, so that one can be hidden, got none; "
            "give rows that miss less."
        )
    return found
