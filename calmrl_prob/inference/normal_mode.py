"""Torch's inference mode: data and models that were made under it.

Tensors that are made under ``torch.inference_mode()`` can never take part in a gradient, not later and not elsewhere;
parameters, caches and results must not become such because of where a call stood.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from calmrl_prob.data import MultimodalData
from calmrl_prob.errors import ArgumentError


def normal_data(data: Any) -> Any:  # noqa: ANN401 - the same data
    """The same data, with copies of what was made in inference mode; to be called outside it."""
    if not isinstance(data, MultimodalData):
        return data
    tensors = [data.observed_mask, *data._values.values()]
    if not any(tensor.is_inference() for tensor in tensors):
        return data
    values = {name: value.clone() for name, value in data._values.items()}
    return data._derive(_values=values, observed_mask=data.observed_mask.clone())


def require_trainable(model: object) -> None:
    """Refuse a model whose parameters were made in inference mode.

    Raises:
        ArgumentError: they were.
    """
    parts = [*model.named_parameters(), *model.named_buffers()] if isinstance(model, nn.Module) else []
    for name, tensor in parts:
        if tensor.is_inference():
            raise ArgumentError(
                f"model: its parameter {name!r} was made under torch.inference_mode(), so that it can never be fitted; "
                "make the model outside of it, or load a saved one there."
            )
