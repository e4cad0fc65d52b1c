"""Zarr stores laid out for xarray: a group for each modality, with its quantities by instance and feature."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from calmrl_prob._support.extras import optional
from calmrl_prob._support.files import write_folder_atomically
from calmrl_prob.writing.contents import Contents, columns_of, names_of_all, require_apart, require_no_paths

#: The dimension of rows, and in its place the coordinate with their identifiers.
INSTANCE = "instance"


def write_zarr(contents: Contents, path: Path) -> None:
    """Write contents to a store, in the second format of zarr, which every version reads.

    Raises:
        ArgumentError: the number of rows is not known before, what stands at ``path`` is no store, or a name would
            stand twice or be a path.
    """
    zarr = optional("zarr", "zarr", "writing zarr stores")
    format_two = {"zarr_format": 2} if int(zarr.__version__.partition(".")[0]) >= 3 else {}
    num_rows, columns = contents.known_rows, []
    require_no_paths(contents.dims, ".zarr")
    with write_folder_atomically(path, ".zarr") as temporary:
        root = zarr.open_group(str(temporary), mode="w", **format_two)
        root.attrs.update(dict(contents.facts))
        groups = {name: root.create_group(name) for name in contents.dims}
        for name, names in contents.feature_names.items():
            if names is not None:
                _add(groups[name], f"{name}_feature", np.array(list(map(str, names))), [f"{name}_feature"])
        for chunk in contents.chunks():
            known = (INSTANCE if name == "ids" else name for name in chunk.columns)
            require_apart([*names_of_all(contents), *known], ".zarr")
            columns.append(chunk.columns)
            rows = slice(chunk.start, chunk.stop)
            for name, quantities in chunk.values.items():
                for quantity, values in quantities.items():
                    dims = [INSTANCE, f"{name}_feature"]
                    _room(groups[name], quantity, values, num_rows, dims)[rows] = values
            for name, values in chunk.latents.items():
                _room(root, name, values, num_rows, [INSTANCE, "latent_dim"])[rows] = values
        for name, column in columns_of(columns).items():
            dims = [INSTANCE, *(f"{name}_{axis}" for axis in range(1, column.ndim))]
            _add(root, INSTANCE if name == "ids" else name, _plain(column), dims)


def _room(group: Any, name: str, values: NDArray[Any], num_rows: int, dims: Sequence[str]) -> Any:  # noqa: ANN401
    """The array of a quantity, made for all rows when the first come, in chunks of as many."""
    if name in group:
        return group[name]
    return _array(group, name, (num_rows, values.shape[1]), values.dtype, (len(values), values.shape[1]), dims)


def _add(group: Any, name: str, values: NDArray[Any], dims: Sequence[str]) -> None:  # noqa: ANN401 - a zarr group
    _array(group, name, values.shape, values.dtype, values.shape, dims)[:] = values


def _array(
    group: Any,  # noqa: ANN401 - a zarr group
    name: str,
    shape: tuple[int, ...],
    dtype: np.dtype[Any],
    chunks: tuple[int, ...],
    dims: Sequence[str],
) -> Any:  # noqa: ANN401 - a zarr array
    make = group.create_array if hasattr(group, "create_array") else group.create_dataset
    # without a value for what was never written, which xarray would take for one that is missing
    array = make(name, shape=shape, dtype=dtype, chunks=tuple(max(1, size) for size in chunks), fill_value=None)
    array.attrs["_ARRAY_DIMENSIONS"] = list(dims)  # by which xarray knows them
    return array


def _plain(column: NDArray[Any]) -> NDArray[Any]:
    """A column without objects: texts, each other entry as JSON, "" where one is missing."""
    if column.dtype.kind != "O":
        return column
    entries = [e if isinstance(e, str) else "" if e is None else json.dumps(e, default=str) for e in column.reshape(-1)]
    return np.array(entries).reshape(column.shape)
