"""What pages and docstrings mention is there: paths of the repository, modules and names of the library, links."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from tests.house.floors import ROOMS
from tests.house.imports import ROOT, is_module, is_package, parse

FOLDERS = [*ROOMS, "docs", "tests"]
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md"))]
SOURCES = [path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*.py"))]
PATH = re.compile(rf"`((?:{'|'.join(FOLDERS)})/[^`\s]*)`")
NAME = re.compile(r"`~?(calmrl_prob(?:\.\w+)+)(?:\(\))?`")
LINK = re.compile(r"\]\((?!https?://)([^)#\s]*)(?:#([^)\s]*))?\)")
CODE = re.compile(r"^```.*?^```|`[^`\n]*`", re.DOTALL | re.MULTILINE)

in_every_page = pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))


def docstrings(path: Path) -> str:
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    return "\n".join(ast.get_docstring(node) or "" for node in ast.walk(parse(path)) if isinstance(node, documented))


def lacking(text: str) -> list[str]:
    """Paths that are mentioned and not there; ``<name>`` stands for any name."""
    mentioned = {re.sub(r"<\w+>", "*", found).rstrip("/") for found in PATH.findall(text)}
    return sorted(path for path in mentioned if not any(ROOT.glob(path)))


def unknown(text: str) -> list[str]:
    """Dotted names that no module of the library has."""
    return sorted({name for name in NAME.findall(text) if not known(name)})


def known(name: str) -> bool:
    parts = name.split(".")
    module = max(i for i in range(1, len(parts) + 1) if is_module(".".join(parts[:i])))
    if module == len(parts):
        return True
    path = ROOT.joinpath(*parts[:module])
    path = path / "__init__.py" if is_package(".".join(parts[:module])) else path.with_suffix(".py")
    return parts[module] in names(path)


def names(path: Path) -> set[str]:
    """What a module defines or imports at its top."""
    found: set[str] = set()
    for node in parse(path).body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef):
            found.add(node.name)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            found |= {alias.asname or alias.name for alias in node.names}
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            found |= {target.id for target in targets if isinstance(target, ast.Name)}
            found |= {
                text.value for text in ast.walk(node) if isinstance(text, ast.Constant) and target_is_all(targets)
            }
    return found


def target_is_all(targets: list[ast.expr]) -> bool:
    return any(isinstance(target, ast.Name) and target.id == "__all__" for target in targets)


def anchors(path: Path) -> set[str]:
    """The anchors that GitHub gives to the headings of a page."""
    headings = re.findall(r"^#+ (.+)$", path.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@in_every_page
def test_pages_mention_paths_and_names_that_are_there(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert not lacking(text)
    assert not unknown(text)


@pytest.mark.parametrize("folder", FOLDERS)
def test_docstrings_mention_paths_and_names_that_are_there(folder: str) -> None:
    texts = {path: docstrings(path) for path in SOURCES if path.is_relative_to(ROOT / folder)}
    assert not {str(path.relative_to(ROOT)): found for path, text in texts.items() if (found := lacking(text))}
    assert not {str(path.relative_to(ROOT)): found for path, text in texts.items() if (found := unknown(text))}


@in_every_page
def test_links_lead_somewhere(path: Path) -> None:
    for target, anchor in LINK.findall(CODE.sub("", path.read_text(encoding="utf-8"))):
        page = path.parent / target if target else path
        assert page.exists(), target
        assert not anchor or anchor in anchors(page), f"{target}#{anchor}"
