"""Options of a masked validation: what is hidden, how often, and how it is imputed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from calmrl_prob._support.arguments import checked_seed, whole_number
from calmrl_prob.errors import ArgumentError
from calmrl_prob.imputation import Recalibrator
from calmrl_prob.linear_gaussian.options import Options


@dataclass(frozen=True)
class ValidationOptions(Options):
    """Settings of :func:`calmrl_prob.masked_validation`, which takes each of them as a keyword too.

    Attributes:
        names: modalities to hide; all by default.
        repeats: how often "random", or a mechanism, draws.
        num_draws: joint draws for the energy score; 0 leaves it out.
        recalibrated: as for :func:`calmrl_prob.impute`: diagnose the recalibrated imputations.
        seed: of folds, schemes and draws.
        progress: show a progress bar on standard error.

    Raises:
        ArgumentError: a number is out of range, or ``num_draws`` is 1.
        ArgumentTypeError: a number is none.
    """

    names: Sequence[str] | None = None
    repeats: int = 1
    num_draws: int = 50
    recalibrated: Recalibrator | bool | None = None
    seed: int = 0
    progress: bool = False

    def __post_init__(self) -> None:
        """Refuse what is out of range."""
        checked_seed(self.seed)
        whole_number("repeats", self.repeats, least=1)
        if whole_number("num_draws", self.num_draws) == 1:
            raise ArgumentError("num_draws: expected 0, or at least 2 draws to compare with each other, got 1.")
