"""Checks of the objects that ``align`` is given, before anything is trained."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path

from torch import Tensor, nn

from calmrl_prob._support.arguments import described
from calmrl_prob.alignment.calibration import CALIBRATIONS, Calibration
from calmrl_prob.alignment.views import Views
from calmrl_prob.errors import ArgumentError, ArgumentTypeError


def checked_calibration(calibration: Calibration | str) -> Calibration:
    """A calibration, by its name in ``CALIBRATIONS`` or as it is.

    Raises:
        ArgumentError: there is none of that name.
        ArgumentTypeError: it is something else.
    """
    names = sorted(CALIBRATIONS)
    if isinstance(calibration, str):
        if calibration not in CALIBRATIONS:
            raise ArgumentError(f"calibration: expected one of {names}, got {calibration!r}.")
        return CALIBRATIONS[calibration]()
    if not isinstance(calibration, Calibration):
        raise ArgumentTypeError(
            f"calibration: expected one of {names}, or such an object, got {described(calibration)}."
        )
    return calibration


def checked_objective(objective: Callable[[Views], Tensor]) -> Callable[[Views], Tensor]:
    """An objective, if it can be called on ``Views``.

    Raises:
        ArgumentTypeError: it cannot.
    """
    if isinstance(objective, type) or not callable(objective):
        raise ArgumentTypeError(
            f"objective: expected a function of Views, got {described(objective)}; make one such as "
            "make_objective('pairwise')."
        )
    return objective


def checked_encoders(encoders: Mapping[str, nn.Module]) -> nn.ModuleDict:
    """Encoders by modality.

    Raises:
        ArgumentTypeError: they are none.
        ArgumentError: torch has no module of such a name.
    """
    if not isinstance(encoders, Mapping | nn.ModuleDict) or not len(encoders):
        raise ArgumentTypeError(
            f"encoders: expected a dict from modality to nn.Module, got {described(encoders)}; make them with "
            "build_encoders, or of modules of your own."
        )
    for name, encoder in encoders.items():
        if not isinstance(encoder, nn.Module):
            raise ArgumentTypeError(f"encoders: expected nn.Module for {name!r}, got {described(encoder)}.")
    if isinstance(encoders, nn.ModuleDict):
        return encoders
    try:
        return nn.ModuleDict(dict(encoders))
    except (KeyError, TypeError) as error:  # it keeps modules as attributes, so not every name will do
        raise ArgumentError(f"encoders: torch refuses a name ({error.args[0]}); rename the modality.") from error


def checked_path(name: str, path: str | os.PathLike[str] | None) -> Path | None:
    """A path, or none.

    Raises:
        ArgumentTypeError: it is something else.

    Example:
        >>> checked_path("folder", "runs/first").name
        'first'
    """
    if path is not None and not isinstance(path, str | os.PathLike):
        raise ArgumentTypeError(f"{name}: expected a path, got {described(path)}.")
    return None if path is None else Path(path)


def recorded(part: object) -> str:
    """A calibration or an objective with its settings, as checkpoints keep it to know it again.

    Of what an objective learns, such as a temperature, the kind alone: it is another after training.

    Example:
        >>> from calmrl_prob.alignment.objectives import make_objective
        >>> recorded(make_objective("pairwise", temperature=0.2)), recorded(CALIBRATIONS["imputed_mean"](weight=0.5))
        ('Pairwise( (temperature): Temperature(0.2, learnable=False) )', 'imputed_mean(unit_norm=False, weight=0.5)')
    """
    if isinstance(part, nn.Module):
        learned = next(part.parameters(), None) is not None
        return type(part).__name__ if learned else " ".join(repr(part).split())
    if isinstance(part, Calibration):
        settings = ", ".join(f"{name}={value!r}" for name, value in sorted(vars(part).items()))
        return f"{part.name}({settings})"
    return getattr(part, "__qualname__", type(part).__name__)
