"""Recipes of encoders: class and arguments, of which files make the modules of this package again."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from calmrl_prob.encoders.convolutional import ConvEncoder, TextEncoder, VideoEncoder, WaveformEncoder
from calmrl_prob.encoders.dense import Autoencoder, LinearEncoder, MLPEncoder, ResidualEncoder
from calmrl_prob.errors import FileFormatError


def recipe(encoder: nn.Module) -> dict[str, Any] | None:
    """Class and arguments of an encoder of this package, or of a plain ``nn.Linear``; None of any other module.

    One that was changed after it was made (another activation, a layer more, a hook) is another module too.

    Example:
        >>> recipe(MLPEncoder(8, 3, hidden=(16,), dropout=0.1))
        {'class': 'MLPEncoder', 'in_features': 8, 'out_features': 3, 'hidden': [16], 'dropout': 0.1}
        >>> recipe(nn.Sequential(nn.Linear(8, 3))) is None
        True
    """
    name = type(encoder).__name__
    if _CLASSES.get(name) is not type(encoder):
        return None
    try:
        found = {"class": name, **_ARGUMENTS[name](encoder)}
        again = from_recipe(found, most_layers=_LAYERS)
    except (AttributeError, IndexError, TypeError, ValueError, RuntimeError):  # parts are other than they were made
        return None
    hooked = any(part._forward_hooks or part._forward_pre_hooks for part in encoder.modules())
    same = repr(again) == repr(encoder) and list(again.state_dict()) == list(encoder.state_dict())
    return found if same and not hooked else None


def from_recipe(recipe: Mapping[str, Any], most_layers: int) -> nn.Module:
    """The encoder of a recipe on torch's device "meta": of the right shapes, without numbers and without any memory.

    Args:
        recipe: class and arguments.
        most_layers: that it may ask for.

    Raises:
        FileFormatError: there is no such class, or it asks for more layers.
        ArgumentError, ArgumentTypeError, TypeError, RuntimeError: the arguments are none.

    Example:
        >>> from_recipe({"class": "LinearEncoder", "in_features": 10**9, "out_features": 3}, 2).weight.shape
        torch.Size([3, 1000000000])
    """
    arguments = dict(recipe)
    name = arguments.pop("class")
    if name not in _CLASSES:
        raise FileFormatError(f"class: expected one of {list(_CLASSES)}, got {name!r:.50}")
    for argument, value in arguments.items():
        if argument in ("device", "dtype"):  # which torch's own modules take
            raise FileFormatError(f"{argument}: no recipe has one")
        if isinstance(value, list) and len(value) > most_layers:
            raise FileFormatError(f"{argument}: expected {most_layers} layers at most, got {len(value)}")
    if isinstance(start := arguments.get("start"), dict):
        if start.get("class") not in ("Linear", "LinearEncoder"):
            raise FileFormatError("start: expected a linear map")
        arguments["start"] = from_recipe(start, most_layers)
    with torch.device("meta"):
        return _CLASSES[name](**arguments)


#: As many as any encoder in memory may have.
_LAYERS = 100_000
_CLASSES: dict[str, Callable[..., nn.Module]] = {
    "Linear": nn.Linear,
    **{
        kind.__name__: kind
        for kind in (
            LinearEncoder,
            MLPEncoder,
            Autoencoder,
            ResidualEncoder,
            ConvEncoder,
            VideoEncoder,
            WaveformEncoder,
            TextEncoder,
        )
    },
}


def _of_mlp(encoder: Any) -> dict[str, Any]:  # noqa: ANN401
    linear = [layer for layer in encoder if isinstance(layer, nn.Linear)]
    return {
        "in_features": linear[0].in_features,
        "out_features": linear[-1].out_features,
        "hidden": [layer.out_features for layer in linear[:-1]],
        "dropout": next((layer.p for layer in encoder if isinstance(layer, nn.Dropout)), 0.0),
    }


def _of_autoencoder(encoder: Any) -> dict[str, Any]:  # noqa: ANN401
    return {key: value for key, value in _of_mlp(encoder.encoder).items() if key != "dropout"}


def _of_residual(encoder: Any) -> dict[str, Any]:  # noqa: ANN401
    bent = {"hidden": [], "dropout": 0.0} if encoder.network is None else _of_mlp(encoder.network)
    return {"start": recipe(encoder.start), "hidden": bent["hidden"], "dropout": bent["dropout"]}


def _channels(encoder: Any) -> dict[str, Any]:  # noqa: ANN401
    convolutions = [layer for layer in encoder.layers if isinstance(layer, nn.Conv1d | nn.Conv2d | nn.Conv3d)]
    return {
        "out_features": encoder.head.out_features,
        "channels": [layer.out_channels for layer in convolutions],
        "dropout": encoder.layers[-1].p,
    }


def _of_linear(encoder: Any) -> dict[str, Any]:  # noqa: ANN401
    return {"in_features": encoder.in_features, "out_features": encoder.out_features}


_ARGUMENTS: dict[str, Callable[[Any], dict[str, Any]]] = {
    "Linear": lambda encoder: {**_of_linear(encoder), "bias": encoder.bias is not None},
    "LinearEncoder": _of_linear,
    "MLPEncoder": _of_mlp,
    "Autoencoder": _of_autoencoder,
    "ResidualEncoder": _of_residual,
    "ConvEncoder": lambda encoder: {"in_channels": encoder.layers[0].in_channels, **_channels(encoder)},
    "VideoEncoder": lambda encoder: {"in_channels": encoder.layers[0].in_channels // 2, **_channels(encoder)},
    "WaveformEncoder": lambda encoder: {"window": encoder.window, "hop": encoder.hop, **_channels(encoder)},
    "TextEncoder": lambda encoder: {
        "num_tokens": encoder.embedding.num_embeddings,
        "width": encoder.embedding.embedding_dim,
        "out_features": encoder.head[-1].out_features,
        "dropout": encoder.head[2].p,
    },
}
