"""Models and indexes in files: one safetensors file each, with a JSON description in its header. Nothing is pickled.

The tensors are the model's ``state_dict``, or the parameters of a ``LinearGaussian`` as "loadings/<name>" and so on.
The intervals of a fit that chose its settings go with its model, as tensors "intervals/...". The file itself is that of
``_support/archives.py``, an index's contents are in ``index/archive.py``, those of an ``Alignment`` in
``training/stored.py``.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TypeGuard

import torch
from torch import Tensor, nn

from calmrl_prob._support.archives import Kind, read_archive, separate, write_archive
from calmrl_prob._support.trees import put_together, taken_apart
from calmrl_prob.data.features import from_lists, names_of
from calmrl_prob.errors import ArgumentError, ArgumentTypeError
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

if TYPE_CHECKING:  # it needs Lightning
    from calmrl_prob.training.alignment import Alignment
    from calmrl_prob.training.stored import StoredAlignment
else:
    Alignment = StoredAlignment = Any  # for whoever looks up annotations at run time

_MODEL, _STRUCTURE, _ALIGNMENT = "SharedLatentModel", "LinearGaussian", "Alignment"
#: What the tensors of a model's intervals are called by.
_INTERVALS = "intervals/"


def save(
    model: SharedLatentModel | LinearGaussian | FitResult | RetrievalIndex | Alignment, path: str | os.PathLike[str]
) -> None:
    """Write a model, an index or an alignment to a file; :func:`load` gives it back bit by bit.

    The file is written beside ``path`` and then moved there, so that ``path`` never holds half a model.

    Args:
        model: what to save, or a fit, of which the model is saved. Gradients and the device are not kept; the intervals
            of a fit that chose its settings are. Of an ``Alignment`` the encoders, the generative model and the history
            are, but nothing that only training needs: checkpoints have that.
        path: where; an existing file is replaced.

    Raises:
        ArgumentTypeError: ``model`` is of another type, ``path`` is no path, or an encoder has a state of no tensors.
        ArgumentError: ``path`` is empty or a folder.
        FileNotFoundError: the folder of ``path`` does not exist.
        OSError: the file cannot be written, as on a full disk.

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
    elif _is_alignment(model):
        from calmrl_prob.training.stored import kept_of  # it needs Lightning

        content, tensors = taken_apart(kept_of(model))
        config = {"kind": _ALIGNMENT, "content": content}
    else:
        raise ArgumentTypeError(
            f"model: expected a SharedLatentModel, a LinearGaussian, a RetrievalIndex or an Alignment, got "
            f"{type(model).__name__}; for another torch module save its state_dict with safetensors."
        )
    write_archive(path, config, separate(tensors))


def load(
    path: str | os.PathLike[str], *, encoders: Mapping[str, nn.Module] | None = None
) -> SharedLatentModel | LinearGaussian | RetrievalIndex | Alignment:
    """Read a model, an index or an alignment that :func:`save` wrote.

    Args:
        path: of the file.
        encoders: of an ``Alignment``, by modality: modules of your own, built as those were that were saved. They take
            over the saved parameters, in place. Those of ``calmrl_prob.encoders`` need not be given: no file can name
            code that is imported or run, so that it can bring only what this package has.

    Returns:
        A thing of the same kind, on the CPU, in the floating-point type that it was saved in.

    Raises:
        FileNotFoundError: there is no such file.
        FileFormatError: the file is damaged, of another origin, or from a newer version.
        ArgumentError: ``path`` is a folder; or the file has an encoder that is neither of this package nor given, or
            one of other parameters than the one given.
        ArgumentTypeError: ``path`` is no path, or an encoder no module.
        MissingDependencyError: it is an ``Alignment``, and Lightning is not installed.
    """
    found = read_archive(path, _KINDS)
    if isinstance(found, SharedLatentModel | LinearGaussian | RetrievalIndex):
        if encoders is not None:
            raise ArgumentError(
                f"encoders: {os.fspath(path)} holds a {type(found).__name__}, which has none; leave them out."
            )
        return found
    return found.alignment(encoders)


def _is_alignment(model: object) -> TypeGuard[Alignment]:
    """Whether it is an ``Alignment``: there is none where training was never imported, which takes long."""
    training = sys.modules.get("calmrl_prob.training.alignment")
    return training is not None and isinstance(model, training.Alignment)


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


def _build_alignment(config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> StoredAlignment:
    from calmrl_prob.training.stored import StoredAlignment  # it needs Lightning

    return StoredAlignment.of(put_together(config["content"], tensors))


def _require_content(config: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Nothing yet: encoders are first built without memory, and then compared with the tensors."""


_KINDS: dict[str, Kind[SharedLatentModel | LinearGaussian | RetrievalIndex | StoredAlignment]] = {
    _MODEL: (require_model_contents, _build_model),
    _STRUCTURE: (require_structure_contents, _build_structure),
    _INDEX: (require_index_contents, RetrievalIndex.from_tensors),
    _ALIGNMENT: (_require_content, _build_alignment),
}
