"""The pages of the site that are no files of docs/: hooks of MkDocs, named in ``mkdocs.yml``.

The front page is README.md; the reference is written from the public names; notebooks are executed, which
``CALMRL_DOCS_NOTEBOOKS=0`` leaves out for a draft. Formulas become MathML here, so that no page needs a script.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbformat
from latex2mathml.converter import convert
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
from nbclient import NotebookClient
from nbconvert import MarkdownExporter

from docs.make_reference import MODULES, PACKAGES, front_places, reference_pages

ROOT = Path(__file__).resolve().parents[1]
#: Files beside docs/ that are pages, by the path that each has in the site.
BESIDE = {
    "index.md": "README.md",
    "changelog.md": "CHANGELOG.md",
    "contributing.md": "CONTRIBUTING.md",
    "conduct.md": "CODE_OF_CONDUCT.md",
    "security.md": "SECURITY.md",
    "attribution.md": "calmrl_prob/datasets/ATTRIBUTION.md",
}
#: Pages that are listed, in a part of the navigation, as soon as they are there.
COMING = {"Experiments": "tasks.md"}
#: A public name in the text of a page, outside blocks and headings: it leads to its place in the reference.
NAMED = re.compile(r"^(?:```.*?^```$|#.*?$)|(?<![\[`])`cal\.(?P<name>\w+)`(?![`\]])", re.DOTALL | re.MULTILINE)
LINK = re.compile(r"(\]\()(?!https?://|#)([^)#\s]+)")
#: What a code cell prints, said by the markdown cell after it for the tests: a page has the output itself.
SAID = re.compile(r"\A```text\n.*?^```$\n*", re.DOTALL | re.MULTILINE)

#: A frame of pandas in HTML, with a look of its own, which is left out.
FRAME = re.compile(
    r"<div>\s*<style scoped>.*?</style>\s*<table[^>]*>(.*?)</table>\s*(?:<p>[^<]*</p>\s*)?</div>", re.DOTALL
)


def on_config(config: MkDocsConfig) -> None:
    """Name the pages of the reference in the navigation, and those that other work is to bring once they are there."""
    parts = {title: item for item in config.nav or [] for title in item}
    for part, page in COMING.items():
        if (ROOT / "docs" / page).exists():
            parts[part][part].append(page)
    parts["Reference"]["Reference"] = ["reference/index.md"] + [
        {name.removeprefix("calmrl_prob."): f"reference/{name}.md"} for name in (*PACKAGES, *MODULES)
    ]


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add what is made here to the files of docs/."""
    for path, source in BESIDE.items():
        files.append(File.generated(config, path, content=beside(source)))
    for path, text in reference_pages():
        files.append(File.generated(config, path, content=text))
    for path, content in executed():
        files.append(File.generated(config, path, content=content))
    return files


def on_page_markdown(markdown: str, page: Page, **_: Any) -> str:
    """Turn links to files beside docs/, such as ../README.md, to where these are in the site, and link public names."""
    if page.file.src_uri.startswith(("reference/", "notebooks/")):
        return markdown
    places = front_places()

    def linked(found: re.Match[str]) -> str:
        place = places.get(found["name"] or "")
        return f"[{found[0]}]({place})" if place else found[0]

    return NAMED.sub(linked, turned(markdown, "docs") if page.file.src_dir else markdown)


def beside(source: str) -> str:
    """A page that lies beside docs/, its links turned to where their targets are in the site."""
    return turned((ROOT / source).read_text(encoding="utf-8"), os.path.dirname(source))


def turned(text: str, folder: str) -> str:
    """A page of a folder of the repository as one at the top of the site."""
    places = {target: place for place, target in BESIDE.items()}

    def to_site(link: re.Match[str]) -> str:
        target = os.path.normpath(os.path.join(folder, link[2]))
        return link[1] + places.get(target, target.removeprefix("docs/"))

    return LINK.sub(to_site, text)


def executed() -> Iterator[tuple[str, str | bytes]]:
    """Each notebook as a page with its outputs, and its pictures."""
    for path in sorted((ROOT / "docs" / "notebooks").glob("*.ipynb")):
        notebook = nbformat.read(path, as_version=4)
        if os.environ.get("CALMRL_DOCS_NOTEBOOKS") != "0":
            run(notebook, path.parent)
        for cell in notebook.cells:
            if cell.cell_type == "markdown":
                cell.source = SAID.sub("", cell.source)
            else:  # what packages say on standard error is of the machine, not of the notebook
                cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
        name = path.stem
        text, resources = MarkdownExporter().from_notebook_node(notebook, {"output_files_dir": f"{name}_files"})
        yield f"notebooks/{name}.md", FRAME.sub(r"<table>\1</table>", text)
        for picture, content in resources["outputs"].items():
            yield f"notebooks/{picture}", content


def run(notebook: nbformat.NotebookNode, folder: Path) -> None:
    """Execute a notebook in place, with this checkout and the backend of notebooks."""
    client = NotebookClient(notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": folder}})
    client.execute(
        env={**os.environ, "PYTHONPATH": str(ROOT), "MPLBACKEND": "module://matplotlib_inline.backend_inline"}
    )


def mathml(source: str, language: str, css_class: str, options: Any, md: Any, **_: Any) -> str:  # noqa: ANN401
    """A formula in LaTeX as MathML, for a fence of superfences."""
    return f'<div class="{css_class}">{convert(source, display="block")}</div>'


def anchor(heading: str, separator: str) -> str:
    """The anchor of a heading as GitHub gives it, which links in docs/ go by."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", separator)
