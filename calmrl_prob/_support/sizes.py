"""Sizes that a file may unpack to: as large as arrays are, not as large as a few bytes can claim."""

from __future__ import annotations

from pathlib import Path

from calmrl_prob.errors import FileFormatError

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
