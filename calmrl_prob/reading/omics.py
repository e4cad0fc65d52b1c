"""AnnData and MuData, in memory and in .h5ad, .h5mu and zarr files: a modality for each assay, joined by the samples.

Files are read piece by piece in the layout that anndata documents: frames by anndata, matrices by slices of rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from calmrl_prob._support.extras import optional
from calmrl_prob._support.files import existing_file, said
from calmrl_prob.data.entries import entries
from calmrl_prob.data.features import Names, as_names
from calmrl_prob.errors import DataError, FileFormatError, SchemaError
from calmrl_prob.reading.request import QUANTITIES, Request, listed
from calmrl_prob.reading.source import ArraySource, Source

# An AnnData or a group of a file, a pandas frame, an array or matrix: packages without annotations.
Annotated = Any
_TASK = "reading AnnData and MuData"
_SPARSE = ("csr_matrix", "csc_matrix")


def is_anndata(value: object) -> bool:
    """Whether it is an AnnData."""
    return hasattr(value, "obs_names") and hasattr(value, "X") and hasattr(value, "layers")


def is_mudata(value: object) -> bool:
    """Whether it is a MuData."""
    return hasattr(value, "obs_names") and isinstance(getattr(value, "mod", None), Mapping)


def open_anndata(value: Annotated, request: Request) -> list[Source]:
    """An AnnData in memory as a source."""
    return _anndata(_Held(value, "the AnnData"), request)


def open_mudata(value: Annotated, request: Request) -> list[Source]:
    """A MuData in memory as one source for each assay, and one for what is known of the samples."""
    assays = {name: _Held(assay, f"assay {name!r}") for name, assay in value.mod.items()}
    return _mudata(assays, _Held(value, "the MuData"), request)


def open_h5(files: Sequence[Path], request: Request) -> list[Source]:
    """An .h5ad or .h5mu file."""
    (path,) = files
    return open_store(existing_file(path), request)


def open_store(path: Path, request: Request) -> list[Source]:
    """A file or zarr store as anndata and mudata write them.

    Raises:
        FileFormatError: it is none, or damaged.
    """
    with opened(path, "") as root:
        kind = str(root.attrs.get("encoding-type", ""))
        if kind == "anndata" or (not kind and "X" in root and "obs" in root):
            return _anndata(_Stored(path, ""), request)
        if kind != "MuData" and "mod" not in root:
            raise FileFormatError(f"{path}: it holds {listed(root)}, neither AnnData nor MuData; write it with mudata.")
        order = root["mod"].attrs.get("mod-order", list(root["mod"]))
        assays = {str(name): _Stored(path, f"mod/{name}") for name in order}
        return _mudata(assays, _Stored(path, ""), request)


@contextmanager
def opened(path: Path, key: str) -> Iterator[Annotated]:
    """A group or array of an HDF5 file or zarr store, while it is read.

    Raises:
        FileFormatError: it cannot be read; names it.
    """
    try:
        if path.is_dir():
            root = optional("zarr", "zarr", "reading zarr stores").open_group(str(path), mode="r")
            yield root[key] if key else root
        else:
            with optional("h5py", "omics", _TASK).File(path, "r") as root:
                yield root[key] if key else root
    except (OSError, KeyError, ValueError, RuntimeError) as error:
        if isinstance(error, FileFormatError | SchemaError | DataError):
            raise
        where = f"{path}: {key}" if key else f"{path}"
        raise FileFormatError(
            f"{where} cannot be read ({said(error)}); copy the file again, or write it anew."
        ) from error


def _frame(path: Path, group: Annotated, key: str) -> Any:  # noqa: ANN401 - a pandas frame
    if key not in group:
        raise FileFormatError(f"{path}: it has no {key!r}, only {listed(group)}; write it anew with anndata.")
    return optional("anndata.io", "omics", _TASK).read_elem(group[key])


@dataclass(frozen=True)
class StoredMatrix:
    """A matrix in a file, dense or sparse, whose rows are read when a slice of them is taken.

    Attributes:
        path: of the file or store.
        key: of the matrix in it.
        shape, dtype: of the matrix.
    """

    path: Path
    key: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    def __getitem__(self, rows: slice) -> NDArray[Any]:
        """Some rows, dense."""
        with opened(self.path, self.key) as found:
            return _sparse_rows(found, rows, self.shape) if _is_sparse(found) else np.asarray(found[rows])


@dataclass(frozen=True, eq=False)
class _HeldMatrix:
    """A matrix in memory, or a backed one; sparse ones become dense by slices of rows."""

    matrix: Annotated

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.matrix.shape)

    @property
    def dtype(self) -> np.dtype[Any]:
        found: np.dtype[Any] = np.dtype(self.matrix.dtype)
        return found

    def __getitem__(self, rows: slice) -> NDArray[Any]:
        return _dense(self.matrix[rows])


def _is_sparse(found: Annotated) -> bool:
    return str(found.attrs.get("encoding-type", "")) in _SPARSE


def _sparse_rows(group: Annotated, rows: slice, shape: tuple[int, ...]) -> NDArray[Any]:
    """Rows of a sparse matrix, dense: those of a matrix by rows alone are read, one by columns is read as a whole."""
    if str(group.attrs["encoding-type"]) != "csr_matrix":
        return _dense(optional("anndata.io", "omics", _TASK).read_elem(group).tocsr()[rows])
    from scipy.sparse import csr_matrix

    start, stop, _ = rows.indices(shape[0])
    ends = group["indptr"][start : stop + 1]
    stored = slice(int(ends[0]), int(ends[-1]))
    parts = group["data"][stored], group["indices"][stored], ends - ends[0]
    return _dense(csr_matrix(parts, shape=(stop - start, shape[1])))


def _dense(found: Annotated) -> NDArray[Any]:
    return np.asarray(found.toarray() if hasattr(found, "toarray") else found)


@dataclass(frozen=True, eq=False)
class _Held:
    """An AnnData in memory."""

    value: Annotated
    where: str
    files: tuple[Path, ...] = ()

    @property
    def obs(self) -> Any:  # noqa: ANN401 - a pandas frame
        return self.value.obs

    def matrix(self, place: str) -> tuple[Any, Names | None]:
        """A matrix by its place, X, layers/<key> or obsm/<key>, and the names of its columns."""
        kind, _, key = place.partition("/")
        found = self.value.X if place == "X" else getattr(self.value, kind, {}).get(key)
        if found is None:
            raise SchemaError(_no_place(self.where, place, [*self._places("layers"), *self._places("obsm")]))
        if hasattr(found, "columns"):
            return _HeldMatrix(found.to_numpy()), as_names(found.columns)
        return _HeldMatrix(found), None if kind == "obsm" else as_names(self.value.var_names)

    def has(self, place: str) -> bool:
        """Whether there is a matrix at a place in layers or obsm."""
        kind, _, key = place.partition("/")
        return key in getattr(self.value, kind, {})

    def _places(self, kind: str) -> list[str]:
        return [f"{kind}/{key}" for key in getattr(self.value, kind)]


@dataclass(frozen=True)
class _Stored:
    """An AnnData in a file, in a group of it."""

    path: Path
    group: str

    @property
    def where(self) -> str:
        return f"{self.path}: {self.group}" if self.group else f"{self.path}"

    @property
    def files(self) -> tuple[Path, ...]:
        return (self.path,)

    @property
    def obs(self) -> Any:  # noqa: ANN401 - a pandas frame
        with opened(self.path, self.group) as group:
            return _frame(self.path, group, "obs")

    def has(self, place: str) -> bool:
        """Whether there is a matrix at a place in layers or obsm."""
        with opened(self.path, self.group) as group:
            return place in group

    def matrix(self, place: str) -> tuple[Any, Names | None]:
        """A matrix by its place, as of one in memory."""
        kind = place.partition("/")[0]
        with opened(self.path, self.group) as group:
            if place not in group or kind not in ("X", "layers", "obsm"):
                there = [f"{kind}/{key}" for kind in ("layers", "obsm") for key in group.get(kind, ())]
                raise SchemaError(_no_place(self.where, place, there))
            found = group[place]
            if str(found.attrs.get("encoding-type", "")) == "dataframe":
                frame = _frame(self.path, group, place)
                return _HeldMatrix(frame.to_numpy()), as_names(frame.columns)
            names = None if kind == "obsm" else as_names(_frame(self.path, group, "var").index)
            shape, kind = (found.attrs["shape"], found["data"]) if _is_sparse(found) else (found.shape, found)
            key = f"{self.group}/{place}" if self.group else place
            return StoredMatrix(self.path, key, tuple(map(int, shape)), np.dtype(kind.dtype)), names


def _no_place(where: str, place: str, there: list[str]) -> str:
    return f"modalities: {where} has no {place!r}; it has {listed(['X', *there])}."


def _anndata(value: _Held | _Stored, request: Request) -> list[Source]:
    """One AnnData as a source: X, or what the request maps its modalities to."""
    wanted = request.modalities
    places = {str(name): str(place) for name, place in wanted.items()} if isinstance(wanted, Mapping) else None
    if places is None:
        places = dict.fromkeys([request.name] if wanted is None else wanted, "X")
    found = {name: value.matrix(place) for name, place in places.items()}
    obs = value.obs
    arrays = {name: matrix for name, (matrix, _) in found.items()}
    features = {name: names for name, (_, names) in found.items()}
    columns = _columns(obs, request, value.where)
    return [ArraySource(value.where, arrays, features, _samples(obs, request, value.where), columns, value.files)]


def _mudata(assays: Mapping[str, _Held | _Stored], whole: _Held | _Stored, request: Request) -> list[Source]:
    """A source for each assay asked for, and before them one of the samples and all that is known of them."""
    wanted, where = request.modalities, whole.where
    places = dict(wanted) if isinstance(wanted, Mapping) else {name: name for name in (wanted or assays)}
    sources: list[Source] = []
    for name, place in places.items():
        value, inner = _assay(str(place), assays, whole)
        matrix, features = value.matrix(inner or "X")
        ids = _samples(value.obs, request, value.where)
        sources.append(ArraySource(value.where, {name: matrix}, {name: features}, ids, {}, value.files))
    known = _of_samples(whole.obs, {name: value.obs for name, value in assays.items()})
    samples = ArraySource(where, {}, {}, _samples(known, request, where), _columns(known, request, where))
    return [samples, *sources]


def _assay(place: str, assays: Mapping[str, _Held | _Stored], whole: _Held | _Stored) -> tuple[_Held | _Stored, str]:
    """The assay that a place is in, or the whole, and the place within; an imputation's quantities by their names."""
    assay, _, inner = place.partition("/")
    if assay in assays:
        return assays[assay], inner
    imputed, _, quantity = place.rpartition(".")
    if imputed in assays and quantity in ("completed", *QUANTITIES) and assays[imputed].has(f"layers/{quantity}"):
        return assays[imputed], f"layers/{quantity}"
    if whole.has(f"obsm/{place.removeprefix('obsm/')}"):
        return whole, f"obsm/{place.removeprefix('obsm/')}"
    raise SchemaError(f"modalities: {whole.where} has no assay {assay!r}; it has {listed(assays)}.")


