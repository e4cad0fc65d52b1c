"""ArviZ groups from ``to_arviz``, read from disk again: netCDF and zarr, with the version of their layout checked."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from calmrl_prob._support.files import existing_file, said
from calmrl_prob._support.sizes import require_proportion
from calmrl_prob.arviz.adapter import SCHEMA_VERSION, VERSION_ATTRIBUTE, container, read_groups
from calmrl_prob.errors import ArgumentTypeError, FileFormatError, MissingDependencyError

#: Files of a zarr store that say how arrays are packed.
_ZARR_METADATA = (".zarray", ".zmetadata", "zarr.json")


def from_arviz(path: str | os.PathLike[str]) -> Any:  # noqa: ANN401 - the type depends on the ArviZ installed
    """Read draws that ``to_arviz(...).to_netcdf(path)`` or ``.to_zarr(path)`` wrote, under whatever ArviZ is installed.

    ``arviz.from_netcdf`` reads them too, but not from a newer calmrl-prob, whose names may mean something else, with a
    word.

    Args:
        path: a netCDF file, or the folder of a zarr store.

    Returns:
        An ``arviz.InferenceData`` before ArviZ 1.0, an ``xarray.DataTree`` since, all in memory.

    Raises:
        FileNotFoundError: there is nothing there.
        FileFormatError: it was written by a newer version or by something else, or is damaged.
        ArgumentTypeError: ``path`` is no path.
        MissingDependencyError: zarr, or h5netcdf, is not installed.

    Example:
        >>> import tempfile, torch, calmrl_prob as cal
        >>> lg = cal.LinearGaussian({"x": torch.ones(2, 1)}, {"x": torch.zeros(2)}, {"x": torch.tensor(1.0)})
        >>> idata = cal.to_arviz(lg, cal.MultimodalData({"x": torch.ones(3, 2)}), num_draws=8)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     written = idata.to_netcdf(f"{folder}/draws.nc", engine="h5netcdf")
        ...     from_arviz(f"{folder}/draws.nc")["posterior"]["z"].shape
        (4, 2, 3, 1)
    """
    if not isinstance(path, str | os.PathLike):
        raise ArgumentTypeError(f"path: expected a path such as 'draws.nc', got {type(path).__name__}.")
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"{path}: there is no such file or folder.")
    there = _size_on_disk(path)
    remedy = "write it again with to_arviz(...)"
    try:
        datasets = read_groups(path, lambda unpacked: require_proportion(path, unpacked, there, remedy))
    except FileFormatError:
        raise
    except ImportError as error:
        package = "zarr" if path.is_dir() else "h5netcdf"
        raise MissingDependencyError(f"{path}: reading it needs {package}; pip install {package}.") from error
    except Exception as error:  # whatever the file libraries make of a file that is none
        kind = "a zarr store" if path.is_dir() else "a netCDF file"
        raise FileFormatError(f"{path}: not {kind}, or a damaged one ({said(error)}); {remedy}.") from error
    attributes = next((dataset.attrs for dataset in datasets.values()), {})
    if str(attributes.get("inference_library")) != "calmrl-prob":
        raise FileFormatError(
            f"{path}: its groups, {list(datasets)}, were not written by calmrl_prob.to_arviz; read it with "
            "arviz.from_netcdf or xarray.open_datatree."
        )
    version = _layout(path, attributes.get(VERSION_ATTRIBUTE, 0))
    if version > SCHEMA_VERSION:
        raise FileFormatError(
            f"{path}: written by calmrl-prob {attributes.get('version_calmrl-prob')} in layout {version}, but this "
            f"library reads layouts up to {SCHEMA_VERSION}; install a newer calmrl-prob, or write it again with this."
        )
    return container(datasets, attributes)


def _layout(path: Path, version: Any) -> int:  # noqa: ANN401 - whatever the file says
    """The version of the layout that a file states."""
    try:
        return int(version)
    except (TypeError, ValueError, OverflowError) as error:
        raise FileFormatError(
            f"{path}: damaged, for the version of its layout is no number; write it again with to_arviz(...)."
        ) from error


def _size_on_disk(path: Path) -> int:
    """Bytes of a file, or of all files of a zarr store, none of which is a pipe or a device, or asks for unpickling."""
    if not path.is_dir():
        return existing_file(path).stat().st_size
    total = 0
    for inner in path.rglob("*"):
        if inner.is_dir():
            continue
        total += existing_file(inner).stat().st_size
        if inner.name in _ZARR_METADATA and _unpickles(inner):
            raise FileFormatError(
                f"{inner}: its arrays are pickled, and nothing is unpickled here; write it again with to_arviz(...)."
            )
    return total


def _unpickles(metadata: Path) -> bool:
    """Whether the description of a zarr array names the codec that unpickles, anywhere in it."""
    try:
        front = [json.loads(metadata.read_bytes())]
    except (ValueError, RecursionError) as error:
        raise FileFormatError(f"{metadata}: damaged; write it again with to_arviz(...).") from error
    while front:
        here = front.pop()
        if isinstance(here, dict):
            if any(isinstance(here.get(key), str) and "pickle" in here[key] for key in ("id", "name")):
                return True
            front += here.values()
        elif isinstance(here, list):
            front += here
    return False
