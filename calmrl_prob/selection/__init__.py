"""Settings of a fit, chosen by how well held-out rows are imputed, and the intervals learned beside.

A reader begins with ``fit.py``, which users call as ``calmrl_prob.fit``; ``ladder.py`` says what is tried,
``scores.py`` by what it is judged, ``held_out.py`` has the closed forms, ``intervals.py`` what makes intervals hold.
"""

from __future__ import annotations

from calmrl_prob.selection.choice import Choice
from calmrl_prob.selection.fit import fit
from calmrl_prob.selection.folds import FoldedStatistics
from calmrl_prob.selection.intervals import HeldOutIntervals
from calmrl_prob.selection.options import ChoiceOptions

__all__ = ["Choice", "ChoiceOptions", "FoldedStatistics", "HeldOutIntervals", "fit"]
