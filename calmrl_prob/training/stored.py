"""Alignments as plain values and tensors, and back: what files keep of them, and what is made of a file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import pandas as pd
from torch import Tensor, nn

from calmrl_prob._support.arguments import brief, described
from calmrl_prob.alignment.calibration import CALIBRATIONS
from calmrl_prob.alignment.views import Views
from calmrl_prob.encoders import from_recipe, recipe
from calmrl_prob.errors import ArgumentError, ArgumentTypeError, FileFormatError
from calmrl_prob.linear_gaussian import LinearGaussian
from calmrl_prob.training.alignment import Alignment
from calmrl_prob.training.module import AlignmentModule, as_tensors
from calmrl_prob.training.options import AlignOptions
from calmrl_prob.training.watch import checked_rows


def kept_of(alignment: Alignment) -> dict[str, Any]:
    """Values and tensors for a file: encoders with their recipes, the generative model, settings and history."""
    module = alignment.module
    generative = module.generative
    return {
        "encoders": {
            name: {
                "recipe": recipe(encoder),
                "made_by": f"{type(encoder).__module__}.{type(encoder).__qualname__}",
                "parameters": dict(encoder.state_dict()),
            }
            for name, encoder in module.encoders.items()
        },
        "generative": None if generative is None else as_tensors(generative),
        "options": asdict(module.options),
        "settings": module.settings,
        "history": alignment.history.to_dict("records"),
        "best_epoch": alignment.best_epoch,
        "stop_reason": alignment.stop_reason,
    }


@dataclass(frozen=True)
class StoredAlignment:
    """An alignment out of a file, of which only a user's own modules are still missing.

    Attributes:
        kept: as :func:`kept_of` gave it, checked.
        built: the encoders that are of this package, by modality.
        generative: the model of the representations.
        options: of the training.
    """

    kept: Mapping[str, Any]
    built: Mapping[str, nn.Module]
    generative: LinearGaussian | None
    options: AlignOptions

    @classmethod
    def of(cls, kept: Mapping[str, Any]) -> StoredAlignment:
        """Build all that this package can make of what was kept.

        Raises:
            FileFormatError, ArgumentError, KeyError, TypeError ...: it is not what :func:`kept_of` gives.
        """
        built, encoders = {}, kept["encoders"]
        for name, part in encoders.items():
            _require_parameters(name, part)
            if part["recipe"] is not None:
                encoder = from_recipe(part["recipe"], most_layers=len(part["parameters"]))
                copies = {key: value.clone() for key, value in part["parameters"].items()}  # these are the file itself
                encoder.load_state_dict(copies, assign=True)
                built[name] = encoder.eval()
        lg = None if kept["generative"] is None else LinearGaussian(**kept["generative"])
        if not encoders or (lg is not None and tuple(lg.names) != tuple(encoders)):
            raise FileFormatError("the generative model is of other modalities than the encoders")
        checked_rows(kept["history"])
        for key, kind in (("settings", dict), ("best_epoch", int), ("stop_reason", str)):
            if not isinstance(kept[key], kind):
                raise FileFormatError(f"{key}: expected {kind.__name__}, got {brief(kept[key])}")
        nn.ModuleDict({name: nn.Identity() for name in encoders})  # torch does not take every name
        return cls(kept, built, lg, AlignOptions(**kept["options"]))

    def alignment(self, encoders: Mapping[str, nn.Module] | None) -> Alignment:
        """The alignment, with the modules that a user gives for those that this package cannot make.

        Raises:
            ArgumentError: one is missing, of no modality, or has other parameters than were saved.
            ArgumentTypeError: one is no module.
        """
        parts = self.kept["encoders"]
        given = dict(encoders or {})
        for name, encoder in given.items():
            if name not in parts:
                raise ArgumentError(f"encoders: expected modalities of {list(parts)}, got {name!r}; leave it out.")
            _require_same_parameters(name, encoder, parts[name]["parameters"])
        modules = {**self.built, **given}
        for name in parts:
            if name not in modules:
                raise ArgumentError(
                    f"encoders: that of {name!r} was made by {parts[name]['made_by']}, not by this package, and files "
                    f"hold no code; build it as it was and pass it: load(path, encoders={{{name!r}: ...}})."
                )
        for name, encoder in given.items():
            encoder.load_state_dict(parts[name]["parameters"])
        module = AlignmentModule(
            {name: modules[name] for name in parts},
            _no_objective,
            CALIBRATIONS["none"](),
            settings=self.kept["settings"],
            options=self.options,
        )
        module.generative = self.generative
        history = pd.DataFrame(self.kept["history"])
        return Alignment(module.eval(), history, self.kept["best_epoch"], self.kept["stop_reason"])


def _require_parameters(name: str, part: Mapping[str, Any]) -> None:
    for key, value in part["parameters"].items():
        if not isinstance(key, str) or not isinstance(value, Tensor):
            raise FileFormatError(f"parameters of {name!r}: expected tensors by name")
    if not isinstance(part["made_by"], str):
        raise FileFormatError(f"encoder of {name!r}: expected the name of its class")


def _require_same_parameters(name: str, encoder: nn.Module, parameters: Mapping[str, Tensor]) -> None:
    """Refuse a user's module of other parameters than were saved."""
    if not isinstance(encoder, nn.Module):
        raise ArgumentTypeError(f"encoders: expected nn.Module for {name!r}, got {described(encoder)}.")
    own = encoder.state_dict()
    for key in sorted({*own, *parameters}):
        expected, found = (
            f"{tuple(tensor.shape)} {tensor.dtype}" if isinstance(tensor, Tensor) else "none"
            for tensor in (parameters.get(key), own.get(key))
        )
        if expected != found:
            raise ArgumentError(
                f"encoders: that of {name!r} was saved with {key!r} of {expected}, and the one given has {found}; "
                "build it as it was."
            )


def _no_objective(views: Views) -> Tensor:
    """In the place of the objective, which files do not keep."""
    raise ArgumentError(
        "objective: an alignment from a file has none; to train on, use align with resume= and a checkpoint."
    )
