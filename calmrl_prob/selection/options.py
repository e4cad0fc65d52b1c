"""Options of the choice that a fit makes."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from calmrl_prob._support.arguments import real_number, whole_number
from calmrl_prob.data import MultimodalData
from calmrl_prob.errors import ArgumentError
from calmrl_prob.linear_gaussian.options import Options
from calmrl_prob.selection.scaling import Scale

Criterion = Literal["imputation", "retrieval"]
Family = Literal["normal", "student_t", "mixture"]


@dataclass(frozen=True, kw_only=True)
class ChoiceOptions(Options):
    """Options of the choice that :func:`calmrl_prob.fit` makes, which takes each of them by keyword too.

    Attributes:
        criterion: "imputation", squared error and log score of imputing whole modalities of held-out rows; or
            "retrieval", how well held-out rows find each other across modalities, which likes less shrinkage.
        scale: "auto", "feature" (each feature divided by its standard deviation) or "none". Folded into the parameters:
            all outputs are in the data's own units.
        folds: parts that the rows are dealt to.
        groups: (N,) whatever rows share that must not tell of each other, such as the subject or recording that they
            come from: rows of a group are dealt to one fold. Or the name of a covariate that has it, or a function that
            gives it of the data. Rows as they are, if not given.
        families: priors of the latents to choose from: "normal" and, beside it, "student_t" and "mixture" (of 2 to 4
            normals), which are tried once the normal setting is chosen, from its number of latents. They need rows of
            whole modalities and the criterion "imputation", and are shrunk by fewer latents, not by pseudo-rows; where
            they cannot be fitted, ``fit.choice.not_tried`` says why.
        budget: seconds after which no further setting is tried; None for no limit.

    Raises:
        ArgumentError: one is out of range.
    """

    criterion: Criterion = "imputation"
    scale: Scale = "auto"
    folds: int = 3
    groups: Sequence[object] | str | Callable[[MultimodalData], object] | None = None
    budget: float | None = None
    families: Sequence[str] = ("normal",)

    def __post_init__(self) -> None:
        """Refuse what is out of range."""
        if self.criterion not in get_args(Criterion):
            raise ArgumentError(f"criterion: expected one of {list(get_args(Criterion))}, got {self.criterion!r}.")
        if self.scale not in get_args(Scale):
            raise ArgumentError(f"scale: expected one of {list(get_args(Scale))}, got {self.scale!r}.")
        whole_number("folds", self.folds, least=2)
        families = (self.families,) if isinstance(self.families, str) else tuple(self.families)
        if "normal" not in families or not set(families) <= set(get_args(Family)):
            raise ArgumentError(
                f"families: expected some of {list(get_args(Family))}, 'normal' among them, got {self.families!r}."
            )
        if self.budget is not None and not 0 < real_number("budget", self.budget, 60.0) < math.inf:
            raise ArgumentError(f"budget: expected a positive number of seconds, got {self.budget!r}.")
