"""``python -m benchmarks``: every measurement, as tables. ``--quick`` leaves out the million rows and the peers.

CPU seconds, one thread, waiting threads asleep: on a shared machine anything else measures the neighbours. Each ratio
is of two medians from the same run.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys

from rich.console import Console
from rich.progress import track
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


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="leave out the million rows and the peers")
    options = parser.parse_args()
    os.environ.update(OMP_WAIT_POLICY="PASSIVE", OMP_NUM_THREADS="1")  # for the processes started from here
    import torch

    torch.set_num_threads(1)
    from benchmarks import (
        alignment,
        arviz_memory,
        collapsed,
        discovery,
        fitting,
        group_ard,
        import_time,
        iteration,
        objectives,
        parameter_uncertainty,
        peers,
        processes,
    )
    from benchmarks.problems import PROBLEMS

    console = Console()
    console.width = max(console.width, 120)  # tables are read in full, in a log file too
    console.print(f"torch {torch.__version__}, {os.cpu_count()} cores, 1 thread, CUDA: {torch.cuda.is_available()}")
    cases = [(problem, dtype) for problem in PROBLEMS.values() for dtype in (torch.float64, torch.float32)]
    rows = [fitting.measure(*case) for case in track(cases, "fits", console=console, transient=True)]
    show(console, "From arrays to a fitted model (defaults; best evidence from fits carried on to 1e-12)", rows)
    rows = [
        row
        for problem in track(
            [p for p in PROBLEMS.values() if p.decay == 1], "iterations", console=console, transient=True
        )
        for row in iteration.measure(problem)
    ]
    show(console, "One EM iteration against its bare matrix products", rows)
    with console.status("imports"):
        show(console, "Imports, each in a process of its own", import_time.measure())
    with console.status("discovery"):
        rows = [row for name in ("small", "medium") for row in discovery.measure(PROBLEMS[name])]
    show(console, "A Pyro program's form discovered, against one EM fit", rows)
    with console.status("collapsed inference"):
        rows = collapsed.leapfrog(PROBLEMS["small"])
        show(console, "A leapfrog step of collapsed NUTS, and on a hundred times as many rows", rows)
        rows = group_ard.measure_ard()
    if not options.quick:
        with console.status("group ARD beside other packages"):
            rows += [in_own_process("benchmarks.group_ard", name) for name in group_ard.available_peers()]
    show(console, "Group ARD where it is known which latent serves which modality", rows)
    with console.status("draws of parameters"):
        rows = parameter_uncertainty.measure()
    show(console, "50 draws of the parameters about a fit of `small`", rows)
    with console.status("to_arviz"):
        rows = [in_own_process("benchmarks.arviz_memory", route) for route in arviz_memory.ROUTES]
    show(console, "to_arviz, 1,000 draws of `small`, peak memory", rows)
    with console.status("Gaussian processes"):
        show(console, "Posterior of Gaussian-process latents, covariances included", processes.measure())
    with console.status("alignment objectives"):
        show(console, "Alignment objectives, forward and backward, B 512, M 4, D 256, float32", objectives.measure())
    with console.status("calibrated alignment"):
        show(console, "A step of calibrated alignment against one without, MLP encoders", alignment.measure())
    if options.quick:
        return
    if peers.available():
        with console.status("mofapy2"):
            rows = [in_own_process("benchmarks.peers", name, "1000") for name in ("small", "uci")]
        show(console, "Another package on the same data", rows)
    with console.status("1,000,000 x 1,024 float32"):
        rows = [in_own_process("benchmarks.one_pass", "1000000")]
    show(console, "One pass over the data in chunks, against X^T X of the same chunks", rows)
    if torch.cuda.is_available():
        from benchmarks import gpu

        show(console, "CPU against GPU", gpu.measure())


if __name__ == "__main__":
    main()
