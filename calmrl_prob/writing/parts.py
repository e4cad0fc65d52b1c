"""Imputations of a stream as a folder of parquet files, one a chunk, which a pass that was killed goes on with."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any

from calmrl_prob._support.arguments import brief, chosen_names
from calmrl_prob._support.remote import Remote
from calmrl_prob.data import MultimodalData
from calmrl_prob.data.chunk_files import ChunkFolder, PassOptions
from calmrl_prob.data.stream import Load, MultimodalStream
from calmrl_prob.errors import DataError
from calmrl_prob.imputation import checked_level, impute
from calmrl_prob.inference.fingerprint import fingerprint
from calmrl_prob.writing.contents import contents_of
from calmrl_prob.writing.parquet import write_parquet


@dataclass(frozen=True, kw_only=True)
class PartOptions(PassOptions):
    """Options of :func:`calmrl_prob.impute` for a stream, which it takes by keyword.

    Attributes:
        out: the folder to write to, or its URL for a file system of fsspec, s3://bucket/imputed; it is made where it is
            not there.
        level: probability that the intervals are to hold.
        chunk_rows, engine, client, progress: see :class:`~calmrl_prob.data.chunk_files.PassOptions`.

    Raises:
        ArgumentError: one is out of range, or they exclude each other.
    """

    out: Any
    level: float = 0.9

    def __post_init__(self) -> None:
        """Refuse what is out of range."""
        checked_level(self.level)
        super().__post_init__()


#: Names of the options that are of a stream alone.
PART_OPTIONS = tuple(field.name for field in fields(PartOptions))


def impute_parts(
    model: Any,  # noqa: ANN401 - whatever impute takes
    stream: MultimodalStream,
    names: Sequence[str] | None,
    options: PartOptions,
    **imputing: Any,
) -> Path | Remote:
    """Impute a stream chunk by chunk into a folder; the folder.

    Files are written one by one, each whole or not at all; those that are there already are left as they are, and
    their chunks are not read, so that a pass that was killed goes on where it stood.

    Args:
        model: whatever :func:`calmrl_prob.imputation.impute` takes, but for a posterior.
        stream: of instances.
        names: the modalities to impute; all of the model by default.
        options: where to, and how.
        **imputing: options of ``impute``.

    Raises:
        ArgumentError: the folder holds imputations of another stream, model or options.
        FileFormatError: the folder's description of what it holds is damaged.
        DataError, SchemaError: a chunk breaks a rule, or is not of the model's modalities; it is named.
        MissingDependencyError: pyarrow, or dask.distributed for that engine, is not installed.
        OSError: a file cannot be written; those that were written stay.
    """
    known = getattr(getattr(model, "model", model), "dims", None)
    if names is not None and known is not None:  # before the folder is made
        names = chosen_names(names, tuple(known))
    folder = ChunkFolder.opened(options.out, _about(model, stream, names, options, imputing), ".parquet")
    folder.fill(partial(_impute_part, model, names, options.level, imputing), stream, options, "imputing chunks")
    return folder.path


def _impute_part(
    model: Any,  # noqa: ANN401 - whatever impute takes
    names: Sequence[str] | None,
    level: float,
    imputing: Mapping[str, Any],
    token: str,
    load: Load,
    path: Path | Remote,
) -> int:
    chunk: MultimodalData = load()
    try:
        write_parquet(contents_of(impute(model, chunk, names, **imputing), level), path)
    except DataError as error:
        raise type(error)(f"{token}: {error}") from error
    return len(chunk)


def _about(
    model: object,
    stream: MultimodalStream,
    names: Sequence[str] | None,
    options: PartOptions,
    imputing: Mapping[str, Any],
) -> dict[str, Any]:
    own = getattr(model, "model", model)
    return {
        "stream": stream.fingerprint,
        "model": hashlib.sha256(repr(fingerprint(own)).encode()).hexdigest(),
        "names": None if names is None else list(names),
        "level": options.level,
        "chunk_rows": options.chunk_rows,
        "options": {key: brief(value) for key, value in sorted(imputing.items())},
    }
