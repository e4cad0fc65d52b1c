"""Archives of numpy arrays (.npz), read without unpickling anything or trusting the sizes that they declare."""

from __future__ import annotations

import math
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal

import numpy as np

from calmrl_prob._support.arguments import brief
from calmrl_prob._support.files import said
from calmrl_prob._support.sizes import require_proportion
from calmrl_prob.errors import FileFormatError

_REMEDY = "copy the file again, or write it anew with numpy.savez"
#: Characters of the name of an array, at most.
_LONGEST_NAME = 1000
#: Ways of packing that numpy writes; others may ask for any amount of memory to unpack.
_PACKINGS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)


def read_npz(path: Path, wanted: Callable[[str], bool]) -> dict[str, np.ndarray]:
    """The arrays of an .npz file by name; members that are no arrays by their names (README.txt) are left out.

    Args:
        path: an existing file.
        wanted: whether the array of a name is read; of others the name alone is kept, with an empty array.

    Raises:
        FileFormatError: it is no archive, it is damaged, a member called .npy is no array, or would be larger than
            anything that packs into a file of this size; file and array are named.
        OSError: the file cannot be opened.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "pair.npz"
        >>> np.savez(path, a=np.ones(2), b=np.zeros(3))
        >>> read_npz(path, lambda name: name == "a")
        {'a': array([1., 1.]), 'b': array([], dtype=float64)}
    """
    with open(path, "rb") as file:
        head = file.read(4)
        if not head.startswith(b"PK"):
            kind = "a single array" if head == b"\x93NUM" else "something else" if head else "an empty file"
            raise FileFormatError(
                f"{path}: expected an .npz archive, got {kind}; write arrays with numpy.savez, and read models with "
                "calmrl_prob.load."
            )
        with _damage_told(f"{path}"):
            archive = zipfile.ZipFile(file)
            members = [info for info in archive.infolist() if info.filename.endswith(".npy")]
            _require_all_members(file, archive)
            for info in archive.infolist():
                archive.open(info).close()  # a name that was damaged is not the one that stands before the contents
        _require_sane(path, members)
        arrays = {}
        for info in members:
            name = info.filename.removesuffix(".npy")
            with _damage_told(f"{path}: array {name!r}"):
                arrays[name] = _read_array(archive, info) if wanted(name) else np.empty(0)
        return arrays


@dataclass(frozen=True)
class Mapped:
    """An array on disk whose rows are read when a slice of them is taken; it travels as its place.

    Attributes:
        path: of the file.
        offset: of the first entry, in bytes.
        shape, dtype: of the array.
        order: "C" or "F".
    """

    path: Path
    offset: int
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    order: Literal["C", "F"] = "C"

    @property
    def ndim(self) -> int:
        """Number of dimensions."""
        return len(self.shape)

    def __getitem__(self, rows: slice) -> np.ndarray:
        """Some rows, mapped."""
        whole = np.memmap(self.path, self.dtype, "r", self.offset, self.shape, self.order)
        found: np.ndarray = whole[rows]
        return found


def map_npy(path: Path) -> Mapped:
    """The array of an .npy file, mapped.

    Raises:
        FileFormatError: it is no such file, it is cut short, or it holds objects.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "x.npy"
        >>> np.save(path, np.eye(3))
        >>> map_npy(path)[1:2].tolist()
        [[0.0, 1.0, 0.0]]
    """
    with open(path, "rb") as file, _damage_told(f"{path}"):
        return _mapped(path, file, path.stat().st_size)


def map_npz(path: Path, wanted: Callable[[str], bool]) -> dict[str, Mapped]:
    """Those wanted of the arrays of an .npz file that lie in it unpacked, mapped; none of an archive that is damaged.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "x.npz"
        >>> np.savez(path, x=np.eye(3), ids=np.arange(3))
        >>> {name: array.shape for name, array in map_npz(path, lambda name: name == "x").items()}
        {'x': (3, 3)}
    """
    found = {}
    with open(path, "rb") as file, _damage_told(f"{path}"):
        for info in zipfile.ZipFile(file).infolist():
            name = info.filename.removesuffix(".npy")
            if info.compress_type == zipfile.ZIP_STORED and name != info.filename and wanted(name):
                file.seek(info.header_offset + 26)  # lengths of the name and of what else stands before the contents
                lengths = file.read(4)
                start = info.header_offset + 30 + sum(int.from_bytes(lengths[i : i + 2], "little") for i in (0, 2))
                file.seek(start)
                found[name] = _mapped(path, file, start + info.file_size)
    return found


