"""Queries of any kind a user has: vectors, frames, MultimodalData; one or many."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from calmrl_prob._support.arguments import brief
from calmrl_prob.data import MultimodalData
from calmrl_prob.errors import ArgumentTypeError
from calmrl_prob.evaluation.retrieval.instance_sets import require_known
from calmrl_prob.index.measured import Floats, Instrument, Measured

#: Anything that :meth:`RetrievalIndex.search` takes.
Queries = MultimodalData | Mapping[str, Any]


def measured_rows(
    instrument: Instrument, dims: Mapping[str, int], rows: Queries, argument: str
) -> tuple[list[Measured], int, bool]:
    """Queries by pattern, how many there are, and whether it is a single one given as vectors (D_m,).

    Raises:
        ArgumentTypeError, DataError, SchemaError: naming ``argument``, or the modality and row.
    """
    plain = _plain(rows, dims)
    if plain is not None:  # checked as far as there is anything to check: no labels, no NaN
        vectors, single = plain
        number = len(next(iter(vectors.values())))
        pattern = instrument.of_names(tuple(vectors))
        return [Measured(pattern, np.arange(number), instrument.natural_mean(vectors))], number, single
    data, single = as_data(rows, argument)
    require_known(data, dims, argument)
    data = data.in_order_of(dims, argument)
    return list(instrument.measure(data)), len(data), single


def as_data(rows: Queries, argument: str) -> tuple[MultimodalData, bool]:
    """Queries as data, in which single features may be missing, and whether it is a single one given as vectors."""
    if isinstance(rows, MultimodalData):
        return rows, False
    if not isinstance(rows, Mapping):
        raise ArgumentTypeError(
            f"{argument}: expected MultimodalData, or a dict of modalities to vectors (D,) or arrays (N, D), got "
            f"{brief(rows)}; pass one such as {{'image': vector}}."
        )
    flat = [np.ndim(value) == 1 for value in rows.values()]
    single = bool(flat) and all(flat)
    return MultimodalData({n: _as_rows(v, single) for n, v in rows.items()}, missing="features"), single


def _as_rows(value: Any, single: bool) -> Any:  # noqa: ANN401 - anything that becomes an array
    """A vector as a row; of a pandas Series, whose index names features, as a frame of one."""
    if single and hasattr(value, "to_frame") and hasattr(value, "index"):
        return value.to_frame().T.reset_index(drop=True)
    if single and hasattr(value, "expand_dims"):  # of xarray: its coordinate names features
        return value.expand_dims("query")
    if isinstance(value, list | tuple) or (single and not isinstance(value, Tensor)):
        value = np.asarray(value)
    return value[None] if single else value


def _plain(rows: Queries, dims: Mapping[str, int]) -> tuple[dict[str, Floats], bool] | None:
    """Finite float arrays of known modalities as they are, the usual case, in microseconds; else None."""
    if not isinstance(rows, Mapping) or not rows:
        return None
    found, shapes = {}, set()
    for name, array in _arrays(rows):
        if array is None or array.dtype.kind != "f" or array.ndim not in (1, 2) or array.shape[-1] != dims.get(name):
            return None
        shapes.add(array.shape[:-1])
        found[name] = array.reshape(-1, array.shape[-1]).astype(np.float64)
        if not np.isfinite(found[name]).all():
            return None
    if len(shapes) > 1 or (0,) in shapes:
        return None
    return found, shapes == {()}


def _arrays(rows: Mapping[str, Any]) -> Iterator[tuple[str, np.ndarray | None]]:
    for name, value in rows.items():
        if isinstance(value, Tensor) and value.is_floating_point() and value.layout == torch.strided:
            yield name, value.detach().cpu().double().numpy()
        else:
            yield name, value if type(value) in (np.ndarray, np.memmap) else None
