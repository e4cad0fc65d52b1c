"""Numpy arrays of tensors, for results to keep."""

from __future__ import annotations

from typing import Any

from numpy.typing import NDArray
from torch import Tensor


def own_array(tensor: Tensor) -> NDArray[Any]:
    """A tensor as a numpy array that has memory of its own.

    ``tensor.numpy()`` looks into the tensor's memory, which torch moves when it sends the tensor to another process: an
    array that a result keeps beside its tensor, or beside the data's, would then hold whatever comes to stand there.

    Example:
        >>> import torch
        >>> tensor = torch.zeros(2)
        >>> array = own_array(tensor)
        >>> _ = tensor.fill_(1.0)
        >>> array.tolist()
        [0.0, 0.0]
    """
    found: NDArray[Any] = tensor.detach().cpu().numpy().copy()
    return found
