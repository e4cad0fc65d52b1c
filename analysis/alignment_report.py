"""One HTML page of the experiments on the paper's claims: ``python -m analysis.alignment_report FOLDER``."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from analysis.figures.alignment import variant_bars
from analysis.pages.markdown import read_markdown
from analysis.runs.files import read_facts, read_table, write_table, write_text
from analysis.statistics.claims import findings
from calmrl_prob.errors import CalmrlError
from calmrl_prob.report.page import Picture, Section, Table, render

#: The file of a run that says what its parts are.
FACTS = "paper.json"
#: The file of a part that its claims are judged by.
RESULTS = "results.csv"
#: What the page can draw of ``results.csv``, where a part leaves no figures of its own.
DRAWN: dict[str, Callable[[pd.DataFrame, str], Figure]] = {"bars": variant_bars}

_LEAD = (
    "Encoders are aligned on training rows that lack modalities, with and without a generative model that completes "
    "them, and measured on complete test rows. Temperature, epoch and priors are chosen on validation rows, held out "
    "of the training rows."
)
_CLAIMS = (
    "Read from the runs below. Holds: the mean over seeds points the paper's way by more than twice its standard "
    "error. Data, encoders and sizes are not those of the paper."
)
_QUICK = (
    " This is the quick run: few seeds, few epochs, few variants. Differences of the size of the spread mean nothing."
)


def build_alignment_report(run_folder: str | os.PathLike[str]) -> Path:
    """Write ``report.html`` from what the parts of a run left in its folder, however much that is.

    Args:
        run_folder: holds ``paper.json``, and for each part a folder with ``table.md``, figures and ``results.csv``.

    Returns:
        The path of the page. It needs no other file and no network.

    Raises:
        FileFormatError: ``paper.json`` is missing or cannot be read.
    """
    folder = Path(run_folder)
    facts = read_facts(folder / FACTS)
    states = {name: _state(part, folder / name) for name, part in facts["parts"].items()}
    minutes = {
        name: part["seconds"] / 60
        for name, part in facts["parts"].items()
        if part["seconds"] is not None and states[name][0] == "finished"
    }
    rows = [
        [part["title"], states[name][0], f"{minutes[name]:.1f}" if name in minutes else "-"]
        for name, part in facts["parts"].items()
    ]
    rows.append(["together", "", f"{sum(minutes.values()):.1f}" if minutes else "-"])
    overview = Section(tables=[Table(["experiment", "state", "minutes"], rows)])
    done = [name for name in facts["parts"] if states[name][0] == "finished" and (folder / name / RESULTS).is_file()]
    found = findings({name: read_table(folder / name / RESULTS) for name in done})
    write_table(found, folder / "claims.csv")
    claims = Section("Claims of the paper, and what was found here", tables=[Table.of(found, caption=_CLAIMS)])
    parts = [_section(part, *states[name], folder / name) for name, part in facts["parts"].items()]
    lead = _LEAD + _QUICK * facts["quick"]
    page = render("Claims of the paper: experiments", [claims, overview, *parts], lead)
    write_text(page, folder / "report.html")
    return folder / "report.html"


def _section(facts: dict[str, Any], state: str, note: str, folder: Path) -> Section:
    finished = state == "finished"
    tables, prose = read_markdown((folder / "table.md").read_text(encoding="utf-8")) if finished else ([], [])
    overrides = facts["overrides"] or []
    quoted = [f"'{word}'" if set(word) & set("[]{}(),") else word for word in overrides]
    command = " ".join(["python -m", facts["module"], *quoted])
    return Section(
        facts["title"],
        warnings=[] if finished else [f"{state}. {note}"],
        tables=[Table(headings, rows) for headings, rows in tables],
        notes=[*prose, *([] if state == "left out" else [f"Alone: {command}"])],
        pictures=_pictures(facts, folder) if finished else [],
    )


def _state(facts: dict[str, Any], folder: Path) -> tuple[str, str]:
    if facts["overrides"] is None:
        return "left out", facts["lacking"]
    if facts["error"]:
        return "failed", facts["error"]
    if (folder / "table.md").is_file():
        return "finished", ""
    for path in sorted(folder.glob("*.csv")):
        return "interrupted", f"{len(read_table(path))} rows of {path.name} were measured before it stopped."
    return "not run", "nothing of it is in the folder of this run yet."


def _pictures(facts: dict[str, Any], folder: Path) -> list[Picture]:
    own = [Picture.read(path) for path in sorted(folder.glob("*.png"))]
    if facts["draw"] and not own:
        figure = DRAWN[facts["draw"]](read_table(folder / "results.csv"), facts["title"])
        own = [Picture.of(figure, f"{facts['title']}: the table above as a figure")]
    return own


def main(arguments: list[str] | None = None) -> int:
    """Build the page of a run anew."""
    parser = argparse.ArgumentParser(prog="python -m analysis.alignment_report", description=__doc__)
    parser.add_argument("folder", type=Path, help="of a run, such as outputs/2026-01-31/12-00-00")
    try:
        print(build_alignment_report(parser.parse_args(arguments).folder))
    except CalmrlError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
