"""Recalibration of imputations by held-out rows."""

from calmrl_prob.recalibration.recalibration import GUARANTEES, Recalibration, recalibrate

__all__ = ["GUARANTEES", "Recalibration", "recalibrate"]
