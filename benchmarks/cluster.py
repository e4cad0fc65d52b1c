"""Rows drawn on the fly, gathered by one and by two Dask workers: seconds, memory of a worker, and the same statistics.

    python -m benchmarks.cluster [--rows 10000000]

Modalities of 256 and 128 features in float32, one of which a third of the rows lack. Each worker is a process of one
thread. Wall-clock seconds: the ratio says something of an idle machine with two cores alone. Statistics of the first
200,000 rows are compared with those of this process.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import torch

import calmrl_prob as cal
from calmrl_prob.selection.folds import FoldedStatistics
from calmrl_prob.selection.gathering import GatherOptions
from calmrl_prob.selection.stream_pass import gather

_DIMS = {"image": 256, "text": 128}
_CHUNK, _COMPARED = 20_000, 200_000


@dataclass(frozen=True)
class Drawn:
    """Chunks of a linear-Gaussian model with 16 latents, each drawn by a seed of its own."""

    rows: int

    def __call__(self, size: int) -> Iterator[tuple[str, Callable[[], cal.MultimodalData]]]:
        """The plan of a stream: chunks of fixed size."""
        return ((f"rows from {start}", partial(_draw, start)) for start in range(0, self.rows, _CHUNK))


def _draw(start: int) -> cal.MultimodalData:
    generator = torch.Generator().manual_seed(0)
    loadings = {name: torch.randn(16, width, generator=generator) for name, width in _DIMS.items()}
    generator.manual_seed(start + 1)
    latents = torch.randn(_CHUNK, 16, generator=generator)
    values = {
        name: latents @ own + torch.randn(_CHUNK, own.shape[1], generator=generator) for name, own in loadings.items()
    }
    observed = torch.ones(_CHUNK, 2, dtype=torch.bool)
    lacking = torch.rand(_CHUNK, generator=generator) < 1 / 3
    observed[lacking, torch.randint(2, (int(lacking.sum()),), generator=generator)] = False
    return cal.MultimodalData(values, observed_mask=observed)


def _peak_memory() -> float:
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6


def by_workers(rows: int, workers: int) -> tuple[float, float, FoldedStatistics]:
    """Seconds of gathering, the greatest memory of a worker in GB, and the statistics."""
    from dask.distributed import Client, LocalCluster

    stream = cal.MultimodalStream(_DIMS, Drawn(rows), num_rows=rows)
    os.environ.update(OMP_NUM_THREADS="1", OMP_WAIT_POLICY="PASSIVE")
    with (
        LocalCluster(n_workers=workers, threads_per_worker=1, dashboard_address=":0") as cluster,
        Client(cluster) as client,
    ):
        begun = time.perf_counter()
        found = gather(stream, 3, 0, GatherOptions(engine="dask", client=client))
        seconds = time.perf_counter() - begun
        peak = max(client.run(_peak_memory).values())
    assert isinstance(found, FoldedStatistics)
    return seconds, peak, found


def furthest(one: FoldedStatistics, other: FoldedStatistics) -> float:
    """The greatest difference of statistics, as a share of the greatest number of their matrix."""
    worst = 0.0
    for mine, theirs in zip(one.folds, other.folds, strict=True):
        zero = {name: torch.zeros(width, dtype=torch.float64) for name, width in _DIMS.items()}
        here, there = mine.shifted(zero).scatters, theirs.shifted(zero).scatters
        worst = max(worst, *(float((here[p] - there[p]).abs().max() / there[p].abs().max()) for p in there))
    return worst


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--rows", type=int, default=10_000_000)
    rows = parser.parse_args().rows
    torch.set_num_threads(1)
    here = gather(cal.MultimodalStream(_DIMS, Drawn(_COMPARED)), 3, 0, GatherOptions())
    assert isinstance(here, FoldedStatistics)
    print(f"statistics of 2 workers and of this process differ by {furthest(by_workers(_COMPARED, 2)[2], here):.1e}")
    found = {workers: by_workers(rows, workers)[:2] for workers in (2, 1)}
    for workers, (seconds, peak) in found.items():
        print(f"{rows:,} rows, {workers} workers: {seconds:.1f} s, at most {peak:.2f} GB a worker")
    print(f"two are {found[1][0] / found[2][0]:.2f} times as fast as one")


if __name__ == "__main__":
    main()
