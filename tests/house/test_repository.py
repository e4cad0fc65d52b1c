"""What the house rules ask of the source files, read from their syntax trees: no file is imported here."""

from __future__ import annotations

import ast
import importlib.metadata
import runpy
import sys
import tomllib
from collections.abc import Mapping
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from tests.house.floors import FLOORS, MAY_IMPORT, ROOMS, covers, library_imports, package_of
from tests.house.imports import ROOT, calls, dotted, imports, module_name, parse

LIBRARY = sorted((ROOT / "calmrl_prob").rglob("*.py"))
ALL_ROOMS = {*ROOMS, "tests"}
# Rooms whose imports must be declared, and the extras that may declare them beside the package's own dependencies.
# Of the library, only functions may import what an extra declares (see the test below).
ALLOWED_EXTRAS = {
    "calmrl_prob": ["arrow", "dask", "experiments", "faiss", "flow", "gp", "omics", "plots", "train", "zarr"],
    "models": ["flow", "gp"],
    "analysis": ["experiments"],
    "experiments": ["bench", "experiments", "flow", "gp", "train"],
    "benchmarks": ["bench", "dask", "experiments", "faiss", "flow", "gp", "peers", "scvi", "train"],
}
#: Packages that are not installed for tests, by the modules of other names that they have.
NOT_INSTALLED = {"scvi": ["scvi-tools"]}
#: Lines of code of a function, docstring, comments and blank lines apart.
MOST_LINES = 60
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]

in_every_library_file = pytest.mark.parametrize("path", LIBRARY, ids=lambda path: str(path.relative_to(ROOT)))


@cache
def distributions() -> Mapping[str, list[str]]:
    """For each package that can be imported here, the distributions that it comes from."""
    return importlib.metadata.packages_distributions()


def requirements(extra: str | None = None) -> list[Requirement]:
    listed = PROJECT["dependencies"] if extra is None else PROJECT["optional-dependencies"][extra]
    return [Requirement(line) for line in listed]


@in_every_library_file
def test_library_neither_prints_nor_exits(path: Path) -> None:
    forbidden = {"print", "exit", "quit", "input", "sys.exit", "os._exit", "breakpoint"}
    found = {
        f"line {call.lineno}: {dotted(call.func)}" for call in calls(parse(path)) if dotted(call.func) in forbidden
    }
    assert not found


@in_every_library_file
def test_only_the_command_line_speaks_to_a_shell(path: Path) -> None:
    """Printing is what commands are for; they do it through typer, one file of theirs alone."""
    if path.parent != ROOT / "calmrl_prob" / "cli":
        assert not any(name.split(".")[0] in {"typer", "click"} for name in imports(path))
    elif path.name != "telling.py":
        found = [call.lineno for call in calls(parse(path)) if dotted(call.func) in {"typer.echo", "typer.secho"}]
        assert not found, "tell it by calmrl_prob/cli/telling.py"


@in_every_library_file
def test_library_never_pickles(path: Path) -> None:
    assert not {name.split(".")[0] for name in imports(path)} & {"pickle", "cloudpickle", "dill", "joblib", "shelve"}
    forbidden = {"torch.load", "torch.save", "pandas.read_pickle", "pd.read_pickle"}
    for call in calls(parse(path)):
        assert dotted(call.func) not in forbidden, f"line {call.lineno}"
        for keyword in call.keywords:
            refused = isinstance(keyword.value, ast.Constant) and keyword.value.value is False
            assert keyword.arg != "allow_pickle" or refused, f"line {call.lineno}"


@in_every_library_file
def test_results_hold_no_mapping_that_cannot_travel(path: Path) -> None:
    tree = parse(path)
    constants = [node.value for node in tree.body if isinstance(node, ast.Assign | ast.AnnAssign)]
    for call in calls(tree):  # a proxy cannot be pickled or copied: what a module keeps to itself need not be
        proxy = dotted(call.func).split(".")[-1] == "MappingProxyType"
        assert not proxy or call in constants, f"line {call.lineno}: use FrozenMapping"


@in_every_library_file
def test_library_keeps_out_of_pyros_global_parameter_store(path: Path) -> None:
    forbidden = {"clear_param_store", "get_param_store"}
    if path.name == "bound.py":  # sets the store aside while a user's model runs, and puts it back
        forbidden = {"clear_param_store"}
    found = {f"line {call.lineno}" for call in calls(parse(path)) if dotted(call.func).split(".")[-1] in forbidden}
    assert not found


