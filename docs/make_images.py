"""Puts the results of a run of the comparison into README.md and docs/images/, or draws the pictures of docs/plots.md.

Run ``python -m experiments.compare``, then ``python -m docs.make_images outputs/<date>/<time>``; and, whenever plots or
their page have changed, ``python -m docs.make_images --plots``.
"""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path
from typing import Any

import pandas as pd

from analysis.figures.comparison import coverage, intervals, recall_by_share
from analysis.statistics.tables import formatted, summarize
from calmrl_prob.report.pictures import png

DOCS = Path(__file__).parent
README = DOCS.parent / "README.md"
BEGIN, END = "<!-- begin: table of experiments.compare -->", "<!-- end -->"
#: Variants in the coverage figure: more lie on top of each other.
COVERAGE_OF = ("complete_rows", "ridge", "calmrl", "oracle")
#: Resolution of the pictures of docs/plots.md: small files that are sharp enough on a page.
_DPI = 96


def draw(run: Path) -> None:
    """Write the pictures of a run, by their names in the pages."""
    facts = json.loads((run / "run.json").read_text(encoding="utf-8"))
    shares, imputed, covered = (
        pd.read_csv(run / "tables" / f"{name}.csv") for name in ("shares", "intervals", "coverage")
    )
    data, level = facts["data"], facts["interval_level"]
    covered = covered[covered["variant"].isin(COVERAGE_OF)]
    figures = {
        "recall_by_share": recall_by_share(shares, f"Retrieval between modalities, {data}"),
        "intervals": intervals(imputed, level, f"Imputed test values, {data}, {facts['focus']}"),
        "coverage": coverage(covered, f"Coverage of imputation intervals, {data}"),
    }
    for name, figure in figures.items():
        (DOCS / "images" / f"{name}.png").write_bytes(png(figure))


def draw_plots() -> None:
    """Run the code of docs/plots.md, and write each plot that the page shows, by the name of its axes there."""
    page = (DOCS / "plots.md").read_text(encoding="utf-8")
    names: dict[str, Any] = {}
    for code in re.findall(r"^```python\n(.*?)^```$", page, re.DOTALL | re.MULTILINE):
        exec(compile(code, "docs/plots.md", "exec"), names)
    for name in re.findall(r"\(images/plots_(\w+)\.png\)", page):
        figure = names[name].figure
        figure.set_dpi(_DPI)
        (DOCS / "images" / f"plots_{name}.png").write_bytes(png(figure))


def markdown(run: Path) -> str:
    """The table of a run in Markdown."""
    text = formatted(summarize(pd.read_csv(run / "results.csv")))
    rows = [list(text.columns), ["---", *["---:"] * (text.shape[1] - 1)], *text.to_numpy().tolist()]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def main() -> None:
    """Write pictures and table, or the pictures of the plots."""
    parser = argparse.ArgumentParser(description=__doc__)
    chosen = parser.add_mutually_exclusive_group(required=True)
    chosen.add_argument("run", type=Path, nargs="?", help="folder of a run, such as outputs/2026-01-31/12-00-00")
    chosen.add_argument("--plots", action="store_true", help="draw the pictures of docs/plots.md")
    given = parser.parse_args()
    if given.plots:
        draw_plots()
        return
    run = given.run
    draw(run)
    page = README.read_text(encoding="utf-8")
    table = re.compile(f"{BEGIN}.*?{END}", re.DOTALL)
    README.write_text(table.sub(lambda _: f"{BEGIN}\n{markdown(run)}\n{END}", page), encoding="utf-8")


if __name__ == "__main__":
    main()
