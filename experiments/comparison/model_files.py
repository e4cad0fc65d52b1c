"""Models from files: the convention by which any Pyro model takes part in an experiment.

A file fits if it has either

- a function ``build(dims, latent_dim, ...)`` that returns the model, or
- one class of its own whose objects can be called, such as a ``torch.nn.Module``, and that takes
  ``(dims, latent_dim, ...)``,

with ``dims`` the number of features of each modality and ``latent_dim`` the number of latents K, which the experiment
chooses. Further arguments come from ``model.arguments``; one called ``seed`` gets the seed of the run. What is built is
what :func:`calmrl_prob.fit` takes: a callable of the data with a plate "instances", or an object with its own
``fit_to`` and ``posterior``.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from calmrl_prob.errors import ArgumentError, CalmrlError, FileFormatError

ROOT = Path(__file__).resolve().parents[2]

CONVENTION = (
    "a function build(dims, latent_dim, ...) that returns the model, or exactly one class of its own whose objects can "
    "be called, such as a torch.nn.Module, and that takes (dims, latent_dim, ...)"
)


def build_model(file: str, dims: Mapping[str, int], latent_dim: int, arguments: Mapping[str, Any], seed: int) -> Any:  # noqa: ANN401 - whatever the file makes
    """A model as its file makes it.

    Args:
        file: path of a Python file, from the folder where the run was started or from the root of the repository.
        dims: number of features D_m of each modality.
        latent_dim: K.
        arguments: further keyword arguments.
        seed: passed on if there is an argument ``seed``.

    Raises:
        FileFormatError: there is no such file, or it does not follow the convention.
        ArgumentError: it takes none of the arguments, or raises an error of its own.
    """
    builder = find_builder(file)
    accepted = inspect.signature(builder).parameters
    takes_all = any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in accepted.values())
    unknown = [name for name in arguments if name not in accepted and not takes_all]
    if unknown:
        raise ArgumentError(f"model.arguments: {file} has no argument {unknown[0]!r}; it takes {list(accepted)}.")
    given = {"seed": seed} if "seed" in accepted and "seed" not in arguments else {}
    try:
        return builder(dict(dims), latent_dim=latent_dim, **arguments, **given)
    except CalmrlError as error:
        raise type(error)(f"model.file {file}: {error}") from error
    except Exception as error:  # the user's own code may raise anything
        raise ArgumentError(f"model.file: {file} fails to build: {type(error).__name__}: {error}") from error


def find_builder(file: str) -> Callable[..., Any]:
    """The function or class by which a file makes its model.

    Raises:
        FileFormatError: there is no such file, it cannot be run, or it does not follow the convention.
    """
    module = _load(_found(file))
    build = getattr(module, "build", None)
    if callable(build) and not isinstance(build, type):
        return _checked(file, build)
    own = [
        value
        for value in vars(module).values()
        if isinstance(value, type) and value.__module__ == module.__name__ and _makes_callables(value)
    ]
    public = [value for value in own if not value.__name__.startswith("_")]
    if len(public) != 1:
        names = ", ".join(value.__name__ for value in public) or "none"
        raise FileFormatError(f"model.file: {file} needs {CONVENTION}; it has no build, and of such classes: {names}.")
    return _checked(file, public[0])


def _makes_callables(kind: type) -> bool:
    return any("__call__" in vars(base) for base in kind.__mro__)


def _checked(file: str, builder: Callable[..., Any]) -> Callable[..., Any]:
    accepted = inspect.signature(builder).parameters
    takes_all = any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in accepted.values())
    if not accepted or ("latent_dim" not in accepted and not takes_all):
        raise FileFormatError(
            f"model.file: {file} needs {CONVENTION}; its {builder.__name__} takes ({', '.join(accepted)})."
        )
    return builder


def _found(file: str) -> Path:
    for path in (Path(file), ROOT / file):
        if path.is_file():
            return path.resolve()
    raise FileFormatError(f"model.file: there is no file {file}, neither in {Path.cwd()} nor in {ROOT}.")


def _load(path: Path) -> ModuleType:
    """The file as a module: those of ``models/`` under their own name, others under one made of their path."""
    if path.parent == ROOT / "models":
        return importlib.import_module(f"models.{path.stem}")
    name = f"calmrl_model_{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:8]}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise FileFormatError(f"model.file: {path} is no Python file; its name must end in .py.")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and typing look their module up there
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # the user's own code may raise anything
        sys.modules.pop(name, None)
        raise FileFormatError(f"model.file: {path} cannot be run: {type(error).__name__}: {error}") from error
    return module
