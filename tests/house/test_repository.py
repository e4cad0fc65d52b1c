"""What the house rules ask of the source files, read from their syntax trees: no file is imported here."""

from __future__ import annotations

import ast
import importlib.metadata
import sys
import tomllib
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).resolve().parents[2]
LIBRARY = sorted((ROOT / "calmrl_prob").rglob("*.py"))
ROOMS = ("analysis", "benchmarks", "calmrl_prob", "experiments", "models", "tests")
# Which rooms a room may import besides itself.
ALLOWED_ROOMS = {
    "calmrl_prob": set(),
    "models": {"calmrl_prob"},
    "analysis": {"calmrl_prob"},
    "experiments": {"calmrl_prob", "models", "analysis"},
    "benchmarks": {"calmrl_prob", "models"},
}
# Rooms whose imports must be declared, and the extras that may declare them beside the package's own dependencies.
# Of the library, only functions may import what an extra declares (see the test below).
ALLOWED_EXTRAS = {
    "calmrl_prob": ["experiments", "flow", "gp", "plots", "train"],
    "models": ["flow", "gp"],
    "analysis": ["experiments"],
    "experiments": ["experiments", "flow", "gp", "train"],
    "benchmarks": ["bench", "experiments", "flow", "gp", "train"],
}
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]

in_every_library_file = pytest.mark.parametrize("path", LIBRARY, ids=lambda path: str(path.relative_to(ROOT)))


def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def dotted(node: ast.AST) -> str:
    """The dotted name that an expression spells, such as ``torch.load``; empty where it is something else."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute) and (owner := dotted(node.value)):
        return f"{owner}.{node.attr}"
    return ""


def calls(tree: ast.AST) -> Iterator[ast.Call]:
    return (node for node in ast.walk(tree) if isinstance(node, ast.Call))


def imports(path: Path, *, at_import: bool = False) -> set[str]:
    """Full names of the modules that a file imports when it runs (not those it needs for annotations only).

    With ``at_import`` those that it imports when it is imported itself: not those within functions.
    """
    tree = parse(path)
    left_out = {
        id(inner)
        for node in ast.walk(tree)
        if at_import and isinstance(node, ast.FunctionDef)
        for inner in ast.walk(node)
    }
    left_out |= {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and dotted(node.test) in {"TYPE_CHECKING", "typing.TYPE_CHECKING"}
        for statement in node.body
        for inner in ast.walk(statement)
    }
    package = module_name(path).split(".")
    if path.name != "__init__.py":
        package = package[:-1]
    found = set()
    for node in ast.walk(tree):
        if id(node) in left_out:
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            for alias in node.names:
                full = f"{base}.{alias.name}"
                found.add(full if is_module(full) else base)
    return found


def is_module(name: str) -> bool:
    path = ROOT.joinpath(*name.split("."))
    return path.with_suffix(".py").is_file() or (path / "__init__.py").is_file()


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
def test_library_never_pickles(path: Path) -> None:
    assert not {name.split(".")[0] for name in imports(path)} & {"pickle", "cloudpickle", "dill", "joblib", "shelve"}
    forbidden = {"torch.load", "torch.save", "pandas.read_pickle", "pd.read_pickle"}
    for call in calls(parse(path)):
        assert dotted(call.func) not in forbidden, f"line {call.lineno}"
        for keyword in call.keywords:
            refused = isinstance(keyword.value, ast.Constant) and keyword.value.value is False
            assert keyword.arg != "allow_pickle" or refused, f"line {call.lineno}"


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


@pytest.mark.parametrize("room", ALLOWED_ROOMS)
def test_arrows_between_rooms_point_one_way(room: str) -> None:
    refused = set(ROOMS) - ALLOWED_ROOMS[room] - {room}
    for path in (ROOT / room).rglob("*.py"):
        assert not {name for name in imports(path) if name.split(".")[0] in refused}, path


# Besides itself, errors and the table of old names, both of which import nothing.
GROUND = ("calmrl_prob.linear_gaussian", "calmrl_prob.errors", "calmrl_prob._moved")


def test_linear_gaussian_is_the_ground_floor() -> None:
    for path in (ROOT / "calmrl_prob" / "linear_gaussian").rglob("*.py"):
        for name in imports(path):
            root = name.split(".")[0]
            if root == "calmrl_prob":
                assert name.startswith(GROUND), f"{path} imports {name}"
            else:
                assert root in {"torch", "numpy"} | sys.stdlib_module_names, f"{path} imports {name}"


def test_library_has_no_import_circles() -> None:
    graph = {module_name(path): {name for name in imports(path) if name.startswith("calmrl_prob")} for path in LIBRARY}
    tuple(TopologicalSorter(graph).static_order())  # raises CycleError, which lists the circle


@pytest.mark.parametrize("room", ALLOWED_EXTRAS)
def test_every_import_is_declared(room: str) -> None:
    declared = {canonicalize_name(line.name) for extra in (None, *ALLOWED_EXTRAS[room]) for line in requirements(extra)}
    distributions = importlib.metadata.packages_distributions()
    for path in (ROOT / room).rglob("*.py"):
        roots = {name.split(".")[0] for name in imports(path)} - sys.stdlib_module_names - set(ROOMS)
        for root in roots:
            providers = {canonicalize_name(name) for name in distributions.get(root, [root])}
            assert providers & declared, f"{path} imports {root}, which no requirement declares"


@in_every_library_file
def test_library_works_without_the_extras(path: Path) -> None:
    distributions = importlib.metadata.packages_distributions()
    own = {canonicalize_name(line.name) for line in requirements()}
    if path.parent.name == "training":  # its classes are Lightning's, and nothing else imports it (the test below)
        own |= {canonicalize_name(line.name) for line in requirements("train")}
    for name in imports(path, at_import=True):
        root = name.split(".")[0]
        if root not in sys.stdlib_module_names and root not in ROOMS:
            providers = {canonicalize_name(provider) for provider in distributions.get(root, [root])}
            assert providers & own, f"importing {path} imports {root}, which only an extra declares"


def test_only_who_asks_for_training_imports_lightning() -> None:
    for path in LIBRARY:
        if path.parent.name != "training":
            assert not any(name.startswith("calmrl_prob.training") for name in imports(path)), path


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
