"""Puts results of the comparison into README.md, docs/demo.md and docs/images/, or draws the pictures of docs/plots.md.

Run ``python -m experiments.compare``, then ``python -m docs.make_images outputs/<date>/<time>``; and, whenever plots or
their page have changed, ``python -m docs.make_images --plots``.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from analysis.figures.comparison import coverage, gain, intervals, recall_by_share
from analysis.statistics.tables import formatted, summarize
from calmrl_prob.report.pictures import png

DOCS = Path(__file__).parent
README, DEMO = DOCS.parent / "README.md", DOCS / "demo.md"
#: Where a table begins and ends in each of the two.
BEGIN = {
    README: "<!-- begin: five rows of experiments.compare -->",
    DEMO: "<!-- begin: table of experiments.compare -->",
}
END = "<!-- end -->"
#: Rows and columns of the table in README.md, and the variants of the picture above it.
FIVE_ROWS = ("mean", "knn", "ridge", "calmrl_default", "oracle")
FIVE_COLUMNS = ("variant", "RMSE", "NLL", "coverage %", "R@1 %", "fit s")
GAIN_OF = ("mean", "ridge", "calmrl_default", "oracle")
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
    compared = summarize(pd.read_csv(run / "results.csv"))
    ordered = compared.set_index("variant", drop=False).loc[list(GAIN_OF)]
    figures = {
        "gain": gain(ordered, f"What to do about missing modalities, {data}: mean and spread over seeds"),
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


def markdown(summary: pd.DataFrame, columns: Sequence[str] | None = None) -> str:
    """The table of a run in Markdown, or some columns of it."""
    text = formatted(summary)
    text = text if columns is None else text[list(columns)]
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
    compared = summarize(pd.read_csv(run / "results.csv"))
    five = compared.set_index("variant", drop=False).loc[list(FIVE_ROWS)]
    for page, table in {README: markdown(five, FIVE_COLUMNS), DEMO: markdown(compared)}.items():
        place = re.compile(f"{BEGIN[page]}.*?{END}", re.DOTALL)
        text = page.read_text(encoding="utf-8")
        page.write_text(place.sub(lambda _, new=f"{BEGIN[page]}\n{table}\n{END}": new, text), encoding="utf-8")


if __name__ == "__main__":
    main()
