"""``experiments.recalibration`` from end to end on small data."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from rich.console import Console

from calmrl_prob.errors import ArgumentError
from experiments.harness.six_views import DIMS, six_views
from experiments.recalibration import METHODS, run, tabulate
from tests.cases.experiment_cases import composed

TINY = [
    "data=synthetic", "data.source.num_instances=200", "data.source.dims={a: 6, b: 5, c: 4}",
    "data.source.latent_dim=2", "latent_dim=4", "folds=2", "grid={pseudo_rows: [0, 20]}", "min_rows=10",
]  # fmt: skip


def test_every_method_gives_a_row_for_each_modality(tmp_path: Path) -> None:
    out = io.StringIO()
    cfg = composed("recalibration", *TINY, f"methods=[{','.join(METHODS)}]")
    results = run(cfg, tmp_path, Console(file=out, width=160))
    assert len(results) == 2 * len(METHODS) * 3
    assert results["coverage"].between(0.5, 1).all()
    read = pd.read_csv(tmp_path / "results.csv")
    np.testing.assert_allclose(read["width"], results["width"])
    patterns = pd.read_csv(tmp_path / "patterns.csv")
    assert len(patterns) == 2 * len(METHODS) * 9
    table = (tmp_path / "table.md").read_text()
    assert all(f"| {method} |" in table for method in METHODS)
    assert "conformal by modality" in out.getvalue()
    chosen = results.loc[results["fit"] == "shrunk", "options"]
    assert chosen.str.contains("pseudo_rows=").all()


def test_the_narrowest_of_those_that_reach_the_targets_is_marked() -> None:
    cfg = composed("recalibration")
    rows = [("none", 0.8, 1.0), ("scale", 0.91, 2.0), ("conformal", 0.9, 1.5)]
    named = {"fit": "likelihood", "modality": "a", "seconds": 1.0, "seconds_impute": 1.0}
    results = pd.DataFrame([{"method": m, "coverage": c, "width": w, **named} for m, c, w in rows])
    patterns = results.assign(pattern="b", num_instances=100)
    assert tabulate(results, patterns, cfg)["reached"].tolist() == ["no", "yes", "yes, narrowest"]
    patterns.loc[2, "coverage"] = 0.85
    assert tabulate(results, patterns, cfg)["reached"].tolist() == ["no", "yes, narrowest", "no"]
    assert tabulate(results, patterns.assign(num_instances=49), cfg)["reached"].tolist()[2] == "yes, narrowest"


@pytest.mark.parametrize(
    "override", ["methods=[mapie]", "fits=[best]", "level=1.5", "folds=1", "test_rows=null", "calibration_share=0"]
)
def test_what_cannot_work_is_named(override: str, tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match=override.partition("=")[0]):
        run(composed("recalibration", *TINY, override), tmp_path, Console(quiet=True))


def test_six_views_are_heavy_tailed_skewed_and_complete() -> None:
    data = six_views(800)
    assert data.dims == DIMS
    assert bool(data.complete_rows().all())
    assert bool((data["profile"] == six_views(800)["profile"]).all())
    centred = (data["profile"] - data["profile"].mean(0)).numpy()
    assert np.mean(centred**3) / np.mean(centred**2) ** 1.5 > 0.2
    tails = (data["fourier"] - data["fourier"].mean(0)).numpy()
    assert np.mean(tails**4) / np.mean(tails**2) ** 2 > 4
