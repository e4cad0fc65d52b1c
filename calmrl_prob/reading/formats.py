"""The formats that can be read: each one function, registered here by the endings of its files or by what it is."""

from __future__ import annotations

import glob
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from calmrl_prob._support.arguments import brief
from calmrl_prob._support.remote import Remote, place_of, reached
from calmrl_prob.errors import ArgumentError, ArgumentTypeError, SchemaError
from calmrl_prob.reading import arrays, frames, labelled, omics, parquet
from calmrl_prob.reading.request import Request, listed
from calmrl_prob.reading.source import Source

#: What reads files, by their ending: ``(files, request) -> sources``.
FILES: Mapping[str, Callable[[Sequence[Path], Request], list[Source]]] = MappingProxyType(
    {
        ".parquet": parquet.open_parquet,
        ".npz": arrays.open_npz,
        ".npy": arrays.open_npy,
        ".csv": frames.open_text,
        ".tsv": frames.open_text,
        ".h5ad": omics.open_h5,
        ".h5mu": omics.open_h5,
        ".zarr": labelled.open_zarr,
    }
)
#: Of these a folder or glob may hold several, which are read as one.
TOGETHER = (".parquet", ".npy")
#: What reads objects: whether it is one, and ``(value, request) -> sources``. The first that takes it reads it.
OBJECTS: tuple[tuple[Callable[[object], bool], Callable[[Any, Request], list[Source]]], ...] = (
    (arrays.is_data, arrays.open_data),
    (arrays.is_array, arrays.open_array),
    (frames.is_frame, frames.open_frame),
    (frames.is_polars, frames.open_polars),
    (labelled.is_labelled, labelled.open_labelled),
    (omics.is_mudata, omics.open_mudata),
    (omics.is_anndata, omics.open_anndata),
)


def open_sources(origin: object, request: Request) -> list[Source]:
    """Sources of whatever can be read: a path, an object, or a dict of these by modality.

    Raises:
        FileNotFoundError: there is nothing at a path.
        ArgumentError: a path has an ending that is not known, or a folder holds nothing to read, or too many things.
        ArgumentTypeError: it is none of these.
        SchemaError: ids are asked for of a modality that there is not.

    Example:
        >>> import numpy as np
        >>> [source.modalities for source in open_sources({"text": np.eye(2), "image": np.ones((2, 3))}, Request())]
        [{'text': 2}, {'image': 3}]
    """
    opener = next((opener for takes, opener in OBJECTS if takes(origin)), None)
    if isinstance(request.ids, Mapping):
        # a Dataset of xarray is a Mapping too, and one origin
        _require_origins(request.ids, origin if opener is None and isinstance(origin, Mapping) else None)
    if opener is not None:
        return opener(origin, request)
    if isinstance(origin, Mapping):
        return [source for name, entry in origin.items() for source in _entry(name, entry, request)]
    if isinstance(origin, str | os.PathLike):
        return _open_path(os.fspath(origin), request)
    raise ArgumentTypeError(
        f"origin: expected a path, a frame, AnnData, MuData, a Dataset of xarray or a dict of these, got "
        f"{brief(origin)}; wrap arrays in a dict by modality, and of several files of the same columns give their "
        "folder or a glob, such as 'rows/*.parquet'."
    )


def _require_origins(ids: Mapping[str, str], origins: Mapping[Any, Any] | None) -> None:
    """Refuse columns of identifiers by modality where there is one origin, or for one that there is not."""
    if origins is None:
        raise ArgumentError(
            "ids: a column for each modality is for a dict of origins, and this is one origin; name its column, as "
            f"ids={next(iter(ids.values()), 'id')!r}."
        )
    unknown = next((name for name in ids if name not in origins), None)
    if unknown is not None:
        raise SchemaError(f"ids: no modality is called {unknown!r}; the modalities are {listed(origins)}.")


