"""Estimators for scikit-learn: a table whose columns are grouped into modalities, imputed or turned into latents.

imputer  ``CalibratedImputer``: missing values from those of the same row, with their uncertainty
latents  ``LatentTransformer``: posterior means of the latents, as features for what follows
"""

from __future__ import annotations

from calmrl_prob.sklearn.imputer import CalibratedImputer
from calmrl_prob.sklearn.latents import LatentTransformer

__all__ = ["CalibratedImputer", "LatentTransformer"]