@in_every_library_file
def test_library_changes_warning_filters_only_within_catch_warnings(path: Path) -> None:
    tree = parse(path)
    guarded = {
        id(call)
        for node in ast.walk(tree)
        if isinstance(node, ast.With)
        and any(
            isinstance(item.context_expr, ast.Call) and "catch_warnings" in dotted(item.context_expr.func)
            for item in node.items
        )
        for call in calls(node)
    }
    for call in calls(tree):
        changes_filters = dotted(call.func).split(".")[-1] in {"filterwarnings", "simplefilter"}
        assert not changes_filters or id(call) in guarded, f"line {call.lineno}"


@in_every_library_file
def test_library_files_start_with_a_docstring_and_postpone_annotations(path: Path) -> None:
    tree = parse(path)
    assert ast.get_docstring(tree)
    defines_something = any(isinstance(node, ast.FunctionDef | ast.ClassDef | ast.AnnAssign) for node in ast.walk(tree))
    assert not defines_something or "__future__" in imports(path)


@pytest.mark.parametrize("room", ROOMS)
def test_arrows_between_rooms_point_one_way(room: str) -> None:
    refused = ALL_ROOMS - {*ROOMS[room].split(), room}
    for path in (ROOT / room).rglob("*.py"):
        assert not {name for name in imports(path, for_annotations=True) if name.split(".")[0] in refused}, path


@in_every_library_file
def test_library_imports_what_the_table_of_floors_allows(path: Path) -> None:
    own = package_of(module_name(path))
    if path == ROOT / "calmrl_prob" / "__init__.py":
        return
    assert own, "on no floor: give it a row in tests/house/floors.py"
    for module in library_imports(path):
        allowed = package_of(module) == own or any(covers(name, module) for name in MAY_IMPORT[own])
        assert allowed, f"{own} may not import {module}: see tests/house/floors.py"


def test_every_package_of_the_table_imports_from_floors_below() -> None:
    below: set[str] = set()
    for floor in FLOORS.values():
        for package, allowed in floor.items():
            assert set(allowed.split()) <= below, package
            assert any(package_of(module_name(path)) == package for path in LIBRARY), f"{package} has no files"
        below |= set(floor)


def test_the_picture_of_the_floors_is_of_the_imports_as_they_are() -> None:
    script = runpy.run_path(str(ROOT / "docs" / "make_floors.py"))
    assert script["PICTURE"].read_text(encoding="utf-8") == script["picture"](), "run python -m docs.make_floors"


def test_linear_gaussian_needs_torch_alone() -> None:
    for path in (ROOT / "calmrl_prob" / "linear_gaussian").rglob("*.py"):
        roots = {name.split(".")[0] for name in imports(path)} - {"calmrl_prob"}
        assert roots <= {"torch", "numpy"} | sys.stdlib_module_names, path


def test_there_are_no_import_circles() -> None:
    """Not even by imports within functions or for annotations, in any room."""
    graph = {
        module_name(path): {name for name in imports(path, for_annotations=True) if name.split(".")[0] in ALL_ROOMS}
        for room in ALL_ROOMS
        for path in (ROOT / room).rglob("*.py")
    }
    assert not [name for name, found in graph.items() if name in found]
    tuple(TopologicalSorter(graph).static_order())  # raises CycleError, which lists the circle


def test_tests_share_cases_and_no_test_file_imports_another() -> None:
    for path in (ROOT / "tests").rglob("*.py"):
        for name in imports(path, for_annotations=True):
            shared = not name.split(".")[-1].startswith(("test_", "conftest"))
            assert shared or name.split(".")[0] not in {"conftest", "tests"}, f"{path} imports {name}"


@pytest.mark.parametrize("room", ["analysis", "experiments"])
def test_files_at_the_top_of_a_room_are_its_commands(room: str) -> None:
    for path in (ROOT / room).glob("*.py"):
        guards = [ast.unparse(node.test) for node in parse(path).body if isinstance(node, ast.If)]
        guarded = "__name__ == '__main__'" in guards
        assert guarded or path.name == "__init__.py", f"{path} is no command: it belongs to a folder of {room}"


