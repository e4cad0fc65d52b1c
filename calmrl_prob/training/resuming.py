"""Checks that a training can go on from what was read of a checkpoint, before Lightning takes any of it over."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning
from lightning.pytorch.callbacks import EarlyStopping
from torch import Tensor

from calmrl_prob._support.files import said
from calmrl_prob.errors import ArgumentError, FileFormatError
from calmrl_prob.training.checkpoints import AGAIN
from calmrl_prob.training.generative_step import GenerativeStep
from calmrl_prob.training.module import AlignmentModule
from calmrl_prob.training.watch import Watch


def require_restorable(
    path: Path, checkpoint: Mapping[str, Any], module: AlignmentModule, trainer: lightning.Trainer
) -> None:
    """Refuse a checkpoint that this run cannot go on from; the module and the callbacks take its parts over for it.

    Raises:
        ArgumentError: it was made with other settings, encoders or another objective, or is further than this run goes.
        FileFormatError: its parts are not those of a training.
    """
    module.require_settings(checkpoint)
    try:
        module.on_load_checkpoint(dict(checkpoint))
        shapes, found = _shapes(module.state_dict()), _shapes(checkpoint["state_dict"])
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if (state := checkpoint["callbacks"].get(callback.state_key)) is not None:
                _require_state(callback, state, module, found)
        progress = checkpoint["loops"]["fit_loop"]
        _require_alike("loops", trainer.fit_loop.state_dict(), progress)
        epochs = max(progress["epoch_progress"]["current"].values())
        if shapes == found:
            _require_optimizer(module, checkpoint["optimizer_states"])
    except Exception as error:  # whatever the parts make of what none of them wrote
        raise FileFormatError(f"{path}: its parts are not those of a training ({said(error)}); {AGAIN}.") from error
    if shapes != found:
        raise ArgumentError(
            f"resume: {str(path)!r} is of other encoders or another objective; go on with those it was made of."
        )
    if epochs > module.options.max_epochs:
        raise ArgumentError(
            f"resume: {str(path)!r} has {epochs} epochs already, and max_epochs is {module.options.max_epochs}; "
            "pass more."
        )


def _require_state(
    callback: lightning.Callback, state: dict[str, Any], module: AlignmentModule, shapes: dict[str, tuple[int, ...]]
) -> None:
    """Refuse the state of another callback."""
    if isinstance(callback, EarlyStopping):
        _require_alike(callback.state_key, callback.state_dict(), state)
    if isinstance(callback, Watch) and _shapes(state["weights"]) not in ({}, shapes):
        raise FileFormatError("the weights of its best epoch are of other encoders")
    callback.load_state_dict(state)
    if isinstance(callback, GenerativeStep) and not callback.is_of(module.names):
        raise FileFormatError("its statistics are of other modalities than the encoders")


def _shapes(state: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {key: tuple(value.shape) for key, value in state.items()}


def _require_alike(place: str, template: object, found: object) -> None:
    """Refuse another record of progress than Lightning keeps: other keys, types, or numbers below 0."""
    if type(found) is not type(template):
        raise FileFormatError(f"{place}: expected {type(template).__name__}, got {type(found).__name__}")
    if isinstance(template, dict) and isinstance(found, dict):
        if not set(template) <= set(found):
            raise FileFormatError(f"{place}: this version of Lightning keeps {sorted(template)}")
        for key, value in template.items():
            _require_alike(f"{place}/{key}", value, found[key])
    elif isinstance(found, int) and found < 0:
        raise FileFormatError(f"{place}: expected at least 0, got {found}")
    elif isinstance(template, Tensor) and isinstance(found, Tensor) and found.shape != template.shape:
        raise FileFormatError(f"{place}: expected the shape {tuple(template.shape)}, got {tuple(found.shape)}")


def _require_optimizer(module: AlignmentModule, states: list[Any]) -> None:
    """Refuse the state of another optimizer; torch compares no shapes."""
    optimizer = module.configure_optimizers()
    settings = [_settings(group) for group in optimizer.param_groups]
    (state,) = states
    optimizer.load_state_dict(state)
    if [_settings(group) for group in optimizer.param_groups] != settings:
        raise FileFormatError("optimizer_states: expected the settings of AdamW that this run has")
    for parameter, moments in optimizer.state.items():
        step, first, second = (moments[key] for key in ("step", "exp_avg", "exp_avg_sq"))
        if len(moments) != 3 or not parameter.shape == first.shape == second.shape:
            raise FileFormatError("optimizer_states: expected the moments of AdamW for each parameter")
        if not float(step) >= 1 or not bool(first.isfinite().all()) or not bool((second >= 0).all()):
            raise FileFormatError("optimizer_states: its numbers are not moments")


def _settings(group: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in group.items() if key != "params"}
