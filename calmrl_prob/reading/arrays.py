"""Arrays by themselves, .npy files mapped into memory, .npz archives, and MultimodalData as sources."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from calmrl_prob._support.files import existing_file
from calmrl_prob._support.npz import Mapped, map_npy, map_npz
from calmrl_prob.data import MultimodalData
from calmrl_prob.data.intake import as_matrix
from calmrl_prob.errors import ArgumentError, FileFormatError
from calmrl_prob.io import NpzContents, npz_contents
from calmrl_prob.reading.request import LATENTS, QUANTITIES, USUAL, Request, called
from calmrl_prob.reading.source import LABELS, PARTITION, ArraySource, Lazy, Source


def is_array(value: object) -> bool:
    """Whether it is an array of numbers, and nothing more."""
    return isinstance(value, np.ndarray | Tensor)


def open_array(array: Any, request: Request) -> list[Source]:  # noqa: ANN401 - an array
    """An array as a modality."""
    values = as_matrix(request.name, array)
    request.id_column((), "the array")
    return [ArraySource("the array", {request.name: values.numpy(force=True)})]


def is_data(value: object) -> bool:
    """Whether it is MultimodalData."""
    return isinstance(value, MultimodalData)


def open_data(data: MultimodalData, request: Request) -> list[Source]:
    """The modalities of data, with all that they have besides."""
    chosen = request.chosen(data.names, "the data")
    arrays = {name: data[there].numpy(force=True) for name, there in chosen.items()}
    beside = {LABELS: data.labels, PARTITION: data.partition, **data.covariates}
    columns = {name: column for name, column in beside.items() if column is not None}
    asked = request.id_column((*data.covariates, *(("ids",) if data.ids is not None else ())), "the data")
    ids = data.ids if asked is None or asked not in data.covariates else columns.pop(asked)
    features = {name: data.feature_names[there] for name, there in chosen.items()}
    return [ArraySource("the data", arrays, features, ids, columns)]


def open_npz(files: Sequence[Path], request: Request) -> list[Source]:
    """An archive laid out as ``load_npz`` reads it; matrices that lie in it unpacked are mapped."""
    (path,) = files
    path = existing_file(path)
    prefixes = ("x_", *LATENTS, *(f"{quantity}_" for quantity in QUANTITIES))
    mapped = map_npz(path, lambda name: name.startswith(prefixes))
    held = npz_contents(path, None, "ids", {name: array for name, array in mapped.items() if array.ndim == 2})
    besides, covariates = _imputed(held)
    chosen = request.chosen(held.modalities, str(path), besides)
    usual = {"ids": held.ids} if held.ids is not None else {}
    asked = request.id_column((*usual, *covariates), str(path))
    beside = {"labels": held.labels, "partition": held.partition, **usual, **covariates}
    ids = beside.pop(asked or "ids", None)
    columns = request.columns({name: column for name, column in beside.items() if column is not None}, str(path))
    known: dict[str, Lazy] = {**held.modalities, **besides}
    arrays = {name: known[there] for name, there in chosen.items()}
    features = {name: held.features.get(there.rpartition(".")[0] or there) for name, there in chosen.items()}
    return [ArraySource(str(path), arrays, features, ids, columns, (path,))]


def _imputed(held: NpzContents) -> tuple[dict[str, Any], dict[str, Any]]:
    """The arrays that an archive has of an imputation besides completed values, and all other columns."""
    names = {f"{name}.{q}": f"{q}_{name}" for name in held.modalities for q in QUANTITIES}
    whole = [name for name in held.modalities if all(names[key] in held.covariates for key in called(name))]
    found = {key: names[key] for name in whole for key in called(name)} | {key: key for key in LATENTS if whole}
    besides = {key: held.covariates[place] for key, place in found.items() if place in held.covariates}
    return besides, {key: column for key, column in held.covariates.items() if key not in found.values()}


def open_npy(files: Sequence[Path], request: Request) -> list[Source]:
    """Files of one array each, mapped: matrices are modalities, all else a column; named after their files.

    Identifiers are the file ids.npy or ids.txt (one a line) beside them, or the one that ``ids`` names.

    Raises:
        FileFormatError: a file is no array, or cut short.
        ArgumentError: the file of identifiers is not there.
    """
    found = {path.stem: map_npy(existing_file(path)) for path in files}
    matrices = {name: array for name, array in found.items() if array.ndim == 2 and array.dtype.kind in "fiub"}
    columns = {name: array for name, array in found.items() if name not in matrices}
    if len(files) == 1 and matrices:
        matrices = {request.name: next(iter(matrices.values()))}
    ids = _ids_beside(files[0].parent, columns, request)
    if not matrices:
        raise FileFormatError(
            f"{files[0]}: no matrix of numbers (N, D); it has shape {next(iter(found.values())).shape}."
        )
    known: dict[str, Lazy] = dict(request.columns(columns, str(files[0].parent)))
    chosen = request.chosen(matrices, str(files[0].parent))
    arrays: dict[str, Lazy] = {name: matrices[there] for name, there in chosen.items()}
    where = str(files[0]) if len(files) == 1 else str(files[0].parent)
    return [ArraySource(where, arrays, ids=ids, columns=known, files=tuple(files))]


def _ids_beside(folder: Path, columns: dict[str, Mapped], request: Request) -> Lazy | None:
    """Identifiers of the rows: given, or in a file that is named, or that has the usual name."""
    asked = request.ids if isinstance(request.ids, str) else None  # of one origin it is no mapping
    if asked is None or asked in columns:
        name = next((name for name in ((asked,) if asked else USUAL["ids"]) if name in columns), None)
        if name is not None:
            return columns.pop(name)
    places = [folder / "ids.txt"] if asked is None else [Path(asked), folder / asked]
    path = next((path for path in places if path.is_file()), None)
    if path is None:
        if asked is None:
            return None
        raise ArgumentError(f"ids: there is no file {asked}, nor {folder / str(asked)}; name an .npy or .txt file.")
    columns.pop(path.stem, None)
    return map_npy(path) if path.suffix.lower() == ".npy" else _lines(path)


def _lines(path: Path) -> NDArray[Any]:
    return np.array(path.read_text(encoding="utf-8").splitlines())
