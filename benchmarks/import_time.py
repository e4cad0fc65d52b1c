"""CPU seconds of ``import calmrl_prob`` against ``import torch, pyro``: ``python -m benchmarks.import_time``.

Each runs in a process of its own, in turn, and each ratio is the median of those within a round. Names load their
modules when first used, so what a first fit needs, and all there is, are timed too.
"""

from __future__ import annotations

import os
import resource
import statistics
import subprocess
import sys

from rich.console import Console

FIT = """
import torch
data = MultimodalData({"image": torch.randn(60, 4), "text": torch.randn(60, 3)})
model = SharedLatentModel(data.dims, latent_dim=2)
fit(model, data, seed=0)
impute(model, data).mean
"""
NAMES = "from calmrl_prob import MultimodalData, SharedLatentModel, fit, impute"
IMPORTS = {
    "import torch, pyro": "import torch, pyro",
    "import calmrl_prob": "import calmrl_prob",
    NAMES: NAMES,
    "the same, then a fit and imputation of 60 rows": f"{NAMES}\n{FIT}",
    "from calmrl_prob import *": "from calmrl_prob import *",
}


def cpu_seconds(code: str) -> float:
    """CPU seconds of a new process that runs this code, the start of Python included."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-c", code], check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def measure(rounds: int = 7) -> list[dict[str, object]]:
    """A row for each of ``IMPORTS``, after a round that fills the caches of bytecode and files."""
    samples = [{name: cpu_seconds(code) for name, code in IMPORTS.items()} for _ in range(rounds + 1)][1:]
    return [
        {
            "import": name,
            "CPU s": statistics.median(sample[name] for sample in samples),
            "against torch, pyro": statistics.median(sample[name] / sample["import torch, pyro"] for sample in samples),
        }
        for name in IMPORTS
    ]


if __name__ == "__main__":
    from benchmarks.tables import show

    os.environ["OMP_NUM_THREADS"] = "1"
    show(Console(width=120), "Imports, each in a process of its own", measure())
