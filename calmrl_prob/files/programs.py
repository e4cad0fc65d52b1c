"""Models of users in files: the parameters and what the model is called, never the model itself.

A file holds no code and brings none: whoever loads a fit of a Pyro program or of a module of their own hands over the
model, ``cal.load(path, model=my_model)``, and nothing is imported by a name that stands in a file. The name of the
function or class is compared, without module and enclosing function, since scripts become modules and local functions
move. What the model must have by the file's parameters and sites is checked too: of a module when it is loaded, of a
function at its first call (:meth:`calmrl_prob.programs.bound.BoundModel.restored`).
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from calmrl_prob._support.arguments import brief, described
from calmrl_prob._support.files import said
from calmrl_prob.data.features import NamedDims
from calmrl_prob.errors import FileFormatError, ModelToLoadError
from calmrl_prob.files.records import Kept
from calmrl_prob.model import SharedLatentModel
from calmrl_prob.programs.bound import BoundModel

#: What a fit and ``cal.recalibrate(..., attach=True)`` leave at a model, and goes with it.
_ATTACHED = ("rows_of_fit", "intervals", "recalibration")


@dataclass(frozen=True, eq=False)
class Program:
    """A user's model: a Pyro function, or a module of a class that is not this library's.

    Attributes:
        model: the same.
    """

    model: Any


def holding(model: Any) -> Any:  # noqa: ANN401 - whatever a fit holds
    """A model as a record holds it: one of this library as it is, a user's as a :class:`Program`."""
    inside = type(model) in (SharedLatentModel, BoundModel) or not (callable(model) or isinstance(model, nn.Module))
    return model if inside or type(model).__module__.startswith("calmrl_prob.") else Program(model)


def attached(owner: object) -> dict[str, Any]:
    """Attachments of a model, each with whether it is of the parameters that the model has now."""
    own = getattr(owner, "__dict__", {})
    found = {name: own[name] for name in _ATTACHED if own.get(name) is not None}
    return {name: (value, hasattr(value, "fits") and value.fits(owner)) for name, value in found.items()}


def attach(owner: Any, found: Mapping[str, tuple[Any, bool]]) -> None:  # noqa: ANN401
    """Put back what :func:`attached` found; what fitted the parameters does so again, whatever rounding has done."""
    for name in _ATTACHED:
        if name in found:
            value, fits = found[name]
            if fits:
                value.bind(owner)
            setattr(owner, name, value)


def kept_programs(given: object) -> Kept:
    """The entry of users' models.

    Args:
        given: the model that stands for those of the file; None where none was handed over.
    """
    return Kept(Program, _take, lambda values: _made(values, given))


def _take(program: Program) -> dict[str, Any]:
    model = program.model
    own = model if hasattr(model, "__qualname__") else type(model)
    dims = getattr(model, "__dict__", {}).get("dims")
    return {
        "module": str(getattr(own, "__module__", "")),
        "name": own.__qualname__,
        "state": dict(model.state_dict()) if isinstance(model, nn.Module) else None,
        "dims": dims if isinstance(dims, NamedDims) else None,
        "attached": attached(model) if isinstance(model, nn.Module) else {},
    }


def _made(values: Mapping[str, Any], given: Any) -> Any:  # noqa: ANN401
    module, name, state = values["module"], values["name"], values["state"]
    if not isinstance(module, str) or not isinstance(name, str) or not name:
        raise FileFormatError(f"expected the name of a model, got {brief(name)} of {brief(module)}")
    short = name.rsplit(".", 1)[-1]
    kind = "a module of class" if state is not None else "a Pyro model, the function"
    local = "<" in name
    where = "which has no name to import it by: pass the function itself" if local else f"from {module}: pass it"
    wanted = f"model: the file holds parameters of {kind} {name!r}, {where}"
    made = f"{short}(...)" if state is not None else short  # a module has settings, and is made before
    example = f"cal.load(path, model={'my_model' if local else made})"
    if given is None:
        raise ModelToLoadError(f"{wanted}, as {example}; files hold no code, and nothing is imported by their names.")
    own = given if hasattr(given, "__qualname__") else type(given)
    same = own.__qualname__.rsplit(".", 1)[-1] == short and isinstance(given, nn.Module) == (state is not None)
    if isinstance(given, type) or not same:
        called = "" if isinstance(given, type) else f" called {own.__qualname__!r}"
        raise ModelToLoadError(f"{wanted}, as {example}; got {described(given)}{called}.")
    if state is None:
        return given
    model = copy.deepcopy(given)  # the one given stays as it is; and there may be one for each fold
    try:
        model.load_state_dict(state)
    except (RuntimeError, AttributeError, TypeError) as error:
        raise ModelToLoadError(
            f"{wanted}, with its parameters; those of the one given are others ({said(error)}). Make it with the "
            "settings that it was fitted with."
        ) from error
    if isinstance(values["dims"], NamedDims) and getattr(model, "dims", None) == values["dims"]:
        model.dims = values["dims"]
    attach(model, values["attached"])
    return model
