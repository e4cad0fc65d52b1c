"""Files made of a stream, one a chunk, in a folder: a pass that was killed goes on with those that are lacking."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from calmrl_prob._support.arguments import brief, whole_number
from calmrl_prob._support.dask import completed, connected, failures_told
from calmrl_prob._support.files import remove_leftovers, write_atomically
from calmrl_prob._support.progress import Callback, progress_bar
from calmrl_prob._support.remote import Remote, place_of
from calmrl_prob.data.stream import Load, MultimodalStream
from calmrl_prob.errors import ArgumentError, ArgumentTypeError, FileFormatError
from calmrl_prob.linear_gaussian.options import Options

#: What tells of which stream and model the files of a folder are; readers pass over names that begin like this.
ABOUT = "_about.json"
#: Makes the file of a chunk, and tells how many rows it had: ``(token, load, path)``.
Work = Callable[[str, Load, Any], int]


@dataclass(frozen=True, kw_only=True)
class PassOptions(Options):
    """Options of a pass over a stream that makes a file of each chunk.

    Attributes:
        chunk_rows: rows of a chunk, at most; by default as many as make about 8 million numbers.
        engine: "here", or "dask" for the workers of a Dask cluster, which have to see the same folder.
        client: a ``dask.distributed.Client``; by default one of a cluster on this machine, for the time of the pass.
        progress: show a bar on standard error; None for where it is a terminal.

    Raises:
        ArgumentError: one is out of range, or they exclude each other.
    """

    chunk_rows: int | None = None
    engine: Literal["here", "dask"] = "here"
    client: Any = None
    progress: bool | None = None

    def __post_init__(self) -> None:
        """Refuse what is out of range."""
        if self.chunk_rows is not None:
            whole_number("chunk_rows", self.chunk_rows, least=1)
        if self.engine not in get_args(Literal["here", "dask"]):
            raise ArgumentError(f"engine: expected 'here' or 'dask', got {self.engine!r}.")
        if self.client is not None and self.engine != "dask":
            raise ArgumentError("client: it serves engine='dask'; pass that too.")


@dataclass(frozen=True)
class ChunkFolder:
    """A folder of files, one a chunk of a stream, each whole or not there.

    Attributes:
        path: where.
        about: of what stream, model and options its files are, as JSON holds it.
        ending: of their names.
    """

    path: Path | Remote
    about: Mapping[str, Any]
    ending: str

    @classmethod
    def opened(cls, out: Any, about: Mapping[str, Any], ending: str, argument: str = "out") -> ChunkFolder:  # noqa: ANN401
        """The folder at a path, made with its description, or found to be of the same.

        Raises:
            ArgumentError: there is a file, or a folder of something else.
            ArgumentTypeError: ``out`` is no path.
            FileFormatError: the description is damaged.
        """
        if not isinstance(out, str) and not hasattr(out, "__fspath__"):
            raise ArgumentTypeError(
                f"{argument}: expected a folder's name, got {brief(out)}; pass one such as 'imputed'."
            )
        found = cls(place_of(out, argument), about, ending)
        if found.path.exists() and not found.path.is_dir():
            raise ArgumentError(f"{argument}: {found.path} is a file; a stream is worked on in a folder.")
        if found.path.exists():
            remove_leftovers(found.path)
        description = found.path / ABOUT
        if not description.exists():
            if found.path.exists() and any(entry.name[0] != "." for entry in found.path.iterdir()):
                raise ArgumentError(
                    f"{argument}: {found.path} holds other files; name a folder that is empty, or not there yet."
                )
            found.path.mkdir(parents=True, exist_ok=True)
            with write_atomically(description) as temporary:
                temporary.write_text(json.dumps(dict(about), indent=1), encoding="utf-8")
        else:
            found._require_same(description, argument)
        return found

    def _require_same(self, description: Path | Remote, argument: str) -> None:
        try:
            known = json.loads(description.read_text(encoding="utf-8"))
            differs = [key for key in self.about if known[key] != self.about[key]]
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            raise FileFormatError(f"{description}: damaged; name another folder.") from error
        if differs:
            raise ArgumentError(
                f"{argument}: {self.path} holds files of another {', '.join(differs)}; name another folder, or "
                "delete it."
            )

    def place(self, number: int, token: str) -> Path | Remote:
        """The file of a chunk."""
        digest = hashlib.sha256(token.encode()).hexdigest()[:8]
        return self.path / f"part-{number:06d}-{digest}{self.ending}"

    def fill(self, work: Work, stream: MultimodalStream, how: PassOptions, title: str) -> list[Any]:
        """Make the files that are not there yet; the files of all chunks, in their order.

        Args:
            work: makes the file of one chunk, whole or not at all.
            stream: of which chunks are read that have no file.
            how: size of chunks, and who works.
            title: of the progress bar.

        Raises:
            DistributedError: of ``client``, the cluster was lost.
            DataError: the stream has another number of rows than in a pass before.
        """
        parts: Iterable[tuple[int, tuple[str, Load]]] = enumerate(stream.parts(how.chunk_rows))
        if stream.num_rows is not None or how.engine == "dask":  # else each may be the chunk itself: one at a time
            parts = list(parts)
        total = len(parts) if isinstance(parts, list) else None
        files, rows, made = [], 0, 0
        with _shown(title, how.progress, total) as advance:
            left = []
            for number, (token, load) in parts:
                files.append(self.place(number, token))
                if files[-1].exists():
                    advance()
                    continue
                made += 1
                if how.engine == "dask":
                    left.append((token, load, files[-1]))
                else:
                    rows += work(token, load, files[-1])
                    advance()
                del load
            if left:
                rows += _by_dask(work, left, how.client, advance)
        if made == len(files):
            stream.require_same(rows)
        return files

    def remove(self) -> None:
        """Remove the folder, a local one; killed in the middle, what is left of it is a folder that lacks files."""
        path = Path(str(self.path))
        remove_leftovers(path)
        for file in path.glob(f"part-*{self.ending}"):
            file.unlink(missing_ok=True)
        (path / ABOUT).unlink(missing_ok=True)
        path.rmdir()


def _by_dask(work: Work, left: Sequence[tuple[str, Load, Any]], client: object, advance: Callable[[], None]) -> int:
    with connected(client) as cluster, failures_told():
        shared = cluster.scatter(work, broadcast=True)
        futures = [cluster.submit(_call, shared, *part, pure=False) for part in left]
        rows = 0
        for future in completed(futures):
            rows += future.result()
            advance()
    return rows


def _call(work: Callable[..., int], *part: Any) -> int:
    return work(*part)


@contextmanager
def _shown(title: str, progress: bool | None, total: int | None) -> Iterator[Callable[[], None]]:
    count = [0]

    def advance_with(callback: Callback | None) -> None:
        count[0] += 1
        if callback is not None:
            callback(count[0], float("nan"))

    if not (sys.stderr.isatty() if progress is None else progress):
        yield lambda: advance_with(None)
        return
    with progress_bar(title, total) as callback:
        yield lambda: advance_with(callback)
