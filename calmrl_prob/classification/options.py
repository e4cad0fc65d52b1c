"""Options and settings of a classifier."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from calmrl_prob._support.arguments import whole_number
from calmrl_prob.errors import ArgumentError, ArgumentTypeError
from calmrl_prob.linear_gaussian.mixture.maximization import ComponentModel
from calmrl_prob.linear_gaussian.options import Options


@dataclass(frozen=True, kw_only=True)
class ClassifyOptions(Options):
    """Options of :func:`calmrl_prob.classify`.

    Attributes:
        folds: parts that the labelled instances are dealt to, to choose settings on.
        groups: (N,) what instances share that must not tell of each other, such as the subject: dealt to one fold. Or
            the name of a covariate that has it.
        refit: whether the model is fitted again, with its own settings, without the rows of each fold: "auto" where it
            is a fit whose settings were chosen, so that they are known; False where its rows are not those given here.
        max_directions: the most directions of the latent along which classes may differ; never more than C - 1.
        unlabelled: whether instances without a label count, as a mixture: "auto" by held-out labels.

    Raises:
        ArgumentError: one is out of range.
        ArgumentTypeError: one is of another type.
    """

    folds: int = 5
    groups: Sequence[object] | str | None = None
    refit: bool | str = "auto"
    max_directions: int = 40
    unlabelled: bool | str = "auto"

    def __post_init__(self) -> None:
        """Refuse what is out of range."""
        whole_number("folds", self.folds, least=2)
        whole_number("max_directions", self.max_directions, least=1)
        for name in ("refit", "unlabelled"):
            value = getattr(self, name)
            if isinstance(value, str) and value != "auto":
                raise ArgumentError(f"{name}: expected True, False or 'auto', got {value!r}.")
            if not isinstance(value, str | bool):
                raise ArgumentTypeError(f"{name}: expected True, False or 'auto', got {value!r}.")


@dataclass(frozen=True)
class ClassSetting:
    """Setting that held-out labels choose, but for temperature and floor.

    Attributes:
        directions: R.
        mean_pseudo_count: kappa.
        covariance_pseudo_count: nu; infinite for one covariance of all classes.
        unlabelled: whether instances without a label count.
        regression: v of the prior of coefficients whose span the directions are; 0 for the span of class means.
        refined: whether classes along the directions come of EM; else they are those with the coefficients' log odds,
            which three of the settings above have no part in.
    """

    directions: int
    mean_pseudo_count: float = 1.0
    covariance_pseudo_count: float = math.inf
    unlabelled: bool = False
    regression: float = 0.0
    refined: bool = True

    def model(self) -> ComponentModel:
        """The prior of weights and covariances: one pseudo-instance in each class."""
        tied = math.isinf(self.covariance_pseudo_count)
        return ComponentModel(1.0, 0.0 if tied else self.covariance_pseudo_count, tied)

    def but(self, **changes: Any) -> ClassSetting:
        """The same with some attributes changed."""
        return replace(self, **changes)
