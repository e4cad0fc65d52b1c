"""``python -m benchmarks``: every measurement, as tables. ``--quick`` leaves out the million rows and the peers.

CPU seconds, one thread, waiting threads asleep: on a shared machine anything else measures the neighbours. Each ratio
is of two medians from the same run.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator

from rich.console import Console
from rich.progress import track

from benchmarks.tables import Row, in_own_process, show

Table = tuple[str, list[Row]]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="leave out the million rows and the peers")
    options = parser.parse_args()
    os.environ.update(OMP_WAIT_POLICY="PASSIVE", OMP_NUM_THREADS="1")  # before torch, for processes started from here
    import torch

    torch.set_num_threads(1)
    console = Console()
    console.width = max(console.width, 120)  # tables are read in full, in a log file too
    console.print(f"torch {torch.__version__}, {os.cpu_count()} cores, 1 thread, CUDA: {torch.cuda.is_available()}")
    for measurements in (em_fits(console), models(console, options.quick), alignments(console)):
        for title, rows in measurements:
            show(console, title, rows)
    if not options.quick:
        for title, rows in large(console):
            show(console, title, rows)


def em_fits(console: Console) -> Iterator[Table]:
    """Fits by EM, one iteration of it, and what importing the package costs."""
    import torch

    from benchmarks import fitting, import_time, iteration
    from benchmarks.problems import PROBLEMS

    cases = [(problem, dtype) for problem in PROBLEMS.values() for dtype in (torch.float64, torch.float32)]
    rows = [fitting.measure(*case) for case in track(cases, "fits", console=console, transient=True)]
    yield "From arrays to a fitted model (defaults; best evidence from fits carried on to 1e-12)", rows
    plain = [problem for problem in PROBLEMS.values() if problem.decay == 1]
    found = [iteration.measure(problem) for problem in track(plain, "iterations", console=console, transient=True)]
    yield "One EM iteration against its bare matrix products", [row for rows in found for row in rows]
    with console.status("imports"):
        rows = import_time.measure()
    yield "Imports, each in a process of its own", rows


def models(console: Console, quick: bool) -> Iterator[Table]:
    """Programs of one's own, global latents, draws of parameters and what is made of them, Gaussian processes."""
    from benchmarks import arviz_memory, collapsed, discovery, group_ard, parameter_uncertainty, processes, svi
    from benchmarks.problems import PROBLEMS

    with console.status("discovery"):
        rows = [row for name in ("small", "medium") for row in discovery.measure(PROBLEMS[name])]
    yield "A Pyro program's form discovered, against one EM fit", rows
    with console.status("collapsed inference"):
        rows = collapsed.leapfrog(PROBLEMS["small"])
    yield "A leapfrog step of collapsed NUTS, and on a hundred times as many rows", rows
    with console.status("group ARD"):
        rows = group_ard.measure_ard()
        if not quick:
            rows += [in_own_process("benchmarks.group_ard", name) for name in group_ard.available_peers()]
    yield "Group ARD where it is known which latent serves which modality", rows
    with console.status("draws of parameters"):
        rows = parameter_uncertainty.measure()
    yield "50 draws of the parameters about a fit of `small`", rows
    with console.status("to_arviz"):
        rows = [in_own_process("benchmarks.arviz_memory", route) for route in arviz_memory.ROUTES]
    yield "to_arviz, 1,000 draws of `small`, peak memory", rows
    with console.status("variational inference"):
        rows = svi.measure()
    yield f"Counts by variational inference, until within {svi.NEAR} nats for each value of the best bound", rows
    with console.status("Gaussian processes"):
        rows = processes.measure()
    yield "Posterior of Gaussian-process latents, covariances included", rows


def alignments(console: Console) -> Iterator[Table]:
    """Objectives, and a step of calibrated alignment."""
    from benchmarks import alignment, objectives

    with console.status("alignment objectives"):
        rows = objectives.measure()
    yield "Alignment objectives, forward and backward, B 512, M 4, D 256, float32", rows
    with console.status("calibrated alignment"):
        rows = alignment.measure()
    yield "A step of calibrated alignment against one without, MLP encoders", rows


def large(console: Console) -> Iterator[Table]:
    """Measurements that take long: another package, a million rows, a GPU."""
    import torch

    from benchmarks import gpu, peers

    if peers.available():
        with console.status("mofapy2"):
            rows = [in_own_process("benchmarks.peers", name, "1000") for name in ("small", "uci")]
        yield "Another package on the same data", rows
    with console.status("1,000,000 x 1,024 float32"):
        rows = [in_own_process("benchmarks.one_pass", "1000000")]
    yield "One pass over the data in chunks, against X^T X of the same chunks", rows
    with console.status("an index over 1,000,000"):
        yield "An index of 17,337 candidates, a query", [in_own_process("benchmarks.retrieval_index", "exact")]
        yield "An index by faiss, a query", [in_own_process("benchmarks.retrieval_index", "1000000")]
    if torch.cuda.is_available():
        yield "CPU against GPU", gpu.measure()


if __name__ == "__main__":
    main()
