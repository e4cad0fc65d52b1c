"""Taking in what users hand over: arrays to tensors without copying, and a check of every row at one product's cost.

:class:`calmrl_prob.MultimodalData` calls these; they know nothing of it.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterable, Mapping
from os import PathLike
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from torch import Tensor

from calmrl_prob._support.global_state import exclusive
from calmrl_prob.data.entries import entries
from calmrl_prob.data.row_labels import RowLabels
from calmrl_prob.errors import ArgumentTypeError, DataError

#: Numbers looked at closely at once: on a CPU what its cache holds, on a GPU enough to keep it busy.
_CLOSE_LOOK = {"cpu": 2**18, "cuda": 2**26}


def named_arrays(arrays: object) -> dict[str, Any]:
    """The modalities as a dict, from a mapping or from (name, array) pairs.

    Raises:
        ArgumentTypeError: ``arrays`` is neither, or a name is not a string.
        DataError: there is no modality, or a name stands twice.

    Example:
        >>> sorted(named_arrays([("text", 1), ("image", 2)]))
        ['image', 'text']
    """
    remedy = "pass a dict such as {'image': X1, 'text': X2}"
    if isinstance(arrays, str | PathLike):
        remedy = "a path is not read: load the file first, as by calmrl_prob.load_npz"
    pairs: list[Any]
    if isinstance(arrays, Mapping):
        pairs = list(arrays.items())
    elif isinstance(arrays, Iterable) and not (hasattr(arrays, "__array__") or isinstance(arrays, str)):
        pairs = list(arrays)
        if not all(isinstance(pair, tuple | list) and len(pair) == 2 for pair in pairs):
            raise ArgumentTypeError(f"arrays: expected a mapping or (name, array) pairs, got other items; {remedy}.")
    else:
        if hasattr(arrays, "var_names"):  # AnnData: rows and features keep their labels
            remedy = "name it, {'rna': adata}"
        raise ArgumentTypeError(
            f"arrays: expected a mapping of names to (N, D_m) arrays, got {type(arrays).__name__}; {remedy}."
        )
    named: dict[str, Any] = {}
    for name, array in pairs:
        if not isinstance(name, str) or not name:
            raise ArgumentTypeError(f"arrays: expected modality names that are non-empty strings, got {name!r}.")
        if name in named:
            raise DataError(f"arrays: modality {name!r} is given twice; give each modality a name of its own.")
        named[name] = array
    if not named:
        raise DataError(f"arrays: expected at least one modality, got none; {remedy}.")
    return named


def as_matrix(name: str, value: object) -> Tensor:
    """One modality as a floating-point (N, D_m) tensor that shares memory with ``value`` where it can.

    float32 and float64 stay; float16 and bfloat16 become float32; integers, booleans and wider floats become float64.

    Raises:
        ArgumentTypeError: text, objects, complex numbers, sparse or nested layouts, or no array at all.
        DataError: not two-dimensional, no rows, or no features.

    Example:
        >>> as_matrix("text", np.zeros((3, 2), dtype=np.float16)).dtype
        torch.float32
        >>> as_matrix("counts", np.zeros((3, 2), dtype=np.int64)).dtype
        torch.float64
    """
    tensor = value if isinstance(value, Tensor) else _from_numpy(_to_numpy(name, value))
    if tensor.layout != torch.strided or tensor.is_nested:
        raise ArgumentTypeError(f"modality {name!r}: expected a dense tensor, got {tensor.layout}; use .to_dense().")
    if tensor.is_complex():
        raise ArgumentTypeError(
            f"modality {name!r}: expected real numbers, got {tensor.dtype}; stack the real and imaginary parts."
        )
    if tensor.dtype in (torch.float16, torch.bfloat16):
        tensor = tensor.float()
    elif tensor.dtype not in (torch.float32, torch.float64):
        tensor = tensor.double()
    if tensor.ndim != 2:
        remedy = "use x[:, None] for a single feature" if tensor.ndim == 1 else "flatten each instance to one row"
        raise DataError(f"modality {name!r}: expected shape (N, D), got {tuple(tensor.shape)}; {remedy}.")
    if tensor.shape[0] == 0:
        raise DataError(f"modality {name!r}: expected at least one row, got shape {tuple(tensor.shape)}.")
    if tensor.shape[1] == 0:
        raise DataError(f"modality {name!r}: expected at least one feature, got shape {tuple(tensor.shape)}.")
    return tensor


class RowCheck(NamedTuple):
    """Findings of the check of a modality's rows: (N,) bool each.

    Attributes:
        absent: every feature is NaN.
        partial: some features are NaN, not all.
        infinite: some feature is infinite.
    """

    absent: Tensor
    partial: Tensor
    infinite: Tensor


def check_rows(values: Tensor) -> RowCheck:
    """Find the rows of an (N, D) array that hold NaN or infinities.

    A row whose sum is finite has only finite entries. The sums are one matrix-vector product; only rows whose sum is
    not finite (they may merely have overflowed) are looked at entry by entry.

    Example:
        >>> found = check_rows(torch.tensor([[1.0, 2.0], [torch.nan, torch.nan], [torch.nan, 1.0]]))
        >>> found.absent.tolist(), found.partial.tolist(), found.infinite.any().item()
        ([False, True, False], [False, False, True], False)
    """
    with torch.no_grad():
        sums = values @ values.new_ones(values.shape[1])
        suspects = (~torch.isfinite(sums)).nonzero().squeeze(1)
        found = RowCheck(*(torch.zeros(len(values), dtype=torch.bool, device=values.device) for _ in range(3)))
        step = max(1, _CLOSE_LOOK.get(values.device.type, 2**18) // values.shape[1])
        for start in range(0, len(suspects), step):
            rows = suspects[start : start + step]
            nan = values[rows].isnan()
            whole = nan.all(dim=1)
            found.absent[rows] = whole
            kept = rows[~whole]
            if len(kept):
                found.partial[kept] = nan[~whole].any(dim=1)
                found.infinite[kept] = values[kept].isinf().any(dim=1)
    return found


def as_observed_mask(value: object, names: tuple[str, ...], rows: RowLabels, device: torch.device) -> Tensor:
    """An ``observed_mask`` argument as an (N, M) bool tensor.

    Args:
        value: (N, M) bool array with columns in the order of ``names``, or a mapping (or DataFrame) of names to (N,)
            bool arrays, in which a modality that is left out counts as present everywhere.
        names: the M modalities.
        rows: what the N rows are called; a DataFrame's are brought into their order.
        device: where the result is to live.

    Raises:
        ArgumentTypeError: the entries are not booleans.
        DataError: the shape is wrong, a name is unknown, or rows are labelled as others.
    """
    num_instances = rows.num_instances
    value = rows.arranged("observed_mask", value)
    if hasattr(value, "to_pandas") and len(getattr(value, "coords", ())) == 2:  # an xarray array with both labels
        value = value.to_pandas()
    if isinstance(value, Mapping) or _is_frame(value):
        columns: dict[Any, Any] = {key: value[key] for key in value}  # type: ignore[index,attr-defined]
        unknown = [key for key in columns if key not in names]
        if unknown:
            raise DataError(f"observed_mask: no modality is called {unknown[0]!r}; the modalities are {list(names)}.")
        out = torch.ones(num_instances, len(names), dtype=torch.bool, device=device)
        for name, column in columns.items():
            argument = f"observed_mask[{name!r}]"
            column = rows.arranged(argument, column) if isinstance(value, Mapping) else column
            out[:, names.index(name)] = _as_bool(argument, column, (num_instances,), device)
        return out
    return _as_bool("observed_mask", value, (num_instances, len(names)), device)


def as_column(argument: str, value: object, num_instances: int, *, one_dimensional: bool = True) -> np.ndarray:
    """Labels, ids or a covariate as a numpy array with one entry per instance.

    Raises:
        DataError: the number of rows is not N, or more than one dimension came where one is expected.
    """
    array = entries(value)
    expected = f"({num_instances},)" if one_dimensional else f"({num_instances}, ...)"
    if array.ndim == 0 or len(array) != num_instances or (one_dimensional and array.ndim != 1):
        raise DataError(f"{argument}: expected shape {expected}, one entry per instance, got {array.shape}.")
    return array


def _as_bool(argument: str, value: object, shape: tuple[int, ...], device: torch.device) -> Tensor:
    tensor = value if isinstance(value, Tensor) else None
    if tensor is None:
        array = np.asarray(value)
        if array.dtype == object and all(isinstance(entry, bool | np.bool_) for entry in array.flat):
            array = array.astype(bool)
        if array.dtype != bool:
            raise ArgumentTypeError(
                f"{argument}: expected booleans with True = PRESENT, got {array.dtype}; use .astype(bool)."
            )
        tensor = torch.tensor(array)
    if tensor.dtype != torch.bool:
        raise ArgumentTypeError(f"{argument}: expected booleans with True = PRESENT, got {tensor.dtype}; use .bool().")
    if tuple(tensor.shape) != shape:
        kind = "(N, M)" if len(shape) == 2 else "(N,)"
        raise DataError(f"{argument}: expected shape {kind} = {shape}, got {tuple(tensor.shape)}.")
    return tensor.to(device)


def _is_frame(value: object) -> bool:
    # A DataFrame can only come from a pandas that is already imported, so the library need not import it (it is slow).
    pandas = sys.modules.get("pandas")
    return pandas is not None and isinstance(value, pandas.DataFrame)


def _without_annotations(name: str, value: Any) -> Any:  # noqa: ANN401 - whatever the user gives
    """The matrix X of an AnnData; anything else as it is."""
    if not (hasattr(value, "var_names") and hasattr(value, "X")):
        return value
    if not hasattr(value.X, "__array__"):
        raise ArgumentTypeError(
            f"modality {name!r}: expected a dense X, got {type(value.X).__name__}; pass its frame, .to_df()."
        )
    return value.X


def _remedy(value: object) -> str:
    """Remedy for something that is no array, in words."""
    if hasattr(value, "toarray"):
        return "use .toarray()"
    if isinstance(value, str | bytes | PathLike):
        return "a path is not read: load the file first, as by numpy.load, pandas.read_csv or calmrl_prob.load_npz"
    if value is None:
        return "leave out a modality that is not there"
    if isinstance(value, list | tuple):
        return "wrap it in numpy.asarray"
    return "pass the array, tensor or frame that it holds"


def _to_numpy(name: str, value: object) -> np.ndarray:
    array: Any
    value = _without_annotations(name, value)
    expected = f"modality {name!r}: expected numbers in an (N, D) array"
    if _is_frame(value):
        frame: Any = value
        for column, dtype in zip(frame.columns, frame.dtypes, strict=True):
            if getattr(dtype, "kind", "O") not in "fiub":
                raise ArgumentTypeError(f"{expected}, got column {column!r} of type {dtype}; encode or drop it.")
        array = frame.to_numpy()
        if array.dtype == object:  # nullable columns, or booleans beside floats
            array = frame.to_numpy(dtype=np.float64, na_value=np.nan)
    elif isinstance(value, np.ma.MaskedArray):
        masked: Any = value
        kept = masked.dtype if masked.dtype.kind not in "iub" else np.float64
        array = masked.astype(kept).filled(np.nan) if masked.dtype.kind in "fiub" else masked.data
    elif hasattr(value, "__array__"):
        try:
            array = np.asarray(value)
        except (TypeError, ValueError, RuntimeError) as error:  # an xarray Dataset, say, which is many arrays
            raise ArgumentTypeError(
                f"{expected}, got {type(value).__name__}, which gives numpy none ({error}); {_remedy(value)}."
            ) from error
    else:
        kind = "None" if value is None else type(value).__name__
        raise ArgumentTypeError(f"{expected}, torch tensor or pandas DataFrame, got {kind}; {_remedy(value)}.")
    if array.dtype.kind not in "fiub":
        remedy = "use .astype(float) if they are numbers" if array.dtype == object else "convert it to numbers first"
        raise ArgumentTypeError(f"{expected}, got dtype {array.dtype}; {remedy}.")
    if array.dtype.kind != "f" or array.dtype.itemsize > 8:
        array = array.astype(np.float64)
    return cast("np.ndarray", array)


def _from_numpy(array: np.ndarray) -> Tensor:
    if not array.dtype.isnative:
        array = array.astype(array.dtype.newbyteorder("="))
    if any(stride < 0 or stride % array.itemsize for stride in array.strides):
        array = array.copy()  # layouts that torch cannot view
    with exclusive(), warnings.catch_warnings():
        # torch warns of read-only memory (memory maps, pandas); the library never writes to its inputs.
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(array)
