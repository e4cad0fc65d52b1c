"""Intervals of imputations, as fitted and recalibrated in several ways: ``python -m experiments.recalibration``.

    python -m experiments.recalibration                                      # emoji
    python -m experiments.recalibration data=leaves
    python -m experiments.recalibration data=six_views scheme=random repeats=4
    python -m experiments.recalibration data=npz data.source.path=my.npz seeds=[0,1,2]

Every modality of every test row is imputed from every set of its others. Methods that need rows which the model was
not fitted to have a share of the training rows for it, and a model of the others; cross-validated ones have a model of
all. Leaves in the run's folder ``results.csv`` (a row for each fit, method, seed and modality), ``patterns.csv`` (the
same by missing pattern), ``table.md``, ``config.yaml`` and the log.
"""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
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
from calmrl_prob.evaluation import MaskedValidation
from calmrl_prob.recalibration import Recalibration
from experiments.comparison.measures import modality_scale
from experiments.harness.command import finish, run_in_folder
from experiments.harness.console import progress_bar
from experiments.harness.settings import build, check_recalibration
from experiments.harness.split import Split

logger = logging.getLogger(__name__)

#: Methods by name: the argument of ``cal.recalibrate``, whether by feature, and whether they are cross-validated.
METHODS: dict[str, tuple[str, bool, bool]] = {
    "none": ("", True, True),  # as a user without held-out rows would have it: of all rows
    "scale": ("scale", True, False),
    "scale by modality": ("scale", False, False),
    "conformal": ("conformal", True, False),
    "conformal by modality": ("conformal", False, False),
    "scale cv": ("scale", True, True),
    "cv": ("cv", True, True),
    "cv by modality": ("cv", False, True),
    "cv+": ("cv+", True, True),
    "cv+ by modality": ("cv+", False, True),
}


@hydra.main(config_path="conf", config_name="recalibration", version_base="1.3")
def main(cfg: DictConfig) -> None:
    """Make one table."""
    run_in_folder(run, cfg)


def run(cfg: DictConfig, folder: Path, console: Console | None = None) -> pd.DataFrame:
    """Fit, recalibrate and measure, print the table, and write the files of the run."""
    check_recalibration(cfg, list(METHODS))
    out = console or Console()
    split: Split = build(cfg, "data")
    folder.mkdir(parents=True, exist_ok=True)
    rows: list[pd.DataFrame] = []
    patterns: list[pd.DataFrame] = []
    with progress_bar(out, len(cfg.seeds) * len(cfg.fits) * len(cfg.methods)) as advance:
        for seed in cfg.seeds:
            for kind in cfg.fits:
                task = prepare(cfg, split, kind, seed)
                for method in cfg.methods:
                    named = {"data": split.name, "seed": seed, "fit": kind, "options": task.options, "method": method}
                    by_modality, by_pattern = measure(task, method, cfg)
                    rows.append(by_modality.assign(**named))
                    patterns.append(by_pattern.assign(**named))
                    write_table(pd.concat(rows), folder / "results.csv")  # an interrupted run leaves what it has
                    write_table(pd.concat(patterns), folder / "patterns.csv")
                    logger.info("%s", rows[-1].to_dict("records"))
                    advance(f"{kind}, {method}, seed {seed}")
    results = pd.concat(rows, ignore_index=True)
    text = tabulate(results, pd.concat(patterns, ignore_index=True), cfg)
    title = f"{split.name}: {100 * cfg.level:g}% intervals, {len(cfg.seeds)} seed{'s' if len(cfg.seeds) > 1 else ''}"
    finish(cfg, text, title, "", folder, out, left=["fit", "method"])
    return results


@dataclass
class RecalibrationTask:
    """Rows and fits that all methods of one seed and kind of fit share.

    Attributes:
        part, whole: models of the rows left beside the calibration rows, and of all training rows.
        calibration, train, test: rows; ``train`` is all of them.
        scale: for each modality the unit of its errors.
        options, fit_options: of the fit; what was chosen of them as text, and all.
        seconds: of CPU, to fit each model, and to validate each way.
        validations: of ``part`` on the calibration rows, and of ``whole`` by folds, made when first asked for.
        seed: of all that is drawn.
    """

    part: cal.SharedLatentModel
    whole: cal.SharedLatentModel
    calibration: MultimodalData
    train: MultimodalData
    test: MultimodalData
    scale: dict[str, float]
    options: str
    fit_options: dict[str, Any]
    seconds: dict[str, float]
    validations: dict[str, MaskedValidation]
    seed: int


