"""Files of other file systems, named by URLs such as s3://bucket/rows, as far as parquet needs them; by fsspec."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any

from calmrl_prob._support.extras import optional
from calmrl_prob.errors import ArgumentError, CalmrlError, MissingDependencyError


@dataclass(frozen=True)
class Remote:
    """A file or folder of a file system of fsspec; what it has of ``pathlib.Path`` does the same.

    Attributes:
        system: the file system.
        path: within it.
    """

    system: Any
    path: str

    def __str__(self) -> str:
        return str(self.system.unstrip_protocol(self.path))

    def __lt__(self, other: Remote) -> bool:
        return self.path < other.path

    def __truediv__(self, name: str) -> Remote:
        return Remote(self.system, f"{self.path.rstrip('/')}/{name}")

    @property
    def name(self) -> str:
        """The last part of the path."""
        return PurePosixPath(self.path).name

    @property
    def stem(self) -> str:
        """The name without its ending."""
        return PurePosixPath(self.path).stem

    @property
    def suffix(self) -> str:
        """The ending of the name."""
        return PurePosixPath(self.path).suffix

    def exists(self) -> bool:
        """Whether there is one."""
        return bool(self.system.exists(self.path))

    def is_dir(self) -> bool:
        """Whether it is a folder."""
        return bool(self.system.isdir(self.path))

    def iterdir(self) -> Iterator[Remote]:
        """Files and folders in it."""
        return (Remote(self.system, path) for path in self.system.ls(self.path, detail=False))

    def glob(self, pattern: str) -> Iterator[Remote]:
        """Files in it whose names match."""
        return (Remote(self.system, path) for path in sorted(self.system.glob(f"{self.path.rstrip('/')}/{pattern}")))

    def mkdir(self, parents: bool = True, exist_ok: bool = True) -> None:
        """Make it, where the file system has folders."""
        del parents
        self.system.makedirs(self.path, exist_ok=exist_ok)

    def read_text(self, encoding: str) -> str:
        """All of it."""
        return bytes(self.system.cat_file(self.path)).decode(encoding)

    def open(self) -> IO[bytes]:
        """The file, to read from."""
        with reached(str(self), "origin"):
            found: IO[bytes] = self.system.open(self.path, "rb")
        return found

    def put(self, local: Path) -> None:
        """Copy a local file here, under another name until all of it is there."""
        folder, _, name = self.path.rpartition("/")
        unfinished = f"{folder}/.calmrl-unfinished-{name}"  # the same when it is done again, so that none is left
        self.system.put_file(os.fspath(local), unfinished)
        self.system.mv(unfinished, self.path)


def is_url(path: object) -> bool:
    """Whether it names a file system besides a path.

    Example:
        >>> is_url("s3://bucket/rows"), is_url("rows/part.parquet")
        (True, False)
    """
    return isinstance(path, str) and "://" in path


def place_of(path: str | os.PathLike[str], argument: str = "path") -> Path | Remote:
    """The place that a path or a URL names; of file:// the path.

    Raises:
        ArgumentError: no file system is called so.
        MissingDependencyError: fsspec, or the package that it needs for this one, is not installed.
        OSError: it cannot be reached.

    Example:
        >>> place_of("file:///data/rows").as_posix(), place_of("memory://rows/a.parquet").name
        ('/data/rows', 'a.parquet')
    """
    if not is_url(path):
        return Path(path)
    with reached(str(path), argument):
        system, inner = optional("fsspec.core", "arrow", "reading and writing URLs").url_to_fs(path)
        local = "file" in ((system.protocol,) if isinstance(system.protocol, str) else system.protocol)
        return Path(inner) if local else Remote(system, inner)


@contextmanager
def reached(url: str, argument: str) -> Iterator[None]:
    """Errors of the many file systems as one of a few.

    Raises:
        ArgumentError: no file system is called so.
        MissingDependencyError: a package is not installed.
        OSError: all else.
    """
    try:
        yield
    except (CalmrlError, OSError):
        raise
    except ImportError as error:
        raise MissingDependencyError(f"{argument}: {url} needs another package; {error}") from error
    except ValueError as error:
        raise ArgumentError(f"{argument}: {url} names no file system that fsspec knows ({error}); check it.") from error
    except Exception as error:
        raise OSError(f"{argument}: {url} cannot be reached ({type(error).__name__}: {error}).") from error
