"""The page of errors is of the present code, and the library raises on purpose what is on it, and nothing else."""

from __future__ import annotations

import ast
import builtins
import runpy
from typing import Any

import pytest

from calmrl_prob import errors
from tests.house.imports import ROOT, dotted, parse

CLASSES = {name for name, found in vars(errors).items() if isinstance(found, type)}
#: Raised on purpose beside them: for a path at which there is nothing, for a name that a module does not have, and by
#: the adapter to ArviZ, which imports nothing of calmrl_prob.
OF_PYTHON = {
    "FileNotFoundError",
    "AttributeError",
    "adapter.py: ValueError",
    "archives.py: OSError",
    "files.py: OSError",
    "files.py: PermissionError",
    "remote.py: OSError",
    "trees.py: ValueError",
}


@pytest.fixture(scope="module")
def script() -> dict[str, Any]:
    return runpy.run_path(str(ROOT / "docs" / "make_errors.py"))


def test_the_page_of_errors_is_of_the_present_code(script: dict[str, Any]) -> None:
    assert script["PAGE"].read_text(encoding="utf-8") == script["page"](), "run python -m docs.make_errors"


def test_every_class_has_a_section_and_what_is_raised_itself_an_example(script: dict[str, Any]) -> None:
    page = script["PAGE"].read_text(encoding="utf-8")
    assert {line.removeprefix("## ") for line in page.splitlines() if line.startswith("## ")} == CLASSES
    assert set(script["EXAMPLES"]) == CLASSES - {"CalmrlError", "CalmrlWarning"}
    for name in script["EXAMPLES"]:
        assert type(script["raised"](name)).__name__ == name


def test_all_errors_are_in_one_file_and_no_others_are_raised() -> None:
    for path in (ROOT / "calmrl_prob").rglob("*.py"):
        for node in ast.walk(parse(path)):
            if isinstance(node, ast.ClassDef) and path.name != "errors.py":
                assert not {dotted(base) for base in node.bases} & CLASSES, f"{path}: {node.name} belongs to errors.py"
            if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
                name = dotted(node.exc.func)
                own = not isinstance(getattr(builtins, name, None), type)
                allowed = own or OF_PYTHON & {name, f"{path.name}: {name}"}
                assert allowed, f"{path}, line {node.lineno}: {name} is none of calmrl_prob/errors.py"


def test_every_error_is_also_one_of_pythons() -> None:
    for name in CLASSES - {"CalmrlError"}:
        found = getattr(errors, name)
        if name.endswith("Warning"):
            assert issubclass(found, errors.CalmrlWarning)
        else:
            assert issubclass(found, errors.CalmrlError)
            assert issubclass(found, ValueError | TypeError | ArithmeticError | ImportError | RuntimeError)
