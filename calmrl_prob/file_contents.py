"""Contents that the file of a model must have by its description: checked against the shapes in the file's header.

A description of a few bytes may ask for a model of any size. Nothing is built before the file was found to hold all of
its numbers, so that no file costs more than what it is large.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from calmrl_prob._support.arguments import brief, whole_number
from calmrl_prob.batch_effects import BatchEffects
from calmrl_prob.errors import ArgumentError, FileFormatError
from calmrl_prob.linear_gaussian import LinearGaussian
from calmrl_prob.noise_parameters import NoiseParameters, parameter_key
from calmrl_prob.priors import PRIORS

Shapes = Mapping[str, tuple[int, ...]]


def require_model_contents(config: Mapping[str, Any], shapes: Shapes) -> None:
    """Refuse the description of a ``SharedLatentModel`` whose numbers are not all in the file.

    Args:
        config: the description in the header.
        shapes: of each tensor of the file.

    Raises:
        FileFormatError: a tensor is missing or of another shape, or the prior would be larger than what is there is.
        ArgumentError, ArgumentTypeError, KeyError: the description says what no model is.

    Example:
        >>> require_model_contents(
        ...     {"dims": {"image": 3}, "latent_dim": 9000, "noise": "isotropic", "prior": "normal"}, {"q": (1,)}
        ... )
        Traceback (most recent call last):
        calmrl_prob.errors.FileFormatError: tensor 'loadings/image': expected shape (3, 9000), got none
    """
    dims = _dims(config["dims"])
    latent_dim = whole_number("latent_dim", config["latent_dim"], least=1)
    for name, width in dims.items():
        _require_shape(shapes, parameter_key("loadings", name), (width, latent_dim))
    # only now: the loadings are there, so that widths and K are no larger than the file
    noise = NoiseParameters.of(config["noise"], config.get("noise_rank"), dims, latent_dim)
    for name, width in dims.items():
        _require_shape(shapes, parameter_key("intercepts", name), (width,))
        _require_shape(shapes, parameter_key("log_noise", name), noise.log_shape(width))
        if noise.ranks is not None:
            _require_shape(shapes, parameter_key("noise_factor", name), (width, noise.ranks[name]))
    if batch := config.get("batch"):
        for key, shape in BatchEffects.shapes(len(batch["names"]), dims).items() if batch["names"] else ():
            _require_shape(shapes, f"batch.{key}", shape)
    settings = config.get("prior_config", {})
    if not isinstance(settings, dict):
        raise ArgumentError(f"prior_config: expected settings by name, got {brief(settings)}.")
    needed = PRIORS[config["prior"]].least_numbers(latent_dim, **settings)
    there = sum(math.prod(shape) for key, shape in shapes.items() if key.startswith("prior."))
    if needed > there:
        raise FileFormatError(f"prior: as described it has {needed} numbers or more, and the file holds {there} for it")


def require_structure_contents(config: Mapping[str, Any], shapes: Shapes) -> None:
    """Refuse the description of a ``LinearGaussian`` whose numbers are not all in the file.

    Raises:
        FileFormatError: a tensor is missing or of another shape.
        ArgumentError: the names are none.
    """
    names = config["names"]
    if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
        raise ArgumentError(f"names: expected a list of modality names, got {brief(names)}.")
    if len(set(names)) < len(names):
        raise ArgumentError(f"names: expected distinct modalities, got {brief(names)}.")
    for name in names:
        shape = shapes.get(f"loadings/{name}", ())
        if len(shape) != 2:
            raise FileFormatError(f"tensor 'loadings/{name}': expected shape (D, K), got {shape or 'none'}")
        for kind in ("intercepts", "noise_variance"):
            _require_shape(shapes, f"{kind}/{name}", shape[:1])


def structure_tensors(model: LinearGaussian) -> dict[str, Tensor]:
    """The parameters of a structure by the names that they have in files; they may share memory."""
    tensors = {"prior_mean": model.prior_mean, "prior_covariance": model.prior_covariance}
    for name in model.names:
        tensors[f"loadings/{name}"] = model.loadings[name]
        tensors[f"intercepts/{name}"] = model.intercepts[name]
        tensors[f"noise_variance/{name}"] = model.noise_variance[name]
        if model.noise_factor is not None:
            tensors[f"noise_factor/{name}"] = model.noise_factor[name]
    return tensors


def structure_from_tensors(names: Sequence[str], tensors: Mapping[str, Tensor]) -> LinearGaussian:
    """The structure whose parameters :func:`structure_tensors` gave.

    Raises:
        FileFormatError: some are no floating-point numbers.
        ArgumentError, KeyError: they are those of no structure.
    """
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


def _dims(dims: object) -> dict[str, int]:
    if not isinstance(dims, dict) or not dims:
        raise ArgumentError(f"dims: expected the number of features of each modality, got {brief(dims)}.")
    return {name: whole_number(f"dims[{name!r}]", width, least=1) for name, width in dims.items()}


def _require_shape(shapes: Shapes, key: str, expected: tuple[int, ...]) -> None:
    if shapes.get(key) != expected:
        got = shapes.get(key, "none")
        raise FileFormatError(f"tensor {key!r}: expected shape {expected}, got {got}")
