"""Files to a default fit: one pass over parquet against reading the files and one bare product X^T X.

    python -m benchmarks.streaming [--rows 1000000] [--folder /somewhere/with/room]

Modalities of 512, 384 and 128 features in float32, as lists, in files of 50,000 rows, which are written first. CPU
seconds on one thread, in one process: X^T X over as many rows in chunks, reading every file by pyarrow, statistics in
three folds, and the default fit with its choice; the peak of memory; and imputing the rows of one file into files.
"""

from __future__ import annotations

import argparse
import resource
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch

import calmrl_prob as cal
from benchmarks.choosing import DIMS, embeddings
from calmrl_prob.errors import CalmrlWarning
from calmrl_prob.selection.gathering import GatherOptions
from calmrl_prob.selection.stream_pass import gather

_ROWS_OF_A_FILE, _CHUNK = 50_000, 8192


def write_files(rows: int, folder: Path) -> None:
    """Files of embeddings with ids, unless they are there."""
    for number, start in enumerate(range(0, rows, _ROWS_OF_A_FILE)):
        path = folder / f"rows-{number:04d}.parquet"
        if not path.exists():
            drawn = embeddings(min(_ROWS_OF_A_FILE, rows - start), seed=number)
            arrays = {name: drawn[name] for name in DIMS}
            cal.write(cal.MultimodalData(arrays, ids=np.arange(start, start + len(drawn))), path)


def read_bare(folder: Path) -> None:
    """Every row group of every file, as pyarrow has it."""
    import pyarrow.parquet as pq

    for path in sorted(folder.glob("*.parquet")):
        file = pq.ParquetFile(path)
        for group in range(file.num_row_groups):
            file.read_row_group(group, use_threads=False)


def product(rows: int) -> torch.Tensor:
    """X^T X of as many rows, chunk by chunk."""
    x = torch.randn(_CHUNK, sum(DIMS.values()))
    total = torch.zeros(x.shape[1], x.shape[1], dtype=torch.float64)
    for _ in range(0, rows, _CHUNK):
        total += x.mT @ x
    return total


def measure(rows: int, folder: Path) -> dict[str, float]:
    """CPU seconds of each, and the peak of memory in GB before and after the fits."""
    found: dict[str, float] = {}

    def timed(name: str, what: Any) -> None:  # noqa: ANN401 - any function
        begun = time.process_time()
        what()
        found[name] = time.process_time() - begun

    timed("X^T X", lambda: product(rows))
    timed("reading the files", lambda: read_bare(folder))
    stream = cal.read(folder, stream=True)
    timed("statistics in 3 folds", lambda: gather(stream, 3, 0, GatherOptions()))
    model = cal.SharedLatentModel(stream.dims)
    timed("default fit, choice included", lambda: cal.fit(model, stream))
    found["peak of memory, GB"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    one, count = cal.read(folder / "rows-0000.parquet", stream=True), min(rows, _ROWS_OF_A_FILE)
    with tempfile.TemporaryDirectory() as out:
        timed(f"imputing {count:,} rows, K {model.latent_dim}", lambda: cal.impute(model, one, out=out))
        written = sum(file.stat().st_size for file in Path(out).iterdir())
    found["memory on disk of each, kB"] = written / count / 1e3
    return found


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--folder", type=Path, help="for the files, 4 kB a row; a temporary one by default")
    options = parser.parse_args()
    warnings.simplefilter("ignore", CalmrlWarning)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as own:
        folder = options.folder or Path(own)
        folder.mkdir(exist_ok=True)
        write_files(options.rows, folder)
        found = measure(options.rows, folder)
    bare = found["X^T X"] + found["reading the files"]
    for name, value in found.items():
        times = "" if "memory" in name else f"  {value / bare:.2f} of reading + X^T X"
        print(f"{name:30} {value:8.2f}{times}")


if __name__ == "__main__":
    main()
