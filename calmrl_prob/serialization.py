"""Models and indexes in files: one safetensors file each, with a JSON description in its header. Nothing is pickled.

The tensors are the model's ``state_dict``, or the parameters of a ``LinearGaussian`` as "loadings/<name>" and so on.
The intervals of a fit that chose its settings go with its model, as tensors "intervals/...". The file itself is that of
``_support/archives.py``, an index's contents are in ``index/archive.py``.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from calmrl_prob._support.archives import Kind, read_archive, write_archive
from calmrl_prob.data.features import from_lists, names_of
from calmrl_prob.errors import ArgumentTypeError
from calmrl_prob.file_contents import (
    require_model_contents,
    require_structure_contents,
    structure_from_tensors,
    structure_tensors,
)
from calmrl_prob.index.archive import KIND as _INDEX
from calmrl_prob.index.archive import require_index_contents
from calmrl_prob.index.retrieval_index import RetrievalIndex
from calmrl_prob.inference.result import FitResult
from calmrl_prob.linear_gaussian import LinearGaussian
from calmrl_prob.model import SharedLatentModel
from calmrl_prob.priors import PRIORS
from calmrl_prob.selection.intervals import HeldOutIntervals

_MODEL, _STRUCTURE = "SharedLatentModel", "LinearGaussian"
#: What the tensors of a model's intervals are called by.
_INTERVALS = "intervals/"


def save(model: SharedLatentModel | LinearGaussian | FitResult | RetrievalIndex, path: str | os.PathLike[str]) -> None:
    """Write a model, or an index, to a file; :func:`load` gives it back bit by bit.

    The file is written beside ``path`` and then moved there, so that ``path`` never holds half a model.

    Args:
        model: what to save, or a fit, of which the model is saved. Gradients and the device are not kept; the intervals
            of a fit that chose its settings are.
        path: where; an existing file is replaced.

    Raises:
        ArgumentTypeError: ``model`` is of another type, or ``path`` is no path.
        ArgumentError: ``path`` is empty or a folder.
        FileNotFoundError: the folder of ``path`` does not exist.
        OSError: the file cannot be written.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> path = Path(tempfile.mkdtemp()) / "model.safetensors"
        >>> save(SharedLatentModel({"image": 3}, latent_dim=2), path)
        >>> load(path)
        SharedLatentModel(image: 3; latent_dim=2, noise='isotropic', prior=normal)
    """
    if isinstance(model, RetrievalIndex):
        return model.save(path)
    if isinstance(model, FitResult):
        model = model.model
    if isinstance(model, SharedLatentModel):
        model.require_settled()
        config: dict[str, Any] = {
            "kind": _MODEL,
            "dims": model.dims,
            **({"feature_names": names_of(model.dims)} if names_of(model.dims) else {}),
            "latent_dim": model.latent_dim,
            "noise": model.noise,
            **({"noise_rank": model.noise_rank} if model.noise == "low_rank" else {}),
            "prior": model.prior.name,
            "prior_config": model.prior.config(),
            "dtype": str(model.dtype).removeprefix("torch."),
        }
        tensors = dict(model.state_dict())
        intervals = getattr(model, "intervals", None)
        if isinstance(intervals, HeldOutIntervals) and intervals.fits(model):
            config["intervals"], found = intervals.to_tensors()
            tensors |= {f"{_INTERVALS}{key}": tensor for key, tensor in found.items()}
    elif isinstance(model, LinearGaussian):
        config = {"kind": _STRUCTURE, "names": model.names}
        tensors = structure_tensors(model)
    else:
        raise ArgumentTypeError(
            f"model: expected a SharedLatentModel, a LinearGaussian or a RetrievalIndex, got {type(model).__name__}; "
            "for another torch module save its state_dict with safetensors."
        )
    # copies: tensors may share memory or be views, which the format does not know; ``contiguous`` alone would leave a
    # single number that was expanded a view
    separate = {
        key: tensor.detach().cpu().clone(memory_format=torch.contiguous_format) for key, tensor in tensors.items()
    }
    write_archive(path, config, separate)


def load(path: str | os.PathLike[str]) -> SharedLatentModel | LinearGaussian | RetrievalIndex:
    """Read a model, or an index, that :func:`save` wrote.

    Returns:
        A thing of the same kind, on the CPU, in the floating-point type that it was saved in.

    Raises:
        FileNotFoundError: there is no such file.
        FileFormatError: the file is damaged, of another origin, or from a newer version.
        ArgumentError, ArgumentTypeError: ``path`` is a folder, or no path.
    """
    return read_archive(path, _KINDS)


def _build_model(config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> SharedLatentModel:
    dtype = {"float32": torch.float32, "float64": torch.float64}[config["dtype"]]
    prior = PRIORS[config["prior"]](config["latent_dim"], **config.get("prior_config", {}))
    settings = (from_lists(config["dims"], config.get("feature_names")), config["latent_dim"], config["noise"], prior)
    model = SharedLatentModel(*settings, dtype=dtype, noise_rank=config.get("noise_rank"))
    model.load_state_dict({key: tensor for key, tensor in tensors.items() if not key.startswith(_INTERVALS)})
    if "intervals" in config:
        own = {key.removeprefix(_INTERVALS): t for key, t in tensors.items() if key.startswith(_INTERVALS)}
        model.intervals = HeldOutIntervals.from_tensors(config["intervals"], own, model)
    return model


def _build_structure(config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> LinearGaussian:
    return structure_from_tensors(config["names"], tensors)


_KINDS: dict[str, Kind[SharedLatentModel | LinearGaussian | RetrievalIndex]] = {
    _MODEL: (require_model_contents, _build_model),
    _STRUCTURE: (require_structure_contents, _build_structure),
    _INDEX: (require_index_contents, RetrievalIndex.from_tensors),
}
