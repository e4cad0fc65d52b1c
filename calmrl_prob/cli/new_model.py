"""``calmrl new-model``: a complete Pyro model in a file, to start one's own from."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Annotated

import typer

from calmrl_prob.cli.telling import guarded, tell
from calmrl_prob.errors import ArgumentError

#: Where the models lie: in an installed package beside this folder, in a checkout beside the package.
_PLACES = (Path(__file__).parents[1] / "model_templates", Path(__file__).parents[2] / "models")

_NAME = typer.Argument(metavar="[NAME]", help="One of those that the command lists without it.", show_default=False)
_OUT = typer.Option("--out", "-o", metavar="FILE", help="Where to write it.", show_default="NAME.py")


def new_model(name: Annotated[str | None, _NAME] = None, out: Annotated[Path | None, _OUT] = None) -> None:
    """Write a generative model in Pyro to copy and change; without a NAME, list what there is."""
    with guarded(debug=False):
        found = templates()
        if name is None:
            width = max(map(len, found))
            return tell(*(f"{one:{width}}  {_title(path)}" for one, path in found.items()))
        if name not in found:
            raise ArgumentError(f"name: there is no model {name!r}; choose among {', '.join(found)}.")
        path = out or Path(f"{name}.py")
        if path.exists():
            raise ArgumentError(f"out: {path} is there already; name another file by --out.")
        text = found[name].read_text(encoding="utf-8")
        path.write_text(text, encoding="utf-8")
        return tell(
            f"Wrote {path}.", f"Its class {_class(text)} is fitted in Python, by cal.fit; the example in it shows how."
        )


def templates() -> dict[str, Path]:
    """The models by name.

    Example:
        >>> "mixture" in templates()
        True
    """
    place = next(place for place in _PLACES if place.is_dir())
    return {path.stem: path for path in sorted(place.glob("*.py")) if path.stem != "__init__"}


def _class(text: str) -> str:
    return next(node.name for node in ast.parse(text).body if isinstance(node, ast.ClassDef))


def _title(path: Path) -> str:
    said = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return said.partition("\n")[0]
