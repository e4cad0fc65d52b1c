"""Modalities removed from training rows, and the units that all methods then see."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from calmrl_prob.data import MultimodalData, missingness
from calmrl_prob.errors import ArgumentError
from experiments.comparison.imputers import Array, has, values
from experiments.harness.split import Split

#: Share of all cells of the training rows that is missing under "mcar", what the data lack themselves included.
MISSING_SHARE = 0.45
MISSINGNESS = ("mcar", "pairs", "own")


@dataclass(frozen=True)
class Task:
    """Rows of one data set, missingness and seed, in the units that all methods see: centred, and scaled.

    Attributes:
        train: training rows, which lack modalities.
        test: test rows, which lack nothing.
        centre: for each modality the mean (D_m,) of the training rows that have it, in these units.
    """

    train: MultimodalData
    test: MultimodalData
    centre: Mapping[str, Array]


def remove(data: MultimodalData, how: str, seed: int) -> MultimodalData:
    """Training rows of which modalities were removed.

    Args:
        data: training rows.
        how: "mcar" (45% of all cells are missing, or as many as can be without an empty row), "pairs" (each row keeps
            two modalities, any two as likely; of two modalities nothing is removed), or "own": what the data lack.
        seed: the same seed removes the same cells.

    Raises:
        ArgumentError: ``how`` is none of these.
    """
    if how not in MISSINGNESS:
        raise ArgumentError(f"missing: expected some of {list(MISSINGNESS)}, got {how!r}.")
    if how == "own":
        return data
    if how == "pairs":
        return data.mask(missingness.pairs(data, complete=0.0, seed=seed))
    present = int(data.observed_mask.sum())
    wanted = MISSING_SHARE - (1.0 - present / data.observed_mask.numel())
    most = (present - len(data)) / present
    rate = min(max(wanted, 0.0) * data.observed_mask.numel() / present, most)
    return data.mask(missingness.mcar(data, rate=rate, seed=seed))


def make_task(split: Split, how: str, seed: int, scale: str = "modality", components: int | None = None) -> Task:
    """Remove modalities, and bring what is left to the units that all methods see.

    Means, scales and principal components are those of the training rows, after removal.

    Args:
        split: training rows, and test rows that lack nothing.
        how: see :func:`remove`.
        seed: of the removal.
        scale: "feature" for a unit variance of each, "modality" for one of a modality's features on average.
        components: principal components to keep of each modality; all features if None.
    """
    train = remove(split.train, how, seed)
    seen, shown = {}, {}
    for name in train.names:
        rows, test = has(train, name), values(split.test, name)
        known = values(train, name)
        centre = np.nanmean(known[rows], axis=0)
        known, test = known - centre, test - centre
        if components is not None and components < min(rows.sum(), known.shape[1]):
            axes = np.linalg.svd(known[rows], full_matrices=False)[2][:components].T
            known, test = known @ axes, test @ axes
        deviation = np.sqrt(np.nanmean(known[rows] ** 2, axis=0 if scale == "feature" else None))
        divisor = np.where(deviation > 0, deviation, 1.0)
        seen[name], shown[name] = known / divisor, test / divisor
        seen[name][~rows] = np.nan
    prepared = MultimodalData({n: a.astype(np.float32) for n, a in seen.items()}, missing=train.missing)
    centres = {name: np.nanmean(array, axis=0) for name, array in seen.items()}
    return Task(prepared, MultimodalData({n: a.astype(np.float32) for n, a in shown.items()}), centres)
