"""Classes of rows with missing modalities, by the model itself and by rivals: ``python -m experiments.classify``.

    python -m experiments.classify                                     # leaves and emoji, bundled
    python -m experiments.classify quick=true                          # one seed, 300 training rows
    python -m experiments.classify sets=[brca5,pbmc_mosaic,wristwatch] data_root=/path/to/files
    python -m experiments.classify sets=[emoji] labelled=0.2           # a fifth of the training rows have labels

Training rows lose modalities; each method learns from what is left, all settings on training rows alone; complete test
rows lose none, one, two modalities. ``cal.classify`` integrates out what a row lacks; the rivals fill it in, or take
NaN. Beside accuracy, log score and Brier score the calibration error with its interval, accuracy of the most certain
rows alone, and accuracy against modalities acquired in several orders. Leaves in the run's folder ``results.csv``,
``acquired.csv``, ``table.md``, ``config.yaml`` and the log.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import hydra
import numpy as np
import pandas as pd
from omegaconf import DictConfig, OmegaConf
from rich.console import Console

import calmrl_prob as cal
from analysis.runs.files import write_table
from calmrl_prob.data import MultimodalData
from calmrl_prob.errors import ArgumentError
from calmrl_prob.evaluation import score_probabilities
from experiments.alignment.runs import Row, collect, lacking, tabulate
from experiments.classification.acquire import POLICIES, acquisition_curve
from experiments.classification.rivals import Array, rivals
from experiments.classification.rows import ClassTask, LabelledSet, make_class_task
from experiments.comparison.fitting import collected_warnings
from experiments.harness.command import finish, run_in_folder
from experiments.harness.settings import build

OURS = "exact classes"
CAPTION = (
    "Test rows, mean ± standard deviation over seeds. Accuracy, and that of the most certain half, in %; log score in "
    "nats, higher is better; ECE is the calibration error less part of what chance adds, and its interval the mean of "
    "the 95% intervals of the seeds, by bootstrap over test rows."
)


@hydra.main(config_path="conf", config_name="classify", version_base="1.3")
def main(cfg: DictConfig) -> None:
    """Make one table."""
    run_in_folder(run, cfg)


def run(cfg: DictConfig, folder: Path, console: Console | None = None) -> pd.DataFrame:
    """Fit, classify, print the table, and write the files of the run.

    Returns:
        One row for each data set, seed, method and number of missing modalities.
    """
    out = console or Console()
    if cfg.quick:
        cfg = OmegaConf.merge(cfg, {"seeds": [cfg.seeds[0]], "rows": 300, "sets": list(cfg.sets)[-1:]})  # type: ignore[assignment]
    sets, acquired = _sets(cfg), []
    results = collect(_rows(cfg, sets, acquired, folder), len(sets) * len(cfg.seeds), folder, out)
    curves = pd.DataFrame(acquired)
    results["ECE interval"] = [f"{low:.3f} to {high:.3f}" for low, high in _intervals(results)]
    measures = [("accuracy", "accuracy", 1), ("log_score", "log score", 3), ("brier", "Brier", 3), ("ece", "ECE", 3)]
    by = ["set", "missing", "label", "ECE interval"]
    text = tabulate(results, by, [*measures, ("half", "most certain half", 1), ("seconds", "s", 0)])
    spent = tabulate(_gains(curves), ["set", "label"], [("half", "accuracy gain at half of the cells, %", 0)])
    finish(cfg, text, f"Classes: {', '.join(sets)}", CAPTION, folder, out)
    finish(cfg, spent, "Modalities acquired", "", folder / "acquired", out)
    return results


def _sets(cfg: DictConfig) -> dict[str, LabelledSet]:
    """The data sets asked for.

    Raises:
        ArgumentError: one is unknown, or its file is not there, or an option cannot work.
    """
    known, wanted = list(cfg.datasets), list(cfg.sets)
    if not wanted or not set(wanted) <= set(known):
        raise ArgumentError(f"sets: expected some of {known}, got {wanted}.")
    if not 0 < cfg.labelled <= 1:
        raise ArgumentError(f"labelled: expected a share above 0, at most 1, got {cfg.labelled}.")
    found = {name: LabelledSet(**build(cfg, f"datasets.{name}")) for name in wanted}
    for name, one in found.items():
        if why := one.lacking(cfg.data_root):
            raise ArgumentError(f"sets: {name}: {why}.")
    return found


def _rows(
    cfg: DictConfig, sets: dict[str, LabelledSet], acquired: list[Row], folder: Path
) -> Iterator[tuple[str, list[Row]]]:
    mechanism = build(cfg, "missingness")
    for name, dataset in sets.items():
        data = dataset.read(cfg.data_root)
        for seed in cfg.seeds:
            task = make_class_task(dataset, data, mechanism, seed, cfg.rows, cfg.labelled)
            with collected_warnings():
                rows, curves = measure(task, cfg, seed)
            acquired += [{"set": name, "seed": seed, **row} for row in curves]
            write_table(pd.DataFrame(acquired), folder / "acquired.csv")
            yield f"{name}, seed {seed}", [{"set": name, "seed": seed, **row} for row in rows]


def measure(task: ClassTask, cfg: DictConfig, seed: int) -> tuple[list[Row], list[Row]]:
    """Everything of one data set and seed: a row for each method and number of missing, and acquisition curves."""
    begun = time.process_time()
    groups = {} if task.groups is None else {"groups": task.groups}
    fit = cal.fit(cal.SharedLatentModel(task.train.dims), task.train, seed=seed, progress=False, **groups)
    fitted = time.process_time()
    classifier = cal.classify(fit, task.train, seed=seed, **groups)
    seconds, lg = time.process_time() - fitted, fit.linear_gaussian()
    methods = {OURS: classifier.probabilities, **rivals(task, lg, list(cfg.penalties), seed)}
    numbers = [number for number in cfg.missing if number < len(task.test.names)]
    rows = []
    for number in numbers:
        data = lacking(task.test, number, seed)
        for label, stated in methods.items():
            facts = {"missing": number, "label": label, "seconds": seconds if label == OURS else np.nan}
            rows.append(facts | scores(stated(data), data, classifier.classes) | {"fit seconds": fitted - begun})
    curves = []
    for policy in POLICIES:
        found = acquisition_curve(classifier, lg, task.test, policy, cfg.steps, seed)
        curves += [{"label": POLICIES[policy], **row} for row in found]
    return rows, curves


def scores(stated: Array, data: MultimodalData, classes: Array) -> Row:
    """Scores of stated probabilities, the interval of the calibration error, and accuracy of the most certain."""
    assert data.labels is not None
    labels = data.labels
    found = score_probabilities(stated / stated.sum(1, keepdims=True), labels, classes)
    value = found["value"].to_dict()
    order = np.argsort(-stated.max(1), kind="stable")
    right = (classes[stated.argmax(1)] == labels)[order]
    shares = (0.9, 0.75, 0.5, 0.25)
    selective = {f"answered {share:.0%}": 100 * right[: max(1, round(share * len(right)))].mean() for share in shares}
    bounds = {"ece lower": found.loc["ece", "lower"], "ece upper": found.loc["ece", "upper"]}
    return value | {"accuracy": 100 * value["accuracy"]} | bounds | selective | {"half": selective["answered 50%"]}


def _intervals(results: pd.DataFrame) -> Sequence[tuple[float, float]]:
    """Of each row's group of seeds the mean of the intervals of the calibration error."""
    groups = results.groupby(["set", "missing", "label"])
    bounds: Any = zip(groups["ece lower"].transform("mean"), groups["ece upper"].transform("mean"), strict=True)
    return list(bounds)


def _gains(curves: pd.DataFrame) -> pd.DataFrame:
    """Of each set, seed and order the share of the accuracy gain of all cells that half of the cells give, in %."""
    rows = []
    for (name, seed, label), curve in curves.groupby(["set", "seed", "label"], sort=False):
        ends = np.interp([0.0, 0.5, 1.0], curve["share"], curve["accuracy"])
        gain = 100 * (ends[1] - ends[0]) / (ends[2] - ends[0]) if ends[2] != ends[0] else np.nan
        rows.append({"set": name, "seed": seed, "label": label, "half": gain})
    return pd.DataFrame(rows)


if __name__ == "__main__":
    main()
