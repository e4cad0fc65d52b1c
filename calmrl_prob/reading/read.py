"""Entry point of reading: own data from files and objects of any of the formats, at once or as a stream."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal, TypedDict, Unpack, overload

from calmrl_prob._support.files import size_and_time
from calmrl_prob.data import MultimodalData
from calmrl_prob.data.stream import MultimodalStream
from calmrl_prob.errors import ArgumentError, DataError, SchemaError
from calmrl_prob.reading.formats import open_sources
from calmrl_prob.reading.join import Joined, joined, own_ids
from calmrl_prob.reading.request import Request, checked_ids, listed
from calmrl_prob.reading.source import LABELS

#: A column or file of identifiers, or that of each of several origins.
Ids = str | os.PathLike[str] | Mapping[str, str | os.PathLike[str]]
Missing = Literal["auto", "modalities", "features"]


class _Settings(TypedDict, total=False):
    """Options of :func:`read` that do not tell what it returns."""

    modalities: Mapping[str, Any] | Sequence[str] | None
    ids: Ids | None
    labels: str | None
    covariates: Sequence[str] | None
    sep: str | None
    join: Literal["outer", "inner"]
    missing: Missing
    empty: Literal["refuse", "drop"]


@overload
def read(origin: object, *, stream: Literal[False] = False, **settings: Unpack[_Settings]) -> MultimodalData: ...
@overload
def read(origin: object, *, stream: Literal[True], **settings: Unpack[_Settings]) -> MultimodalStream: ...
def read(
    origin: object,
    *,
    modalities: Mapping[str, Any] | Sequence[str] | None = None,
    ids: Ids | None = None,
    labels: str | None = None,
    covariates: Sequence[str] | None = None,
    sep: str | None = None,
    join: Literal["outer", "inner"] = "outer",
    missing: Missing = "auto",
    empty: Literal["refuse", "drop"] = "refuse",
    stream: bool = False,
) -> MultimodalData | MultimodalStream:
    """Multimodal data from files or objects of any of these kinds, with ids, names of features, and types kept.

    - parquet, a file, folder or glob of files of one schema, or a URL of these for a file system of fsspec
      (s3://bucket/rows); Arrow lists are modalities (arrow)
    - .npz, as :func:`calmrl_prob.load_npz` lays it out; .npy, a file or folder, mapped into memory, ids in a file
    - .csv, .tsv; frames of pandas and polars
    - .h5mu, .h5ad, MuData, AnnData: a modality for each assay, its X (omics)
    - .zarr stores of anndata, mudata or xarray; an xarray Dataset or DataTree: variables with two dimensions (zarr)
    - a dict of modalities, each any of these, arrays and MultimodalData included

    In parentheses the extra that installs what is needed, as in ``pip install 'calmrl-prob[arrow]'``. Columns of
    numbers in a table are shared out to modalities by a mapping, by levels of their names (a MultiIndex), or by a
    prefix; without any of these they are one modality, called by the file or the key.

    Rows of several origins are joined by their ids; instances that one lacks are missing modalities there. A row that
    is NaN or null throughout is a missing modality, another one lacks single features.

    Args:
        origin: a path or object.
        modalities: which, in this order; or a mapping of names to where each is: a list of columns, a column of lists,
            or a function of names of columns; an array; of AnnData "X", "layers/counts" or "obsm/X_pca"; of MuData the
            same behind the name of the assay, "rna/layers/counts". All by default.
        ids: the column with identifiers; by default the index of frames, the names of samples, or a column "ids" or
            "id". Of a dict of origins also a mapping, {"image": "photo_id", "text": "doc"}, of which each has to be
            there. For .npy a file with them: .npy, or text with one a line ("ids.npy" or "ids.txt" by default).
        labels: the column with classes or targets; "labels" or "label" by default.
        covariates: columns to keep besides; by default all that are nothing else. "partition" names the parts.
        sep: what stands between modality and feature in names of columns: ":" for "rna:GATA1".
        join: "outer" for the instances that any origin has, "inner" for those that all have.
        missing: "auto" takes single missing features where there are some; else as in
            :class:`~calmrl_prob.MultimodalData`, as ``empty``.
        empty: "refuse" or "drop" instances that have no modality at all.
        stream: give a :class:`~calmrl_prob.data.stream.MultimodalStream`, of which nothing is read but the schema (and
            the ids, where several origins are joined by them).

    Raises:
        FileNotFoundError: there is nothing at a path.
        FileFormatError: a file is damaged or empty; names the file and, of parquet, the row group.
        SchemaError: something asked for is not there, or files of a folder have different columns.
        DataError: the data break a rule: ids twice, say.
        ArgumentError, ArgumentTypeError: an option, or what is to be read, is of no use.
        MissingDependencyError: a package is not installed; says what to install.

    Warns:
        IdentifiabilityWarning: none of the ids of an origin is in another.

    Example:
        >>> import pandas as pd
        >>> rna = pd.DataFrame({"GATA1": [1.0, 2.0], "TAL1": [0.0, 1.0]}, index=["cell-1", "cell-2"])
        >>> protein = pd.DataFrame({"CD3": [5.0, None]}, index=["cell-2", "cell-3"])
        >>> read({"rna": rna, "protein": protein}, empty="drop")
        MultimodalData: 2 instances, 2 modalities, 2 missing patterns, float64
          rna      2 features  100.0% observed
          protein  1 features   50.0% observed
          ids: cell-1 .. cell-2
    """
    if missing not in ("auto", "modalities", "features"):
        raise ArgumentError(f"missing: expected 'auto', 'modalities' or 'features', got {missing!r}.")
    if empty not in ("refuse", "drop"):
        raise ArgumentError(f"empty: expected 'refuse' or 'drop', got {empty!r}.")
    request = Request(modalities, checked_ids(ids), labels, covariates, sep)
    found = replace(joined(open_sources(origin, request), join), order=tuple(modalities or ()))
    _require_distinct(found)
    _require_asked(found, request)
    if not stream:
        return found.chunk(0, found.num_rows, missing, empty)
    files = sorted({file for source in found.sources for file in source.files})
    plan = _InSources(
        found, "features" if missing == "auto" else missing, empty, [(f, *size_and_time(f)) for f in files]
    )
    state = [(file.name, *marks) for file, *marks in plan.files]
    num_rows = found.num_rows if empty == "refuse" else None
    return MultimodalStream(found.dims, plan, dtype=found.dtype, num_rows=num_rows, state=state)


def _require_distinct(found: Joined) -> None:
    """Refuse a modality that two of the origins have, and origins without any."""
    names = [name for source in found.sources for name in source.modalities]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise SchemaError(f"modalities: two of the origins have {twice!r}; give them as a dict with names of its own.")
    if not names:
        raise SchemaError("modalities: none is left; name one or more.")


def _require_asked(found: Joined, request: Request) -> None:
    """Refuse ids, labels and covariates that none of several origins has: of one alone it is refused there."""
    if isinstance(request.ids, str) and not any(source.has_ids for source in found.sources):
        raise SchemaError(
            f"ids: none of the origins has {request.ids!r}; name the column of each, as {own_ids(found.sources[0])}."
        )
    there = {name for source in found.sources for name in source.columns}
    wanted = {"labels": [LABELS] if request.labels else [], "covariates": list(request.covariates or ())}
    for argument, names in wanted.items():
        lacking = [request.labels if name == LABELS else name for name in names if name not in there]
        if lacking:
            raise SchemaError(f"{argument}: none of the origins has {lacking[0]!r}; they have {listed(sorted(there))}.")


@dataclass(frozen=True, eq=False)
class _InSources:
    """Plan of chunks of joined sources: along the pieces of one source, each read as a whole where it is small."""

    found: Joined
    missing: str
    empty: str
    files: Sequence[tuple[Any, int, object]]

    def __call__(self, size: int) -> Iterator[tuple[str, partial[MultimodalData]]]:
        for file, *marks in self.files:
            if [*size_and_time(file)] != marks:
                raise DataError(f"{file}: it was written to since it was opened; read it anew.")
        for name, start, stop in self._spans(size):
            yield name, partial(self.found.chunk, start, stop, self.missing, self.empty)

    def _spans(self, size: int) -> Iterator[tuple[str, int, int]]:
        """Tokens and rows: a piece after another, several small ones together, large ones in parts."""
        pieces = self.found.sources[0].pieces if self.found.ids is None else ()
        ends = [("", self.found.num_rows)]
        if len(pieces) > 1:
            ends, end = [], 0
            for piece in pieces:
                end += piece.num_rows
                ends.append((f"{piece.name}, ", end))
        start, first, begun = 0, "", 0
        for name, end in ends:
            before = begun
            if before > start and end - start > size:
                yield f"{first}rows {start} to {before}", start, before
                start = before
            if start == before:
                first = name
            while end - start > size:
                yield f"{name}rows {start} to {start + size}", start, start + size
                start, first = start + size, name
            begun = end
        if begun > start:
            yield f"{first}rows {start} to {begun}", start, begun
