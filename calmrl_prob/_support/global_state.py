"""Global state, which belongs to the process and not to a call: one lock for all who change it and put it back.

Torch's generators, the validation of distributions, Pyro's stack of handlers and its parameter store, and the filters
of warnings are one for all threads. Whoever changes one for a while does so under :func:`exclusive`, so that no thread
puts back what another has only borrowed. Models are called under it as well: handlers of one thread would else see the
sites of another.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from torch.distributions import Distribution

_lock = threading.RLock()


def _renew() -> None:
    """A lock that nobody holds, in a process that was forked while a thread, which it does not have, held the old."""
    global _lock
    _lock = threading.RLock()


if hasattr(os, "register_at_fork"):  # not on Windows, where nothing is forked
    os.register_at_fork(after_in_child=_renew)


@contextmanager
def exclusive() -> Iterator[None]:
    """Within, no other thread calls a model or changes what belongs to the process; a thread may enter again.

    Example:
        >>> with exclusive(), exclusive():
        ...     print("alone")
        alone
    """
    with _lock:
        yield


@contextmanager
def kept_validation() -> Iterator[None]:
    """Within, torch's default validation of distributions may be changed; after, it is what it was.

    Example:
        >>> before = Distribution._validate_args
        >>> with kept_validation():
        ...     Distribution.set_default_validate_args(not before)
        >>> Distribution._validate_args == before
        True
    """
    with exclusive():
        before = Distribution._validate_args
        try:
            yield
        finally:
            Distribution.set_default_validate_args(before)
