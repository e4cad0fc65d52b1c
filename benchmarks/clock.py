"""CPU seconds, measured so that two ways of doing a thing can be compared on a noisy machine."""

from __future__ import annotations

import resource
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path

Work = Callable[[], object]


def cpu_seconds(work: Work, times: int = 1) -> float:
    """CPU seconds of one call, all threads added up; the mean of ``times`` calls."""
    start = time.process_time()
    for _ in range(times):
        work()
    return (time.process_time() - start) / times


def paired(works: Mapping[str, Work], rounds: int = 7) -> dict[str, float]:
    """Median CPU seconds of each, run in turn, so that what disturbs one disturbs all; after a round of warming up."""
    batch = {}
    for name, work in works.items():
        work()
        batch[name] = max(1, int(0.03 / max(cpu_seconds(work), 1e-6)))  # long enough for the clock
    samples: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(rounds):
        for name, work in works.items():
            samples[name].append(cpu_seconds(work, batch[name]))
    return {name: statistics.median(values) for name, values in samples.items()}


def peak_megabytes() -> float:
    """Largest resident memory of this process so far.

    Linux counts what the parent held at the start in ``ru_maxrss``, so its own account of this program comes first.
    """
    status = Path("/proc/self/status")
    if status.exists():
        return float(status.read_text().split("VmHWM:")[1].split()[0]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