def _entry(name: object, entry: object, request: Request) -> list[Source]:
    """The sources of one entry of a dict: its modality is called by the key, several of them by key and name."""
    if not isinstance(name, str) or not name:
        raise ArgumentTypeError(f"origin: expected names of modalities as keys, got {brief(name)}.")
    sources = open_sources(entry, request.of(name))
    found = [inner for source in sources for inner in source.modalities]
    names = {inner: name if len(found) == 1 else f"{name}:{inner}" for inner in found}
    return [source.called({inner: names[inner] for inner in source.modalities}) for source in sources]


def _open_path(path: str, request: Request) -> list[Source]:
    """The files that a path, folder or glob names."""
    place = place_of(path, "origin")
    if isinstance(place, Remote):
        return _open_remote(path, place, request)
    path = os.fspath(place)
    files, where = _files(path)
    endings = sorted({_ending(file) for file in files})
    known = [ending for ending in endings if ending in FILES]
    if len(known) != 1:
        what = (
            f"holds files of several kinds, {known}"
            if known
            else f"has the ending {endings[0]!r}"
            if endings
            else "is empty"
        )
        raise ArgumentError(
            f"origin: {where} {what}; the endings that can be read are {list(FILES)}; of several kinds pass a dict of "
            "paths by modality, and read what cal.save wrote by cal.load."
        )
    chosen = [file for file in files if _ending(file) == known[0]]
    if len(chosen) > 1 and known[0] not in TOGETHER:
        raise ArgumentError(
            f"origin: {where} holds {len(chosen)} {known[0]} files; pass a dict of paths by modality, such as "
            f"{{{chosen[0].stem!r}: {str(chosen[0])!r}}}."
        )
    named = replace(request, name=chosen[0].stem) if len(chosen) == 1 and request.name == Request.name else request
    return FILES[known[0]](chosen, named)


def _open_remote(url: str, place: Remote, request: Request) -> list[Source]:
    """The parquet files that a URL names: one, those in a folder, or those that a glob matches."""
    with reached(url, "origin"):
        if glob.has_magic(place.path):
            found = [Remote(place.system, path) for path in place.system.glob(place.path)]
        elif place.is_dir():
            start = len(place.path)
            found = [
                Remote(place.system, path) for path in place.system.find(place.path) if not _hidden(Path(path[start:]))
            ]
        else:
            found = [place] if place.exists() else []
        if not found:
            raise FileNotFoundError(f"origin: there is nothing at {url}; check its name.")
        other = next((file for file in found if file.suffix.lower() != ".parquet"), None)
        if other is not None:
            raise ArgumentError(
                f"origin: of URLs parquet alone is read, and {other} is none; copy it, and read the copy."
            )
        named = replace(request, name=found[0].stem) if len(found) == 1 and request.name == Request.name else request
        return parquet.open_parquet(sorted(found), named)


def files_read(path: str) -> list[Path]:
    """Files that :func:`open_sources` reads of a path, a folder or a glob; none where there is nothing to read."""
    try:
        found, _ = _files(path)
    except FileNotFoundError:
        return []
    return [file for file in found if _ending(file) in FILES]


def _files(path: str) -> tuple[list[Path], str]:
    """The files at a path, in a folder, or that a glob matches; and how messages call them."""
    place = Path(path)
    store = place.is_dir() and (
        place.suffix.lower() == ".zarr" or any((place / f).is_file() for f in ("zarr.json", ".zgroup"))
    )
    if store:
        return [place], f"store {path}"
    if place.is_dir():
        return sorted(
            f for f in place.rglob("*") if f.is_file() and not _hidden(f.relative_to(place))
        ), f"folder {path}"
    if glob.has_magic(path) and not place.exists():
        found = sorted(Path(file) for file in glob.glob(path, recursive=True))
        if found:
            return found, f"glob {path}"
    elif place.exists():
        return [place], f"file {path}"
    raise FileNotFoundError(f"origin: there is no {path!r} (looked from {Path.cwd()}); check its name.")


def _ending(path: Path) -> str:
    return ".zarr" if path.is_dir() else path.suffix.lower()


def _hidden(path: Path) -> bool:
    return any(part[:1] in "._" for part in path.parts)