def _of_samples(obs: Any, by_assay: Mapping[str, Any]) -> Any:  # noqa: ANN401 - pandas frames
    """All that is known of the samples: what the assays say the same of shared ones under its name, else by assay."""
    import pandas as pd

    copies = {f"{assay}:{name}" for assay, frame in by_assay.items() for name in frame}  # that mudata pulls by itself
    columns: dict[str, Any] = {str(name): obs[name].astype(object) for name in obs if str(name) not in copies}
    names = dict.fromkeys(str(name) for frame in by_assay.values() for name in frame)
    for name in names:
        if name in columns:
            continue
        held = {assay: frame[name].astype(object) for assay, frame in by_assay.items() if name in frame}
        joined = pd.Series(None, index=obs.index, dtype=object)
        agree = True
        for column in held.values():
            before = joined[column.index]
            both = before.notna() & column.notna()
            agree = agree and bool((before[both] == column[both]).all())
            joined[column.index] = before.where(before.notna(), column)
        if agree:
            columns[name] = joined
        else:
            columns |= {f"{assay}:{name}": column.reindex(obs.index) for assay, column in held.items()}
    return pd.DataFrame({name: column.infer_objects() for name, column in columns.items()}, index=obs.index)


def _samples(obs: Any, request: Request, where: str) -> NDArray[Any]:  # noqa: ANN401 - a pandas frame
    """Names of the samples: the index, or the column asked for."""
    by_index = request.ids == obs.index.name and request.ids not in obs
    column = None if by_index else request.id_column(obs, where)
    return entries((obs.index if column is None else obs[column]).to_numpy())


def _columns(obs: Any, request: Request, where: str) -> dict[str, NDArray[Any]]:  # noqa: ANN401 - a pandas frame
    """Labels, parts and covariates among what is known of the samples."""
    there = {str(name): obs[name] for name in obs}
    kept = {
        role: column.astype(object) if str(column.dtype) == "category" else column
        for role, column in request.columns(there, where).items()
    }
    return {role: entries(column.to_numpy()) for role, column in kept.items()}
