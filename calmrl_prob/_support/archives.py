"""Archives of what this library keeps in files: tensors in safetensors, a JSON description in the header, no pickles.

The header's metadata has the entries "format", "format_version", "library_version", "config" (JSON, with the kind of
thing under "kind") and "sha256", the checksum of the config and the tensors (models without one are read too).
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from calmrl_prob._support.arguments import brief
from calmrl_prob._support.files import existing_file, said, write_atomically
from calmrl_prob._support.versions import installed_version
from calmrl_prob.errors import ArgumentError, FileFormatError, MissingDependencyError, ModelToLoadError

T = TypeVar("T")


#: Check of a description against the shapes in the file, before anything is built; and what builds it of the tensors.
Kind = tuple[Callable[[Mapping[str, Any], Mapping[str, tuple[int, ...]]], None], Callable[..., T]]


@dataclass(frozen=True)
class Format:
    """A format of archives.

    Attributes:
        name: as it stands in the header.
        written_by: an archive of it, in words.
        otherwise: what to do with a safetensors file that is none.
        again: what to do if it is damaged.
        unsealed: kinds of things whose files are read without a checksum too, as they once were written.
        finite: whether NaN and infinities are refused.
        version: raised when a file that this library writes can no longer be read by an older one.
    """

    name: str
    written_by: str
    otherwise: str
    again: str
    unsealed: Collection[str] = ()
    finite: bool = False
    version: int = 1


MODELS = Format(
    "calmrl-prob model",
    written_by="a model that calmrl_prob.save wrote",
    otherwise="load the tensors with safetensors and pass them to LinearGaussian",
    again="save the model again with calmrl_prob.save",
    unsealed=("SharedLatentModel", "LinearGaussian"),
    finite=True,
)


def separate(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copies of tensors on the CPU, for these may share memory or be views, which the format does not know.

    ``contiguous`` alone would leave a single number that was expanded a view.

    Raises:
        ArgumentError: one has no values, as on device "meta".
    """
    empty = [key for key, tensor in tensors.items() if tensor.is_meta]
    if empty:
        raise ArgumentError(f"model: tensor {empty[0]!r} is on device 'meta', which has no values to save.")
    return {key: tensor.detach().cpu().clone(memory_format=torch.contiguous_format) for key, tensor in tensors.items()}


def write_archive(
    path: str | os.PathLike[str],
    config: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    archive_format: Format = MODELS,
) -> None:
    """Write a description and tensors, beside ``path`` first, so that it never holds half an archive.

    Args:
        path: where; an existing file is replaced.
        config: what becomes JSON, with "kind".
        tensors: on the CPU, contiguous, none sharing memory with another; see :func:`separate`.
        archive_format: of the file.

    Raises:
        ArgumentTypeError, ArgumentError, FileNotFoundError: as :func:`write_atomically`.
        OSError: it cannot be written, as on a full disk.
    """
    described = json.dumps(config)
    metadata = {
        "format": archive_format.name,
        "format_version": str(archive_format.version),
        "library_version": installed_version("calmrl-prob"),
        "config": described,
        "sha256": checksum(described, tensors),
    }
    with write_atomically(path) as temporary:
        save_tensors(dict(tensors), temporary, metadata, path)


def save_tensors(
    tensors: dict[str, Tensor], temporary: Path, metadata: dict[str, str], path: str | os.PathLike[str]
) -> None:
    """Write a file of safetensors; ``path`` is what it is to be called, for messages.

    Raises:
        OSError: it cannot be written.
    """
    try:
        save_file(tensors, temporary, metadata)
    except SafetensorError as error:
        found = re.search(r"os error ([0-9]+)|code: ([0-9]+)", str(error))
        if found is None:
            raise OSError(errno.EIO, said(error), str(path)) from error
        number = int(found[1] or found[2])
        raise OSError(number, os.strerror(number), str(path)) from error


