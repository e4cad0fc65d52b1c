"""A model and its data as methods and routes look at them: its closed form is stated, or discovered once."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from calmrl_prob._support.arguments import described
from calmrl_prob._support.warnings import level_of_caller
from calmrl_prob.conjugacy import ConjugateForm, discover
from calmrl_prob.data import MultimodalData
from calmrl_prob.errors import ArgumentTypeError, CalmrlError, NotConjugateError, UnfittedWarning
from calmrl_prob.inference.protocols import HasLinearGaussian, HasStructure
from calmrl_prob.linear_gaussian import (
    LinearGaussian,
    LinearGaussianMixture,
    ScaleMixture,
    Structure,
    StructuresByInstance,
    StudentTModel,
    SufficientStatistics,
)
from calmrl_prob.programs.bound import BoundModel

STRUCTURES = (LinearGaussian, LinearGaussianMixture, ScaleMixture, StudentTModel)


@dataclass(eq=False)
class Subject:
    """A model on some data; each property is found when first asked for, and kept.

    Attributes:
        model: whatever ``fit`` and ``posterior`` take.
        data: the instances, or their statistics.
        seed: of what ``pyro.param(name, lambda: torch.randn(...))`` draws.
        generic: whether the form has to hold for other parameter values too, as fitting needs it.
    """

    model: Any
    data: MultimodalData | SufficientStatistics
    seed: int = 0
    generic: bool = False

    @cached_property
    def stated(self) -> Structure | StructuresByInstance | None:
        """The form that the model states itself."""
        return stated_structure(self.model, self.data if isinstance(self.data, MultimodalData) else None)

    @cached_property
    def bound(self) -> BoundModel:
        """The model as a Pyro program."""
        return self.model if isinstance(self.model, BoundModel) else BoundModel(self.model, self.seed)

    @property
    def program_refusal(self) -> CalmrlError | None:
        """Why the model cannot be called on the data; None if it can."""
        if not callable(self.model) or isinstance(self.model, type):
            return ArgumentTypeError(
                f"model: expected a SharedLatentModel or a LinearGaussian, got {described(self.model)}; "
                "or give your class a method linear_gaussian()."
            )
        return None

    @property
    def form(self) -> ConjugateForm | None:
        """The form discovered in the Pyro program; None where it has none."""
        return self._form_or_refusal[0]

    @property
    def form_refusal(self) -> NotConjugateError | None:
        """Why nothing was discovered, with the route that serves."""
        return self._form_or_refusal[1]

    @cached_property
    def _form_or_refusal(self) -> tuple[ConjugateForm | None, NotConjugateError | None]:
        assert isinstance(self.data, MultimodalData)
        try:
            return discover(self.bound, self.data, generic=self.generic), None
        except NotConjugateError as error:
            return None, error

    def warn_unfitted(self) -> None:
        """Warn as :func:`warn_unfitted` does."""
        warn_unfitted(self.model, None if self.stated is not None else self.bound)


def stated_structure(model: object, data: MultimodalData | None = None) -> Structure | StructuresByInstance | None:
    """The closed form that a model states itself; None if it has to be discovered.

    Args:
        model: whatever ``fit`` and ``posterior`` take.
        data: the instances, for forms that depend on them.
    """
    if isinstance(model, STRUCTURES):
        return model
    if isinstance(model, HasStructure) and not isinstance(model, type):
        return model.structure(data)
    if isinstance(model, HasLinearGaussian) and callable(model.linear_gaussian) and not isinstance(model, type):
        try:
            return model.linear_gaussian()
        except NotConjugateError:  # a class of the user's, which has no other way to say that it has none
            return None
    return None


def warn_unfitted(model: object, bound: BoundModel | None = None) -> None:
    """Warn if the parameters are those that a model started from.

    Args:
        model: as given.
        bound: the same as a Pyro program, if that is how its form was found.

    Warns:
        UnfittedWarning: they are.
    """
    if bound is not None and bound.drawn and bound.fitted_dims is None:
        problem = f"pyro.param {min(bound.drawn)!r} is what it was drawn to start from, so what the model says of the"
        remedy = "fit it with calmrl_prob.fit, and pass the result or its .model."
    elif getattr(model, "unfitted", False):
        problem = "it still has the random loadings that it started from, so what it says of the"
        remedy = "fit it with calmrl_prob.fit, or load parameters."
    else:
        return
    warnings.warn(f"model: {problem} data means nothing; {remedy}", UnfittedWarning, stacklevel=level_of_caller())
