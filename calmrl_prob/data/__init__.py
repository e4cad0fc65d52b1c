"""Incomplete multimodal data: the container, what it takes in, and the mechanisms that remove modalities."""

from __future__ import annotations

from typing import TYPE_CHECKING

from calmrl_prob._moved import old_names
from calmrl_prob.data import missingness
from calmrl_prob.data.multimodal import MultimodalData
from calmrl_prob.data.schema import require_enough, require_fittable, warn_unidentifiable

__all__ = ["MultimodalData", "missingness", "require_enough", "require_fittable", "warn_unidentifiable"]

if not TYPE_CHECKING:
    __getattr__ = old_names(__name__)
