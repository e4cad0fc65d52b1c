"""``SharedLatentModel`` in files: by itself, its parameters under their own names, and as a part of records."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from calmrl_prob._support.archives import require_finite
from calmrl_prob._support.arguments import brief, checked_dtype
from calmrl_prob.batch_effects import BatchEffects
from calmrl_prob.data.features import from_lists, names_of
from calmrl_prob.errors import FileFormatError
from calmrl_prob.file_contents import require_model_contents
from calmrl_prob.files.classes import kept_classes
from calmrl_prob.files.programs import attach, attached
from calmrl_prob.files.records import Kept, Packer, Unpacker
from calmrl_prob.model import SharedLatentModel
from calmrl_prob.priors import PRIORS

#: The file's name of the class, and what the tensors of what is attached to a model are called by.
_MODEL, _ATTACHED = "SharedLatentModel", "attached"


def table(given: object = None) -> dict[str, Kept]:
    """The classes of which records keep instances, by the names that files have for them.

    Args:
        given: the user's model that stands for those of the file.
    """
    return {**kept_classes(given), _MODEL: Kept(SharedLatentModel, _take, _make)}


def describe_model(model: SharedLatentModel) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """A model as JSON and tensors: its parameters under their own names, and what is attached to it.

    Raises:
        ModelError: its K is still to be chosen.
        ArgumentError: its parameters are in half precision.
        ArgumentTypeError: something is attached that no file keeps.
    """
    config, tensors = _settings(model), dict(model.state_dict())
    if found := attached(model):
        packer = Packer(table())
        config["attached"] = packer.pack(found, _ATTACHED)
        tensors |= packer.tensors
    return config, tensors


def build_model(config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> SharedLatentModel:
    """The model that :func:`describe_model` described, once its contents were found to be there.

    Raises:
        FileFormatError, ArgumentError, ArgumentTypeError, KeyError, TypeError, RuntimeError: it describes none.
    """
    dtype = {"float32": torch.float32, "float64": torch.float64}[config["dtype"]]
    prior = PRIORS[config["prior"]](config["latent_dim"], **config.get("prior_config", {}))
    settings = (from_lists(config["dims"], config.get("feature_names")), config["latent_dim"], config["noise"], prior)
    batch = BatchEffects.of(config["batch"], config["dims"], dtype) if "batch" in config else None
    model = SharedLatentModel(*settings, dtype=dtype, noise_rank=config.get("noise_rank"), batch=batch)
    latent_dim, noise = config.get("requested", model.requested)
    if latent_dim not in (None, model.latent_dim) or noise not in (None, model.noise):
        raise FileFormatError(f"requested: expected what the model has, or nothing, got {brief(config['requested'])}")
    model.requested = latent_dim, noise
    model.load_state_dict({key: tensor for key, tensor in tensors.items() if not key.startswith(f"{_ATTACHED}/")})
    attach(model, Unpacker(table(), tensors).unpack(config.get("attached", {"dict": []})))
    return model


def _settings(model: SharedLatentModel) -> dict[str, Any]:
    """All of a model but its parameters and what is attached to it."""
    model.require_settled()
    checked_dtype(model.dtype)  # half precision, which a module may have been brought to, would not be loaded
    return {
        "kind": _MODEL,
        "dims": model.dims,
        **({"feature_names": names_of(model.dims)} if names_of(model.dims) else {}),
        "latent_dim": model.latent_dim,
        "noise": model.noise,
        **({"noise_rank": model.noise_rank} if model.noise == "low_rank" else {}),
        "prior": model.prior.name,
        "prior_config": model.prior.config(),
        **({} if model.batch is None else {"batch": model.batch.config()}),
        "dtype": str(model.dtype).removeprefix("torch."),
        "requested": model.requested,
    }


def _take(model: SharedLatentModel) -> dict[str, Any]:
    # the settings as JSON, in which they are checked
    return {"settings": json.dumps(_settings(model)), "state": dict(model.state_dict()), "attached": attached(model)}


def _make(values: Mapping[str, Any]) -> SharedLatentModel:
    settings, state = json.loads(values["settings"]), values["state"]
    require_model_contents(settings, {key: tuple(tensor.shape) for key, tensor in state.items()})
    require_finite(state)
    model = build_model(settings, state)
    attach(model, values["attached"])
    return model
