"""Compares variants with paired tests over seeds: ``python -m analysis.compare runs=<folder>[,<folder>...]``.

    python -m analysis.compare runs=outputs/2026-01-31/12-00-00
    python -m analysis.compare runs=outputs/a,outputs/b reference=observed metric="R@1 cosine"
    python -m analysis.compare runs=outputs/a,outputs/b by=run       # the same variant in two runs: which run is better

Writes ``comparison.csv``, ``comparison.png`` and ``comparison.html`` into the folder ``out``, the first of the runs
unless given. A folder of several runs, such as that of a sweep, counts as all of them.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from analysis.figures.forest import forest
from analysis.runs.arguments import parse
from analysis.runs.files import write_bytes, write_table, write_text
from analysis.runs.runs import Run, find_runs, read_run
from analysis.statistics.paired import paired_differences
from calmrl_prob.errors import ArgumentError, CalmrlError, FileFormatError
from calmrl_prob.report.page import Picture, Section, Table, render
from calmrl_prob.report.pictures import png

#: What is compared where nothing is asked for: column, whether higher is better, what the axis calls it.
MEASURES: dict[str, tuple[bool, str]] = {
    "R@1 cosine": (True, "R@1, cosine (percentage points)"),
    "R@1 ratio": (True, "R@1, likelihood ratio (percentage points)"),
    "R@1": (True, "R@1 (percentage points)"),
    "accuracy": (True, "accuracy (percentage points)"),
    "RMSE": (False, "RMSE (sd)"),
    "NLL": (False, "NLL (nats per feature)"),
    "probe": (True, "probe (percentage points)"),
}
_KNOWN = {
    "runs": "folders, with commas between",
    "reference": "a variant; the first of the results if not given",
    "metric": "columns of the results, with commas between",
    "by": "variant, or run",
    "level": "of the intervals, 0.95 if not given",
    "out": "folder",
}


def gather(folders: Sequence[str | Path], by: str = "variant") -> tuple[pd.DataFrame, list[str]]:
    """The results of all runs, in one frame, with columns variant, label, run and those that keep rows apart.

    Args:
        folders: of runs, or of sweeps.
        by: "variant", or "run": variants of different runs are different ones, named by both.

    Returns:
        The frame, and which of its columns give a comparison of their own for each value (the data set, the number of
        modalities missing ...).

    Raises:
        FileFormatError: no run, or none with results of variants over seeds.
    """
    if by not in ("variant", "run"):
        raise ArgumentError(f"by: expected 'variant' or 'run', got {by!r}.")
    runs = [read_run(path) for folder in folders for path in find_runs(folder)]
    usable = [run for run in runs if run.variant_column is not None and "seed" in run.results]
    if not usable:
        raise FileFormatError(
            f"runs: none of {', '.join(str(run.folder) for run in runs)} has results with a column for the variant and "
            "one for the seed; give folders of runs that were measured."
        )
    names = _run_names(usable)
    frames, groups = [], []
    for run, name in zip(usable, names, strict=True):
        frame = run.results.rename(columns={run.variant_column: "variant"}).assign(run=name)
        if "label" not in frame:
            frame["label"] = frame["variant"]
        if by == "run" and len(usable) > 1:
            frame["variant"] = [f"{variant} @ {name}" for variant in frame["variant"]]
            frame["label"] = [f"{label} @ {name}" for label in frame["label"]]
        groups += [column for column in run.group_columns if column not in groups]
        frames.append(frame)
    return pd.concat(frames, ignore_index=True), groups


def compare_runs(
    folders: Sequence[str | Path],
    *,
    reference: str | None = None,
    metrics: Sequence[str] | None = None,
    by: str = "variant",
    level: float = 0.95,
) -> pd.DataFrame:
    """Paired tests of every variant against the reference, for every metric.

    Args:
        folders: of runs, or of sweeps.
        reference: the variant (its key, or its label) that others are compared with; the first of the results if not
            given.
        metrics: columns of the results; those of ``MEASURES`` that are there if not given.
        by: see :func:`gather`. By variant, pairs agree in run and seed.
        level: of the intervals.

    Returns:
        What ``paired_differences`` returns, with columns metric, group (such as "missing=1"; "" for all), reference
        (a label) and better (as ``verdict``, of what is better) before it.

    Raises:
        ArgumentError: a metric or the reference is not there, or the variants share no seed.
        FileFormatError: no run, or none with results.
    """
    results, groups = gather(folders, by)
    labels = dict(zip(results["variant"], results["label"], strict=True))
    keys = {label: key for key, label in reversed(labels.items())}
    chosen = next(iter(labels)) if reference is None else keys.get(reference, reference)
    if chosen not in labels:
        raise ArgumentError(f"reference: expected one of {list(labels)}, got {reference!r}.")
    wanted = [name for name in MEASURES if name in results] if metrics is None else list(metrics)
    if not wanted:
        raise ArgumentError(f"metric: expected columns of the results, some of {list(results.columns)}, got none.")
    # Variants of different runs are paired by the seed; variants measured in several runs, within each of them.
    blocks = ["run", "seed"] if results.groupby("variant")["run"].nunique().max() > 1 else ["seed"]
    tables = []
    for named, part in _parts(results, groups):
        for metric in wanted:
            if metric in part and not part.loc[part["variant"] == chosen, metric].notna().any():
                continue  # the reference has no such score: nothing to subtract
            table = paired_differences(part, metric, chosen, blocks=blocks, level=level)
            table = table[table["pairs"] > 0]
            table.insert(0, "better", [_better(verdict, metric) for verdict in table["verdict"]])
            for column, value in (("reference", labels[chosen]), ("group", named), ("metric", metric)):
                table.insert(0, column, value)
            tables.append(table)
    found = pd.concat(tables, ignore_index=True) if tables else pd.DataFrame()
    if not len(found):
        raise ArgumentError(
            f"reference: {labels[chosen]!r} shares no seed, or no score, with any other variant; compare runs of the "
            "same seeds, or choose another reference."
        )
    return found


def write_comparison(found: pd.DataFrame, folder: Path, sources: Sequence[str], level: float = 0.95) -> Path:
    """Write ``comparison.csv``, ``comparison.png`` and ``comparison.html``; returns the path of the page."""
    folder.mkdir(parents=True, exist_ok=True)
    write_table(found, folder / "comparison.csv")
    reference = found["reference"].iloc[0]
    title = f"Differences from: {reference}"
    figures = {}
    for group, part in found.groupby("group", sort=False):
        panels = {
            MEASURES.get(str(metric), (True, str(metric)))[1]: table
            for metric, table in part.groupby("metric", sort=False)
        }
        figures[str(group)] = forest(panels, f"{title} ({group})" if group else title, level)
    first = next(iter(figures.values()))
    write_bytes(png(first), folder / "comparison.png")
    pictures = [Picture.of(figure, f"Forest plot: {title} {group}") for group, figure in figures.items()]
    page = render(
        title,
        [
            Section(
                "What can be told",
                readings=readings(found, level),
                notes=[caveat(found, level)],
            ),
            Section("Forest plot", pictures=pictures, notes=[_FOREST]),
            Section("Tests", tables=[Table.of(_shown(found))], meanings=_MEANINGS),
            Section("What was compared", notes=list(sources)),
        ],
    )
    write_text(page, folder / "comparison.html")
    return folder / "comparison.html"


_FOREST = (
    "Each line is a variant's mean difference from the reference over the seeds that both have, with its interval from "
    "the t distribution. Filled: told apart after Holm's adjustment for the number of variants, so that the interval "
    "of an open marker may leave out 0."
)
_MEANINGS = {
    "difference": "mean over pairs of the variant less the reference.",
    "SE": "standard error of that mean.",
    "t p, Wilcoxon p": "of the paired t test and of the signed-rank test, two-sided, adjusted by Holm's method for the "
    "number of variants; in brackets as they are.",
}


def readings(found: pd.DataFrame, level: float = 0.95) -> list[str]:
    """Reading of the tests of each metric, in plain words."""
    lines = []
    for (metric, group), part in found.groupby(["metric", "group"], sort=False):
        where = f"{metric}{f' ({group})' if group else ''}"
        for kind in ("better", "worse", "higher", "lower"):
            rows = part[part["better"] == kind]
            if len(rows):
                named = "; ".join(
                    f"{row.label} by {abs(row.difference):.3g} ({100 * level:g}% interval "
                    f"{min(abs(row.lower), abs(row.upper)):.3g} to {max(abs(row.lower), abs(row.upper)):.3g})"
                    for row in rows.itertuples()
                )
                lines.append(f"{where}: {kind} than {part['reference'].iloc[0]}: {named}.")
        rest = part[part["better"] == "not told apart"]
        if len(rest):
            named = "; ".join(f"{row.label} ({row.lower:+.3g} to {row.upper:+.3g})" for row in rest.itertuples())
            lines.append(
                f"{where}: not told apart from {part['reference'].iloc[0]}, which does not make them equal; the "
                f"difference may lie anywhere in: {named}."
            )
        same = part[part["better"] == "the same everywhere"]
        if len(same):
            lines.append(f"{where}: the same difference for every seed, {', '.join(same['label'])}: nothing to test.")
        single = part[part["better"] == "one pair"]
        if len(single):
            named = "; ".join(f"{row.label} {row.difference:+.3g}" for row in single.itertuples())
            lines.append(f"{where}: one pair only, so that nothing is known of the spread: {named}.")
    return lines


def caveat(found: pd.DataFrame, level: float = 0.95) -> str:
    """Caveat for so few pairs: the least p-value that they can give."""
    fewest, most = int(found["pairs"].min()), int(found["pairs"].max())
    pairs = f"{most} pairs" if fewest == most else f"{fewest} to {most} pairs"
    least = 2.0 / 2**most
    text = [
        f"{pairs[0].upper() + pairs[1:]} of runs with the same seed.",
        "A t test supposes that the differences vary normally over seeds, which so few cannot show."
        if most < 10
        else "",
        f"With {most} pairs the signed-rank test cannot give a p below {least:.2g}"
        + (f", so that by itself it can never decide at {1 - level:.2g}." if least > 1 - level else "."),
        "Where all seeds share the test rows, what is told apart holds for other removed modalities and other starts, "
        "not by itself for other data.",
    ]
    return " ".join(part for part in text if part)


def _better(verdict: str, metric: str) -> str:
    if verdict not in ("higher", "lower") or metric not in MEASURES:
        return verdict
    return "better" if (verdict == "higher") == MEASURES[metric][0] else "worse"


def _shown(found: pd.DataFrame) -> pd.DataFrame:
    def p(row: pd.Series, test: str) -> str:
        return "-" if np.isnan(row[test]) else f"{row[f'{test}_holm']:.2g} ({row[test]:.2g})"

    table = pd.DataFrame(
        {
            "variant": found["label"],
            "metric": found["metric"],
            "of": found["group"],
            "pairs": found["pairs"].astype(str),
            "mean": found["mean"],
            "difference": [f"{value:+.3g}" for value in found["difference"]],
            "SE": found["standard_error"],
            "interval": [
                "-" if np.isnan(row.lower) else f"{row.lower:+.3g} to {row.upper:+.3g}" for row in found.itertuples()
            ],
            "t p": [p(row, "t_p") for _, row in found.iterrows()],
            "Wilcoxon p": [p(row, "wilcoxon_p") for _, row in found.iterrows()],
            "verdict": found["better"],
        }
    )
    return table if found["group"].any() else table.drop(columns="of")


def _parts(results: pd.DataFrame, groups: Sequence[str]) -> list[tuple[str, pd.DataFrame]]:
    if not groups:
        return [("", results)]
    return [
        (", ".join(f"{name}={value}" for name, value in zip(groups, key, strict=True)), part)
        for key, part in results.groupby(list(groups), sort=False, dropna=False)
    ]


def _run_names(runs: Sequence[Run]) -> list[str]:
    """Short names of runs that tell them apart: the end of their folders."""
    paths = [run.folder.resolve().parts for run in runs]
    length = next(n for n in range(1, 99) if len({path[-n:] for path in paths}) == len(set(paths)))
    return ["/".join(path[-length:]) for path in paths]


def _level(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ArgumentError(f"level: expected a number between 0 and 1, got {text!r}.") from None


def main(arguments: Sequence[str] | None = None) -> int:
    """Compare, print what can be told, and write the files."""
    try:
        given = parse(sys.argv[1:] if arguments is None else arguments, _KNOWN, "runs")
        folders = [Path(folder) for folder in given["runs"].split(",")]
        level = _level(given.get("level", "0.95"))
        metrics = [name.strip() for name in given["metric"].split(",")] if "metric" in given else None
        found = compare_runs(
            folders, reference=given.get("reference"), metrics=metrics, by=given.get("by", "variant"), level=level
        )
        sources = [str(folder) for folder in folders]
        page = write_comparison(found, Path(given.get("out", folders[0])), sources, level)
    except CalmrlError as error:
        print(error, file=sys.stderr)
        return 1
    for line in [*readings(found, level), caveat(found, level)]:
        print(line)
    print(f"Comparison: {page}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
