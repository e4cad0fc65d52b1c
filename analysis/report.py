"""One self-contained HTML page from the files of any run: ``python -m analysis.report run=<folder>``.

    python -m analysis.report run=outputs/2026-01-31/12-00-00      # of experiments.compare, align, models ...
    python -m analysis.report run=multirun/2026-01-31/12-00-00     # of a sweep: all its runs on one page

Writes ``report.html`` into the folder, finished or not: what an interrupted run lacks is named.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from analysis.alignment_report import FACTS, build_alignment_report
from analysis.compare import MEASURES, caveat, compare_runs, readings
from analysis.figures.alignment import variant_bars
from analysis.figures.comparison import recall_bars
from analysis.pages.comparison import comparison_lead, comparison_sections, short_caption
from analysis.pages.defaults import LEAD, defaults_sections, is_of_defaults
from analysis.pages.markdown import read_markdown
from analysis.pages.readings import certificate_readings, recalibration_readings, spread_reading, variant_readings
from analysis.runs.arguments import parse
from analysis.runs.files import read_table, write_text
from analysis.runs.runs import Run, find_runs, read_run
from analysis.statistics.tables import best_rows, formatted, summarize
from calmrl_prob.errors import ArgumentError, CalmrlError
from calmrl_prob.report.page import Picture, Section, Table, render

__all__ = ["build_report", "short_caption"]

#: Runs of a sweep that have their figures on its page; of more of them it has the tables alone.
_WITH_FIGURES = 6
#: Cases that the table of certificates has.
_LOWEST = 50


def build_report(run_folder: str | os.PathLike[str]) -> Path:
    """Write ``report.html`` from what a run, or a sweep of them, left in its folder.

    Args:
        run_folder: of a run of any experiment, finished or interrupted, or of a sweep.

    Returns:
        The path of the page. It needs no other file and no network.

    Raises:
        FileFormatError: nothing of a run is there, or a file cannot be read.
    """
    folder = Path(run_folder)
    if (folder / FACTS).is_file():
        return build_alignment_report(folder)
    runs = [read_run(path) for path in find_runs(folder)]
    if len(runs) == 1 and runs[0].folder == folder:
        (run,) = runs
        lead = comparison_lead(dict(run.facts)) if run.facts else LEAD if is_of_defaults(run) else ""
        page = render(_title(run), run_sections(run), lead)
    else:
        page = render(f"{len(runs)} runs in {folder.name}", sweep_sections(runs, folder))
    path = folder / "report.html"
    write_text(page, path)
    return path


def run_sections(run: Run, figures: bool = True) -> list[Section]:
    """All of a run: what is lacking, tables, readings, figures, every row, configuration, versions."""
    sections = [Section(warnings=run.lacking)] if run.lacking else []
    if run.facts and len(run.results):
        sections += comparison_sections(run)
    elif is_of_defaults(run):
        sections += defaults_sections(run, figures)
    elif len(run.results):
        sections += _table_sections(run, figures)
    sections += _certificates(run)
    if len(run.results):
        sections.append(Section("Every row of the results", tables=[Table.of(run.results)], folded=True))
    command = f"python -m experiments.{run.experiment or '...'} {' '.join(run.overrides)}".strip()
    sections.append(Section("Configuration", code=f"# {command}\n{run.config_text}", folded=True))
    return [*sections, _versions(run)]


def sweep_sections(runs: Sequence[Run], folder: Path) -> list[Section]:
    """Sections of several runs: all side by side, and then each of them."""
    rows = pd.DataFrame(
        [
            {
                "run": str(run.folder.relative_to(folder)),
                "experiment": run.experiment or "-",
                "settings": " ".join(run.overrides) or "-",
                "rows": str(len(run.results)),
                "state": "not whole" if run.lacking else "finished",
            }
            for run in runs
        ]
    )
    overview = Section(
        warnings=[f"{run.folder.relative_to(folder)}: {text}" for run in runs for text in run.lacking],
        tables=[Table.of(rows), *_side_by_side(runs, folder)],
        notes=[
            "Compare the variants over all of these runs with python -m analysis.compare runs=<this folder>."
            + f" Figures are left out, as there are more than {_WITH_FIGURES} runs: build the report of one of them."
            * (len(runs) > _WITH_FIGURES)
        ],
    )
    sections = [overview]
    for run in runs:
        name = f"{run.folder.relative_to(folder)}: {' '.join(run.overrides) or run.experiment}"
        for part in run_sections(run, len(runs) <= _WITH_FIGURES):
            if len(runs) > _WITH_FIGURES:
                part = _without_pictures(part)
            sections.append(_renamed(part, f"{name} - {part.heading}" if part.heading else name))
    return sections


def _table_sections(run: Run, figures: bool) -> list[Section]:
    results = run.results
    tables, prose = read_markdown(run.table)
    shown = [Table(headings, rows) for headings, rows in tables]
    if not shown:
        shown = [_own_table(run)]
    seeds = sorted(results["seed"].unique()) if "seed" in results else []
    lines = [spread_reading(seeds)] if seeds else []
    level = run.config.get("interval_level")
    if level and {"coverage", "label"} <= set(results.columns):
        for name, part in _by_dataset(results):
            lines += [f"{name}{line}" for line in variant_readings(part, float(level))]
    if level and {"fit", "method", "modality", "coverage"} <= set(results.columns):
        lines += recalibration_readings(results, float(level))
    notes = [line for line in prose if line not in _title(run)]
    sections = [Section(tables=shown, notes=notes), Section("What the figures say", readings=lines)]
    tested = _tested(run) if len(seeds) > 1 else None
    if tested is not None:
        sections.append(tested)
    if figures:
        pictures = [Picture.read(path) for path in run.pictures if path.name != "comparison.png"] or _drawn(run)
        sections.append(Section("Figures", pictures=pictures)) if pictures else None
    return sections


def _own_table(run: Run) -> Table:
    """Mean and spread over seeds of what was measured, where the experiment wrote no table of its own."""
    results = run.results
    if {"variant", "label", "seed", "R@1"} <= set(results.columns) and "dataset" not in results:
        summary = summarize(results)
        return Table.of(formatted(summary), best_rows(summary), "Bold: best of its column.")
    column = run.variant_column
    if column is None:
        return Table.of(results)
    keys = [*([] if "dataset" not in results else ["dataset"]), "label" if "label" in results else column]
    keys += [name for name in run.group_columns if name not in keys]
    numbers = [name for name in results.select_dtypes("number") if name not in (*keys, "seed")]
    groups = results.groupby(keys, sort=False, dropna=False)[numbers]
    mean, spread = groups.mean(), groups.std(ddof=1)
    text = mean.map(lambda value: "-" if pd.isna(value) else f"{value:.3g}")
    text += spread.map(lambda value: "" if pd.isna(value) else f"±{value:.2g}")
    return Table.of(text.reset_index().rename(columns={"label": "variant"}))


def _tested(run: Run) -> Section | None:
    """Paired tests of the leading measure, if there is one."""
    metric = next((name for name in MEASURES if name in run.results and run.results[name].notna().any()), None)
    if metric is None or run.variant_column is None or run.results[run.variant_column].nunique() < 2:
        return None
    try:
        found = compare_runs([run.folder], metrics=[metric])
    except ArgumentError:  # no two variants share a seed: nothing to test
        return None
    more = "Other measures, another reference: python -m analysis.compare runs=<this folder> reference=<variant>."
    return Section("What can be told apart", readings=readings(found), notes=[caveat(found), more])


def _drawn(run: Run) -> list[Picture]:
    results = run.results
    if {"label", "R@1 cosine", "R@1 ratio"} <= set(results.columns):
        return [Picture.of(variant_bars(results, _title(run)), "R@1 of each variant, by either score")]
    if {"variant", "label", "seed", "R@1"} <= set(results.columns):
        return [
            Picture.of(recall_bars(summarize(part), f"{name}retrieval"), f"{name}R@1 of each variant")
            for name, part in _by_dataset(results)
            if part["R@1"].notna().any()
        ]
    return []


def _certificates(run: Run) -> list[Section]:
    path = run.folder / "cases.csv"
    cases = read_table(path) if path.is_file() else pd.DataFrame()
    if not {"id", "seed", "trained on", "missing", "certificate", "local", "calibrated"} <= set(cases.columns):
        return []
    first = cases[(cases["seed"] == cases["seed"].iloc[0]) & (cases["trained on"] == cases["trained on"].iloc[0])]
    certificates = pd.DataFrame(
        {
            "id": first["id"],
            "modalities missing": first["missing"],
            "probability": first["certificate"],
            "under the model": first["model"],
            "nearer": first["calibrated"] < first["local"],
        }
    )
    lines = [
        f"{number} missing. {line}"
        for number, part in certificates.groupby("modalities missing")
        for line in certificate_readings(part)
    ]
    lowest = certificates.sort_values("probability", kind="stable").head(_LOWEST)
    return [
        Section(
            "Instances that should not be imputed",
            readings=lines,
            tables=[Table.of(lowest, caption=f"The {len(lowest)} cases with the lowest probability.")],
            notes=[
                "The probability that calibration brings the anchor of an incomplete instance nearer to that of the "
                "complete one, calibrated on validation rows that lost modalities on purpose; of test rows that lost "
                f"some too, by encoders of {first['trained on'].iloc[0]}, seed {first['seed'].iloc[0]}. Of these the "
                "complete instance is known, so that it can be said how many were brought nearer."
            ],
        )
    ]


def _side_by_side(runs: Sequence[Run], folder: Path) -> list[Table]:
    """The leading measure of each variant, one column for each run."""
    columns = {}
    for run in runs:
        metric = next((name for name in MEASURES if name in run.results), None)
        if metric is None or "label" not in run.results:
            continue
        mean = run.results.groupby("label", sort=False)[metric].mean()
        columns[f"{run.folder.relative_to(folder)}: {metric}"] = mean
    if len(columns) < 2 or len(columns) > 12:  # more columns than a page is wide: analysis.gather has them all
        return []
    return [Table.of(pd.DataFrame(columns).rename_axis("variant").reset_index(), caption="Means over seeds.")]


def _versions(run: Run) -> Section:
    versions = run.facts.get("versions") or run.job.get("versions") or {}
    rows = [[str(name), str(version)] for name, version in versions.items()]
    seconds = run.facts.get("seconds") or run.job.get("seconds")
    if seconds is not None:
        rows.append(["wall-clock seconds of the run", f"{seconds:.1f}"])
    if not rows:
        return Section("Versions and time", notes=["This run recorded no versions."], folded=True)
    return Section("Versions and time", tables=[Table(["what", "version"], rows)], folded=True)


def _by_dataset(results: pd.DataFrame) -> list[tuple[str, pd.DataFrame]]:
    if "dataset" not in results:
        return [("", results)]
    return [(f"{name}: ", part) for name, part in results.groupby("dataset", sort=False)]


def _title(run: Run) -> str:
    if run.facts:
        return f"{run.facts['data']}: calibration with missing modalities"
    first = next((line.lstrip("# ") for line in run.table.splitlines() if line.startswith("#")), "")
    named = first or " ".join(run.overrides)
    return f"{run.experiment}: {named}" if run.experiment and named else named or run.experiment or run.folder.name


def _without_pictures(section: Section) -> Section:
    return Section(**{**vars(section), "pictures": ()})


def _renamed(section: Section, heading: str) -> Section:
    return Section(**{**vars(section), "heading": heading})


def main(arguments: Sequence[str] | None = None) -> int:
    """Build the report of a run anew."""
    try:
        given = parse(
            sys.argv[1:] if arguments is None else arguments, {"run": "folder of a run, or of a sweep"}, "run"
        )
        print(build_report(given["run"]))
    except CalmrlError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
