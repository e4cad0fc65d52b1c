"""One self-contained HTML page of the experiments of alignment: ``python -m analysis.alignment_report FOLDER``."""

from __future__ import annotations

import argparse
import base64
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd
from matplotlib.figure import Figure

from analysis.alignment_figures import variant_bars
from analysis.files import read_facts, read_table, write_text
from analysis.style import data_uri
from calmrl_prob.errors import CalmrlError

#: The file of a run that says what its parts are.
FACTS = "paper.json"
#: What the page can draw of ``results.csv``, where a part leaves no figures of its own.
DRAWN: dict[str, Callable[[pd.DataFrame, str], Figure]] = {"bars": variant_bars}


@dataclass(frozen=True)
class PagePart:
    """What the page has of one experiment.

    Attributes:
        title, command: what it is, and how it is run alone.
        state: "finished", "failed", "interrupted", "not run" or "left out".
        note: of the state, where it is not finished.
        minutes: that it took; None where it is not known.
        tables: headings and rows, all text.
        prose: what stands between the tables.
        pictures: ``data:`` addresses.
    """

    title: str
    command: str
    state: str
    note: str
    minutes: float | None
    tables: list[tuple[list[str], list[list[str]]]]
    prose: list[str]
    pictures: list[str]


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
    parts = [_part(name, part, folder / name) for name, part in facts["parts"].items()]
    known = [part.minutes for part in parts if part.minutes is not None]
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("analysis"), autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True
    )
    page = environment.get_template("alignment_report.html.j2").render(
        parts=parts, quick=facts["quick"], minutes=sum(known) if known else None
    )
    write_text(page, folder / "report.html")
    return folder / "report.html"


def _part(name: str, facts: dict[str, Any], folder: Path) -> PagePart:
    state, note = _state(facts, folder)
    tables, prose = [], []
    if state == "finished":
        tables, prose = read_markdown((folder / "table.md").read_text(encoding="utf-8"))
    overrides = facts["overrides"] or []
    quoted = [f"'{word}'" if set(word) & set("[]{}(),") else word for word in overrides]
    return PagePart(
        title=facts["title"],
        command=" ".join(["python -m", facts["module"], *quoted]),
        state=state,
        note=note,
        minutes=None if facts["seconds"] is None or state != "finished" else facts["seconds"] / 60,
        tables=tables,
        prose=prose,
        pictures=_pictures(facts, folder) if state == "finished" else [],
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


def _pictures(facts: dict[str, Any], folder: Path) -> list[str]:
    own = [
        "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode("ascii")
        for path in sorted(folder.glob("*.png"))
    ]
    if facts["draw"] and not own:
        own = [data_uri(DRAWN[facts["draw"]](read_table(folder / "results.csv"), facts["title"]))]
    return own


def read_markdown(text: str) -> tuple[list[tuple[list[str], list[list[str]]]], list[str]]:
    r"""Tables and paragraphs of what ``table.md`` holds.

    Returns:
        For each table its headings and rows; and the lines that belong to none, headings with them.

    Example:
        >>> read_markdown("## Of all\n\n| a | b |\n| --- | --- |\n| x | y |\n\nTwo seeds.\n")
        ([(['a', 'b'], [['x', 'y']])], ['Of all', 'Two seeds.'])
    """
    tables: list[tuple[list[str], list[list[str]]]] = []
    prose, inside = [], False
    for line in text.splitlines():
        if not line.startswith("|"):
            inside = False
            if line.strip():
                prose.append(line.lstrip("# ").strip())
            continue
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
        if not inside:
            tables.append((cells, []))
        elif not all(set(cell) <= set("-: ") for cell in cells):
            tables[-1][1].append(cells)
        inside = True
    return tables, prose


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
