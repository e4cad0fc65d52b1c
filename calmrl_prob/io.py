"""Multimodal data read from .npz files, nothing of which is unpickled."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from calmrl_prob._moved import old_names
from calmrl_prob._support.arguments import brief
from calmrl_prob._support.files import existing_file
from calmrl_prob._support.npz import read_npz
from calmrl_prob.data import MultimodalData
from calmrl_prob.errors import ArgumentError, ArgumentTypeError, FileFormatError

if not TYPE_CHECKING:
    __getattr__ = old_names(__name__)


def load_npz(
    path: str | os.PathLike[str],
    names: Sequence[str] | None = None,
    *,
    dtype: torch.dtype | None = None,
    ids: str = "ids",
) -> MultimodalData:
    """Read multimodal data from an .npz file of numpy arrays; nothing in it is unpickled.

    What the arrays of the file are called says what they are:

    - ``x_<name>``, (N, D_m): a modality, NaN in rows that lack it
    - ``labels``, ``ids``, (N,): as in :class:`MultimodalData`
    - ``<part>_idx``, (n,): the row numbers of a part; ``train_idx`` and ``test_idx`` make ``data.train`` and ``.test``
    - any other array with N rows: a covariate

    Members of the archive that are no arrays by their names, such as README.txt, are left out.

    Args:
        path: the file.
        names: which modalities, in this order; all by default.
        dtype: torch.float32 or torch.float64; by default the widest in the file, float32 at least.
        ids: the array that holds the identifiers; only the usual "ids" may be absent.

    Raises:
        FileNotFoundError: there is no such file.
        FileFormatError: it is damaged, not an .npz file, or its arrays break the rules above; file and array are named.
        ArgumentError: a modality, or the array of identifiers, asked for is not in the file; or ``path`` is a folder.
        ArgumentTypeError: ``path``, ``names`` or ``ids`` is of another type.
        DataError: the arrays are well formed, but their values are not (see :class:`MultimodalData`).

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "pair.npz"
        >>> np.savez(path, x_image=np.ones((3, 2)), x_text=np.ones((3, 4)), train_idx=[0, 2], test_idx=[1])
        >>> load_npz(path)
        MultimodalData: 3 instances, 2 modalities, 1 missing pattern, float64
          image  2 features  100.0% observed
          text   4 features  100.0% observed
          partition: test 1, train 2
    """
    path = existing_file(path)
    _require_names(names, ids)
    arrays = read_npz(path, lambda key: names is None or not key.startswith("x_") or key.removeprefix("x_") in names)
    modalities = _modalities(path, arrays, names)
    num_instances = len(next(iter(modalities.values())))
    parts = {key.removesuffix("_idx"): array for key, array in arrays.items() if _is_part(key)}
    beside = _columns(path, arrays, ids, num_instances)
    data = MultimodalData(
        modalities,
        labels=beside.pop("labels", None),
        ids=beside.pop(ids, None),
        covariates=beside,
        partition=_partition(path, parts, num_instances) if parts else None,
        attributes={"name": path.stem},
    )
    return data if dtype is None else data.to(dtype)


def _is_part(key: str) -> bool:
    """Whether an array holds the row numbers of a part."""
    return key.endswith("_idx") and not key.startswith("x_")


def _require_names(names: Sequence[str] | None, ids: str) -> None:
    """Refuse what names no modalities, or no array of identifiers."""
    if isinstance(names, str) or not (names is None or isinstance(names, Sequence)):
        remedy = f"use [{names!r}]" if isinstance(names, str) else "use a list"
        raise ArgumentTypeError(f"names: expected a sequence of modality names, got {brief(names)}; {remedy}.")
    if names is not None and (not names or len(set(names)) < len(names)):
        raise ArgumentError(f"names: expected one or more distinct modalities, got {list(names)}; None takes all.")
    if not isinstance(ids, str):
        raise ArgumentTypeError(f"ids: expected the name of an array in the file, got {brief(ids)}.")


def _modalities(path: Path, arrays: Mapping[str, np.ndarray], names: Sequence[str] | None) -> dict[str, np.ndarray]:
    """The arrays x_<name>, those of ``names`` in their order, (N, D_m) each."""
    modalities = {key.removeprefix("x_"): array for key, array in arrays.items() if key.startswith("x_")}
    if not modalities:
        raise FileFormatError(
            f"{path}: no modality in it, only {sorted(arrays)}; name the array of each modality x_<name>."
        )
    if names is not None:
        unknown = [name for name in names if name not in modalities]
        if unknown:
            raise ArgumentError(f"names: {path} has no modality {unknown[0]!r}; it has {list(modalities)}.")
        modalities = {name: modalities[name] for name in names}
    for name, array in modalities.items():
        if array.dtype.kind not in "fiub" or array.ndim != 2 or 0 in array.shape:
            raise FileFormatError(
                f"{path}: x_{name} should hold numbers of shape (N, D), but is {array.dtype} {array.shape}."
            )
    return modalities


def _columns(path: Path, arrays: Mapping[str, np.ndarray], ids: str, num_instances: int) -> dict[str, np.ndarray]:
    """Arrays that are neither modalities nor parts, with a row for each instance."""
    beside = {key: a for key, a in arrays.items() if not key.startswith("x_") and not _is_part(key)}
    if ids != "ids" and ids not in beside:
        raise ArgumentError(f"ids: {path} has no array {ids!r} for every instance; it has {sorted(beside)}.")
    for key, array in beside.items():
        if array.shape[:1] != (num_instances,):
            raise FileFormatError(
                f"{path}: array {key!r} has shape {array.shape}, but there are {num_instances} instances; "
                "keep one row per instance, or leave it out of the file."
            )
    return beside


def _partition(path: Path, parts: dict[str, np.ndarray], num_instances: int) -> np.ndarray:
    """The part that each instance belongs to; "" for those in none."""
    partition = np.full(num_instances, "", dtype=f"<U{max(map(len, parts))}")
    for part, rows in parts.items():
        where = f"{path}: {part}_idx"
        if rows.ndim != 1 or rows.dtype.kind not in "iu" or len(np.unique(rows)) < len(rows):
            raise FileFormatError(f"{where} should hold distinct row numbers, but is {rows.dtype} {rows.shape}.")
        if len(rows) and (rows.min() < 0 or rows.max() >= num_instances):
            raise FileFormatError(f"{where} should hold row numbers in 0 .. {num_instances - 1}.")
        taken = partition[rows] != ""
        if taken.any():
            row = rows[taken][0]
            raise FileFormatError(f"{where} and {partition[row]}_idx share row {row}; give each row to one part.")
        partition[rows] = part
    return partition
