"""The pages of the reference: every public name, by the module that it is public in.

Public are the names that ``calmrl_prob`` and its packages list in ``__all__``, and what the modules of ``MODULES``
define, which list nothing. Each has its docstring on one page, that of the first that names it.
"""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Iterator
from importlib import import_module
from types import ModuleType

#: Packages with ``__all__``, in the order of the reference; a test holds that none is forgotten.
PACKAGES = (
    "calmrl_prob",
    "calmrl_prob.data",
    "calmrl_prob.datasets",
    "calmrl_prob.selection",
    "calmrl_prob.inference",
    "calmrl_prob.classification",
    "calmrl_prob.evaluation",
    "calmrl_prob.evaluation.captions",
    "calmrl_prob.recalibration",
    "calmrl_prob.priors",
    "calmrl_prob.priors.loadings",
    "calmrl_prob.conjugacy",
    "calmrl_prob.plots",
    "calmrl_prob.sklearn",
    "calmrl_prob.training",
    "calmrl_prob.alignment.objectives",
    "calmrl_prob.encoders",
    "calmrl_prob.linear_gaussian",
)
#: Modules without ``__all__`` that pages send a reader to.
MODULES = (
    "calmrl_prob.alignment.anchors",
    "calmrl_prob.alignment.bounds",
    "calmrl_prob.alignment.calibration",
    "calmrl_prob.alignment.certificate",
    "calmrl_prob.alignment.certificate_correction",
    "calmrl_prob.alignment.completion",
    "calmrl_prob.alignment.instances",
    "calmrl_prob.data.missingness",
    "calmrl_prob.decoders",
    "calmrl_prob.errors",
    "calmrl_prob.evaluation.retrieval.representations",
    "calmrl_prob.guide",
)


def reference_pages() -> Iterator[tuple[str, str]]:
    """The index, and a page for each package and module, with the path of each in the site."""
    places: dict[str, str] = {}
    index = ["# Reference", "", "`import calmrl_prob as cal`: what stands here as `calmrl_prob.fit` is `cal.fit`.", ""]
    for name in (*PACKAGES, *MODULES):
        module = import_module(name)
        page = [f"# {name}", "", first_line(module), ""]
        index += [f"## [{name}]({name}.md)", "", first_line(module), ""]
        for public in public_names(module):
            place = definition(module, public)
            if place in places:
                page += [f"[`{public}`]({places[place]}.md#{place}) is on the page of `{places[place]}`.", ""]
                continue
            places[place] = name
            page += entry(module, public, place)
            index += [f"- [`{public}`]({name}.md#{place}): {first_line(getattr(module, public))}"]
        index += [""]
        yield f"reference/{name}.md", "\n".join(page)
    yield "reference/index.md", "\n".join(index)


def front_places() -> dict[str, str]:
    """Where the reference has each public name of ``calmrl_prob``."""
    front = import_module(PACKAGES[0])
    return {name: f"reference/{PACKAGES[0]}.md#{definition(front, name)}" for name in public_names(front)}


def public_names(module: ModuleType) -> list[str]:
    """What a module makes public, modules apart: its ``__all__``, or the classes and functions that it defines."""
    if hasattr(module, "__all__"):
        listed = [name for name in module.__all__ if name != "__version__"]
    else:
        tree = ast.parse(inspect.getsource(module))
        listed = [node.name for node in tree.body if isinstance(node, ast.ClassDef | ast.FunctionDef)]
    return [name for name in listed if name[0] != "_" and not isinstance(getattr(module, name), ModuleType)]


def definition(module: ModuleType, name: str) -> str:
    """The full name under which a public name is defined; of a constant, under which it is public."""
    found = getattr(module, name)
    defined = inspect.isclass(found) or inspect.isfunction(found)
    return f"{found.__module__}.{found.__name__}" if defined else f"{module.__name__}.{name}"


def entry(module: ModuleType, name: str, place: str) -> list[str]:
    """A public name on its page: its docstring, or of a constant what is said of it and what it holds."""
    found = getattr(module, name)
    if inspect.isclass(found) or inspect.isfunction(found):
        return [f"::: {place}", ""]
    held = ", ".join(f"`{key}`" for key in found) if isinstance(found, dict) else f"`{found}`"
    return [f"## {name} {{ #{place} }}", "", said_of(module, name), "", f"Holds {held}." if held else "", ""]


def said_of(module: ModuleType, name: str) -> str:
    """The comment before a constant, where it is defined."""
    for line in inspect.getsource(module).splitlines():
        imported = re.match(rf"from (calmrl_prob[\w.]*) import .*\b{name}\b", line)
        if imported:
            return said_of(import_module(imported[1]), name)
    comment = re.search(rf"((?:^#: .*\n)+){name}\b", inspect.getsource(module), re.MULTILINE)
    return comment[1].replace("#: ", "") if comment else ""


def first_line(found: object) -> str:
    """The first line of a docstring; nothing of a constant."""
    documented = inspect.isclass(found) or inspect.isfunction(found) or isinstance(found, ModuleType)
    text = (inspect.getdoc(found) or "").partition("\n\n")[0] if documented else ""
    return re.sub(r":\w+:`~?([\w.]+)`", r"`\1`", text.replace("\n", " "))
