"""CPU against GPU: wall-clock seconds of the medium fit and of the pass over a million rows, data already in place."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

from benchmarks.one_pass import CHUNK, MODALITIES, WIDTH, chunks
from benchmarks.problems import PROBLEMS
from calmrl_prob.data import MultimodalData
from calmrl_prob.linear_gaussian import SufficientStatistics, fit_em


def wall_seconds(work: Callable[[], object]) -> float:
    """Wall-clock seconds of the second of two calls, the device's queue drained."""
    for _ in range(2):
        torch.cuda.synchronize()
        start = time.perf_counter()
        work()
        torch.cuda.synchronize()
        seconds = time.perf_counter() - start
    return seconds


def million_rows(device: str) -> None:
    """The pass of ``one_pass``, rows made on the device."""
    generator = torch.Generator(device).manual_seed(0)
    pool = torch.randn(2 * CHUNK, WIDTH, generator=generator, device=device) + 3
    names = [f"m{i}" for i in range(MODALITIES)]
    statistics = SufficientStatistics(dict.fromkeys(names, WIDTH // MODALITIES))
    for rows in chunks(pool, 1_000_000):
        parts = dict(zip(names, rows.split(WIDTH // MODALITIES, dim=1), strict=True))
        statistics.update(MultimodalData(parts).blocks)


def measure() -> list[dict[str, object]]:
    """One row for each task and device."""
    problem = PROBLEMS["medium"]
    rows: list[dict[str, object]] = []
    for device in ("cpu", "cuda"):
        data = problem.make().data.to(device=device)
        fit = wall_seconds(lambda data=data: fit_em(data.blocks, problem.latent_dim))
        rows.append({"task": "medium fit", "device": device, "wall_s": fit})
        passed = wall_seconds(lambda device=device: million_rows(device))
        rows.append({"task": "1,000,000 x 1,024 pass", "device": device, "wall_s": passed})
    return rows