def prepare(cfg: DictConfig, split: Split, kind: str, seed: int) -> RecalibrationTask:
    """Part the rows, remove modalities, choose the options of the fit by cross-validation, and fit both models."""
    rng = np.random.default_rng(seed)
    train = split.train
    if cfg.rows is not None:
        train = train.subset(np.sort(rng.permutation(len(train))[: cfg.rows]))
    test = split.test.subset(np.sort(rng.permutation(len(split.test))[: cfg.test_rows]))
    fitted_to, calibration = train.split(1 - cfg.calibration_share, seed=seed)
    mechanism = build(cfg, "missingness")
    fitted_to = fitted_to.mask(mechanism(fitted_to, seed=seed))
    if cfg.calibration_missing:
        calibration = calibration.mask(mechanism(calibration, seed=seed + 1))
    whole = MultimodalData.concat([fitted_to, calibration])
    fixed: dict[str, Any] = dict(OmegaConf.to_container(cfg.fit))  # type: ignore[arg-type]
    latent_dim = min(cfg.latent_dim, sum(train.dims.values()) - 1)
    start = time.process_time()
    options = fixed
    if kind == "shrunk":
        model = cal.SharedLatentModel(train.dims, latent_dim)
        grid = OmegaConf.to_container(cfg.grid)
        options = dict(cal.choose_shrinkage(model, fitted_to, grid, folds=cfg.folds, seed=seed, **fixed).options)  # type: ignore[arg-type]
    seconds = {"choice": time.process_time() - start}
    models = {}
    for name, rows in {"part": fitted_to, "whole": whole}.items():
        models[name] = cal.SharedLatentModel(train.dims, latent_dim)
        start = time.process_time()
        cal.fit(models[name], rows, seed=seed, **options)
        seconds[name] = time.process_time() - start
    chosen = " ".join(f"{name}={value:g}" for name, value in options.items() if name not in fixed)
    scale = dict(modality_scale(split.train))
    return RecalibrationTask(
        models["part"], models["whole"], calibration, whole, test, scale, chosen, options, seconds, {}, seed
    )


def measure(task: RecalibrationTask, method: str, cfg: DictConfig) -> tuple[pd.DataFrame, pd.DataFrame]:
    """One method on the test rows: a row for each modality, and for each modality and pattern, in units of the scale.

    Seconds, of CPU, are those of the fit, the choice of its options, validation and recalibration (``seconds``), and of
    imputing all that is scored (``seconds_impute``).
    """
    kind, by_feature, crossed = METHODS[method]
    model, key = (task.whole, "whole") if crossed else (task.part, "part")
    recalibrated: Recalibration | bool = False
    start = time.process_time()
    if kind:
        if key not in task.validations:
            options: dict[str, Any] = {"folds": cfg.folds, **task.fit_options} if crossed else {}
            rows = task.train if crossed else task.calibration
            scheme = {"scheme": cfg.scheme, "repeats": cfg.repeats, "seed": task.seed, "num_draws": 0}
            task.validations[key] = cal.masked_validation(model, rows, **scheme, **options)
            task.seconds[f"validate {key}"] = time.process_time() - start
        start = time.process_time()
        recalibrated = cal.recalibrate(
            model,
            task.validations[key],
            kind,  # type: ignore[arg-type]
            by_feature=by_feature,
            min_rows=cfg.min_rows,
        )
        start -= task.seconds[f"validate {key}"]
    seconds = time.process_time() - start + task.seconds[key] + task.seconds["choice"]
    start = time.process_time()
    found = cal.masked_validation(
        model,
        task.test,
        cfg.scheme,
        repeats=cfg.repeats,
        recalibrated=recalibrated,
        num_draws=0,
        seed=task.seed + 1,
    )
    tables = []
    for by in (("modality",), ("modality", "pattern")):
        table = found.coverage([cfg.level], by)
        unit = table["modality"].map(task.scale)
        table[["width", "width_se"]] = table[["width", "width_se"]].div(unit, axis=0)
        if by == ("modality",):
            table["seconds"], table["seconds_impute"] = seconds, time.process_time() - start
        tables.append(table)
    return tables[0], tables[1]


def tabulate(results: pd.DataFrame, patterns: pd.DataFrame, cfg: DictConfig) -> pd.DataFrame:
    """The table as text: means over seeds; the narrowest of those that reach the targets is marked."""
    low, high = cfg.targets.modality
    rows, reaching = [], {}
    for (kind, method), group in results.groupby(["fit", "method"], sort=False):
        own = patterns[(patterns["fit"] == kind) & (patterns["method"] == method)]
        own = own[own["num_instances"] >= cfg.pattern_rows]
        modality = group.groupby("modality", sort=False)["coverage"].mean()
        pattern = own.groupby(["modality", "pattern"])["coverage"].mean()
        width = group.groupby("modality")["width"].mean().mean()
        reached = bool(modality.between(low, high).all() and (pattern >= cfg.targets.pattern - 1e-9).all())
        if reached:
            reaching[len(rows)] = width
        rows.append(
            {
                "fit": kind,
                "method": method,
                "modalities %": f"{100 * modality.min():.1f} to {100 * modality.max():.1f}",
                "lowest pattern %": f"{100 * pattern.min():.1f}" if len(pattern) else "-",
                "width, sd": f"{width:.3f}",
                "reached": "yes" if reached else "no",
                "CPU s to calibrate": f"{group['seconds'].mean():.1f}",
                "CPU s to impute": f"{group['seconds_impute'].mean():.1f}",
            }
        )
    if reaching:
        rows[min(reaching, key=lambda place: reaching[place])]["reached"] = "yes, narrowest"
    return pd.DataFrame(rows)


if __name__ == "__main__":
    main()
