"""One pass over 1,000,000 x 1,024 float32 in chunks: sufficient statistics against the bare product of the same run.

Run in a process of its own (``python -m benchmarks.one_pass``), so that the peak of its memory means something.
The rows are made from a few thousand random ones that are cut up anew for each chunk: making a million random rows
would cost more than the pass, and what stands in them makes no difference to its speed.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator

import numpy as np
import torch

from benchmarks.clock import cpu_seconds, peak_megabytes
from calmrl_prob.data import MultimodalData
from calmrl_prob.linear_gaussian import SufficientStatistics, fit_em

WIDTH = 1024
CHUNK = 8192
MODALITIES = 4


def chunks(pool: torch.Tensor, num_rows: int) -> Iterator[torch.Tensor]:
    """Windows into the pool that start at other rows each time, ``num_rows`` rows in all."""
    for index, start in enumerate(range(0, num_rows, CHUNK)):
        size = min(CHUNK, num_rows - start)
        offset = (index * 977) % (len(pool) - size + 1)
        yield pool[offset : offset + size]


def bare_seconds(pool: torch.Tensor, num_rows: int) -> float:
    """X^T X chunk by chunk, by the faster of the two libraries at hand, and nothing else."""

    def by_numpy() -> None:
        for rows in chunks(pool, num_rows):
            array = rows.numpy()
            array.T @ array

    def by_torch() -> None:
        for rows in chunks(pool, num_rows):
            rows.mT @ rows

    return min(cpu_seconds(by_numpy), cpu_seconds(by_torch))


def measure(num_rows: int = 1_000_000, missing: bool = False) -> dict[str, object]:
    """CPU seconds of the pass with all its checks, of the bare product, and of EM afterwards; peak memory."""
    generator = torch.Generator().manual_seed(0)
    pool = torch.randn(2 * CHUNK, WIDTH, generator=generator) + 3
    names = [f"m{i}" for i in range(MODALITIES)]
    width = WIDTH // MODALITIES
    if missing:
        gone = torch.rand(len(pool), MODALITIES, generator=generator) < 0.3
        gone[gone.all(1), 0] = False
        pool.view(len(pool), MODALITIES, width)[gone] = np.nan
    statistics = SufficientStatistics(dict.fromkeys(names, width))

    def run() -> None:
        for rows in chunks(pool, num_rows):
            parts = dict(zip(names, rows.split(width, dim=1), strict=True))
            statistics.update(MultimodalData(parts).blocks)

    pass_seconds = cpu_seconds(run)
    peak = peak_megabytes()
    em_seconds = cpu_seconds(lambda: fit_em(statistics, 32, max_iterations=20))
    bare = bare_seconds(pool, num_rows)
    return {
        "rows": num_rows,
        "missing": missing,
        "pass_cpu_s": pass_seconds,
        "bare_cpu_s": bare,
        "ratio": pass_seconds / bare,
        "peak_mb": peak,
        "em_after_cpu_s": em_seconds,
    }


if __name__ == "__main__":
    print(json.dumps(measure(int(sys.argv[1]), missing=len(sys.argv) > 2)))  # its output is its result
