"""Imputed assays of cohorts: what is hidden, what is measured, and the command on a small cohort with batches."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from rich.console import Console

from calmrl_prob.data import MultimodalData
from calmrl_prob.errors import ArgumentError, ReliabilityWarning
from calmrl_prob.posteriors.predictive import NormalPredictive
from experiments.assays.cohorts import Cohort, hide
from experiments.assays.contenders import CONTENDERS, kept_apart
from experiments.assays.counts import CountOptions, compare_counts, log_mass
from experiments.assays.peers import fit_mofaflex, mofaflex_is_there
from experiments.assays.scores import Readers, score
from experiments.assays.table import paired
from experiments.medicine import run
from tests.cases.experiment_cases import composed


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A mosaic of 240 cells of 3 types in 4 batches, of which one lacks each assay: counts, and their logarithms."""
    rng, count = np.random.default_rng(0), 240
    kind, batch = rng.integers(3, size=count), np.repeat(np.arange(4), count // 4)
    centres = 1.5 * rng.normal(size=(3, 2))
    z = centres[kind] + 0.6 * rng.normal(size=(count, 2))
    arrays: dict[str, np.ndarray] = {"labels": kind.astype(str), "batch": np.array(list("pqrs"))[batch]}
    for name, width, lacking in (("rna", 12, 1), ("adt", 9, 0)):
        shift = 0.5 * rng.normal(size=(4, width))
        counts = rng.poisson(np.exp(0.5 * z @ rng.normal(size=(2, width)) + shift[batch] + 1.0))
        x = np.log1p(counts).astype(np.float32)
        counts[batch == lacking], x[batch == lacking] = -1, np.nan
        arrays |= {f"x_{name}": x, f"counts_{name}": counts.astype(np.int32)}
        arrays[f"features_{name}"] = np.array([f"{name}{d}" for d in range(width)])
    path = tmp_path_factory.mktemp("cohort")
    np.savez(path / "cells.npz", **arrays)
    return path


def cohort(missing: str = "own") -> Cohort:
    return Cohort(file="cells.npz", batch="batch", missing=(missing,))


def test_what_is_hidden_is_hidden_and_test_rows_have_the_truth(folder: Path) -> None:
    data = cohort().read(folder)
    found = hide("cells", cohort("batch"), data, "batch", seed=3)
    train, (assay, rows) = found.task.train, next(iter(found.tested.items()))
    assert assay == "adt"
    batch = set(rows.covariates["batch"])
    assert len(found.tested) == 1
    assert len(batch) == 1
    assert bool(rows.observed_mask.all())
    own = train.covariates["batch"] == batch.pop()
    assert not bool(train.observed(assay)[own].any())
    assert bool(train.observed("rna")[own].all())
    values = train["rna"][train.observed("rna")].double()
    np.testing.assert_allclose(values.std(0, correction=0), 1.0, atol=1e-5)
    assert train.feature_names["rna"] is not None


def test_the_command_measures_explains_and_writes(folder: Path, tmp_path: Path) -> None:
    cfg = composed(
        "medicine",
        f"data_root={folder}",
        "+cohorts.cells={file: cells.npz, batch: batch, missing: [own]}",
        "sets=[cells]",
        "seeds=2",
        "contenders=[fast, ridge, mean]",
        "explain={contender: fast, factors: 2, top: 4, draws: 3}",
        "counts=null",
    )
    out = io.StringIO()
    results = run(cfg, tmp_path, Console(file=out, width=200))
    assert len(results) == 2 * 3 * 2
    means = results.groupby("contender")[["R2", "accuracy"]].mean()
    assert means.loc["mean", "R2"] == pytest.approx(0, abs=0.1)
    assert means.loc["fast", "R2"] > 0.05
    assert means.loc["fast", "accuracy"] > means.loc["mean", "accuracy"] + 10
    weights = pd.read_csv(tmp_path / "cells_weights.csv")
    assert set(weights["feature"]) == {f"rna{d}" for d in range(12)} | {f"adt{d}" for d in range(9)}
    assert bool((weights["lower"] <= weights["upper"]).all())
    assert {path.name for path in tmp_path.glob("*.png")} >= {"cells_factors.png", "cells_top_rna.png"}
    assert "R2 rna" in (tmp_path / "table.md").read_text()
    assert "Medicine: cells" in out.getvalue()


def test_a_batch_of_one_cell_is_imputed_as_of_no_known_batch(folder: Path) -> None:
    data = cohort().read(folder)
    complete = np.flatnonzero(data.complete_rows().numpy())
    batch = data.covariates["batch"].astype(object)
    batch[complete[:12]] = [f"only{row}" for row in complete[:12]]  # some of which are test rows
    data.covariates["batch"] = batch
    found = hide("cells", cohort(), data, "own", seed=0)
    unknown = np.array([entry is None for entry in found.tested["rna"].covariates["batch"]])
    assert 0 < unknown.sum() < 12
    with pytest.warns(ReliabilityWarning, match="never has"):
        fitted = CONTENDERS["fast"].fit(found, 0)
    rows = score(fitted, found, Readers.of(found.task.train, 0))
    assert all(np.isfinite(row["R2"]) and row["latent"] > 50 for row in rows)


@pytest.mark.slow
@pytest.mark.parametrize(("linked", "kept"), [(400, 60), (100, 40), (50, 25)])
def test_rows_to_set_intervals_by_are_linked_ones_and_enough(linked: int, kept: int) -> None:
    observed = torch.ones(linked + 30, 2, dtype=torch.bool)
    observed[linked:, 1] = False
    batch = np.array(["p"] * linked + ["q"] * 30)
    batch[0] = "alone"  # no row of its batch would be left to fit to
    rows = {name: torch.randn(linked + 30, 2, generator=torch.Generator().manual_seed(0)) for name in ("rna", "adt")}
    data = MultimodalData(rows, observed_mask=observed, covariates={"batch": batch}, ids=np.arange(linked + 30))
    for seed in range(3):
        left, apart = kept_apart(data, "batch", seed)
        assert len(apart) in (kept, kept - 1)
        assert bool(apart.observed_mask.all())
        assert set(left.ids) | set(apart.ids) == set(range(linked + 30))
        assert len(left) + len(apart) == linked + 30
        assert 0 in left.ids


def test_counts_are_compared_on_the_same_rows(folder: Path) -> None:
    rows = pd.DataFrame(compare_counts(cohort().read(folder), 0, CountOptions(8, 2, max_iterations=8)))
    assert set(rows["family"]) == {"log-normal", "poisson", "negative_binomial"}
    assert bool((rows["R2"] > 0).all())
    assert bool(rows["coverage"].between(70, 100).all())
    score = rows.pivot(index="assay", columns="family", values="score")
    assert bool((score < 0).all(axis=None))
    assert bool(((score["poisson"] - score["log-normal"]).abs() < 0.5).all())  # probabilities of the same counts


def test_probabilities_of_counts_on_the_log_scale_sum_to_one() -> None:
    depth, whole = np.array([[2.0]]), np.arange(400.0)[:, None]
    mean = torch.full((400, 1), 0.9).double()
    predictive = NormalPredictive(mean, torch.zeros_like(mean), torch.full_like(mean, 0.3))
    assert float(np.exp(log_mass(predictive, whole, depth)).sum()) == pytest.approx(1, abs=1e-6)


def test_differences_are_of_the_same_seeds() -> None:
    keys = {"cohort": "c", "missing": "own", "assay": "a", "coverage": None, "accuracy": 50.0, "latent": None}
    rows = [{**keys, "contender": who, "seed": s, "R2": r} for who, s, r in (("x", 0, 0.3), ("y", 0, 0.1), ("x", 1, 9))]
    assert paired(pd.DataFrame(rows), "x", "y")["R2"].tolist() == ["0.200 (1 of 1)"]


def test_what_cannot_be_asked_for_is_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match="missing: expected some of"):
        Cohort(file="cells.npz", missing=("none",))
    for override, message in (
        ("contenders=[best]", "contenders: expected some of"),
        ("sets=[mine]", "sets: expected some of"),
        ("sets=[brca5]", "sets: none of them is there: there is no brca5.npz"),
        ("seeds=[-1]", "seeds: expected how many"),
    ):
        cfg = composed(
            "medicine", f"data_root={folder}", *(["sets=[omics]"] if "sets" not in override else []), override
        )
        with pytest.raises(ArgumentError, match=message):
            run(cfg, tmp_path, Console(file=io.StringIO()))


@pytest.mark.slow
@pytest.mark.skipif(not mofaflex_is_there(), reason="mofaflex is an optional extra")
def test_mofaflex_explains_something(folder: Path) -> None:
    found = hide("cells", cohort(), cohort().read(folder), "own", seed=0)
    model = fit_mofaflex(found.task.train, factors=2, epochs=200)
    assert model.dims == {"rna": 12, "adt": 9}
