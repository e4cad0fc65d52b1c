"""Gathers the results of many runs in one frame: ``python -m analysis.gather <folder>``."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

import pandas as pd

from analysis.runs.files import write_table
from calmrl_prob.errors import CalmrlError, FileFormatError


def gather_runs(folder: str | os.PathLike[str]) -> pd.DataFrame:
    """The results of every run below a folder, such as that of a ``--multirun`` sweep, one under the other.

    Args:
        folder: searched to any depth for ``results.parquet``.

    Returns:
        The columns of the results (metrics, and settings such as ``missingness.rate``) and ``run``, the folder of the
        run, relative to ``folder``. Runs are in the order of their names, numbers by value.

    Raises:
        FileFormatError: there is no run below the folder, or its results cannot be read.
    """
    root = Path(folder)
    found = sorted(root.rglob("results.parquet"), key=lambda path: _by_value(path.relative_to(root)))
    if not found:
        raise FileFormatError(f"{root}: no results.parquet in it or below; give the folder of a run or of a sweep.")
    frames = []
    for path in found:
        try:
            frame = pd.read_parquet(path)
        except (OSError, ValueError) as error:
            raise FileFormatError(f"{path} cannot be read ({error}); run that comparison again.") from error
        frame.insert(0, "run", str(path.parent.relative_to(root)))
        frames.append(frame)
    return pd.concat(frames, ignore_index=True)


def unfinished_runs(folder: str | os.PathLike[str]) -> list[str]:
    """Folders below ``folder``, relative to it, with the log of a run but no results: it was refused or interrupted."""
    root = Path(folder)
    logs = sorted((path.relative_to(root) for path in root.rglob("compare.log")), key=_by_value)
    return [str(path.parent) for path in logs if not (root / path.parent / "results.parquet").exists()]


def main(arguments: list[str] | None = None) -> int:
    """Write ``gathered.csv`` and ``gathered.parquet`` into the folder."""
    parser = argparse.ArgumentParser(prog="python -m analysis.gather", description=__doc__)
    parser.add_argument("folder", type=Path, help="of a sweep, such as multirun/2026-01-31/12-00-00")
    folder = parser.parse_args(arguments).folder
    for skipped in unfinished_runs(folder):
        print(f"skipped {folder / skipped}: no results; its compare.log may tell why.", file=sys.stderr)
    try:
        gathered = gather_runs(folder)
    except CalmrlError as error:
        print(error, file=sys.stderr)
        return 1
    for name in ("gathered.csv", "gathered.parquet"):
        write_table(gathered, folder / name)
    print(f"{gathered['run'].nunique()} runs, {len(gathered)} rows: {folder / 'gathered.csv'} and .parquet")
    return 0


def _by_value(path: Path) -> list[tuple[int, str]]:
    """Sorts run 10 after run 9."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in path.parts]


if __name__ == "__main__":
    sys.exit(main())
