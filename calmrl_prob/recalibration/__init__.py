"""Recalibration of imputations by held-out rows."""

from calmrl_prob.recalibration.recalibration import GUARANTEES, Recalibration, recalibrate
from calmrl_prob.recalibration.shrinkage import ShrinkageChoice, choose_shrinkage

__all__ = ["GUARANTEES", "Recalibration", "ShrinkageChoice", "choose_shrinkage", "recalibrate"]
