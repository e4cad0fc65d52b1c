"""Rows of measurements: shown as a table, and taken in a process of their own."""

from __future__ import annotations

import json
import subprocess
import sys

from rich.console import Console
from rich.table import Table

Row = dict[str, object]


def show(console: Console, title: str, rows: list[Row]) -> None:
    """One table."""
    table = Table(title=title, title_justify="left")
    for column in rows[0]:
        table.add_column(column, justify="left" if isinstance(rows[0][column], str) else "right")
    for row in rows:
        table.add_row(*(f"{value:.4g}" if isinstance(value, float) else str(value) for value in row.values()))
    console.print(table)


def in_own_process(*arguments: str) -> Row:
    """Run a measurement as a module of its own; its last line is the result."""
    done = subprocess.run([sys.executable, "-m", *arguments], capture_output=True, text=True, check=True)
    row: Row = json.loads(done.stdout.strip().splitlines()[-1])
    return row
