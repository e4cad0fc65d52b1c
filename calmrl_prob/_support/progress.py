"""A progress bar for iterations, on standard error; shown only where the user asked for one."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

Callback = Callable[[int, float], None]


@contextmanager
def progress_bar(title: str, total: int | None, console: Console | None = None) -> Iterator[Callback]:
    """Show a bar while iterations run.

    Args:
        title: what is going on.
        total: the most iterations there can be, if known.
        console: where to show it; standard error if not given.

    Yields:
        A function of the iteration's number and the log likelihood (nats; NaN where there is none), to call after each
        iteration.
    """
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[value]}"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(elapsed_when_finished=False),
    )
    with Progress(*columns, console=console or Console(stderr=True)) as bar:
        task = bar.add_task(title, total=total, value="")

        def report(iteration: int, log_likelihood: float) -> None:
            value = "" if math.isnan(log_likelihood) else f"log likelihood {log_likelihood:,.2f}"
            bar.update(task, completed=iteration, value=value)

        yield report