@pytest.mark.parametrize("room", ROOMS)
def test_every_folder_says_in_one_line_what_lives_there(room: str) -> None:
    for folder in {path.parent for path in (ROOT / room).rglob("*.py")}:
        start = folder / "__init__.py"
        assert start.is_file(), f"{folder} has no __init__.py"
        said = (ast.get_docstring(parse(start)) or "").partition("\n\n")[0]
        assert said.endswith("."), f"{start} must say what lives in its folder"
        assert "\n" not in said, f"{start} must say it in one line"


@pytest.mark.parametrize("room", ALLOWED_EXTRAS)
def test_every_import_is_declared(room: str) -> None:
    declared = {canonicalize_name(line.name) for extra in (None, *ALLOWED_EXTRAS[room]) for line in requirements(extra)}
    for path in (ROOT / room).rglob("*.py"):
        roots = {name.split(".")[0] for name in imports(path)} - sys.stdlib_module_names - ALL_ROOMS
        for root in roots:
            providers = {canonicalize_name(name) for name in distributions().get(root, NOT_INSTALLED.get(root, [root]))}
            assert providers & declared, f"{path} imports {root}, which no requirement declares"


@in_every_library_file
def test_library_works_without_the_extras(path: Path) -> None:
    own = {canonicalize_name(line.name) for line in requirements()}
    if path.parent.name == "training":  # its classes are Lightning's, and nothing else imports it (the test below)
        own |= {canonicalize_name(line.name) for line in requirements("train")}
    for name in imports(path, at_import=True):
        root = name.split(".")[0]
        if root not in sys.stdlib_module_names and root not in ALL_ROOMS:
            providers = {canonicalize_name(provider) for provider in distributions().get(root, [root])}
            assert providers & own, f"importing {path} imports {root}, which only an extra declares"


def test_only_who_asks_for_training_imports_lightning() -> None:
    for path in LIBRARY:
        if path.parent.name != "training":
            # functions may, as far as floors.py lets them: files hold alignments too
            assert not any(name.startswith("calmrl_prob.training") for name in imports(path, at_import=True)), path


def lines_of_code(function: ast.FunctionDef, source: list[str]) -> int:
    """Lines of a function that are neither blank, nor comment, nor of a docstring."""
    left_out = set()
    for node in ast.walk(function):
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and ast.get_docstring(node) is not None:
            text = node.body[0]
            left_out |= set(range(text.lineno, (text.end_lineno or text.lineno) + 1))
    own = range(function.lineno, (function.end_lineno or function.lineno) + 1)
    return sum(line not in left_out and source[line - 1].strip()[:1] not in ("", "#") for line in own)


@pytest.mark.parametrize("room", ROOMS)
def test_functions_are_a_screen_long(room: str) -> None:
    found = {}
    for path in (ROOT / room).rglob("*.py"):
        source = path.read_text(encoding="utf-8").splitlines()
        for node in ast.walk(parse(path)):
            if isinstance(node, ast.FunctionDef) and (length := lines_of_code(node, source)) > MOST_LINES:
                found[f"{path.relative_to(ROOT)}: {node.name}"] = length
    assert not found, f"more than {MOST_LINES} lines of code: part them into functions that say what each is for"


def test_floors_agree_with_the_package_requirements() -> None:
    declared = {}
    for extra in (None, *PROJECT["optional-dependencies"]):
        for line in requirements(extra):
            floors = [Version(part.version) for part in line.specifier if part.operator == ">="]
            assert len(floors) == 1, f"{line} must name one floor"
            declared[canonicalize_name(line.name)] = floors[0]
    tried = {}
    for text in (ROOT / "floors.txt").read_text(encoding="utf-8").splitlines():
        if text and not text.startswith("#"):
            name, _, version = text.partition("==")
            tried[canonicalize_name(name)] = Version(version)
    assert tried == declared


@in_every_library_file
def test_docstrings_begin_with_the_thing(path: Path) -> None:
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef)
    texts = [ast.get_docstring(node) or "" for node in ast.walk(parse(path)) if isinstance(node, documented)]
    first = {text.split(maxsplit=1)[0] for text in texts if text}
    assert not first & {"What", "How", "Whatever", "Where", "Which"}
