"""An interpreter that has ArviZ 1, for the tests of the adapter under both of its layouts."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest


def runs(command: str) -> bool:
    """Whether a command is there and works; a version manager may list interpreters that it does not start."""
    return bool(shutil.which(command)) and not subprocess.run([command, "--version"], capture_output=True).returncode


def python_with_arviz_1(folder: Path) -> str:
    """An interpreter that has ArviZ 1: the one in ARVIZ_1_PYTHON, or a new environment; skips where there is none."""
    if given := os.environ.get("ARVIZ_1_PYTHON"):
        return given
    found = next((name for name in ("python3.13", "python3.12") if runs(name)), None)
    if found is None:
        pytest.skip("ArviZ 1 needs Python 3.12 or later, and none is on PATH; or set ARVIZ_1_PYTHON")
    subprocess.run([found, "-m", "venv", str(folder)], check=True, capture_output=True)
    python = str(folder / "bin" / "python")
    install = [python, "-m", "pip", "install", "-q", "arviz>=1", "h5netcdf", "h5py", "zarr"]
    done = subprocess.run(install, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"ArviZ 1 could not be installed: {done.stderr.strip().splitlines()[-1]}")
    return python
