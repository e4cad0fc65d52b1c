"""Milliseconds of serving one row: ``python -m benchmarks.one_row``. One thread, CPU time, medians of 9 rounds.

``cal.posterior`` of one row of 4 modalities of 64 features with one missing (K 32), and the mean and the interval of
``cal.impute``, from a fit with everything given and from one that chose its settings, and so has intervals of its own.
Data are made anew for each call, as rows come; beside them, the bare solve that they come down to, and making the data.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch

import torch
from rich.console import Console
from torch import Tensor

import calmrl_prob as cal
from benchmarks.clock import paired
from benchmarks.tables import Row, show
from calmrl_prob.linear_gaussian import LinearGaussian

DIMS, LATENT_DIM, MISSING = dict.fromkeys(("image", "text", "audio", "video"), 64), 32, "video"


def bare(lg: LinearGaussian, row: dict[str, Tensor]) -> Tensor:
    """The mean of the missing modality, in as few calls of torch as it takes."""
    seen = [name for name in lg.names if name != MISSING]
    loadings = torch.cat([lg.loadings[name] for name in seen])
    noise = torch.cat([lg.noise_variance[name].expand(DIMS[name]) for name in seen])
    deviation = torch.cat([row[name][0] - lg.intercepts[name] for name in seen])
    weighted = loadings / noise[:, None]
    precision = torch.eye(LATENT_DIM, dtype=noise.dtype) + weighted.mT @ loadings
    latents = torch.cholesky_solve((weighted.mT @ deviation)[:, None], torch.linalg.cholesky(precision))
    return lg.loadings[MISSING] @ latents[:, 0] + lg.intercepts[MISSING]


def measure(title: str, fit: object, row: dict[str, Tensor]) -> list[Row]:
    """One row for each call."""
    lg = fit.linear_gaussian()  # type: ignore[attr-defined]

    def data() -> cal.MultimodalData:
        return cal.MultimodalData(row)

    seconds = paired(
        {
            "the bare solve": lambda: bare(lg, row),
            "MultimodalData(row)": data,
            "posterior": lambda: cal.posterior(fit, data()),
            "impute(...).mean": lambda: cal.impute(fit, data()).mean[MISSING],
            "impute(...).interval": lambda: cal.impute(fit, data()).interval(0.9)[MISSING],
        },
        rounds=9,
    )
    return [{"fit": title, "call": call, "ms": round(1000 * value, 3)} for call, value in seconds.items()]


def main() -> None:
    """Measure and print."""
    torch.set_num_threads(1)
    made = cal.datasets.make_synthetic(600, DIMS, latent_dim=8, noise_variance=1.0, seed=0).data
    row = {name: made[name][:1].clone() for name in DIMS if name != MISSING}
    given = cal.fit(cal.SharedLatentModel(DIMS, LATENT_DIM), made, pseudo_rows=100.0)
    model = cal.SharedLatentModel(DIMS, LATENT_DIM)
    chosen = cal.fit(model, made, shrinkage="held-out", folds=2, budget=20.0)
    rows = [*measure("all given", given, row), *measure("chosen", chosen, row)]
    show(Console(width=100), "One row, 4 modalities of 64 features, K 32", rows)


if __name__ == "__main__":
    main()
