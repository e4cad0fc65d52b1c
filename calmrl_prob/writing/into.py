"""Imputations put into a MuData that is there, in memory or in a file, beside all that it has."""

from __future__ import annotations

import shutil
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from calmrl_prob._support.arguments import described
from calmrl_prob._support.extras import optional
from calmrl_prob._support.files import existing_file, said, write_atomically
from calmrl_prob.errors import ArgumentError, ArgumentTypeError, CalmrlError, DataError, FileFormatError, SchemaError
from calmrl_prob.imputation import Imputation
from calmrl_prob.writing.contents import QUANTITIES, contents_of
from calmrl_prob.writing.mudata import mark

_TASK = "writing into MuData"
_FACTS = "calmrl_prob"


def is_mudata(value: object) -> bool:
    """Whether it is a MuData in memory."""
    return hasattr(value, "obs_names") and isinstance(getattr(value, "mod", None), Mapping)


def write_into(what: object, target: Any, level: float, path: Path | None = None) -> None:  # noqa: ANN401
    """Put an imputation into a MuData, or into a copy of a file of one.

    Args:
        what: the imputation; instances are found by their ids, features by their names.
        target: a MuData, which is changed; or the path of an .h5mu file, which is not, unless ``path`` is the same.
        level: of the intervals.
        path: of the new file.

    Raises:
        ArgumentTypeError: it is no imputation.
        ArgumentError: there is something under one of the names already.
        DataError: instances have no ids, or the MuData does not have them, or has names of samples twice.
        SchemaError: an assay lacks some of the features, or has names of features twice.
        FileFormatError: the file is no MuData.
    """
    if not isinstance(what, Imputation):
        raise ArgumentTypeError(f"what: expected an imputation, got {described(what)}; data are written by themselves.")
    if path is None:
        _put(what, _InMemory(target), level)
        return
    h5py = optional("h5py", "omics", _TASK)
    source = existing_file(target)
    with write_atomically(path) as temporary:
        shutil.copyfile(source, temporary)
        try:
            root = h5py.File(temporary, "r+")
        except OSError as error:
            raise FileFormatError(f"into: {source} is no .h5mu, or damaged ({said(error)}); write it anew.") from error
        with root:
            _put(what, _InFile(root), level)


class _Target(ABC):
    """A MuData: names of its samples and features, and room for what is new."""

    samples: Any
    assays: Mapping[str, tuple[Any, Any]]

    @abstractmethod
    def has(self, assay: str | None, key: str) -> bool:
        """Whether there is a layer of an assay, or an entry of ``obsm`` of the whole, under a name."""

    @abstractmethod
    def room(self, assay: str | None, key: str, shape: tuple[int, int], dtype: np.dtype[Any]) -> Any:  # noqa: ANN401
        """Room for a matrix: NaN, or False, until it is written to."""

    @abstractmethod
    def finish(self, facts: Mapping[str, Any]) -> None:
        """Keep what was written, and what is known of the imputation."""


class _InMemory(_Target):
    def __init__(self, value: Any) -> None:  # noqa: ANN401 - a MuData
        self._value = value
        self._new: list[tuple[Any, str, NDArray[Any]]] = []
        self.samples = value.obs_names
        self.assays = {name: (assay.obs_names, assay.var_names) for name, assay in value.mod.items()}

    def _owner(self, assay: str | None) -> Any:  # noqa: ANN401
        return self._value.obsm if assay is None else self._value.mod[assay].layers

    def has(self, assay: str | None, key: str) -> bool:
        return key in self._owner(assay)

    def room(self, assay: str | None, key: str, shape: tuple[int, int], dtype: np.dtype[Any]) -> NDArray[Any]:
        self._new.append((self._owner(assay), key, np.full(shape, _nothing(dtype), dtype)))
        return self._new[-1][2]

    def finish(self, facts: Mapping[str, Any]) -> None:
        for owner, key, values in self._new:  # all of them, or none
            owner[key] = values
        self._value.uns[_FACTS] = dict(facts)


class _InFile(_Target):
    def __init__(self, root: Any) -> None:  # noqa: ANN401 - of h5py
        read = optional("anndata.io", "omics", _TASK).read_elem
        self._root = root
        try:
            self.samples = read(root["obs"]).index
            self.assays = {
                name: (read(group["obs"]).index, read(group["var"]).index) for name, group in root["mod"].items()
            }
        except Exception as error:  # anndata raises errors of its own, of several roots
            raise FileFormatError(f"into: no MuData, or a damaged one ({said(error)}); write it anew.") from error

    def _group(self, assay: str | None) -> Any:  # noqa: ANN401
        owner, key = (self._root, "obsm") if assay is None else (self._root["mod"][assay], "layers")
        if key not in owner:
            mark(owner.create_group(key), "dict", "0.1.0")
        return owner[key]

    def has(self, assay: str | None, key: str) -> bool:
        return key in self._group(assay)

    def room(self, assay: str | None, key: str, shape: tuple[int, int], dtype: np.dtype[Any]) -> Any:  # noqa: ANN401
        found = self._group(assay).create_dataset(key, shape, dtype, fillvalue=_nothing(dtype))
        mark(found, "array", "0.2.0")
        return found

    def finish(self, facts: Mapping[str, Any]) -> None:
        if "uns" not in self._root:
            mark(self._root.create_group("uns"), "dict", "0.1.0")
        if _FACTS in self._root["uns"]:
            del self._root["uns"][_FACTS]
        optional("anndata.io", "omics", _TASK).write_elem(self._root["uns"], _FACTS, dict(facts))


