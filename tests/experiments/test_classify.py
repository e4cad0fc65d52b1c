"""``python -m experiments.classify`` on a small file, and its parts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from rich.console import Console

from calmrl_prob.errors import ArgumentError
from experiments.classification.acquire import POLICIES, _acquired
from experiments.classification.rows import LabelledSet, make_class_task
from experiments.classify import OURS, run
from tests.cases.experiment_cases import composed

QUIET = Console(quiet=True)


def small_file(folder: Path) -> list[str]:
    """Three classes, two modalities, a subject for each five rows."""
    generator = np.random.default_rng(0)
    labels = generator.integers(3, size=150)
    latent = 2 * np.eye(3)[labels] + 0.5 * generator.normal(size=(150, 3))
    arrays = {
        f"x_{n}": latent @ generator.normal(size=(3, w)) + generator.normal(size=(150, w))
        for n, w in (("a", 5), ("b", 4))
    }
    np.savez(folder / "tiny.npz", labels=labels, subject=np.arange(150) // 5, train_idx=np.arange(100),
             test_idx=np.arange(100, 150), **arrays)  # fmt: skip
    entry = "+datasets.tiny={file: tiny.npz, scale: feature, groups: subject}"
    return [entry, "sets=[tiny]", f"data_root={folder}", "penalties=[0.1]", "steps=2", "quick=true"]


def test_every_method_is_measured_for_each_number_of_missing(tmp_path: Path) -> None:
    results = run(composed("classify", *small_file(tmp_path), "labelled=0.8"), tmp_path / "run", QUIET)
    assert len(results) == 5 * 2  # methods, and none or one missing: one of two modalities is always left
    ours = results[results["label"] == OURS].set_index("missing")
    assert ours.loc[0, "accuracy"] > 60  # 33 by chance
    assert (ours["ece lower"] <= ours["ece"]).all()
    assert ours.loc[0, "answered 25%"] >= ours.loc[0, "accuracy"]
    curves = pd.read_csv(tmp_path / "run" / "acquired.csv")
    assert set(curves["policy"]) == set(POLICIES)
    assert curves.groupby("policy")["share"].apply(list).map(lambda s: s == [0.0, 0.5, 1.0]).all()
    ends = curves[curves["share"] == 1]["accuracy"]
    assert ends.nunique() == 1  # in whatever order, everything is there at the end
    assert OURS in (tmp_path / "run" / "table.md").read_text(encoding="utf-8")


def test_labels_of_some_rows_are_not_shown_and_units_are_of_training_rows(tmp_path: Path) -> None:
    small_file(tmp_path)
    dataset = LabelledSet(file="tiny.npz", scale="feature", own=True)
    task = make_class_task(dataset, dataset.read(tmp_path), lambda data, seed: None, 0, rows=60, labelled=0.5)
    hidden = sum(label is None for label in task.train.labels.tolist())
    assert 15 < hidden < 45
    assert len(task.train) == 60
    np.testing.assert_allclose(task.train["a"].numpy().std(axis=0), 1, rtol=1e-5)
    assert task.groups is None


def test_the_best_cell_of_each_row_is_acquired_first() -> None:
    present = np.array([[True, False, False], [True, False, False]])
    worth = np.array([[-np.inf, 3.0, 4.0], [-np.inf, 2.0, 1.0]])
    assert _acquired(present, worth, 1).tolist() == [[True, False, True], [True, False, False]]
    assert _acquired(present, worth, 3).tolist() == [[True, True, True], [True, True, False]]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("sets=[nonsense]", "sets: expected some of"),
        ("sets=[brca5]", "data_root"),
        ("labelled=0", "labelled: expected a share"),
        ("+datasets.leaves.scale=row", "scale"),
    ],
)
def test_options_that_cannot_work_are_refused(override: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match=message):
        run(composed("classify", override), tmp_path, QUIET)
