"""Progress of a choice: a bar on standard error where one is asked for, or where a choice takes long."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from calmrl_prob._support.progress import Callback, progress_bar
from calmrl_prob.data import MultimodalData
from calmrl_prob.selection.folds import FoldedStatistics

#: A bar is shown by default from so many numbers on: what takes more than a few seconds.
_LONG = 5_000_000


@contextmanager
def shown(
    progress: bool | None, title: str, total: int | None, data: MultimodalData | FoldedStatistics
) -> Iterator[Callback | None]:
    """Show a bar while a choice runs.

    Args:
        progress: whether to; None for where it takes more than a few seconds and standard error is a terminal.
        title: what is going on.
        total: the most steps there can be, if known.
        data: what is chosen for.

    Yields:
        A function of the number of steps so far and a value (nats; NaN for none), to call after each step; None where
        no bar is shown.
    """
    if progress is None:
        progress = sum(data.dims.values()) * data.num_instances >= _LONG and sys.stderr.isatty()
    if not progress:
        yield None
        return
    with progress_bar(title, total) as callback:
        yield callback
