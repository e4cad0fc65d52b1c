"""Candidates as they were measured, chunk by chunk: in memory, or in files beside the index that they are for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from calmrl_prob._support.archives import read_archive, write_archive
from calmrl_prob._support.files import place_to_write
from calmrl_prob.data import MultimodalData
from calmrl_prob.data.chunk_files import ChunkFolder, PassOptions
from calmrl_prob.data.entries import check_distinct
from calmrl_prob.data.stream import Load, MultimodalStream
from calmrl_prob.errors import ArgumentError, DataError, FileFormatError, NumericalError
from calmrl_prob.evaluation.retrieval.instance_sets import require_known
from calmrl_prob.file_contents import Shapes
from calmrl_prob.index.archive import as_tensors, packed_ids, packed_shelves, unpacked_ids, unpacked_shelves
from calmrl_prob.index.measured import Floats, Instrument
from calmrl_prob.index.shelves import Shelf
from calmrl_prob.inference.fingerprint import fingerprint
from calmrl_prob.linear_gaussian.options import Options

_KIND = "RetrievalIndexPart"
#: Numbers whose squares float32 holds.
_LARGEST = 1e18


@dataclass(frozen=True, kw_only=True)
class StreamOptions(Options):
    """Options of :meth:`RetrievalIndex.build` for a stream, which it takes by keyword.

    Attributes:
        out: the file that the index is saved to. Until it is, the folder ``out + ".parts"`` holds what was measured, a
            file a chunk, so that a build that was killed goes on where it stood, and ends in the same bits. None for an
            index in memory, which is lost with the process.
        chunk_rows: rows of a chunk, at most; by default as many as make about 8 million numbers.
        client: a ``dask.distributed.Client``, whose workers measure the chunks into that folder; they have to see it.
        progress: show a bar on standard error while files are made; None for where it is a terminal.

    Raises:
        ArgumentError: one is out of range, or a client without ``out``.
    """

    out: Any = None
    chunk_rows: int | None = None
    client: Any = None
    progress: bool | None = None

    def __post_init__(self) -> None:
        """Refuse what is out of range."""
        if self.client is not None and self.out is None:
            raise ArgumentError("client: its workers write files; pass out=, the file of the index, too.")
        self.of_pass()

    def of_pass(self) -> PassOptions:
        """The options of the pass."""
        settings = {"chunk_rows": self.chunk_rows, "progress": self.progress}
        by = {} if self.client is None else {"engine": "dask", "client": self.client}
        return PassOptions.of(None, settings | by, "build")


@dataclass(frozen=True, eq=False)
class Part:
    """Candidates of a chunk.

    Attributes:
        shelves: what is kept of them, several of a pattern where they are many; rows are numbered from 0.
        ids: (n,), or None where they came without.
        where: the chunk, for messages.
    """

    shelves: list[Shelf]
    ids: NDArray[Any] | None
    where: str = "candidates"

    def __len__(self) -> int:
        return sum(map(len, self.shelves))


@dataclass(frozen=True, eq=False)
class Measure:
    """The maker of a part from the rows of a chunk, here or in another process.

    Attributes:
        instrument: the model.
        dims: of its modalities, with the names of features where they are known.
        scale: L of ``pairs.py``.
    """

    instrument: Instrument
    dims: Mapping[str, int]
    scale: Floats

    def __call__(self, data: MultimodalData, where: str = "candidates") -> Part:
        """The part of some rows.

        Raises:
            SchemaError: a modality is unknown to the model, or has another width.
            NumericalError: what is kept of a row is too large for float32.
        """
        require_known(data, self.dims, "candidates")
        inverse = np.linalg.inv(self.scale)
        shelves = []
        for part in self.instrument.measure(data.in_order_of(self.dims, "candidates")):
            with np.errstate(over="ignore", invalid="ignore"):  # refused here
                g = part.natural @ inverse.T
                fits = (np.abs(g) < _LARGEST).all(axis=1)
            if not fits.all():
                raise NumericalError(
                    f"{where}: row {int(part.rows[~fits][0])} has values so far from the model's that what an index "
                    "keeps of it is too large; rescale it as the data of the fit were, or remove it."
                )
            shelves.append(Shelf.of(part.pattern, part.rows, g))
        return Part(shelves, data.ids, where)

    def stream(self, stream: MultimodalStream, options: StreamOptions) -> Iterator[Part]:
        """The parts of a stream that are kept in memory."""
        return (self(chunk, token) for token, chunk in stream.items(options.chunk_rows))

    def folder(self, stream: MultimodalStream, options: StreamOptions) -> ChunkFolder:
        """The folder for the parts of a stream."""
        out = place_to_write(options.out)
        about = {
            "stream": stream.fingerprint,
            "model": fingerprint(self.instrument.linear_gaussian),
            "chunk_rows": options.chunk_rows,
        }
        return ChunkFolder.opened(out.with_name(f"{out.name}.parts"), about, ".safetensors")

    def into(self, folder: ChunkFolder, stream: MultimodalStream, options: StreamOptions) -> Iterator[Part]:
        """The parts of a stream from files, which are made where they are not there."""
        files = folder.fill(partial(_write_part, self), stream, options.of_pass(), "indexing chunks")
        return (read_archive(file, {_KIND: (_nothing_to_check, _part)}) for file in files)


def joined_ids(parts: Sequence[Part], known: Mapping[object, int]) -> NDArray[Any]:
    """The ids of parts, one after another.

    Args:
        parts: at least one.
        known: ids that are taken.

    Raises:
        DataError: some have none, or an id stands twice.
    """
    lacking = next((part.where for part in parts if part.ids is None), None)
    if lacking is not None:
        raise DataError(f"{lacking}: expected ids, as the other candidates have; pass ids= to MultimodalData.")
    columns = [part.ids for part in parts if part.ids is not None]
    ids = one_column(columns)
    try:
        check_distinct(ids)
    except DataError:
        _require_apart(parts)  # says where
        raise
    twice = next((entry for entry in ids.tolist() if entry in known), None) if known else None
    if twice is not None:
        raise DataError(f"candidates: the index has {twice!r} already; remove it first.")
    return ids


def one_column(columns: Sequence[NDArray[Any]]) -> NDArray[Any]:
    """Columns of ids, one after another, each id as it was: of several kinds numpy would make texts of numbers."""
    mixed = len({column.dtype.kind for column in columns}) > 1
    return np.concatenate([column.astype(object) if mixed else column for column in columns])


def _require_apart(parts: Sequence[Part]) -> None:
    seen: dict[object, str] = {}
    for part in parts:
        for entry in () if part.ids is None else part.ids.tolist():
            if seen.setdefault(entry, part.where) != part.where:
                raise DataError(f"ids: {entry!r} stands in {seen[entry]} and in {part.where}; keep one of them.")


def _write_part(measure: Measure, token: str, load: Load, path: Path) -> int:
    part = measure(load(), token)
    kind, ids = (None, {}) if part.ids is None else packed_ids(part.ids)
    shelves = packed_shelves(part.shelves) if part.shelves else {}
    write_archive(path, {"kind": _KIND, "ids": kind, "token": token}, as_tensors({**shelves, **ids}, {}))
    return len(part)


def _nothing_to_check(config: Mapping[str, Any], shapes: Shapes) -> None:
    del config, shapes


def _part(config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Part:
    arrays = {key: tensor.numpy() for key, tensor in tensors.items()}
    shelves = unpacked_shelves(arrays) if arrays else []
    ids = None if config["ids"] is None else unpacked_ids(config["ids"], arrays)
    if ids is not None and len(ids) != sum(map(len, shelves)):
        raise FileFormatError("ids: expected one of each candidate")
    return Part(shelves, ids, str(config["token"]))
