"""MuData files (.h5mu) in the layout that mudata documents, matrices by rows and frames by anndata."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from calmrl_prob._support.extras import optional
from calmrl_prob._support.files import write_atomically
from calmrl_prob._support.versions import installed_version
from calmrl_prob.data.features import Names
from calmrl_prob.writing.contents import (
    Chunk,
    Contents,
    columns_of,
    names_of_all,
    one_dimensional,
    require_apart,
    require_no_paths,
)

# A group or data set of h5py, a pandas frame: packages without annotations.
Group = Any
_TASK = "writing .h5mu"
_USER_BLOCK = 512
_DICTS = ("layers", "obsm", "obsp", "varm", "varp", "uns")


def write_h5mu(contents: Contents, path: Path) -> None:
    """Write contents as MuData: an assay over all instances for each modality.

    X is what is completed, or the data, and every other quantity a layer; latents are in ``obsm`` of the whole, what is
    known of the instances in ``obs``, facts such as the level of the intervals in ``uns``.

    Raises:
        ArgumentError: the number of rows is not known before, or a modality's name is a path, or that of the latents.
        DataError: a covariate has several numbers for an instance.
    """
    h5py = optional("h5py", "omics", _TASK)
    require_no_paths(contents.dims, ".h5mu")
    require_apart(names_of_all(contents), ".h5mu")
    num_rows, columns = contents.known_rows, []
    with write_atomically(path) as temporary:
        with h5py.File(temporary, "w", userblock_size=_USER_BLOCK) as root:
            mark(root, "MuData", "0.1.0", axis=0, encoder="calmrl-prob")
            root.attrs["encoder-version"] = installed_version("calmrl-prob")
            mod = root.create_group("mod")
            mod.attrs["mod-order"] = list(contents.dims)
            groups = {name: _assay(mod, name) for name in contents.dims}
            _dicts(root, [*_DICTS[1:], "obsmap", "varmap"])
            for chunk in contents.chunks():
                columns.append(chunk.columns)
                _put(root, groups, chunk, num_rows)
            known = {name: one_dimensional(name, column) for name, column in columns_of(columns).items()}
            names = {name: _names(name, contents.feature_names.get(name), d) for name, d in contents.dims.items()}
            _annotate(root, groups, known, names, num_rows)
            write = optional("anndata.io", "omics", _TASK).write_elem
            write(root["uns"], "calmrl_prob", dict(contents.facts))
        _sign(temporary)


def _put(root: Group, groups: Mapping[str, Group], chunk: Chunk, num_rows: int) -> None:
    """Write the rows of a chunk."""
    rows = slice(chunk.start, chunk.stop)
    for name, quantities in chunk.values.items():
        for quantity, values in quantities.items():
            place = "X" if quantity in ("x", "completed") else f"layers/{quantity}"
            _room(groups[name], place, values, num_rows)[rows] = values
    for name, values in chunk.latents.items():
        _room(root["obsm"], name, values, num_rows)[rows] = values


def _annotate(
    root: Group,
    groups: Mapping[str, Group],
    columns: Mapping[str, NDArray[Any]],
    names: Mapping[str, Sequence[str]],
    num_rows: int,
) -> None:
    """Write what is known of instances and features, and which of them each assay has: all, and its own."""
    ids = columns.get("ids", np.arange(num_rows))
    known = {name: column for name, column in columns.items() if name != "ids"}
    _write_frame(root, "obs", ids, known)
    everything = [feature for found in names.values() for feature in found]
    _write_frame(root, "var", everything, {})
    start = 0
    for name, group in groups.items():
        _write_frame(group, "obs", ids, {})
        _write_frame(group, "var", names[name], {})
        own = np.zeros(len(everything), dtype=np.uint32)
        own[start : start + len(names[name])] = np.arange(1, len(names[name]) + 1)
        start += len(names[name])
        for key, values in {
            f"obsm/{name}": np.ones((num_rows, 1), dtype=bool),
            f"varm/{name}": (own > 0)[:, None],
            f"obsmap/{name}": np.arange(1, num_rows + 1, dtype=np.uint32),
            f"varmap/{name}": own,
        }.items():
            mark(root.create_dataset(key, data=values), "array", "0.2.0")


def _assay(mod: Group, name: str) -> Group:
    group = mod.create_group(name)
    mark(group, "anndata", "0.1.0")
    _dicts(group, _DICTS)
    return group


def _dicts(group: Group, names: Sequence[str]) -> None:
    for name in names:
        mark(group.create_group(name), "dict", "0.1.0")


def mark(item: Group, kind: str, version: str, **more: Any) -> None:
    """State the kind of an element as anndata does."""
    item.attrs.update({"encoding-type": kind, "encoding-version": version, **more})


def _room(group: Group, place: str, values: NDArray[Any], num_rows: int) -> Group:
    """The data set of a quantity, made for all rows when the first come."""
    if place not in group:
        mark(group.create_dataset(place, (num_rows, values.shape[1]), values.dtype), "array", "0.2.0")
    return group[place]


def _names(name: str, features: Names | None, width: int) -> list[str]:
    """Names of features as texts; the modality and the number of each where there are none."""
    return [f"{name}:{place}" for place in range(width)] if features is None else list(map(str, features))


def _write_frame(group: Group, key: str, index: Any, columns: Mapping[str, NDArray[Any]]) -> None:  # noqa: ANN401
    """Write a frame; texts as objects, since anndata refuses those of newer pandas."""
    import pandas as pd

    frame = pd.DataFrame(index=pd.Index(list(map(str, index)), dtype=object))
    for name, column in columns.items():
        values: Any = column
        if column.dtype.kind not in "biuf":
            texts = [None if entry is None else str(entry) for entry in column.tolist()]
            kinds = pd.Index([text for text in dict.fromkeys(texts) if text is not None], dtype=object)
            values = pd.Categorical(texts, categories=kinds)
        frame[name] = values
    optional("anndata.io", "omics", _TASK).write_elem(group, key, frame)


def _sign(path: Path) -> None:
    """Fill the block before the contents with the words by which mudata knows its files."""
    words = f"MuData (format-version=0.1.0;creator=calmrl-prob;creator-version={installed_version('calmrl-prob')})"
    with open(path, "br+") as file:
        file.write(words.encode().ljust(_USER_BLOCK, b"\0"))
