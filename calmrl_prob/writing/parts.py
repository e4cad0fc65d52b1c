"""Imputations of a stream as a folder of parquet files, one a chunk, which a pass that was killed goes on with."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args

from calmrl_prob._support.arguments import brief, chosen_names, whole_number
from calmrl_prob._support.dask import completed, connected, failures_told
from calmrl_prob._support.files import write_atomically
from calmrl_prob._support.progress import Callback, progress_bar
from calmrl_prob.data import MultimodalData
from calmrl_prob.data.stream import Load, MultimodalStream
from calmrl_prob.errors import ArgumentError, ArgumentTypeError, DataError, FileFormatError
from calmrl_prob.imputation import checked_level, impute
from calmrl_prob.inference.fingerprint import fingerprint
from calmrl_prob.linear_gaussian.options import Options
from calmrl_prob.writing.write import write

#: What tells of which stream and model the files of a folder are; readers pass over names that begin like this.
ABOUT = "_about.json"


@dataclass(frozen=True, kw_only=True)
class PartOptions(Options):
    """Options of :func:`calmrl_prob.impute` for a stream, which it takes by keyword.

    Attributes:
        out: the folder to write to; it is made where it is not there.
        level: probability that the intervals are to hold.
        chunk_rows: rows of a file, at most; by default as many as make about 8 million numbers.
        engine: "here", or "dask" for the workers of a Dask cluster, which have to see the same folder.
        client: a ``dask.distributed.Client``; by default one of a cluster on this machine, for the time of the pass.
        progress: show a bar on standard error; None for where it is a terminal.

    Raises:
        ArgumentError: one is out of range, or they exclude each other.
    """

    out: Any
    level: float = 0.9
    chunk_rows: int | None = None
    engine: Literal["here", "dask"] = "here"
    client: Any = None
    progress: bool | None = None

    def __post_init__(self) -> None:
        """Refuse what is out of range."""
        checked_level(self.level)
        if self.chunk_rows is not None:
            whole_number("chunk_rows", self.chunk_rows, least=1)
        if self.engine not in get_args(Literal["here", "dask"]):
            raise ArgumentError(f"engine: expected 'here' or 'dask', got {self.engine!r}.")
        if self.client is not None and self.engine != "dask":
            raise ArgumentError("client: it serves engine='dask'; pass that too.")


#: Names of the options that are of a stream alone.
PART_OPTIONS = tuple(field.name for field in fields(PartOptions))


def impute_parts(
    model: Any,  # noqa: ANN401 - whatever impute takes
    stream: MultimodalStream,
    names: Sequence[str] | None,
    options: PartOptions,
    **imputing: Any,
) -> Path:
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
    folder = _opened(options.out, _about(model, stream, names, options, imputing))
    found = enumerate(stream.parts(options.chunk_rows))
    todo = [(token, load, folder / _file_name(n, token)) for n, (token, load) in found]
    left = [part for part in todo if not part[2].exists()]
    work = partial(_impute_part, model, names, options.level, imputing)
    with _shown(options.progress, len(todo), len(todo) - len(left)) as advance:
        if options.engine == "dask":
            _by_dask(work, left, options.client, advance)
        else:
            for part in left:
                work(*part)
                advance()
    return folder


def _impute_part(
    model: Any,  # noqa: ANN401 - whatever impute takes
    names: Sequence[str] | None,
    level: float,
    imputing: Mapping[str, Any],
    token: str,
    load: Load,
    path: Path,
) -> None:
    chunk: MultimodalData = load()
    try:
        write(impute(model, chunk, names, **imputing), path, level=level)
    except DataError as error:
        raise type(error)(f"{token}: {error}") from error


def _by_dask(
    work: Callable[..., None], left: Sequence[tuple[str, Load, Path]], client: object, advance: Callable[[], None]
) -> None:
    with connected(client) as cluster, failures_told():
        shared = cluster.scatter(work, broadcast=True)
        futures = [cluster.submit(_call, shared, *part, pure=False) for part in left]
        for future in completed(futures):
            future.result()
            advance()


def _call(work: Callable[..., None], *part: Any) -> None:
    work(*part)


def _file_name(number: int, token: str) -> str:
    return f"part-{number:06d}-{hashlib.sha256(token.encode()).hexdigest()[:8]}.parquet"


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


def _opened(out: Any, about: dict[str, Any]) -> Path:  # noqa: ANN401 - a path, checked
    """The folder, with its description written, or found to be the same."""
    if not isinstance(out, str) and not hasattr(out, "__fspath__"):
        raise ArgumentTypeError(f"out: expected a folder's name, got {brief(out)}; pass one such as 'imputed'.")
    folder = Path(out)
    description = folder / ABOUT
    if folder.exists() and not folder.is_dir():
        raise ArgumentError(f"out: {folder} is a file; a stream is imputed into a folder.")
    if not description.exists():
        if folder.exists() and any(folder.iterdir()):
            raise ArgumentError(f"out: {folder} holds other files; name a folder that is empty, or not there yet.")
        folder.mkdir(parents=True, exist_ok=True)
        with write_atomically(description) as temporary:
            temporary.write_text(json.dumps(about, indent=1), encoding="utf-8")
        return folder
    try:
        known = json.loads(description.read_text(encoding="utf-8"))
        differs = [key for key in about if known[key] != about[key]]
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise FileFormatError(f"{description}: damaged; impute into another folder.") from error
    if differs:
        raise ArgumentError(
            f"out: {folder} holds imputations of another {', '.join(differs)}; name another folder, or delete it."
        )
    return folder


@contextmanager
def _shown(progress: bool | None, total: int, done: int) -> Iterator[Callable[[], None]]:
    count = [done]

    def advance_with(callback: Callback | None) -> None:
        count[0] += 1
        if callback is not None:
            callback(count[0], float("nan"))

    if not (sys.stderr.isatty() if progress is None else progress):
        yield lambda: advance_with(None)
        return
    with progress_bar("imputing chunks", total) as callback:
        yield lambda: advance_with(callback)