def read_archive(
    path: str | os.PathLike[str],
    kinds: Mapping[str, Kind[T]],
    archive_format: Format = MODELS,
    unchecked: Collection[str] = (),
) -> T:
    """Read what :func:`write_archive` wrote; tensors are maps of the file.

    Args:
        path: the file.
        kinds: for each kind that is expected its check and its builder; whatever these raise is taken for damage.
        archive_format: of the file.
        unchecked: kinds whose numbers may be NaN or infinite.

    Raises:
        FileNotFoundError: there is no such file.
        FileFormatError: the file is damaged, of another origin or kind, or from a newer version.
        ArgumentError, ArgumentTypeError: ``path`` is a folder, or no path.
        ModelToLoadError: a builder's.
    """
    path, again = existing_file(path), archive_format.again
    try:
        with safe_open(path, framework="pt") as archive:
            metadata = archive.metadata() or {}
            config = _description(path, metadata, kinds, archive_format)
            check, build = kinds[config["kind"]]
            shapes = {key: tuple(archive.get_slice(key).get_shape()) for key in archive.keys()}  # noqa: SIM118
            check(config, shapes)  # before anything is built of it
            tensors = {key: archive.get_tensor(key) for key in shapes}
        expected = checksum(metadata["config"], tensors)
        if metadata.get("sha256", expected if config["kind"] in archive_format.unsealed else "") != expected:
            raise FileFormatError(
                f"{path}: damaged, for its numbers are not those that were written (the sha256 checksum differs); "
                f"copy the file again, or {again}."
            )
        if archive_format.finite and config["kind"] not in unchecked:
            require_finite(tensors)
        return build(config, tensors)
    except (OSError, MissingDependencyError, ModelToLoadError):
        raise
    except SafetensorError as error:
        raise FileFormatError(f"{path}: not a safetensors file, or a damaged one ({said(error)}); {again}.") from error
    except Exception as error:  # whatever safetensors, torch and the models make of what no model wrote
        if isinstance(error, FileFormatError) and str(error).startswith(str(path)):
            raise
        raise FileFormatError(
            f"{path}: the tensors and the description in the header do not fit together ({said(error)}); {again}."
        ) from error


def require_finite(tensors: Mapping[str, Tensor]) -> None:
    """Refuse parameters that are none.

    Raises:
        FileFormatError: one is NaN or infinite.
    """
    for key, tensor in tensors.items():
        if not bool(tensor.isfinite().all()):
            raise FileFormatError(f"tensor {key!r} holds NaN or infinities")


def checksum(config: str, tensors: Mapping[str, Tensor]) -> str:
    """sha256 of the description and of every tensor's name, type, shape and bytes, in order of name."""
    digest = hashlib.sha256(config.encode())
    for key in sorted(tensors):
        tensor = tensors[key]
        digest.update(f"\n{key} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _description(
    path: Path, metadata: Mapping[str, str], kinds: Collection[str], archive_format: Format
) -> dict[str, Any]:
    """The description in the header."""
    if metadata.get("format") != archive_format.name:
        raise FileFormatError(
            f"{path}: a safetensors file, but not {archive_format.written_by}; {archive_format.otherwise}."
        )
    version = metadata.get("format_version", "")
    if not re.fullmatch("[0-9]{1,9}", version) or int(version) > archive_format.version:
        raise FileFormatError(
            f"{path}: written by calmrl-prob {metadata.get('library_version')} in format version {brief(version)}, but "
            f"this library reads versions up to {archive_format.version}; install a newer calmrl-prob."
        )
    try:
        config: Any = json.loads(metadata["config"])
    except (KeyError, ValueError, RecursionError) as error:  # brackets within brackets; numbers of 5,000 digits
        raise FileFormatError(f"{path}: the description in the header is damaged; {archive_format.again}.") from error
    if not isinstance(config, dict) or not isinstance(kind := config.get("kind"), str) or kind not in kinds:
        raise FileFormatError(
            f"{path}: expected the kind {list(kinds)} in the header, got another; load it by cal.load, which knows all "
            f"kinds, or {archive_format.again}."
        )
    return config
