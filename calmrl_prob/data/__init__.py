"""Incomplete multimodal data: the container, what it takes in, and the mechanisms that remove modalities."""

from __future__ import annotations

from calmrl_prob.data.multimodal import MultimodalData
from calmrl_prob.data.schema import require_fittable, warn_unidentifiable

__all__ = ["MultimodalData", "require_fittable", "warn_unidentifiable"]