def _nothing(dtype: np.dtype[Any]) -> Any:  # noqa: ANN401
    return False if dtype.kind == "b" else np.nan


@dataclass(frozen=True)
class _Place:
    """The place of a modality: an assay, or None for ``obsm`` of the whole.

    Attributes:
        assay: the one, or None.
        names: of each quantity.
        rows: the place of each instance, (N,).
        columns: the place of each feature; None where they are the same.
        shape: of the matrices.
    """

    assay: str | None
    names: dict[str, str]
    rows: NDArray[np.int64]
    columns: NDArray[np.int64] | None
    shape: tuple[int, int]


def _put(imputation: Imputation, target: _Target, level: float) -> None:
    import pandas as pd

    ids = imputation.data.ids
    if ids is None:
        raise DataError("what: its instances have no ids, by which to find them; read the MuData with cal.read.")
    known = pd.Index(list(map(str, ids)), dtype=object)
    _require_distinct(target.samples, "the MuData", "samples", DataError, "obs_names_make_unique()")
    rows = _rows(target.samples, known)
    if (rows < 0).any():
        raise DataError(f"what: the MuData has no {str(ids[rows < 0][0])!r}; impute what was read of it.")
    contents = contents_of(imputation, level)
    places = {name: _place(target, name, contents.feature_names[name], d, known) for name, d in contents.dims.items()}
    latents = {
        name: _Place(None, {name: name}, rows, None, (len(target.samples), 0)) for name in ("latent", "latent_sd")
    }
    for place in (*places.values(), *latents.values()):
        taken = next((key for key in place.names.values() if target.has(place.assay, key)), None)
        if taken is not None:
            where = "obsm" if place.assay is None else f"the layers of {place.assay!r}"
            raise ArgumentError(f"into: {where} have {taken!r} already; remove it, or write into the MuData of before.")
    rooms: dict[tuple[str, str], Any] = {}
    for chunk in contents.chunks():
        here = slice(chunk.start, chunk.stop)
        for name, found in {**chunk.values, **{name: {name: values} for name, values in chunk.latents.items()}}.items():
            place = places.get(name) or latents[name]
            for quantity, values in found.items():
                if (name, quantity) not in rooms:
                    shape = (place.shape[0], place.shape[1] or values.shape[1])
                    rooms[name, quantity] = target.room(place.assay, place.names[quantity], shape, values.dtype)
                _write(rooms[name, quantity], place, here, values)
    target.finish(contents.facts)


def _place(target: _Target, name: str, features: Sequence[Any] | None, width: int, ids: Any) -> _Place:  # noqa: ANN401
    """The assay of this name, if it has all instances; else the whole, with as many columns as the assay has."""
    whole = {quantity: f"{name}.{quantity}" for quantity in QUANTITIES}
    if name not in target.assays:
        return _Place(None, whole, _rows(target.samples, ids), None, (len(target.samples), width))
    samples, variables = target.assays[name]
    _require_distinct(samples, f"assay {name!r}", "samples", DataError, "obs_names_make_unique()")
    columns = None
    if features is not None:
        _require_distinct(variables, f"assay {name!r}", "features", SchemaError, "var_names_make_unique()")
        columns = _rows(variables, list(map(str, features)))
        if (columns < 0).any():
            lacking = features[int((columns < 0).argmax())]
            raise SchemaError(f"into: assay {name!r} has no feature {lacking!r}; impute what was read of it.")
    elif width != len(variables):
        raise SchemaError(f"into: assay {name!r} has {len(variables)} features, the imputation {width} without names.")
    rows = _rows(samples, ids)
    if (rows >= 0).all():
        return _Place(name, {q: q for q in QUANTITIES}, rows, columns, (len(samples), len(variables)))
    return _Place(None, whole, _rows(target.samples, ids), columns, (len(target.samples), len(variables)))


def _require_distinct(there: Any, owner: str, kind: str, error: type[CalmrlError], remedy: str) -> None:  # noqa: ANN401
    names = there.astype(str)
    if not names.is_unique:
        twice = str(names[names.duplicated()][0])
        raise error(f"into: {owner} has {kind} of one name, {twice!r}; call its {remedy}, and read it again.")


def _rows(there: Any, wanted: Any) -> NDArray[np.int64]:  # noqa: ANN401 - of pandas
    """Places of names, -1 where there are none."""
    return np.asarray(there.astype(str).astype(object).get_indexer(wanted), dtype=np.int64)


def _write(room: Any, place: _Place, here: slice, values: NDArray[Any]) -> None:  # noqa: ANN401
    """Write rows to their places, those side by side at once."""
    rows = place.rows[here]
    order = np.argsort(rows, kind="stable")
    if place.columns is not None and not np.array_equal(place.columns, np.arange(room.shape[1])):
        wide = np.full((len(values), room.shape[1]), _nothing(values.dtype), values.dtype)
        wide[:, place.columns] = values
        values = wide
    for run in np.split(order, np.flatnonzero(np.diff(rows[order]) != 1) + 1):
        room[int(rows[run[0]]) : int(rows[run[-1]]) + 1] = values[run]
