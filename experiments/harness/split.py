"""The data of a comparison: which modalities, which rows are for training and which for testing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePath

import numpy as np
import torch
from torch import Tensor

from calmrl_prob.data import MultimodalData
from calmrl_prob.errors import ArgumentError


@dataclass(frozen=True)
class Split:
    """Training and test rows of one data set, nothing removed yet.

    Attributes:
        name: what tables and titles call it.
        train, test: the rows; what the source itself lacks is lacking here too.
    """

    name: str
    train: MultimodalData
    test: MultimodalData


def split(
    name: str,
    source: MultimodalData,
    modalities: Sequence[str] | None = None,
    test_share: float = 0.25,
    seed: int = 0,
    position: bool = False,
) -> Split:
    """Choose modalities, and part training from test rows.

    Args:
        name: what tables and titles call the data; of the path of an .npz file, the name of the file.
        source: all rows. Its own parts "train" and "test" are used where it has them.
        modalities: which to use, all by default. Rows that have none of them are left out.
        test_share: share of rows to test on, where the source brings no parts.
        seed: decides those rows; classes are spread evenly where there are labels.
        position: add the row number in the source as the covariate "position", in hundreds of rows: for models of
            latents that are smooth over it, where the order of the rows means something.

    Raises:
        ArgumentError: fewer than two modalities, or a share that cannot be used.
    """
    name = PurePath(name).name.removesuffix(".npz")
    names = list(source.names if modalities is None else modalities)
    if len(names) < 2:
        raise ArgumentError(f"data.modalities: expected at least two, since one is imputed from the rest; got {names}.")
    if not 0 < test_share < 1:
        raise ArgumentError(f"data.test_share: expected a share between 0 and 1, both excluded, got {test_share}.")
    if position:
        source.covariates["position"] = np.arange(len(source)) / 100
    chosen = source.subset(source.rows_with(*names)).select(names)
    if chosen.partition is not None:
        return Split(name, chosen.train, chosen.test)
    train, test = chosen.split(1.0 - test_share, seed=seed, stratify=chosen.labels is not None)
    return Split(name, train, test)


def nothing_missing(data: MultimodalData, *, seed: int = 0) -> Tensor:
    """The mechanism that removes nothing: (N, M) bool, all True.

    Example:
        >>> bool(nothing_missing(MultimodalData({"image": torch.ones(2, 3)})).all())
        True
    """
    return torch.ones(len(data), len(data.names), dtype=torch.bool, device=data.device)
