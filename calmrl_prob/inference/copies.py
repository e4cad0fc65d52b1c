"""Copies of models that are to be fitted anew."""

from __future__ import annotations

import copy
from typing import Any

from calmrl_prob.inference.result import FitResult

#: What ``cal.fit`` and ``cal.recalibrate(..., attach=True)`` leave at a model: learned for its parameters alone.
ATTACHMENTS = ("intervals", "recalibration")


def copy_to_fit(model: Any) -> Any:  # noqa: ANN401 - whatever can be fitted
    """A copy of a model, or of the model of a fit, without what was attached to it; the model stays as it is.

    Attachments hold for the parameters that they were learned for, which a fit of the copy changes, and may be far
    larger than the model: the models of all folds, say.

    Args:
        model: what ``cal.fit`` takes, or a :class:`calmrl_prob.inference.FitResult`. Functions are not copied.

    Example:
        >>> from calmrl_prob.model import SharedLatentModel
        >>> model = SharedLatentModel({"image": 3}, latent_dim=2)
        >>> model.recalibration = "for these parameters"
        >>> hasattr(copy_to_fit(model), "recalibration"), model.recalibration
        (False, 'for these parameters')
    """
    owner = model.model if isinstance(model, FitResult) else model
    # an attached value goes into the copy as it is, uncopied, and is taken off again
    kept = [getattr(each, "__dict__", {}).get(name) for each in _owners(owner) for name in ATTACHMENTS]
    copied = copy.deepcopy(owner, {id(value): value for value in kept if value is not None})
    if copied is not owner:
        for each in _owners(copied):
            for name in ATTACHMENTS:
                if getattr(each, "__dict__", {}).get(name) is not None:
                    delattr(each, name) if name == "recalibration" else setattr(each, name, None)
    return copied


def _owners(model: Any) -> list[Any]:  # noqa: ANN401
    """The model, and the user's own that it wraps, where there is one that was copied too."""
    inner = getattr(model, "model", None)
    return [model, inner] if hasattr(inner, "parameters") else [model]
