"""Parquet: a column of lists for each quantity of each modality, a row group for each chunk."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from calmrl_prob._support.extras import optional
from calmrl_prob._support.files import write_atomically
from calmrl_prob._support.remote import Remote
from calmrl_prob.writing.contents import Chunk, Contents, one_dimensional, require_apart


def write_parquet(contents: Contents, path: Path | Remote) -> None:
    """Write contents to one parquet file."""
    pa = optional("pyarrow", "arrow", "writing parquet")
    parquet = optional("pyarrow.parquet", "arrow", "writing parquet")
    facts = {f"calmrl_prob.{name}": str(value) for name, value in contents.facts.items()}
    with write_atomically(path) as temporary:
        writer = None
        try:
            for chunk in contents.chunks():
                table = _table(pa, contents, chunk, None if writer is None else writer.schema)
                if writer is None:
                    schema = table.schema.with_metadata({**facts})
                    writer = parquet.ParquetWriter(temporary, schema)
                writer.write_table(table.cast(writer.schema), row_group_size=max(1, len(table)))
        finally:
            if writer is not None:
                writer.close()


def _table(pa: Any, contents: Contents, chunk: Chunk, schema: Any) -> Any:  # noqa: ANN401 - pyarrow
    """A chunk as a table, of the types of the first one."""
    arrays: list[Any] = []
    fields: list[Any] = []
    for name, column in chunk.columns.items():
        known = None if schema is None else schema.field(name).type
        entries = one_dimensional(name, column)
        arrays.append(pa.array(entries.tolist() if entries.dtype.kind in "OU" else entries, known))
        fields.append(pa.field(name, arrays[-1].type))
    for name, quantities in chunk.values.items():
        names = contents.feature_names.get(name)
        about = None if names is None else {"features": json.dumps(names)}
        for quantity, values in quantities.items():
            _add(pa, name if quantity in ("x", "completed") else f"{name}.{quantity}", values, about, arrays, fields)
    for name, values in chunk.latents.items():
        _add(pa, name, values, None, arrays, fields)
    require_apart((field.name for field in fields), "parquet")
    return pa.Table.from_arrays(arrays, schema=pa.schema(fields))


def _add(
    pa: Any,  # noqa: ANN401 - pyarrow
    name: str,
    values: NDArray[Any],
    about: dict[str, str] | None,
    arrays: list[Any],
    fields: list[Any],
) -> None:
    """A matrix as a column of lists of its width."""
    arrays.append(
        pa.FixedSizeListArray.from_arrays(pa.array(np.ascontiguousarray(values).reshape(-1)), values.shape[1])
    )
    fields.append(pa.field(name, arrays[-1].type, metadata=about))
