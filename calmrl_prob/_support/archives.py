"""Archives of what this library keeps in files: tensors in safetensors, a JSON description in the header, no pickles.

The header's metadata has the entries "format", "format_version", "library_version", "config" (JSON, with the kind of
thing under "kind") and "sha256", the checksum of the config and the tensors (files without one are read too).
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from calmrl_prob._support.arguments import brief
from calmrl_prob._support.files import existing_file, said, write_atomically
from calmrl_prob._support.versions import installed_version
from calmrl_prob.errors import ArgumentError, FileFormatError, MissingDependencyError

FORMAT = "calmrl-prob model"
#: Raised when a file that this library writes can no longer be read by an older one.
FORMAT_VERSION = 1

T = TypeVar("T")


class ModelToLoadError(ArgumentError):
    """Error of ``cal.load``'s argument ``model``: it is needed and was not given, or is not the model of the file."""


#: Check of a description against the shapes in the file, before anything is built; and what builds it of the tensors.
Kind = tuple[Callable[[Mapping[str, Any], Mapping[str, tuple[int, ...]]], None], Callable[..., T]]


def write_archive(path: str | os.PathLike[str], config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """Write a description and tensors, beside ``path`` first, so that it never holds half an archive.

    Args:
        path: where; an existing file is replaced.
        config: what becomes JSON, with "kind".
        tensors: on the CPU, contiguous, none sharing memory with another.

    Raises:
        ArgumentTypeError, ArgumentError, FileNotFoundError, OSError: as :func:`write_atomically`.
    """
    described = json.dumps(config)
    metadata = {
        "format": FORMAT,
        "format_version": str(FORMAT_VERSION),
        "library_version": installed_version("calmrl-prob"),
        "config": described,
        "sha256": _checksum(described, tensors),
    }
    with write_atomically(path) as temporary:
        save_file(dict(tensors), temporary, metadata)


def read_archive(path: str | os.PathLike[str], kinds: Mapping[str, Kind[T]], unchecked: Collection[str] = ()) -> T:
    """Read what :func:`write_archive` wrote; tensors are maps of the file.

    Args:
        path: the file.
        kinds: for each kind that is expected its check and its builder.
        unchecked: kinds whose numbers may be NaN or infinite.

    Raises:
        FileNotFoundError: there is no such file.
        FileFormatError: the file is damaged, of another origin or kind, or from a newer version.
        ArgumentError, ArgumentTypeError: ``path`` is a folder, or no path.
        ModelToLoadError: a builder's.
    """
    path = existing_file(path)
    try:
        with safe_open(path, framework="pt") as archive:
            metadata = archive.metadata() or {}
            config = _description(path, metadata, kinds)
            check, build = kinds[config["kind"]]
            shapes = {key: tuple(archive.get_slice(key).get_shape()) for key in archive.keys()}  # noqa: SIM118
            check(config, shapes)  # before anything is built of it
            tensors = {key: archive.get_tensor(key) for key in shapes}
        if metadata.get("sha256", expected := _checksum(metadata["config"], tensors)) != expected:
            raise FileFormatError(
                f"{path}: damaged, for its numbers are not those that were written (the sha256 checksum differs); "
                "copy the file again, or save the model again."
            )
        if config["kind"] not in unchecked:
            require_finite(tensors)
        return build(config, tensors)
    except (OSError, MissingDependencyError, ModelToLoadError):
        raise
    except SafetensorError as error:
        raise FileFormatError(
            f"{path}: not a safetensors file, or a damaged one ({said(error)}); save the model again with "
            "calmrl_prob.save."
        ) from error
    except Exception as error:  # whatever safetensors, torch and the models make of what no model wrote
        if isinstance(error, FileFormatError) and str(error).startswith(str(path)):
            raise
        raise FileFormatError(
            f"{path}: the tensors and the description in the header do not fit together ({said(error)}); "
            "save the model again with calmrl_prob.save."
        ) from error


def require_finite(tensors: Mapping[str, Tensor]) -> None:
    """Refuse parameters that are none.

    Raises:
        FileFormatError: one is NaN or infinite.
    """
    for key, tensor in tensors.items():
        if not bool(tensor.isfinite().all()):
            raise FileFormatError(f"tensor {key!r} holds NaN or infinities")


def _checksum(config: str, tensors: Mapping[str, Tensor]) -> str:
    """sha256 of the description and of every tensor's name, type, shape and bytes, in order of name."""
    digest = hashlib.sha256(config.encode())
    for key in sorted(tensors):
        tensor = tensors[key]
        digest.update(f"\n{key} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _description(path: Path, metadata: Mapping[str, str], kinds: Collection[str]) -> dict[str, Any]:
    """The description in the header."""
    if metadata.get("format") != FORMAT:
        raise FileFormatError(
            f"{path}: a safetensors file, but not a model that calmrl_prob.save wrote; "
            "load the tensors with safetensors and pass them to LinearGaussian."
        )
    version = metadata.get("format_version", "")
    if not re.fullmatch("[0-9]{1,9}", version) or int(version) > FORMAT_VERSION:
        raise FileFormatError(
            f"{path}: written by calmrl-prob {metadata.get('library_version')} in format version {brief(version)}, but "
            f"this library reads versions up to {FORMAT_VERSION}; install a newer calmrl-prob."
        )
    try:
        config: Any = json.loads(metadata["config"])
    except (KeyError, ValueError, RecursionError) as error:  # brackets within brackets; numbers of 5,000 digits
        raise FileFormatError(f"{path}: the description in the header is damaged; save the model again.") from error
    if not isinstance(config, dict) or not isinstance(kind := config.get("kind"), str) or kind not in kinds:
        raise FileFormatError(f"{path}: expected a model of kind {list(kinds)} in the header; save the model again.")
    return config
