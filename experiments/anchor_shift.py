"""Anchor shift where modalities are missing, without calibration and with it: ``python -m experiments.anchor_shift``.

    python -m experiments.anchor_shift                   # emoji, 15% of the training rows complete, the rest pairs
    python -m experiments.anchor_shift missingness=mcar seeds=[0]
    python -m experiments.anchor_shift data=npz data.source.path=multi30k_lsa.npz components=128 seeds=[0,1]

Encoders are trained on incomplete rows, and on complete ones. A generative model of the representations of the training
rows, its prior and the weight of what it imputes chosen on validation rows, completes test rows that one, two ...
modalities were taken from. Compared are the local anchor and the calibrated one, both with the anchor of the complete
row; and, with what came true, the model's own certificate and the one that was calibrated on validation rows. Leaves
``cases.csv`` (one row for each test row and number missing), ``results.csv``, ``table.md``, ``config.yaml``, and the
figures ``shifts.png`` and ``bounds.png``.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

import hydra
import pandas as pd
from omegaconf import DictConfig
from rich.console import Console

from analysis.figures.anchor_shift import shift_bounds_drawn, shift_distributions
from analysis.runs.files import write_table
from experiments.alignment.anchor_shifts import choose_shift_model, shift_cases, summarize_cases
from experiments.alignment.training import AlignmentTask, Settings, Variant, make_task, run_variant
from experiments.harness.command import finish, run_in_folder
from experiments.harness.console import progress_bar
from experiments.harness.settings import build
from experiments.harness.split import Split

logger = logging.getLogger(__name__)

#: Columns of the table in percent; the others are distances.
_SHARES = ("nearer", "model yes", "model right", "certificate yes", "certificate right", "bounds hold")
_DISTANCES = ("local", "calibrated", "only certified")


@hydra.main(config_path="conf", config_name="anchor_shift", version_base="1.3")
def main(cfg: DictConfig) -> None:
    """Make one table and its figures."""
    run_in_folder(run, cfg)


def run(cfg: DictConfig, folder: Path, console: Console | None = None) -> pd.DataFrame:
    """Train, measure, print the table, and write the files of the run.

    Returns:
        What ``results.csv`` holds: one row for each kind of training rows, seed and number of missing modalities.
    """
    out = console or Console()
    split: Split = build(cfg, "data")
    mechanism = build(cfg, "missingness")
    folder.mkdir(parents=True, exist_ok=True)
    found: list[pd.DataFrame] = []
    with progress_bar(out, 2 * len(cfg.seeds)) as advance:
        for seed in cfg.seeds:
            task = make_task(
                split.train,
                split.test,
                mechanism(split.train, seed=seed),
                seed=seed,
                components=cfg.components,
                validation_share=cfg.validation_share,
            )
            for complete in (False, True):
                trained = "complete rows" if complete else "incomplete rows"
                cases = _cases(cfg, task, complete)
                found.append(cases.assign(seed=seed, **{"trained on": trained}))
                write_table(pd.concat(found, ignore_index=True), folder / "cases.csv")  # an interrupted run leaves it
                advance(f"encoders of {trained}, seed {seed}")
    cases = pd.concat(found, ignore_index=True)
    results = summarize_cases(cases)
    write_table(results, folder / "results.csv")
    title = f"{split.name}, {cfg.missingness._target_.rpartition('.')[2]}, {len(cfg.seeds)} seeds"
    figures = {"shifts": shift_distributions(cases, title), "bounds": shift_bounds_drawn(cases, title)}
    finish(cfg, tabulate(results), title, "", folder, out, figures, left=["trained on"])
    return results


def tabulate(results: pd.DataFrame) -> pd.DataFrame:
    """Mean over the seeds, and their standard deviation where there are several, as text.

    Example:
        >>> row = dict.fromkeys((*_DISTANCES, *_SHARES), 0.25) | {"trained on": "complete rows", "missing": 1}
        >>> text = tabulate(pd.DataFrame([row | {"seed": 0}, row | {"seed": 1, "nearer": 0.75}]))
        >>> text.loc[0, ["local", "nearer %"]].tolist()
        ['0.250±0.000', '50±35']
    """
    by_cell = results.groupby(["trained on", "missing"], sort=False)
    mean, spread = by_cell.mean().reset_index(), by_cell.std().reset_index()
    text = {name: mean[name].astype(str) for name in ("trained on", "missing")}
    for name in (*_DISTANCES, *_SHARES):
        scale, digits, heading = (100, 0, f"{name} %") if name in _SHARES else (1, 3, name)
        text[heading] = pd.Series(
            [
                "-" if pd.isna(value) else f"{scale * value:.{digits}f}" + _spread(scale * width, digits)
                for value, width in zip(mean[name], spread[name], strict=True)
            ]
        )
    return pd.DataFrame(text)


def _spread(width: float, digits: int) -> str:
    return "" if pd.isna(width) else f"±{width:.{digits}f}"


def _cases(cfg: DictConfig, task: AlignmentTask, complete: bool) -> pd.DataFrame:
    variant = Variant("encoders", complete=complete, temperatures=list(cfg.temperatures))
    settings = replace(Settings.of(cfg), pseudo_rows=cfg.pseudo_rows[:1])  # of models that retrieve: not needed here
    alignment = run_variant(variant, task, settings).alignment
    assert alignment is not None
    fit, validation, test = (alignment.represent(part) for part in (*task.rows(complete), task.test))
    chosen = choose_shift_model(fit, validation, cfg.latent_dim, cfg.shift.pseudo_rows, cfg.shift.weights, task.seed)
    logger.info("pseudo_rows=%s, weight=%s: %.4f", chosen.pseudo_rows, chosen.weight, chosen.relative_shift)
    return shift_cases(chosen, validation, test, task.seed)


if __name__ == "__main__":
    main()
