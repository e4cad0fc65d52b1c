"""Torch's inference mode: what a fit, a posterior and the call of a model are worked out without."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def normal_mode() -> Iterator[None]:
    """Within, torch is not in inference mode; after, it is what it was.

    Example:
        >>> with torch.inference_mode(), normal_mode():
        ...     torch.ones(1).is_inference()
        False
    """
    if not torch.is_inference_mode_enabled():  # turning off what is off would turn gradients on
        yield
        return
    with torch.inference_mode(mode=False):
        yield
