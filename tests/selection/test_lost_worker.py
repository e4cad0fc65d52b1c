"""A worker of a Dask cluster that is killed in the middle of a pass changes nothing but its time."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import calmrl_prob as cal
from calmrl_prob.data.stream import MultimodalStream
from calmrl_prob.selection.gathering import GatherOptions
from calmrl_prob.selection.stream_pass import gather

DIMS, ROWS, CHUNK = {"image": 5, "text": 4}, 480, 20


def chunk(start: int, folder: Path | None) -> cal.MultimodalData:
    """Rows from ``start`` on; with a folder slowly, leaving a file of who has read them."""
    whole = cal.datasets.make_synthetic(ROWS, DIMS, latent_dim=2, missing_rate=0.3, seed=0).data
    if folder is not None:
        (folder / f"{start}-{os.getpid()}").touch()
        time.sleep(0.2)
    part = whole.subset(slice(start, start + CHUNK))
    return cal.MultimodalData({name: part[name] for name in DIMS}, ids=np.arange(start, start + CHUNK))


@dataclass(frozen=True)
class Plan:
    """Chunks of a stream, each read on its own."""

    folder: Path | None = None

    def __call__(self, size: int) -> Iterator[tuple[str, Callable[[], cal.MultimodalData]]]:
        return ((f"from {start}", partial(chunk, start, self.folder)) for start in range(0, ROWS, CHUNK))


@contextmanager
def one_killed(folder: Path) -> Iterator[list[int]]:
    """Kill the first process that has read two chunks; its id, once it is killed."""
    folder.mkdir()
    killed: list[int] = []

    def watch() -> None:
        until = time.monotonic() + 120
        while not killed and time.monotonic() < until:
            readers = [int(file.name.partition("-")[2]) for file in folder.iterdir()]
            ready = [reader for reader in readers if readers.count(reader) > 1 and reader != os.getpid()]
            if ready:
                os.kill(ready[0], signal.SIGKILL)
                killed.append(ready[0])
            time.sleep(0.02)

    watcher = threading.Thread(target=watch)
    watcher.start()
    yield killed
    watcher.join()


@pytest.mark.slow
def test_a_worker_killed_in_the_middle_changes_nothing_but_time(tmp_path: Path) -> None:
    distributed: Any = pytest.importorskip("dask.distributed", reason="of the extra dask")
    here = gather(MultimodalStream(DIMS, Plan()), 3, 0, GatherOptions())
    fit = cal.fit(cal.SharedLatentModel(DIMS, 2), here)
    files = sorted(cal.impute(fit, MultimodalStream(DIMS, Plan()), out=tmp_path / "here").glob("*.parquet"))
    cluster = distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=":0")
    with cluster, distributed.Client(cluster) as client:
        with one_killed(tmp_path / "of statistics") as killed:
            stream = MultimodalStream(DIMS, Plan(tmp_path / "of statistics"))
            there = gather(stream, 3, 0, GatherOptions(engine="dask", client=client))
        assert killed
        client.wait_for_workers(2, timeout=60)
        assert killed[0] not in client.run(os.getpid).values()
        with one_killed(tmp_path / "of imputing") as killed:
            stream = MultimodalStream(DIMS, Plan(tmp_path / "of imputing"))
            out = cal.impute(fit, stream, out=tmp_path / "there", engine="dask", client=client)
        assert killed
    for one, other in zip(here.folds, there.folds, strict=True):
        other = other.shifted(dict(zip(DIMS, one.shift.split(list(DIMS.values())), strict=True)))
        assert one.scatters.keys() == other.scatters.keys()
        for present, scatter in one.scatters.items():
            assert float((scatter - other.scatters[present]).abs().max()) <= 1e-10 * float(scatter.abs().max())
    assert [file.read_bytes() for file in sorted(out.glob("*.parquet"))] == [file.read_bytes() for file in files]
