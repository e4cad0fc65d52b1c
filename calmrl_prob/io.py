"""Multimodal data in .npz files, nothing of which is pickled."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from calmrl_prob._moved import old_names
from calmrl_prob._support import files
from calmrl_prob._support.arguments import brief
from calmrl_prob._support.files import existing_file
from calmrl_prob._support.npz import Mapped, read_npz
from calmrl_prob.data import MultimodalData
from calmrl_prob.data.entries import entries
from calmrl_prob.data.features import Names, as_names
from calmrl_prob.data.stream import require_data
from calmrl_prob.errors import ArgumentError, ArgumentTypeError, DataError, FileFormatError

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
    - ``features_<name>``, (D_m,): the names of the features of that modality
    - ``<part>_idx``, (n,): the row numbers of a part; ``train_idx`` and ``test_idx`` make ``data.train`` and ``.test``
    - any other array with N rows: a covariate

    A column may also be one text that is the JSON of its N entries, and ``missing`` one of those of
    :class:`MultimodalData`: so :func:`save_npz` writes them. Members of the
    archive that are no arrays by their names, such as README.txt, are left out.

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
    held = npz_contents(path, names, ids)
    data = MultimodalData(
        held.modalities,
        labels=held.labels,
        ids=held.ids,
        covariates=held.covariates,
        partition=held.partition,
        attributes={"name": path.stem},
        missing=held.missing,  # type: ignore[arg-type]  # checked there
    ).renamed(held.features)
    return data if dtype is None else data.to(dtype)


def save_npz(data: MultimodalData, path: str | os.PathLike[str]) -> Path:
    """Write multimodal data to an .npz file of numpy arrays; :func:`load_npz` gives them back, nothing is pickled.

    Modalities, ids, labels, parts, covariates and names of features go along; attributes do not. Columns of several
    kinds of entries (texts of which some are missing, say) are written as JSON.

    Args:
        data: what to write.
        path: where; an existing file is replaced, once the new one is whole.

    Returns:
        The path.

    Raises:
        ArgumentTypeError: ``data`` is of another type, or a column holds what JSON has no word for.
        ArgumentError: ``path`` is empty or a folder.
        FileNotFoundError: its folder does not exist.

    Example:
        >>> import tempfile
        >>> data = MultimodalData({"text": torch.tensor([[1.0], [torch.nan]]), "image": torch.ones(2, 3)})
        >>> load_npz(save_npz(data, Path(tempfile.mkdtemp()) / "pair.npz"))["text"].tolist()
        [[1.0], [nan]]
    """
    require_data(data)
    columns = {"ids": data.ids, "labels": data.labels, "partition": data.partition, **data.covariates}
    arrays: dict[str, NDArray[Any]] = {f"x_{name}": data[name].numpy(force=True) for name in data.names}
    arrays |= npz_columns({n: c for n, c in columns.items() if c is not None}, data.feature_names, data.missing)
    with files.write_atomically(path) as temporary, open(temporary, "wb") as file:  # a name alone would have .npz added
        np.savez(file, allow_pickle=False, **arrays)
    return Path(path)


def npz_columns(
    columns: Mapping[str, NDArray[Any]], feature_names: Mapping[str, Names | None], missing: str
) -> dict[str, NDArray[Any]]:
    """Arrays of a file besides the modalities, none of objects.

    Args:
        columns: ids, labels, partition and covariates.
        feature_names: of each modality; None where they are not known.
        missing: of :class:`MultimodalData`.

    Raises:
        DataError: the name of a covariate means something else in a file.
        ArgumentTypeError: a column holds what JSON has no word for.

    Example:
        >>> npz_columns({"partition": np.array(["train", "test"])}, {"text": ("u", "v")}, "modalities")
        {'train_idx': array([0]), 'test_idx': array([1]), 'features_text': array('["u", "v"]', dtype='<U10')}
    """
    arrays: dict[str, NDArray[Any]] = {}
    for name, column in columns.items():
        if name == "partition":
            arrays |= {f"{part}_idx": np.flatnonzero(column == part) for part in dict.fromkeys(column.tolist()) if part}
        elif name == "missing" or name.startswith(("x_", "features_")) or name.endswith("_idx"):
            raise DataError(f"covariates[{name!r}]: a file has something else by such a name; rename it.")
        else:
            arrays[name] = _plain(name, column)
    arrays |= {
        f"features_{name}": np.array(json.dumps(names)) for name, names in feature_names.items() if names is not None
    }
    return arrays if missing == "modalities" else {**arrays, "missing": np.array(missing)}


def _plain(name: str, column: NDArray[Any]) -> NDArray[Any]:
    """A column without objects: as JSON where it holds some."""
    if column.dtype.kind != "O":
        return column
    try:
        return np.array(json.dumps(column.tolist(), allow_nan=False))
    except (TypeError, ValueError) as error:
        raise ArgumentTypeError(
            f"data: column {name!r} cannot be written ({error}); make its entries text or numbers, .astype(str)."
        ) from error


class NpzContents(NamedTuple):
    """Arrays of an .npz file by what they are; as :class:`MultimodalData` has them."""

    modalities: dict[str, Any]
    features: dict[str, Names | None]
    ids: NDArray[Any] | None
    labels: NDArray[Any] | None
    partition: NDArray[Any] | None
    covariates: dict[str, NDArray[Any]]
    missing: str


def npz_contents(
    path: Path, names: Sequence[str] | None, ids: str, mapped: Mapping[str, Mapped] | None = None
) -> NpzContents:
    """The arrays of a file laid out as :func:`load_npz` says, those already ``mapped`` not read.

    Raises:
        FileFormatError, ArgumentError: as :func:`load_npz`.
    """
    there = dict(mapped or {})

    def wanted(key: str) -> bool:
        return key not in there and (names is None or not key.startswith("x_") or key.removeprefix("x_") in names)

    arrays: dict[str, Any] = {**read_npz(path, wanted), **there}
    modalities = _modalities(path, arrays, names)
    num_instances = next(iter(modalities.values())).shape[0]
    named = {key: arrays.pop(f"features_{key[2:]}", None) for key in [*arrays] if key.startswith("x_")}
    features = {name: _features(path, named[f"x_{name}"], x) for name, x in modalities.items()}
    missing = str(arrays.pop("missing")) if _is_text(arrays.get("missing")) else "modalities"
    if missing not in ("modalities", "features"):
        raise FileFormatError(f"{path}: array 'missing' should be 'modalities' or 'features', but is {missing!r}.")
    parts = {key.removesuffix("_idx"): array for key, array in arrays.items() if _is_part(key)}
    beside = _columns(path, arrays, ids, num_instances)
    partition = _partition(path, parts, num_instances) if parts else None
    labels, found = beside.pop("labels", None), beside.pop(ids, None)
    return NpzContents(modalities, features, found, labels, partition, beside, missing)


def _is_text(array: Any) -> bool:  # noqa: ANN401 - an array, or None
    """Whether an array is one text."""
    return array is not None and array.ndim == 0 and array.dtype.kind == "U"


def _from_json(where: str, array: NDArray[Any]) -> list[Any]:
    """The list that a text is the JSON of."""
    try:
        found = json.loads(str(array))
    except (ValueError, RecursionError) as error:
        raise FileFormatError(f"{where} should hold a list as JSON ({error}); write it anew with save_npz.") from error
    if not isinstance(found, list):
        raise FileFormatError(f"{where} should hold a list as JSON, but is {brief(found)}; write it with save_npz.")
    return found


def _features(path: Path, array: Any, modality: Any) -> Names | None:  # noqa: ANN401 - arrays, mapped ones too
    """Names of the features of a modality: an array (D_m,), or a text that is the JSON of a list."""
    if array is None:
        return None
    names = as_names(_from_json(f"{path}: names of features", array) if _is_text(array) else array.tolist())
    if len(names) != modality.shape[1]:
        raise FileFormatError(f"{path}: {len(names)} names of features for {modality.shape[1]}; write it anew.")
    return names


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


def _modalities(path: Path, arrays: Mapping[str, Any], names: Sequence[str] | None) -> dict[str, Any]:
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
        if _is_text(array) and str(array).startswith("["):
            beside[key] = array = entries(_tuples(_from_json(f"{path}: array {key!r}", array)))
        if array.shape[:1] != (num_instances,):
            raise FileFormatError(
                f"{path}: array {key!r} has shape {array.shape}, but there are {num_instances} instances; "
                "keep one row per instance, or leave it out of the file."
            )
    return beside


def _tuples(listed: list[Any]) -> list[Any]:
    """Entries that were tuples before JSON made lists of them."""
    return [tuple(entry) if isinstance(entry, list) else entry for entry in listed]


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
