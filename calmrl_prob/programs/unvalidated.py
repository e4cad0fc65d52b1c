"""Distributions without their own checks of values and parameters: what is wrong is found here, and named by site."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pyro

from calmrl_prob._support.global_state import kept_validation


@contextmanager
def unvalidated() -> Iterator[None]:
    """Within, neither torch nor Pyro validates; after, both do as they were told before.

    Example:
        >>> import torch
        >>> before = torch.distributions.Distribution._validate_args
        >>> with unvalidated():
        ...     torch.distributions.Distribution._validate_args
        False
        >>> torch.distributions.Distribution._validate_args == before
        True
    """
    # Pyro puts back what Pyro was told last, which need not be what torch was
    with kept_validation(), pyro.validation_enabled(False):
        yield
