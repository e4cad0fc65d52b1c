"""The Hydra experiments: each a module to run with ``python -m``, from a checkout of the repository."""

from __future__ import annotations

import os

# One thread, unless the user says otherwise: the matrices are small, and threads that wait for each other on a busy
# machine made a comparison ten times slower. Set here because libraries read it when they are first imported.
for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(_name, "1")
