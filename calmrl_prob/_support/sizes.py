"""Sizes that are refused before anything is allocated: of files that claim too much, and of too many draws."""

from __future__ import annotations

import os
from pathlib import Path

from calmrl_prob.errors import ArgumentError, FileFormatError

#: Bytes that any file may unpack to, and how many times its own size larger ones may. Packed arrays of measurements
#: shrink to a half or a tenth; those that are NaN in nearly all rows to a hundredth.
ALWAYS_ALLOWED, MOST_TIMES = 2**28, 200


def require_proportion(path: Path, unpacked: int, there: int, remedy: str) -> None:
    """Refuse a file that says that it unpacks to far more than what it takes on disk.

    Args:
        path: of the file, for the message.
        unpacked: bytes that it declares.
        there: bytes that it takes.
        remedy: what to do.

    Raises:
        FileFormatError: it does.

    Example:
        >>> require_proportion(Path("small.npz"), 2**20, 2**10, "write it anew")
        >>> require_proportion(Path("bomb.npz"), 2**40, 2**10, "write it anew")
        Traceback (most recent call last):
        calmrl_prob.errors.FileFormatError: bomb.npz: it has 1,024 bytes and declares arrays of 1,099,511,627,776; ...
    """
    if unpacked > max(ALWAYS_ALLOWED, MOST_TIMES * there):
        raise FileFormatError(
            f"{path}: it has {there:,} bytes and declares arrays of {unpacked:,}; {remedy}, without compression if the "
            "arrays are so large and so uniform."
        )


def require_memory(argument: str, asked: int, numbers: int, itemsize: int, remedy: str) -> int:
    """The number that was asked for, if what it comes to may be in memory.

    Args:
        argument: that asks for them.
        asked: how many.
        numbers: that each of them takes.
        itemsize: bytes of a number.
        remedy: what to do instead.

    Raises:
        ArgumentError: they take more bytes than the machine has.

    Example:
        >>> require_memory("num_draws", 100, 2000, 8, "ask for fewer")
        100
        >>> require_memory("num_draws", 10**12, 2000, 8, "ask for fewer")
        Traceback (most recent call last):
        calmrl_prob.errors.ArgumentError: num_draws: 1,000,000,000,000 take 16,000,000,000,000,000 bytes, and the ...
    """
    needed, there = asked * numbers * itemsize, _memory()
    if needed > there:
        raise ArgumentError(
            f"{argument}: {asked:,} take {needed:,} bytes, and the machine has {there:,} bytes of memory; {remedy}."
        )
    return asked


def _memory() -> int:
    """Bytes of memory of the machine; more than any has where the system does not tell."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # Windows has no such call
        return 2**44
