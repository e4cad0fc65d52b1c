"""What a Pyro program states with ``pyro.param`` is kept here, not in Pyro's global store."""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from types import TracebackType
from typing import Any

import pyro
import torch
from pyro.params.param_store import ParamStoreDict
from pyro.poutine.messenger import Messenger
from pyro.poutine.runtime import Message
from torch import Tensor, nn
from torch.distributions import constraints, transform_to

from calmrl_prob.errors import ArgumentError


class ParameterKeeper(Messenger):
    """A Pyro handler that gives a program parameters of its own.

    While it is active (``with keeper: program(data)``, or ``keeper(program)(data)``) a ``pyro.param`` statement is
    answered from here: the first one sets the start, later ones find what that has become. Nothing enters Pyro's global
    store, so two fits of one program have nothing to do with each other. Parameters that belong to a torch module
    (those of a ``PyroModule``, and what ``pyro.module`` states) are left to the module, and listed.

    Args:
        values: constrained values to begin with, such as those of an earlier keeper.

    Example:
        >>> keeper = ParameterKeeper()
        >>> program = keeper(lambda: pyro.param("scale", torch.tensor(2.0), constraint=constraints.positive))
        >>> program().item(), list(keeper.parameters)
        (2.0, ['scale'])
        >>> with torch.no_grad():
        ...     _ = keeper.parameters["scale"].add_(1.0)  # on the unconstrained scale, here the logarithm
        >>> round(program().item(), 2)
        5.44
    """

    def __init__(self, values: Mapping[str, Tensor] | None = None) -> None:
        super().__init__()
        #: unconstrained leaf tensors: the program's own, and those of modules that it stated
        self.parameters: dict[str, Tensor] = {}
        self._constraints: dict[str, constraints.Constraint] = {}
        self._given = {name: value.detach().clone() for name, value in (values or {}).items()}
        self._scope = ExitStack()

    def __enter__(self) -> ParameterKeeper:
        # A PyroModule writes its constrained parameters straight into the global store, past every handler, and takes
        # over what it finds there under their names. So an empty one stands in until the program has run.
        self._scope.enter_context(pyro.get_param_store().scope())
        super().__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        super().__exit__(kind, value, traceback)
        self._scope.close()

    def values(self) -> dict[str, Tensor]:
        """The program's own parameters as it sees them, detached; those of modules are in the modules."""
        return {
            name: transform_to(constraint)(self.parameters[name]).detach()
            for name, constraint in self._constraints.items()
        }

    def __iter__(self) -> Iterator[str]:
        return iter(self.parameters)

    def _pyro_param(self, msg: Message[Any, Any]) -> None:
        store = getattr(msg["fn"], "__self__", None)
        if not isinstance(store, ParamStoreDict):
            return  # a module's statement of what it keeps itself
        name: Any = msg["name"]
        if name in store:  # a module's constrained parameter, which it has just written there
            value: Any = store[name]
            self.parameters[name] = value.unconstrained()
            return
        initial = msg["args"][1] if len(msg["args"]) > 1 else None
        constraint = msg["kwargs"].get("constraint", constraints.real)
        if isinstance(initial, nn.Parameter) and constraint is constraints.real:
            self.parameters[name] = initial
            msg["value"] = initial
            return
        if name not in self.parameters:
            self.parameters[name] = self._start(name, initial, constraint)
            self._constraints[name] = constraint
        unconstrained = self.parameters[name]
        value = transform_to(self._constraints[name])(unconstrained)
        value = value.view_as(value) if value is unconstrained else value
        value.unconstrained = weakref.ref(unconstrained)
        msg["value"] = value

    def _start(self, name: str, initial: Any, constraint: constraints.Constraint) -> Tensor:  # noqa: ANN401
        if name in self._given:
            initial = self._given[name]
        if initial is None:
            raise ArgumentError(
                f"model: it reads the parameter {name!r} before it has stated a start for it; give pyro.param a start."
            )
        value = initial() if callable(initial) else initial
        unconstrained: Tensor = transform_to(constraint).inv(torch.as_tensor(value).detach()).clone().contiguous()
        if not bool(unconstrained.isfinite().all()):
            raise ArgumentError(
                f"model: the start of the parameter {name!r} is not finite on the unconstrained scale; start it inside "
                f"its constraint, {constraint}."
            )
        return unconstrained.requires_grad_()