def _mapped(path: Path, file: IO[bytes], end: int) -> Mapped:
    """The array whose header a file stands at, and whose entries go up to a byte."""
    version = np.lib.format.read_magic(file)
    reader = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, fortran, dtype = reader(file)
    if dtype.hasobject:
        raise FileFormatError("it holds Python objects, which are never unpickled")
    if math.prod(shape) * dtype.itemsize != end - file.tell():
        raise FileFormatError(
            f"it declares the shape {brief(shape)} of {dtype}, and there are {end - file.tell()} bytes"
        )
    return Mapped(path, file.tell(), shape, dtype, "F" if fortran else "C")


@contextmanager
def _damage_told(where: str) -> Iterator[None]:
    """Turn whatever zipfile and numpy make of a file that is none into the one typed error."""
    try:
        yield
    except FileFormatError as error:
        raise FileFormatError(f"{where} cannot be read ({error}); {_REMEDY}.") from error
    except Exception as error:
        raise FileFormatError(f"{where} cannot be read (it is damaged: {said(error)}); {_REMEDY}.") from error


def _require_all_members(file: IO[bytes], archive: zipfile.ZipFile) -> None:
    """Refuse a directory with fewer entries than its end says: zipfile reads on as if the others had never been."""
    file.seek(-22 - len(archive.comment), 2)
    end = file.read(22)
    said_so = int.from_bytes(end[10:12], "little")
    if said_so != 0xFFFF and said_so != len(archive.infolist()):  # 65,535 stands for a number too large to be there
        raise FileFormatError(f"it is damaged: {len(archive.infolist())} of {said_so} members are left")


def _require_sane(path: Path, members: list[zipfile.ZipInfo]) -> None:
    """Refuse members that hide each other, that overlap, or that unpack to more than any array would."""
    names = [info.filename for info in members]
    if len(set(names)) < len(names):
        raise FileFormatError(f"{path}: two of its arrays have the same name; {_REMEDY}.")
    if names and max(map(len, names)) > _LONGEST_NAME:
        raise FileFormatError(f"{path}: the name of an array has more than {_LONGEST_NAME} characters; {_REMEDY}.")
    there = path.stat().st_size
    if sum(info.compress_size for info in members) > there:
        raise FileFormatError(f"{path}: damaged, for its arrays take more room than the file has; {_REMEDY}.")
    require_proportion(path, sum(info.file_size for info in members), there, _REMEDY)


def _read_array(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> np.ndarray:
    """One array, once its header was found to declare as many bytes as there are."""
    if info.compress_type not in _PACKINGS or info.flag_bits & 1:
        raise FileFormatError("it is encrypted, or packed in a way that numpy does not write")
    with archive.open(info) as member:
        header = _Counting(member)
        version = np.lib.format.read_magic(header)
        if version not in ((1, 0), (2, 0)):
            raise FileFormatError(f"it is in version {version} of numpy's format, for fields with names")
        reader = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, dtype = reader(header)
        if dtype.hasobject:
            raise FileFormatError(
                "it holds Python objects, which are never unpickled; save numbers or fixed-width strings"
            )
        if dtype.kind == "V" or dtype.itemsize == 0:
            raise FileFormatError(f"its entries are of type {dtype}; save numbers or fixed-width strings")
        there = info.file_size - header.count
        if min(shape, default=0) < 0 or math.prod(shape) * dtype.itemsize != there:
            raise FileFormatError(f"it is damaged: it declares the shape {brief(shape)}, and there are {there} bytes")
    with archive.open(info) as member:
        array: np.ndarray = np.lib.format.read_array(member, allow_pickle=False)
        if member.read(1):  # at the end of a member its checksum is compared
            raise FileFormatError("it is damaged: more bytes than it declares")
    if array.dtype.kind == "U" and array.size and _code_points(array).max() > 0x10FFFF:
        raise FileFormatError("it is damaged: its strings are none")
    return array


def _code_points(array: np.ndarray) -> np.ndarray:
    """Numbers of the characters of an array of strings."""
    flat = np.ascontiguousarray(array).reshape(-1)
    return flat.view(np.dtype(np.uint32).newbyteorder(array.dtype.byteorder))


class _Counting:
    """A file that counts what was read of it."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file, self.count = file, 0

    def read(self, size: int = -1) -> bytes:
        """So many bytes, counted."""
        found = self._file.read(size)
        self.count += len(found)
        return found
