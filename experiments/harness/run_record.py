"""Record that every run writes of itself, from its start: ``job.json``, so that an interrupted one can be told."""

from __future__ import annotations

import importlib.metadata
import json
import platform
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from hydra.core.utils import JobReturn, JobStatus
from hydra.experimental.callback import Callback
from omegaconf import DictConfig

from analysis.runs.files import write_text

_VERSIONS_OF = ("calmrl-prob", "torch", "pyro-ppl", "numpy", "scikit-learn", "pandas", "arviz", "hydra-core")


class RunRecord(Callback):
    """Writes ``job.json``: experiment, overrides, versions, start; at the end state, seconds and error.

    The state is "running" from the start and as long as the run has not ended: one that was interrupted, or refused,
    stays so. A page that the run wrote of itself is written again then: it could not know yet how the run would end.
    Hydra makes it, as ``hydra.callbacks`` in the configurations says.
    """

    def __init__(self) -> None:
        self._started = 0.0
        self._facts: dict[str, Any] = {}

    def on_job_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Say what was begun."""
        self._started = time.perf_counter()
        self._facts = {
            "experiment": config.hydra.job.name,
            "overrides": list(config.hydra.overrides.task),
            "versions": versions(),
            "started": datetime.now(UTC).isoformat(timespec="seconds"),
            "state": "running",
        }
        self._write(config)

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **kwargs: Any) -> None:
        """Say how it ended."""
        done = job_return.status == JobStatus.COMPLETED
        self._facts |= {
            "state": "finished" if done else "failed",
            "seconds": round(time.perf_counter() - self._started, 1),
        }
        if not done:
            error = job_return._return_value  # the property of this name raises it
            self._facts["error"] = f"{type(error).__name__}: {error}"
        self._write(config)
        folder = Path(config.hydra.runtime.output_dir)
        if (folder / "report.html").is_file():
            from analysis.report import build_report  # it draws, which a run without a page need not wait for

            build_report(folder)

    def _write(self, config: DictConfig) -> None:
        write_text(json.dumps(self._facts, indent=2), Path(config.hydra.runtime.output_dir) / "job.json")


def versions() -> dict[str, str]:
    """Of Python and of the packages that figures depend on."""
    return {"python": platform.python_version(), **{name: _version(name) for name in _VERSIONS_OF}}


def _version(distribution: str) -> str:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"
