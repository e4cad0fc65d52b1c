"""Fingerprint of what a model predicts by, so that what was learned of its errors is not used for another."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from torch import Tensor

from calmrl_prob.errors import CalmrlError
from calmrl_prob.inference.parameters.parameter_draws import ParameterDraws


def fingerprint(model: object) -> str | None:
    """A digest of what predicts: all draws of parameters, or those of the linear-Gaussian form; None if there is none.

    A fit and draws about it predict alike in the mean only, so that neither can be recalibrated by the other.
    """
    draws = getattr(getattr(model, "report", None), "draws", model)  # of a fit by sampling
    if isinstance(draws, ParameterDraws):
        parts: list[Mapping[str, Tensor]] = [draws.values]
    else:
        form: Any = getattr(model, "linear_gaussian", None)
        try:
            lg: Any = form() if callable(form) else model
            parts = [lg.loadings, lg.intercepts, lg.noise_variance, lg.noise_factor or {}]
        except (AttributeError, CalmrlError):
            return None
    digest = hashlib.sha256()
    for part in parts:
        for name in sorted(part):
            digest.update(np.ascontiguousarray(part[name].detach().cpu().numpy()).tobytes())
    return digest.hexdigest()
