"""The notebooks run from top to bottom, and are kept without their outputs.

A ``text`` block that a markdown cell begins with is what the code cell before it prints, as in the pages of docs/.
"""

from __future__ import annotations

import os
import re
from itertools import pairwise
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from tests.cases.printed import agrees

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOKS = sorted((ROOT / "docs" / "notebooks").glob("*.ipynb"))

TEXT_BLOCK = re.compile(r"```text\n(?P<printed>.*?)^```$", re.DOTALL | re.MULTILINE)

every_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def test_the_three_uses_have_one_each() -> None:
    assert [path.stem for path in NOTEBOOKS] == ["compare_variants", "inspect_uncertainty", "specify_a_prior"]


@every_notebook
def test_it_is_valid_and_holds_no_outputs(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert code
    assert not any(cell.outputs or cell.execution_count for cell in code)
    assert notebook.cells[0].source.startswith("# ")


@pytest.mark.slow
@pytest.mark.page
@pytest.mark.filterwarnings("ignore::DeprecationWarning:jupyter_client", "ignore::DeprecationWarning:zmq")
@every_notebook
def test_it_runs_and_shows_figures(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    client = NotebookClient(notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": path.parent}})
    # of this checkout, whatever is installed; the backend of notebooks, though tests have another
    client.execute(
        env={**os.environ, "PYTHONPATH": str(ROOT), "MPLBACKEND": "module://matplotlib_inline.backend_inline"}
    )
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    pictures = [output for output in outputs if "image/png" in output.get("data", {})]
    assert len(pictures) >= 2
    for cell, following in pairwise(notebook.cells):
        said = TEXT_BLOCK.match(following.source) if following.cell_type == "markdown" else None
        if said:
            got = "".join(output.get("text", "") for output in cell.outputs if output.output_type == "stream")
            assert agrees(said["printed"], got, whitespace=False), f"printed:\n{got}\nbut it says:\n{said['printed']}"


def test_every_text_block_is_compared() -> None:
    for path in NOTEBOOKS:
        cells = nbformat.read(path, as_version=4).cells
        compared = [
            cell for before, cell in pairwise(cells)
            if before.cell_type == "code" and cell.cell_type == "markdown" and TEXT_BLOCK.match(cell.source)
        ]  # fmt: skip
        assert len(compared) == sum(cell.source.count("```text") for cell in cells), path
