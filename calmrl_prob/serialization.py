"""Models in files: one safetensors file each, with a JSON description in its header. Nothing is pickled.

The header's metadata has the entries "format", "format_version", "library_version", "config" (JSON) and "sha256", the
checksum of the config and the tensors (files without one are read too); the tensors are the model's ``state_dict``, or
the parameters of a ``LinearGaussian`` as "loadings/<name>" and so on. The intervals of a fit that chose its settings go
with its model, as tensors "intervals/...".
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from calmrl_prob._support.arguments import brief
from calmrl_prob._support.files import existing_file, said, write_atomically
from calmrl_prob._support.versions import installed_version
from calmrl_prob.data.features import from_lists, names_of
from calmrl_prob.errors import ArgumentTypeError, FileFormatError, MissingDependencyError
from calmrl_prob.file_contents import require_model_contents, require_structure_contents
from calmrl_prob.inference.result import FitResult
from calmrl_prob.linear_gaussian import LinearGaussian
from calmrl_prob.model import SharedLatentModel
from calmrl_prob.priors import PRIORS
from calmrl_prob.selection.intervals import HeldOutIntervals

FORMAT = "calmrl-prob model"
#: Raised when a file that this library writes can no longer be read by an older one.
FORMAT_VERSION = 1

_MODEL, _STRUCTURE = "SharedLatentModel", "LinearGaussian"
#: What the tensors of a model's intervals are called by.
_INTERVALS = "intervals/"


def save(model: SharedLatentModel | LinearGaussian | FitResult, path: str | os.PathLike[str]) -> None:
    """Write a model to a file; :func:`load` gives it back bit by bit.

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
        >>> path = Path(tempfile.mkdtemp()) / "model.safetensors"
        >>> save(SharedLatentModel({"image": 3}, latent_dim=2), path)
        >>> load(path)
        SharedLatentModel(image: 3; latent_dim=2, noise='isotropic', prior=normal)
    """
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
        tensors = {"prior_mean": model.prior_mean, "prior_covariance": model.prior_covariance}
        for name in model.names:
            tensors[f"loadings/{name}"] = model.loadings[name]
            tensors[f"intercepts/{name}"] = model.intercepts[name]
            tensors[f"noise_variance/{name}"] = model.noise_variance[name]
            if model.noise_factor is not None:
                tensors[f"noise_factor/{name}"] = model.noise_factor[name]
    else:
        raise ArgumentTypeError(
            f"model: expected a SharedLatentModel or a LinearGaussian, got {type(model).__name__}; "
            "for another torch module save its state_dict with safetensors."
        )
    # copies: tensors may share memory or be views, which the format does not know; ``contiguous`` alone would leave a
    # single number that was expanded a view
    separate = {
        key: tensor.detach().cpu().clone(memory_format=torch.contiguous_format) for key, tensor in tensors.items()
    }
    described = json.dumps(config)
    metadata = {
        "format": FORMAT,
        "format_version": str(FORMAT_VERSION),
        "library_version": installed_version("calmrl-prob"),
        "config": described,
        "sha256": _checksum(described, separate),
    }
    with write_atomically(path) as temporary:
        save_file(separate, temporary, metadata)


def load(path: str | os.PathLike[str]) -> SharedLatentModel | LinearGaussian:
    """Read a model that :func:`save` wrote.

    Returns:
        A model of the same kind, on the CPU, in the floating-point type that it was saved in.

    Raises:
        FileNotFoundError: there is no such file.
        FileFormatError: the file is damaged, of another origin, or from a newer version.
        ArgumentError, ArgumentTypeError: ``path`` is a folder, or no path.
    """
    path = existing_file(path)
    try:
        with safe_open(path, framework="pt") as archive:
            metadata = archive.metadata() or {}
            config = _description(path, metadata)
            shapes = {key: tuple(archive.get_slice(key).get_shape()) for key in archive.keys()}  # noqa: SIM118
            _CONTENTS[config["kind"]](config, shapes)  # before anything is built of it
            tensors = {key: archive.get_tensor(key) for key in shapes}
        if metadata.get("sha256", expected := _checksum(metadata["config"], tensors)) != expected:
            raise FileFormatError(
                f"{path}: damaged, for its numbers are not those that were written (the sha256 checksum differs); "
                "copy the file again, or save the model again."
            )
        for key, tensor in tensors.items():
            if not bool(tensor.isfinite().all()):
                raise FileFormatError(f"{path}: tensor {key!r} holds NaN or infinities; save the model again.")
        return _BUILDERS[config["kind"]](config, tensors)
    except (OSError, MissingDependencyError):
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


def _checksum(config: str, tensors: Mapping[str, Tensor]) -> str:
    """sha256 of the description and of every tensor's name, type, shape and bytes, in order of name."""
    digest = hashlib.sha256(config.encode())
    for key in sorted(tensors):
        tensor = tensors[key]
        digest.update(f"\n{key} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _description(path: Path, metadata: Mapping[str, str]) -> dict[str, Any]:
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
    if not isinstance(config, dict) or not isinstance(kind := config.get("kind"), str) or kind not in _BUILDERS:
        raise FileFormatError(
            f"{path}: expected a model of kind {list(_BUILDERS)} in the header; save the model again."
        )
    return config


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
    names = config["names"]
    for key, tensor in tensors.items():
        if not tensor.is_floating_point():
            raise FileFormatError(f"tensor {key!r}: expected floating-point numbers, got {tensor.dtype}")
    return LinearGaussian(
        {name: tensors[f"loadings/{name}"] for name in names},
        {name: tensors[f"intercepts/{name}"] for name in names},
        {name: tensors[f"noise_variance/{name}"] for name in names},
        tensors["prior_mean"],
        tensors["prior_covariance"],
        {n: tensors[f"noise_factor/{n}"] for n in names} if f"noise_factor/{names[0]}" in tensors else None,
    )


_BUILDERS: dict[str, Callable[..., SharedLatentModel | LinearGaussian]] = {
    _MODEL: _build_model,
    _STRUCTURE: _build_structure,
}
#: What the file must hold for each of them, by the shapes in its header.
_CONTENTS: dict[str, Callable[..., None]] = {
    _MODEL: require_model_contents,
    _STRUCTURE: require_structure_contents,
}
