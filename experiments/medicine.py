"""Imputed assays of cells and samples, against truth that was hidden on purpose: ``python -m experiments.medicine``.

    python -m experiments.medicine data_root=/path/to/files            # files that are not there are skipped
    python -m experiments.medicine quick=true                          # under two minutes
    python -m experiments.medicine sets=[pbmc_mosaic] data_root=/path/to/files seeds=10

Training rows lack assays, as they come, at random or by whole batches; test rows have all, of which each is hidden and
imputed from the others. With batches in the model and without, beside mofapy2, mofaflex and ridge regression: R^2, what
90% intervals hold, the classes that are read off imputed assays, and CPU seconds. Leaves in the run's folder
``results.csv`` (a row for each cohort, missingness, seed, contender and assay), ``counts.csv``, the tables of factors
NAME_factors.csv and NAME_weights.csv (every feature's weight with its interval: ready for enrichment), figures,
``table.md``, ``config.yaml`` and the log.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import hydra
import pandas as pd
from matplotlib.figure import Figure
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.markup import escape

from analysis.runs.files import write_bytes, write_table, write_text
from calmrl_prob.data import MultimodalData
from calmrl_prob.errors import ArgumentError
from calmrl_prob.report.pictures import png
from experiments.assays.cohorts import Cohort
from experiments.assays.counts import CountOptions, compare_counts
from experiments.assays.explanation import explain
from experiments.assays.table import Plan, count_table, paired, tables
from experiments.harness.command import run_in_folder, say_where
from experiments.harness.console import print_table, progress_bar
from experiments.harness.markdown import markdown
from experiments.harness.settings import build

logger = logging.getLogger(__name__)

#: What "quick" leaves.
_QUICK = {"sets": ["omics"], "seeds": 1, "contenders": ["fast", "ridge", "mean"]}
#: And refits for intervals of weights.
_QUICK_DRAWS = 2
CAPTION = (
    "Means over the seeds ± their standard deviation. R2 of imputing the assay from all others, 0 for the mean of the "
    "training rows; coverage of 90% intervals and accuracy of the classes read off the imputed assay in percent. The "
    "classifier is the same for all, trained on measured rows of the training part."
)


@hydra.main(config_path="conf", config_name="medicine", version_base="1.3")
def main(cfg: DictConfig) -> None:
    """Make one table."""
    run_in_folder(run, cfg)


def run(cfg: DictConfig, folder: Path, console: Console | None = None) -> pd.DataFrame:
    """Fit, measure, print the tables, and write the files of the run.

    Returns:
        One row for each cohort, missingness, seed, contender and assay.
    """
    out = console or Console()
    plan = _plan(cfg, out)
    folder.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, Any]] = []
    pictures: dict[str, Figure] = {}
    with progress_bar(out, plan.steps) as advance:
        for found, job, fits in plan.run(advance):
            rows += found
            write_table(pd.DataFrame(rows), folder / "results.csv")  # a run that is interrupted leaves what it has
            if (fit := fits.get(cfg.explain.contender)) is not None and not pictures:  # of the first cohort and seed
                draws = _QUICK_DRAWS if cfg.quick else cfg.explain.draws
                explained = explain(fit, job.hidden.task.train, cfg.explain.factors, cfg.explain.top, draws)
                explained.write(folder, job.cohort)
                pictures |= {f"{job.cohort}_{name}": figure for name, figure in explained.figures.items()}
    results = pd.DataFrame(rows)
    shown = {f"Medicine: {name}": table for name, table in tables(results).items()}
    if "default, batch" in plan.contenders and (results["contender"] == "default, batch").any():
        shown["Batches in the model less without: mean ± sd of seeds (seeds above 0)"] = paired(
            results, "default, batch", "default"
        )
    if (counts := _counts(cfg, plan, folder)) is not None:
        shown["Counts as counts"] = counts
    for name, figure in pictures.items():
        write_bytes(png(figure), folder / f"{name}.png")
    write_text(OmegaConf.to_yaml(cfg, resolve=True), folder / "config.yaml")
    for title, table in shown.items():
        print_table(out, table, title)
    out.print(CAPTION, highlight=False)
    write_text("\n".join([*(f"## {t}\n\n{markdown(x)}" for t, x in shown.items()), CAPTION, ""]), folder / "table.md")
    say_where(out, folder)
    return results


def _plan(cfg: DictConfig, out: Console) -> Plan:
    """What the configuration asks for, read.

    Raises:
        ArgumentError: an option has a value that cannot work, or none of the cohorts is there.
    """
    asked = {**OmegaConf.to_container(cfg, resolve=True), **(_QUICK if cfg.quick else {})}  # type: ignore[dict-item]
    names = list(cfg.cohorts) if asked["sets"] is None else list(asked["sets"])
    unknown = [name for name in names if name not in cfg.cohorts]
    if unknown:
        raise ArgumentError(f"sets: expected some of {list(cfg.cohorts)}, got {unknown[0]!r}.")
    seeds = asked["seeds"]
    seeds = list(range(seeds)) if isinstance(seeds, int) else seeds
    if not isinstance(seeds, list) or not seeds or not all(isinstance(seed, int) and seed >= 0 for seed in seeds):
        raise ArgumentError(f"seeds: expected how many, or a list of whole numbers from 0 up, got {asked['seeds']!r}.")
    cohorts: dict[str, tuple[Cohort, MultimodalData]] = {}
    absent = {}
    for name in names:
        cohort = Cohort(**{**build(cfg, f"cohorts.{name}"), "missing": tuple(cfg.cohorts[name].missing)})
        if why := cohort.lacking(cfg.data_root):
            absent[name] = why
            out.print(f"[bold]left out:[/bold] {escape(f'{name}: {why}')}", soft_wrap=True, highlight=False)
        else:
            cohorts[name] = cohort, cohort.read(cfg.data_root)
    if not cohorts:
        raise ArgumentError(f"sets: none of them is there: {'; '.join(absent.values())}.")
    return Plan(cohorts, asked["contenders"], seeds)


def _counts(cfg: DictConfig, plan: Plan, folder: Path) -> pd.DataFrame | None:
    """The comparison of counts, as text; None where it is left out."""
    asked = cfg.counts
    if cfg.quick or asked is None or asked.cohort not in plan.cohorts:
        return None
    options = CountOptions(asked.features, asked.latent_dim, asked.max_iterations)
    data = plan.cohorts[asked.cohort][1]
    rows = [row for seed in range(asked.seeds) for row in compare_counts(data, seed, options)]
    write_table(pd.DataFrame(rows), folder / "counts.csv")
    return count_table(pd.DataFrame(rows))


if __name__ == "__main__":
    main()
