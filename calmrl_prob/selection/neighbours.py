"""Rows that go with their neighbours: what folds by row cannot hold out.

Windows of one recording, visits of one patient or captions of one photograph stand beside each other in files. Dealt
to folds row by row, each held-out row has its like among the training rows, and held-out scores and intervals flatter
for rows of a recording that is yet to come. So the errors e_n of held-out imputations are compared in the order of
the rows, each with the next that has one: with u = e / |e| (features in units of their spread),

    r = mean of u_n . u_n+1 over neighbours - mean of u_n . u_j over pairs at random,    z = r / (s / sqrt(pairs)),

s the standard deviation of the latter. Rows are dealt to folds at random, so that r has mean 0 whatever was fitted, if
their order means nothing. Cosines lie between -1 and 1, so that no heavy tail mimics a dependence.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from calmrl_prob.selection.folds import Fold
from calmrl_prob.selection.held_out import OWN_PART
from calmrl_prob.selection.hidden import HeldOutRows

#: The smallest correlation that is told, in standard errors and by itself. Iid rows reach six standard errors once in a
#: thousand million. The second is set by hand, and parts what does harm from what does not only roughly: 90% intervals
#: held 91% of new rows at 0.3 (emoji) and 0.5 (leaves sorted by species), and 82% at 0.3 (sensors, every tenth row
#: scored, where nearer neighbours would have shown more).
_STANDARD_ERRORS, _LEAST = 6.0, 0.35
#: Pairs below which nothing is said, and numbers and rows looked at, at most.
_LEAST_PAIRS, _MOST_NUMBERS, _MOST_ROWS = 30, 2**24, 20_000
#: Times that rows are paired at random.
_SHUFFLES = 8


@dataclass(frozen=True)
class NeighbourCorrelation:
    """Correlation of the errors of neighbouring rows in one modality.

    Attributes:
        modality: which.
        value: r, between -1 and 1.
        error: its standard error where the order of the rows means nothing.
        num_pairs: of rows with an error, each and the next that has one.
    """

    modality: str
    value: float
    error: float
    num_pairs: int

    @property
    def told(self) -> bool:
        """Whether it is beyond chance, and large enough to matter."""
        return self.value >= max(_LEAST, _STANDARD_ERRORS * self.error)


def neighbour_correlations(
    folds: Iterable[tuple[Fold, Iterable[HeldOutRows]]], num_instances: int, seed: int
) -> list[NeighbourCorrelation]:
    """That of each modality, from imputations of held-out rows; none where there are statistics alone.

    Args:
        folds: each with the imputations of its rows.
        num_instances: N, of all folds together.
        seed: of the pairs at random.
    """
    errors: dict[str, dict[bool, list[tuple[Tensor, Tensor]]]] = {}
    for fold, imputations in folds:
        if fold.rows is None:
            continue
        numbers = torch.from_numpy(fold.rows)
        for part in imputations:
            own = errors.setdefault(part.modality, {}).setdefault(part.seen == (OWN_PART,), [])
            rows = numbers[part.rows.cpu()]
            width = part.truth.shape[1]
            kept = _looked_at(rows, num_instances, min(_MOST_ROWS, max(2 * _LEAST_PAIRS, _MOST_NUMBERS // width)))
            error = (part.truth - part.imputed).nan_to_num(nan=0.0)  # a feature that is missing has no error
            own.append((rows[kept], error[kept.to(error.device)].float().cpu()))
    generator = np.random.default_rng(seed)
    found = []
    for name, kinds in errors.items():
        parts = kinds.get(False) or kinds[True]  # from others, where any could be
        rows, error = (torch.cat(part) for part in zip(*parts, strict=True))
        correlation = _correlation(name, rows.numpy(), error.numpy(), generator)
        if correlation is not None:
            found.append(correlation)
    return found


def _looked_at(rows: Tensor, num_instances: int, most: int) -> Tensor:
    """Those in evenly spaced runs of neighbours, ``most`` rows in all about, as a mask."""
    share = most / num_instances
    if share >= 1:
        return torch.ones_like(rows, dtype=torch.bool)
    run = 100  # rows: long beside a pair
    return (rows % round(run / share)) < run


def _correlation(
    name: str, rows: np.ndarray, error: np.ndarray, generator: np.random.Generator
) -> NeighbourCorrelation | None:
    """Of errors (n, D_m) of the instances ``rows`` (n,); None of too few."""
    order = np.argsort(rows, kind="stable")
    error = error[order]
    spread = np.sqrt(np.square(error).mean(0))
    error = error[:, spread > 0] / spread[spread > 0]
    norm = np.sqrt(np.square(error).sum(1))
    unit = error[norm > 0] / norm[norm > 0, None]
    number = len(unit)
    if number <= _LEAST_PAIRS:
        return None
    near = np.einsum("nd,nd->n", unit[:-1], unit[1:])
    chance = np.concatenate(  # neighbours in a random order, none its own
        [
            np.einsum("nd,nd->n", unit[own], unit[np.roll(own, 1)])
            for own in (generator.permutation(number) for _ in range(_SHUFFLES))
        ]
    )
    error_of_mean = float(chance.std() / len(near) ** 0.5)
    return NeighbourCorrelation(name, float(near.mean() - chance.mean()), error_of_mean, len(near))
