"""The classes of which files keep instances: fits, their reports, recalibrations, draws, and what these are made of."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from calmrl_prob.batch_effects import BatchEffects
from calmrl_prob.classification import Classifier
from calmrl_prob.classification.options import ClassSetting
from calmrl_prob.data.features import NamedDims, from_lists
from calmrl_prob.files.programs import attach, attached, holding, kept_programs
from calmrl_prob.files.records import Kept, kept_dataclass
from calmrl_prob.inference.approximate.guides import AmortizedGuide, PerInstanceGuide
from calmrl_prob.inference.approximate.svi import SVIResult
from calmrl_prob.inference.optimisers.ascent import ModeReport
from calmrl_prob.inference.parameters.nuts import DrawsReport
from calmrl_prob.inference.parameters.parameter_draws import ParameterDraws
from calmrl_prob.inference.result import FitResult
from calmrl_prob.inference.seen import SeenModality, SeenRows
from calmrl_prob.linear_gaussian import EMResult, LinearGaussian, LinearGaussianMixture, ScaleMixture, StudentTModel
from calmrl_prob.linear_gaussian.em.convergence import Trace
from calmrl_prob.linear_gaussian.mixture.expectation import LatentComponents
from calmrl_prob.programs.bound import BoundModel
from calmrl_prob.recalibration import Recalibration
from calmrl_prob.recalibration.scores import PatternScores, SortedScores
from calmrl_prob.selection.choice import Choice
from calmrl_prob.selection.intervals import ErrorScale, HeldOutIntervals
from calmrl_prob.selection.settings import Setting

#: Those that are their fields.
_DATACLASSES = (
    Choice,
    Classifier,
    ClassSetting,
    DrawsReport,
    EMResult,
    ErrorScale,
    LatentComponents,
    LinearGaussian,
    LinearGaussianMixture,
    ModeReport,
    ParameterDraws,
    PatternScores,
    ScaleMixture,
    SVIResult,
    SeenModality,
    SeenRows,
    Setting,
    SortedScores,
    StudentTModel,
    Trace,
)
#: Those that take themselves apart, by ``parts``, and are made of that again, by ``from_parts``.
_IN_PARTS = (AmortizedGuide, BatchEffects, HeldOutIntervals, PerInstanceGuide)


def kept_classes(model: object = None) -> dict[str, Kept]:
    """The table by the names that files have for the classes.

    Args:
        model: the user's model that stands for those of the file.
    """
    table = {kind.__name__: kept_dataclass(kind) for kind in _DATACLASSES}
    table |= {kind.__name__: Kept(kind, _parts, kind.from_parts) for kind in _IN_PARTS}
    fit = kept_dataclass(FitResult)
    return table | {
        "FitResult": Kept(FitResult, lambda found: {**fit.take(found), "model": holding(found.model)}, fit.make),
        "BoundModel": Kept(BoundModel, _take_bound, _make_bound),
        "NamedDims": Kept(NamedDims, _take_dims, lambda values: from_lists(values["dims"], values["names"])),
        "Program": kept_programs(model),
        "Recalibration": Kept(Recalibration, _take_recalibration, Recalibration.from_parts),
    }


def _parts(thing: Any) -> Mapping[str, Any]:  # noqa: ANN401
    found: Mapping[str, Any] = thing.parts()
    return found


def _take_recalibration(found: Recalibration) -> dict[str, Any]:
    parts = found.parts()
    return {**parts, "models": [holding(model) for model in parts["models"]]}


def _take_bound(bound: BoundModel) -> dict[str, Any]:
    return {"model": holding(bound.model), **bound.parts(), "attached": attached(bound)}


def _make_bound(values: Mapping[str, Any]) -> BoundModel:
    parts = dict(values)
    found = parts.pop("attached")
    bound = BoundModel.restored(**parts)
    attach(bound, found)
    return bound


def _take_dims(dims: NamedDims) -> dict[str, Any]:
    return {
        "dims": dict(dims),
        "names": {name: None if n is None else list(n) for name, n in dims.feature_names.items()},
    }
