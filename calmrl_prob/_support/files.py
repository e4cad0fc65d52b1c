"""Paths of files, checked, and files written so that none is ever left half-written."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from calmrl_prob._support.arguments import brief
from calmrl_prob.errors import ArgumentError, ArgumentTypeError, FileFormatError

#: Characters of another library's message that are passed on.
_LONGEST_MESSAGE = 200


def file_path(path: str | os.PathLike[str]) -> Path:
    """A path that can be that of a file.

    Raises:
        ArgumentTypeError: it is no path.
        ArgumentError: it is empty, or there is a folder.

    Example:
        >>> file_path("model.safetensors").name
        'model.safetensors'
    """
    if not isinstance(path, str | os.PathLike):
        raise ArgumentTypeError(f"path: expected a str or Path, got {brief(path)}; pass one such as 'data.npz'.")
    if not os.fspath(path):
        raise ArgumentError("path: expected the name of a file, got ''; pass one such as 'model.safetensors'.")
    if Path(path).is_dir():
        raise ArgumentError(f"path: expected a file, but {path} is a folder; name the file in it.")
    return Path(path)


def existing_file(path: str | os.PathLike[str]) -> Path:
    """The path of a file that is there.

    Raises:
        FileNotFoundError: there is no such file.
        FileFormatError: it is a pipe or a device, of which there is no end.
        ArgumentTypeError, ArgumentError: as :func:`file_path`.
    """
    found = file_path(path)
    if found.exists() and not found.is_file():
        raise FileFormatError(
            f"{found}: expected a regular file, got a pipe, socket or device; copy what it gives to a file first."
        )
    if not found.is_file():
        raise FileNotFoundError(f"path: there is no file {found} (looked from {Path.cwd()}); check its name.")
    return found


@contextmanager
def write_atomically(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Give a temporary path to write to, and move the file to ``path`` once it is whole.

    The temporary file has the same name, in a new folder beside ``path``, so that moving it is one step of the file
    system. If writing fails, the temporary file is removed and a file that stood at ``path`` before still stands.

    Args:
        path: where the file is to stand; its folder must exist.

    Yields:
        The temporary path.

    Raises:
        FileNotFoundError: there is no such folder.
        ArgumentError: ``path`` is empty or a folder.

    Example:
        >>> folder = tempfile.mkdtemp()
        >>> with write_atomically(Path(folder) / "note.txt") as temporary:
        ...     _ = temporary.write_text("whole")
        >>> [entry.name for entry in Path(folder).iterdir()]
        ['note.txt']
    """
    path = file_path(path)
    if not path.parent.is_dir():
        raise FileNotFoundError(
            f"path: there is no folder {path.parent} to write {path.name} into; create it first, as with "
            f"Path({str(path.parent)!r}).mkdir(parents=True)."
        )
    folder = Path(tempfile.mkdtemp(prefix=".unfinished-", dir=path.parent))
    try:
        yield folder / path.name
        os.replace(folder / path.name, path)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def write_folder_atomically(path: Path, ending: str) -> Iterator[Path]:
    """Give a temporary folder to write to, and move it to ``path`` once it is whole; as :func:`write_atomically`.

    A folder that stood there before is moved away first, and back if the new one cannot take its place.

    Args:
        path: where the folder is to stand.
        ending: of names of such folders, in whose place alone another is put.

    Yields:
        The temporary path.

    Raises:
        FileNotFoundError: there is no folder for it to stand in.
        ArgumentError: a file, or a folder of another kind, stands there.

    Example:
        >>> folder = Path(tempfile.mkdtemp())
        >>> with write_folder_atomically(folder / "a.zarr", ".zarr") as temporary:
        ...     temporary.mkdir()
        >>> [entry.name for entry in folder.iterdir()]
        ['a.zarr']
    """
    if not path.parent.is_dir():
        raise FileNotFoundError(f"path: there is no folder {path.parent} to write {path.name} into; create it first.")
    if path.exists() and (path.suffix != ending or not path.is_dir()):
        raise ArgumentError(f"path: {path} is there and is no {ending} folder; name another, or remove it first.")
    folder = Path(tempfile.mkdtemp(prefix=".unfinished-", dir=path.parent))
    aside = folder / "before"
    try:
        yield folder / path.name
        if path.exists():
            os.replace(path, aside)
        try:
            os.replace(folder / path.name, path)
        except OSError:
            if aside.exists():
                os.replace(aside, path)
            raise
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def said(error: BaseException) -> str:
    """Message of another library about a file, cut short: some repeat the file.

    Example:
        >>> said(ValueError("cannot parse " + "(" * 5000))[-6:], len(said(ValueError("(" * 5000)))
        ('((... ', 204)
    """
    text = str(error)
    return text if len(text) <= _LONGEST_MESSAGE else f"{text[:_LONGEST_MESSAGE]}... "
