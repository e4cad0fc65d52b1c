"""Datasets and trees of xarray, and zarr stores: variables with two dimensions are modalities."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from calmrl_prob._support.extras import optional
from calmrl_prob._support.files import said
from calmrl_prob.data.entries import entries
from calmrl_prob.data.features import Names, as_names
from calmrl_prob.errors import FileFormatError, SchemaError
from calmrl_prob.reading.omics import open_store
from calmrl_prob.reading.request import LATENTS, QUANTITIES, USUAL, Request, called
from calmrl_prob.reading.source import ArraySource, Source


def is_labelled(value: object) -> bool:
    """Whether it is a Dataset, DataTree or DataArray of xarray."""
    xarray: Any = sys.modules.get("xarray")
    return xarray is not None and isinstance(value, xarray.Dataset | xarray.DataTree | xarray.DataArray)


@dataclass(frozen=True, eq=False)
class _Variable:
    """A variable whose rows are computed or read when a slice of them is taken."""

    variable: Any

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.variable.shape)

    @property
    def dtype(self) -> np.dtype[Any]:
        found: np.dtype[Any] = np.dtype(self.variable.dtype)
        return found

    def __getitem__(self, rows: slice) -> NDArray[Any]:
        found = self.variable.isel({self.variable.dims[0]: rows}).to_numpy()
        return found if found.dtype.kind in "fiubM" else entries(found)


def open_labelled(
    value: Any,  # noqa: ANN401 - an xarray.Dataset, DataTree or DataArray
    request: Request,
    where: str = "the dataset",
    files: tuple[Path, ...] = (),
) -> list[Source]:
    """A source for each dimension that rows lie along; a tree's nodes with one modality are called by their names.

    Raises:
        SchemaError: a modality asked for is not there, or there is none.
    """
    nodes = [_Node(name, variables) for name, variables in _nodes(value, request.name)]
    besides = [name for node in nodes for name in node.besides]
    for node in nodes:
        if besides:  # of an imputation: the latents lie above all modalities
            node.set_aside(LATENTS)
    besides = [name for node in nodes for name in node.besides]
    request.id_column((key for node in nodes for key, v in node.variables.items() if v.ndim == 1), where)
    chosen = request.chosen([name for node in nodes for name in node.matrices], where, besides)
    sources = [source for node in nodes for source in node.sources(chosen, request, where, files)]
    if not sources:
        raise SchemaError(f"{where}: no variable of numbers with two dimensions; give it one for each modality.")
    return sources


def _nodes(value: Any, name: str) -> list[tuple[str | None, dict[str, Any]]]:  # noqa: ANN401 - of xarray
    """The nodes of a tree, with the variables of those above them: all that is known of their rows; or the dataset."""
    if not hasattr(value, "subtree"):
        dataset = value.to_dataset(name=value.name or name) if hasattr(value, "to_dataset") else value
        return [(None, {str(key): dataset[key] for key in dataset.variables})]
    found = []
    for node in value.subtree:
        line = [*reversed(node.parents), node]
        variables = {str(key): part.dataset[key] for part in line for key in part.dataset.variables}
        if node.data_vars:
            found.append((None if node is value else node.name, variables))
    return found


class _Node:
    """The variables of one dataset: matrices of numbers are modalities, what else lies along their rows columns."""

    def __init__(self, name: str | None, variables: dict[str, Any]) -> None:
        self.variables = variables
        names = [key for key, v in variables.items() if v.ndim == 2 and v.dtype.kind in "fiu" and key not in v.dims]
        self.besides: dict[str, str] = {}
        if name is None:
            self.matrices = {key: key for key in names}
        elif {"completed", *QUANTITIES} <= variables.keys():
            self.matrices = {name: "completed"}
            self.besides = dict(zip(called(name), QUANTITIES, strict=True))
        else:
            self.matrices = {name if len(names) == 1 else f"{name}:{key}": key for key in names}

    def set_aside(self, names: Sequence[str]) -> None:
        """Leave some for those who ask for them by name."""
        self.besides |= {name: self.matrices.pop(name) for name in names if name in self.matrices}

    def sources(
        self, chosen: dict[str, str], request: Request, where: str, files: tuple[Path, ...]
    ) -> Iterator[Source]:
        """A source for each first dimension of the modalities chosen."""
        known = self.matrices | self.besides
        kept = {name: self.variables[known[key]] for name, key in chosen.items() if key in known}
        aside = {*known.values(), *(LATENTS if self.besides else ())}
        for dim in dict.fromkeys(variable.dims[0] for variable in kept.values()):
            arrays = {name: _Variable(variable) for name, variable in kept.items() if variable.dims[0] == dim}
            features: dict[str, Names | None] = {name: self._labels(kept[name].dims[1]) for name in arrays}
            index = next((v.indexes[dim] for v in kept.values() if dim in v.indexes), None)
            ids = None if index is None else entries(index.to_numpy())
            beside = {
                name: _Variable(variable)
                for name, variable in self.variables.items()
                if variable.dims[:1] == (dim,) and name != dim and name not in aside
            }
            named = next((n for n in ((request.ids,) if request.ids else USUAL["ids"]) if n in beside), None)
            if named is not None and (index is None or request.ids):
                ids = beside.pop(named)[slice(None)]
            yield ArraySource(where, arrays, features, ids, request.columns(beside, where), files)

    def _labels(self, dim: str) -> Names | None:
        coordinate = self.variables.get(dim)
        return None if coordinate is None else as_names(coordinate.to_numpy().tolist())


def open_zarr(files: Sequence[Path], request: Request) -> list[Source]:
    """A zarr store, of AnnData or MuData, or of xarray.

    Raises:
        FileFormatError: it is none of these, or damaged.
    """
    (path,) = files
    zarr = optional("zarr", "zarr", "reading zarr stores")
    try:
        attributes = dict(zarr.open_group(str(path), mode="r").attrs)
    except Exception as error:  # zarr raises errors of its own, of several roots
        raise FileFormatError(f"{path}: no zarr store, or a damaged one ({said(error)}); write it anew.") from error
    if "encoding-type" in attributes:
        return open_store(path, request)
    import xarray as xr

    try:
        tree = xr.open_datatree(path, engine="zarr", chunks=None, consolidated=False)
    except Exception as error:
        raise FileFormatError(f"{path}: it cannot be read ({said(error)}); write it anew with xarray.") from error
    return open_labelled(tree if tree.children else tree.to_dataset(), request, str(path), (path,))
