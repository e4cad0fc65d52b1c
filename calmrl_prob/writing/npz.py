"""Archives of numpy arrays (.npz), written through arrays on disk, so that none lies in memory as a whole."""

from __future__ import annotations

import tempfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib.format import open_memmap

from calmrl_prob._support.files import write_atomically
from calmrl_prob.io import npz_columns
from calmrl_prob.writing.contents import Contents, columns_of, names_of_all, require_apart


def write_npz(contents: Contents, path: Path) -> None:
    """Write contents to one archive: ``x_<name>`` what is completed, ``<quantity>_<name>`` the rest.

    Raises:
        ArgumentError: the number of rows is not known before, or a name would stand twice.
    """
    require_apart(names_of_all(contents), ".npz")
    num_rows = contents.known_rows
    columns = []
    with write_atomically(path) as temporary, tempfile.TemporaryDirectory(dir=temporary.parent) as folder:
        places: dict[str, Any] = {}
        for chunk in contents.chunks():
            columns.append(chunk.columns)
            found = dict(chunk.latents)
            for name, quantities in chunk.values.items():
                found |= {f"{'x' if q in ('x', 'completed') else q}_{name}": v for q, v in quantities.items()}
            for key, values in found.items():
                if key not in places:
                    shape = (num_rows, values.shape[1])
                    places[key] = open_memmap(Path(folder) / f"{len(places)}.npy", "w+", values.dtype, shape)
                places[key][chunk.start : chunk.stop] = values
        with zipfile.ZipFile(temporary, "w") as archive:
            for number, (key, array) in enumerate(places.items()):
                array.flush()
                archive.write(Path(folder) / f"{number}.npy", f"{key}.npy")
            for key, array in npz_columns(columns_of(columns), contents.feature_names, "features").items():
                with archive.open(f"{key}.npy", "w") as member:
                    np.lib.format.write_array(member, array, allow_pickle=False)
