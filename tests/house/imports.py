"""The imports of the files of the repository, read from their syntax trees: no file is imported here."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


@cache
def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@cache
def is_module(name: str) -> bool:
    return ROOT.joinpath(*name.split(".")).with_suffix(".py").is_file() or is_package(name)


@cache
def is_package(name: str) -> bool:
    return ROOT.joinpath(*name.split("."), "__init__.py").is_file()


def dotted(node: ast.AST) -> str:
    """The dotted name that an expression spells, such as ``torch.load``; empty where it is something else."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute) and (owner := dotted(node.value)):
        return f"{owner}.{node.attr}"
    return ""


def calls(tree: ast.AST) -> Iterator[ast.Call]:
    return (node for node in ast.walk(tree) if isinstance(node, ast.Call))


def imports(path: Path, *, at_import: bool = False, for_annotations: bool = False) -> set[str]:
    """Full names of the modules that a file imports when it runs, within functions too.

    With ``at_import`` those that it imports when it is imported itself: not those within functions. With
    ``for_annotations`` those under TYPE_CHECKING too.
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
        if not for_annotations
        and isinstance(node, ast.If)
        and dotted(node.test) in {"TYPE_CHECKING", "typing.TYPE_CHECKING"}
        for statement in node.body
        for inner in ast.walk(statement)
    }
    package = module_name(path).split(".")
    if path.name != "__init__.py":
        package = package[:-1]
    return {name for node in ast.walk(tree) if id(node) not in left_out for name in _imported(node, package)}


def _imported(node: ast.AST, package: list[str]) -> Iterator[str]:
    """Full names of the modules that one statement or call imports, in a file of a package."""
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        above = package[: len(package) - node.level + 1] if node.level else []
        base = ".".join([*above, *([node.module] if node.module else [])])
        for alias in node.names:
            full = f"{base}.{alias.name}"
            yield full if is_module(full) else base
    elif isinstance(node, ast.Call) and dotted(node.func).split(".")[-1] in {"import_module", "__import__"}:
        given = node.args[0] if node.args else None
        if isinstance(given, ast.Constant) and isinstance(given.value, str):
            yield given.value
