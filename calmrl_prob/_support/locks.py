"""Locks on files, which die with the process that holds them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]


@contextmanager
def held(path: Path, *, create: bool = True, unknown: bool = True) -> Iterator[bool]:
    """Hold the lock of a file, if nobody else does; however the process ends, the lock ends with it.

    The file is gone once the block is left, if the lock was held. It is opened anew where it went between being opened
    and being locked: then whoever held it before has just removed it.

    Args:
        path: of the lock, a file of its own.
        create: whether the file is made if it is not there.
        unknown: what is said where the file system, or Windows, knows no such locks.

    Yields:
        Whether the lock is held.

    Raises:
        FileNotFoundError: there is no such file and ``create`` is False, or no such folder.
        OSError: the file cannot be opened.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "lock"
        >>> with held(path) as mine, held(path) as again:
        ...     mine, again
        (True, False)
        >>> path.exists()
        False
    """
    descriptor, locked = _opened(path, create, unknown)
    try:
        yield locked
    finally:
        if locked:
            with suppress(PermissionError):  # Windows removes no open file
                path.unlink(missing_ok=True)
        os.close(descriptor)


def _opened(path: Path, create: bool, unknown: bool) -> tuple[int, bool]:
    """A descriptor of the file that stands at the path, and whether it is locked now."""
    while True:
        descriptor = os.open(path, os.O_RDWR | (os.O_CREAT if create else 0), 0o666)
        if fcntl is None:
            return descriptor, unknown
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return descriptor, False
        except OSError:  # a network file system without locks, say
            return descriptor, unknown
        if _stands(path, descriptor):
            return descriptor, True
        os.close(descriptor)


def _stands(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(path.stat(follow_symlinks=False), os.fstat(descriptor))
    except FileNotFoundError:
        return False
