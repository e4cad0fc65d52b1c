"""Options of EM for models with Student-t factors."""

from __future__ import annotations

from dataclasses import dataclass

from calmrl_prob.errors import ArgumentError
from calmrl_prob.linear_gaussian.em.options import CommonOptions
from calmrl_prob.linear_gaussian.scale_mixture.degrees_of_freedom import LEAST, MOST


@dataclass(frozen=True, kw_only=True)
class HeavyTailOptions(CommonOptions):
    """Options that all fits of Student-t factors have, besides those that EM has for every family.

    The floor, prior and form of the noise are those of its scales.

    Attributes:
        seed: for the random block of the default start.
        degrees_of_freedom: of all factors, if they are to stay as they are; learned by default, from 0.1 to 10^6.

    Raises:
        ArgumentError: one is out of range.
    """

    seed: int = 0
    degrees_of_freedom: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require_freedom("degrees_of_freedom")

    def _require_freedom(self, argument: str) -> None:
        value = getattr(self, argument)
        if value is not None and not LEAST <= value <= MOST:
            raise ArgumentError(f"{argument}: expected {LEAST} to {MOST:.0e}, got {value}.")


@dataclass(frozen=True, kw_only=True)
class ScaleEMOptions(HeavyTailOptions):
    """Options of :func:`~calmrl_prob.linear_gaussian.fit_scale_em`, besides those that all such fits have.

    Attributes:
        least_degrees_of_freedom: that are allowed where they are learned; above 2 every variance is finite.

    Raises:
        ArgumentError: one is out of range.
    """

    least_degrees_of_freedom: float = LEAST

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require_freedom("least_degrees_of_freedom")

    @property
    def least(self) -> float:
        """The least that learned degrees of freedom may be; 0 where none are learned."""
        return 0.0 if self.degrees_of_freedom is not None else self.least_degrees_of_freedom


@dataclass(frozen=True, kw_only=True)
class StudentTEMOptions(HeavyTailOptions):
    """Options of :func:`~calmrl_prob.linear_gaussian.fit_student_t_em`, besides those that all such fits have.

    Attributes:
        form: of the E-step: "modality", "pattern", or "auto" to choose by cost. Both give the same fit.

    Raises:
        ArgumentError: one is out of range.
    """

    tolerance: float = 1e-6
    form: str = "auto"
