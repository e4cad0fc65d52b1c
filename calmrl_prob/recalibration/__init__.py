"""Recalibration of imputations by held-out rows."""

from typing import TYPE_CHECKING

from calmrl_prob._moved import old_names
from calmrl_prob.recalibration.recalibration import GUARANTEES, Recalibration, recalibrate

__all__ = ["GUARANTEES", "Recalibration", "recalibrate"]

if not TYPE_CHECKING:
    __getattr__ = old_names(__name__)
