"""Compares calibration variants on equal terms: ``python -m experiments.compare``.

Removes modalities from the training rows of a data set, fits every variant, measures all on the same test rows, prints
one table, and leaves in the run's folder: ``results.csv`` and ``results.parquet`` (one row for each variant and seed),
``tables/`` (the data of the figures), ``idata.nc`` (posterior draws for ArviZ), ``config.yaml``, ``run.json`` and
``report.html``. The same configuration gives the same numbers, seconds aside.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import hydra
import torch
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

import calmrl_prob as cal
from analysis.report import build_report, short_caption
from analysis.runs.files import TABLES, write_table, write_text
from analysis.statistics.tables import best_rows, formatted, summarize
from calmrl_prob._support.files import write_atomically
from experiments.comparison.comparer import TEST_SEED, Comparer, Comparison
from experiments.harness.refusal import plain_refusals
from experiments.harness.run_record import versions

logger = logging.getLogger(__name__)

#: More columns of text than any table needs.
_WIDE = 1000


@hydra.main(config_path="conf", config_name="compare", version_base="1.3")
def main(cfg: DictConfig) -> float:
    """Run one comparison; returns the R@1 of the variant in focus, for sweepers that optimise."""
    settings = HydraConfig.get()
    with plain_refusals():
        return run(cfg, Path(settings.runtime.output_dir), list(settings.overrides.task))


def run(cfg: DictConfig, folder: Path, overrides: Sequence[str] = (), console: Console | None = None) -> float:
    """Compare, print the table, and write the files of the run.

    Args:
        cfg: the composed configuration ``compare``.
        folder: where the files go.
        overrides: the settings given on the command line, for the report.
        console: to print to; standard output by default.

    Returns:
        R@1 in percent of the variant in focus, mean over seeds; NaN if it is not among the variants.

    Raises:
        CalmrlError: an option has a value that cannot work; the message names it.
    """
    started = time.perf_counter()
    out = console or Console()
    comparer = Comparer(cfg)
    with _progress(Console(stderr=True, quiet=out.quiet)) as progress:
        bar = progress.add_task("", total=comparer.steps)
        found = comparer.run(lambda what: progress.update(bar, advance=1, description=what))
    facts = _facts(comparer, found, overrides) | {"seconds": time.perf_counter() - started}
    _write(cfg, folder, found, facts)
    summary = summarize(found.results)
    table = _rich_table(summary, facts)
    # A narrower terminal wraps the lines, which loses less than cells cut short.
    out.width = max(out.width, out.measure(table, options=out.options.update(width=_WIDE)).maximum)
    out.print(table)
    for warning in found.warnings:
        out.print(f"[bold]Warning:[/bold] {escape(warning)}", highlight=False)
    out.print(f"Report: {build_report(folder)}", soft_wrap=True)
    focus = summary.loc[summary["variant"] == comparer.focus, "R@1"]
    return float(focus.iloc[0]) if len(focus) else float("nan")


def _write(cfg: DictConfig, folder: Path, found: Comparison, facts: dict[str, Any]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("results.csv", "results.parquet"):
        write_table(found.results, folder / name)
    for name in TABLES:
        write_table(getattr(found, name), folder / "tables" / f"{name}.csv")
    write_text(OmegaConf.to_yaml(cfg, resolve=True), folder / "config.yaml")
    write_text(json.dumps(facts, indent=2), folder / "run.json")
    if found.focus is not None:
        rows = slice(0, min(cfg.report.posterior_rows, len(found.masked_test)))
        model, shown = found.focus.model, found.masked_test.subset(rows)
        idata = cal.to_arviz(
            found.focus.posterior(shown) if found.focus.imputer is None else model.model,
            model.units.apply(shown),
            num_draws=cfg.report.posterior_draws,
            seed=TEST_SEED,
        )
        with write_atomically(folder / "idata.nc") as temporary:
            idata.to_netcdf(str(temporary), engine="h5netcdf")


def _facts(comparer: Comparer, found: Comparison, overrides: Sequence[str]) -> dict[str, Any]:
    cfg = comparer.cfg
    focus = comparer.variants.get(comparer.focus or "")
    observed = found.results.get("observed_share")
    return {
        "data": comparer.split.name,
        "modalities": list(comparer.split.train.names),
        "num_train": len(comparer.split.train),
        "num_test": len(comparer.split.test),
        "missingness": cfg.missingness._target_.rpartition(".")[2],
        "missing_share": 1.0 - float(observed.mean()) if observed is not None else 0.0,
        "share_mechanism": "by the same mechanism" if "rate" in cfg.missingness else "completely at random",
        "scoring": comparer.retriever.score,
        "seeds": comparer.seeds,
        "interval_level": cfg.interval_level,
        "focus": focus.label if focus is not None else "",
        "overrides": list(overrides),
        "warnings": list(found.warnings),
        "versions": versions(),
        "threads": torch.get_num_threads(),
    }


def _rich_table(summary: Any, facts: dict[str, Any]) -> Table:  # noqa: ANN401 - pandas has no annotations
    text, best = formatted(summary), best_rows(summary)
    title = (
        f"{facts['data']}, {100 * facts['missing_share']:.0f}% of training modalities missing ({facts['missingness']})"
    )
    caption = short_caption(facts, set(summary["variant"]))
    table = Table(title=title, caption=caption, caption_justify="left", box=SIMPLE_HEAD, pad_edge=False)
    for place, heading in enumerate(text.columns):
        table.add_column(heading.replace(" ", "\n"), justify="left" if place == 0 else "right", no_wrap=True)
    for row, cells in enumerate(text.to_numpy()):
        table.add_row(
            *(f"[bold]{c}[/bold]" if best.get(h) == row else str(c) for h, c in zip(text.columns, cells, strict=True))
        )
    return table


def _progress(console: Console) -> Progress:
    return Progress(
        BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn(), TextColumn("{task.description}"),
        console=console,
    )  # fmt: skip


if __name__ == "__main__":
    main()
