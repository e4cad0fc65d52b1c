"""The evidence on its way, from several starts."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
from hydra import compose, initialize_config_dir
from rich.console import Console

from experiments.convergence import run

CONF = Path(__file__).resolve().parents[2] / "experiments" / "conf"


def test_the_evidence_never_falls_from_any_start(tmp_path: Path) -> None:
    overrides = [
        "data=synthetic", "data.source.num_instances=150", "data.source.dims={a: 6, b: 5, c: 4}",
        "data.source.latent_dim=2", "latent_dim=2", "seeds=[0,1]", "random_starts=1", "max_iterations=5000",
    ]  # fmt: skip
    with initialize_config_dir(str(CONF), version_base="1.3"):
        found = run(compose("convergence", overrides), tmp_path, Console(quiet=True))
    assert len(found) == 2 * 2 * 2
    assert found["fall"].max() < 100  # of 1e-12: rounding of sums of some thousand numbers
    assert (found["converged"] == 100).all()
    # A tolerance of 1e-6 nats that are still to be gained, and an optimum that is alone at the true K.
    assert found["behind"].max() < 1e-4
    trace = pd.read_csv(tmp_path / "trace.csv")
    ends = trace.groupby(["variant", "seed", "number"])["evidence"].last()
    assert ends.tolist() == found.sort_values(["variant", "seed", "number"])["evidence"].tolist()
    assert (tmp_path / "convergence.png").stat().st_size > 5000
    assert "EM, accelerated" in (tmp_path / "table.md").read_text(encoding="utf-8")
