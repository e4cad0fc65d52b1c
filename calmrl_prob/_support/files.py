"""Paths of files, checked, and files written so that none is ever left half-written."""

from __future__ import annotations

import errno
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from calmrl_prob._support.arguments import brief
from calmrl_prob._support.locks import held
from calmrl_prob._support.remote import Remote, is_url, reached
from calmrl_prob.errors import ArgumentError, ArgumentTypeError, CalmrlError, FileFormatError

#: Characters of another library's message that are passed on.
_LONGEST_MESSAGE = 200
#: What folders with unfinished files begin with, and the file in each whose lock says that its writer lives.
_UNFINISHED, _LOCK = ".calmrl-unfinished-", ".lock"
#: What a folder that is being replaced is called meanwhile.
_BEFORE = ".before"
#: Errors of a file system that has no room for what is written.
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def file_path(path: str | os.PathLike[str]) -> Path:
    """A path that can be that of a file.

    Raises:
        ArgumentTypeError: it is no path.
        ArgumentError: it is empty, or a URL, or there is a folder.

    Example:
        >>> file_path("model.safetensors").name
        'model.safetensors'
    """
    if not isinstance(path, str | os.PathLike):
        raise ArgumentTypeError(f"path: expected a str or Path, got {brief(path)}; pass one such as 'data.npz'.")
    if is_url(path):
        raise ArgumentError(
            f"path: {path} is a URL, which only cal.read, cal.impute(..., out=) and cal.write take, of parquet; name a "
            "local file, and copy it."
        )
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


def place_to_write(path: str | os.PathLike[str]) -> Path:
    """The path of a file that is to be written, links followed, in a folder that is there.

    Raises:
        FileNotFoundError: there is no such folder.
        PermissionError: you may not write into it.
        ArgumentError: there is a folder, a pipe or a device in its place.
        ArgumentTypeError: it is no path.
    """
    place = Path(os.path.realpath(file_path(path)))
    if place.exists() and not place.is_file():
        raise ArgumentError(f"path: expected a file, but {place} is a pipe, socket or device; name another one.")
    if not place.parent.is_dir():
        raise FileNotFoundError(
            f"path: there is no folder {place.parent} to write {place.name} into; create it first, as with "
            f"Path({str(place.parent)!r}).mkdir(parents=True)."
        )
    if not os.access(place.parent, os.W_OK):
        raise PermissionError(f"path: nothing may be written into {place.parent}; name a folder of your own.")
    return place


@contextmanager
def write_atomically(path: str | os.PathLike[str] | Remote) -> Iterator[Path]:
    """Give a temporary path to write to, and move the file to ``path`` once it is whole.

    The temporary file has the same name, in a new folder beside ``path``, so that moving it is one step of the file
    system. If writing fails, the temporary file is removed and a file that stood at ``path`` before still stands. What
    writers that were killed left in the same folder is removed. A symbolic link is followed: the file that it names is
    replaced, and it stays. Of a file system elsewhere the temporary path is a local one, from where the file is copied.

    Args:
        path: where the file is to stand; its folder must exist.

    Yields:
        The temporary path.

    Raises:
        FileNotFoundError: there is no such folder.
        ArgumentError: ``path`` is empty, a folder, a pipe or a device.
        OSError: it cannot be written, as on a full disk.

    Example:
        >>> folder = tempfile.mkdtemp()
        >>> with write_atomically(Path(folder) / "note.txt") as temporary:
        ...     _ = temporary.write_text("whole")
        >>> [entry.name for entry in Path(folder).iterdir()]
        ['note.txt']
    """
    if isinstance(path, Remote):
        with tempfile.TemporaryDirectory() as local, reached(str(path), "path"):
            yield Path(local) / path.name
            path.put(Path(local) / path.name)
        return
    path = place_to_write(path)
    remove_leftovers(path.parent)
    with _own_folder(path.parent) as folder, _full_disks_told(path):
        yield folder / path.name
        with open(folder / path.name, "rb+") as written:
            os.fsync(written.fileno())  # some file systems notice only now that there is no room
        shutil.copymode(folder / _LOCK, folder / path.name)  # safetensors makes files that their owner alone may read
        os.replace(folder / path.name, path)


@contextmanager
def _full_disks_told(path: Path) -> Iterator[None]:
    """Name the file where there is no room for it: libraries tell of that in ways of their own, some without."""
    try:
        yield
    except CalmrlError:
        raise
    except Exception as error:
        found = re.search(r"(?:os error|errno =|code:) ?([0-9]+)", str(error))
        number = getattr(error, "errno", None) or (int(found[1]) if found else None)
        if number not in _NO_ROOM or getattr(error, "filename", None) is not None:
            raise
        raise OSError(number, os.strerror(number), str(path)) from error


@contextmanager
def _own_folder(beside: Path) -> Iterator[Path]:
    """A new folder that no other process takes for one left over."""
    while True:
        folder = Path(tempfile.mkdtemp(prefix=_UNFINISHED, dir=beside))
        with ExitStack() as stack:
            stack.callback(shutil.rmtree, folder, ignore_errors=True)
            try:
                mine = stack.enter_context(held(folder / _LOCK))
            except FileNotFoundError:  # another has just taken it for one left over
                continue
            if mine:
                yield folder
                return


def remove_leftovers(beside: Path | Remote) -> None:
    """Remove what killed writers left: folders whose locks nobody holds, but for those with the last of something."""
    if isinstance(beside, Remote):  # has no locks; what lies there is written over
        return
    with suppress(OSError):
        for folder in beside.glob(f"{_UNFINISHED}*"):
            try:
                with held(folder / _LOCK, create=False, unknown=False) as left:
                    if left and not (folder / _BEFORE).exists():
                        shutil.rmtree(folder, ignore_errors=True)
            except FileNotFoundError:  # killed before the lock was made, or just gone
                with suppress(OSError):
                    folder.rmdir()


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
    remove_leftovers(path.parent)
    with _own_folder(path.parent) as folder, _full_disks_told(path):
        aside = folder / _BEFORE
        yield folder / path.name
        if path.exists():
            os.replace(path, aside)
        try:
            os.replace(folder / path.name, path)
        except OSError:
            if aside.exists():
                os.replace(aside, path)
            raise


def said(error: BaseException) -> str:
    """Message of another library about a file in one line, cut short: some repeat the file.

    Example:
        >>> said(ValueError("cannot parse " + "(" * 5000))[-6:], len(said(ValueError("(" * 5000)))
        ('((... ', 204)
    """
    text = " ".join(str(error).split())
    return text if len(text) <= _LONGEST_MESSAGE else f"{text[:_LONGEST_MESSAGE]}... "


def size_and_time(path: Path | Remote) -> tuple[int, object]:
    """The bytes of a file, and what tells whether it was written since: its time, or what a store has of this kind.

    Example:
        >>> size_and_time(Path(tempfile.mkstemp()[1]))[0]
        0
    """
    if isinstance(path, Remote):
        about = path.system.info(path.path)
        marks = (about.get(key) for key in ("ETag", "etag", "mtime", "LastModified", "last_modified", "created"))
        return int(about["size"]), next((str(mark) for mark in marks if mark is not None), None)
    about = path.stat()
    return about.st_size, about.st_mtime_ns
