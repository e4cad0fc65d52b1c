"""Pyro models as people of very different habits write them, and what is true of each, worked out without discovery.

``CONJUGATE`` holds builders of models with an exact posterior, ``NOT_CONJUGATE`` of models without one, ``BROKEN`` of
models that should be refused. Each builder makes its case anew.
"""

from __future__ import annotations

from tests.cases.pyro_zoo import broken, conjugate, nonconjugate, observation, traps, varying
from tests.cases.pyro_zoo.cases import BROKEN, CONJUGATE, NOT_CONJUGATE, Broken, Conjugate, Normal, NotConjugate

__all__ = [
    "BROKEN",
    "CONJUGATE",
    "NOT_CONJUGATE",
    "Broken",
    "Conjugate",
    "Normal",
    "NotConjugate",
    "broken",
    "conjugate",
    "nonconjugate",
    "observation",
    "traps",
    "varying",
]
