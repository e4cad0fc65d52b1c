"""Terminal output of the experiments: a bar while they run, and tables at the end."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager

import pandas as pd
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

#: Columns of text that tables are given at least, and at most where some of theirs may wrap.
_NARROW, _WIDE = 140, 200
#: More columns of text than any table needs.
_WIDEST = 1000


@contextmanager
def progress_bar(out: Console, total: int) -> Iterator[Callable[[str], None]]:
    """Show a bar on standard error, unless ``out`` is quiet.

    Args:
        out: what the experiment prints to.
        total: how many steps there are.

    Yields:
        A function to call after each step, with what was done.
    """
    columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("{task.description}"))
    with Progress(*columns, console=Console(stderr=True, quiet=out.quiet)) as progress:
        bar = progress.add_task("", total=total)
        yield lambda done: progress.update(bar, advance=1, description=escape(done))


def print_table(
    out: Console,
    text: pd.DataFrame,
    title: str,
    *,
    left: Collection[str] | None = None,
    wrapped: Collection[str] = (),
    best: Mapping[str, int] | None = None,
) -> None:
    """Print a table of text.

    Args:
        out: to print to. It is widened, since a narrower terminal wraps lines, which loses less than cells cut short.
        text: the table.
        title: stands over it.
        left: columns that are aligned on the left; by default those that do not hold numbers, ± their spread.
        wrapped: columns that may take several lines.
        best: for some columns the row that is set in bold.
    """
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
    for heading, values in text.items():
        words = heading in left if left is not None else not values.str.match(r"^[-+]?[\d.]*(±[\d.]+)?$").all()
        table.add_column(str(heading), justify="left" if words else "right", no_wrap=heading not in wrapped)
    for row, cells in enumerate(text.to_numpy()):
        shown = (escape(str(cell)) for cell in cells)
        marked = ((best or {}).get(str(heading)) == row for heading in text.columns)
        table.add_row(*(f"[bold]{cell}[/bold]" if bold else cell for cell, bold in zip(shown, marked, strict=True)))
    widest = _WIDE if wrapped else _WIDEST
    needed = out.measure(table, options=out.options.update(width=widest)).maximum
    out.width = max(out.width, _NARROW, needed)
    out.print(table)
