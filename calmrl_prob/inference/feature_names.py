"""Names of features between data, models and results: the gate at which columns are put in order or refused."""

from __future__ import annotations

from typing import Any, Protocol, TypeVar

from calmrl_prob.data import MultimodalData
from calmrl_prob.data.features import NamedDims, names_of, with_names
from calmrl_prob.linear_gaussian import Structure
from calmrl_prob.linear_gaussian.feature_names import FeatureNames, joined_names
from calmrl_prob.posteriors.posterior import PosteriorResult

R = TypeVar("R")


class HasFeatures(Protocol):
    """Data or statistics: widths of modalities, and the names of their features."""

    @property
    def dims(self) -> dict[str, int]:
        """D_m of each modality."""

    @property
    def feature_names(self) -> FeatureNames:
        """D_m names of each modality, None where they are not known."""


#: Where a model may keep the widths, and names, of its modalities; and what a result of a fit keeps its model in.
_DIMS, _INNER, _DEPTH = ("fitted_dims", "dims"), ("model", "bound"), 4


def named_dims(model: object) -> NamedDims | None:
    """Widths with the names of features that a model remembers of the data it was fitted to; None if of none.

    Args:
        model: whatever ``fit`` and ``posterior`` take: a fit's result stands for its model.
    """
    parts = [model]
    for part in parts:
        if isinstance(part, Structure) and part.feature_names is not None:
            return NamedDims(part.dims, part.feature_names)
        own = vars(part) if hasattr(part, "__dict__") else {}
        for attribute in _DIMS:
            if isinstance(found := own.get(attribute), NamedDims):
                return found
        if len(parts) <= _DEPTH:
            parts += [inner for attribute in _INNER if (inner := getattr(part, attribute, None)) is not None]
    return None


def aligned(model: object, data: MultimodalData) -> MultimodalData:
    """The data with features in the order of those that the model was fitted to, where both have names.

    Raises:
        SchemaError: the features of a modality are others.
    """
    known = named_dims(model)
    return data if known is None else data.in_order_of(known)


def require_features(model: object, statistics: HasFeatures) -> None:
    """Check that statistics are of the features that the model was fitted to, in its order, where both have names.

    Raises:
        SchemaError: they are not.
    """
    joined_names(names_of(named_dims(model)), statistics.feature_names, "data")


def remember(model: object, data: HasFeatures) -> None:
    """Let a model that keeps ``dims`` remember what the features of the data are called that it was fitted to."""
    for part in (model, getattr(model, "model", None)):
        own: Any = vars(part) if hasattr(part, "__dict__") else {}
        for attribute in _DIMS:
            dims = own.get(attribute)
            if isinstance(dims, dict) and dims.keys() == data.dims.keys():
                named = with_names(dims, data.feature_names, names_of(dims))
                if names_of(named) != names_of(dims):
                    setattr(part, attribute, named)


def named(result: R, model: object, data: MultimodalData) -> R:
    """A result that knows what the features are called, those of modalities that the data lack by the model."""
    if isinstance(result, PosteriorResult) and "dims" in vars(result):
        found = with_names(dict(result.dims), data.feature_names, names_of(named_dims(model)))
        if isinstance(found, NamedDims):
            object.__setattr__(result, "dims", found)
    return result
