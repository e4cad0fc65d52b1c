"""Fingerprint of what a model predicts by, so that what was learned of its errors is not used for another."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from torch import Tensor, nn

from calmrl_prob.errors import CalmrlError
from calmrl_prob.inference.parameters.parameter_draws import ParameterDraws
from calmrl_prob.posteriors.posterior import PosteriorResult
from calmrl_prob.programs.bound import BoundModel

#: Bits of the mantissa of each number that count.
_BITS = 32


def fingerprint(model: object) -> str | None:
    """A digest of what predicts; None if there is none.

    That is draws of parameters, or the linear-Gaussian form with its prior; of other modules and of fitted Pyro models
    all parameters; of a posterior what its model has.

    A fit and draws about it predict alike in the mean only, so that neither can be recalibrated by the other. Numbers
    are compared in float64, so that a posterior in a wider type than its model's is recognised; and to 32 bits, so that
    a model from a file is, where another processor rounds exp otherwise in the last place.
    """
    if isinstance(model, PosteriorResult):
        return model.fingerprint
    report = getattr(model, "report", None)
    draws = getattr(report, "draws", model)  # of a fit by sampling
    if isinstance(draws, ParameterDraws):
        return _digest([draws.values[name] for name in sorted(draws.values)])
    owner: Any = model if report is None else getattr(model, "model", model)
    form: Any = getattr(owner, "linear_gaussian", None)
    try:
        lg: Any = form() if callable(form) else owner
        parts: list[Mapping[str, Tensor]] = [lg.loadings, lg.intercepts, lg.noise_variance, lg.noise_factor or {}]
        effects: Any = getattr(owner, "batch", None)
        moved = [value for _, value in sorted(effects.state_dict().items())] if isinstance(effects, nn.Module) else []
        own = [part[name] for part in parts for name in sorted(part)]
        return _digest([*own, lg.prior_mean, lg.prior_covariance, *moved])
    except (AttributeError, CalmrlError):
        pass
    if not isinstance(owner, nn.Module):
        return None
    # a module and the same as a Pyro program have parameters by other names: in the order of what they hold
    values = owner.values.values() if isinstance(owner, BoundModel) else ()
    held = sorted(_digest([tensor]) for tensor in [*owner.parameters(), *values])
    return hashlib.blake2b("".join(held).encode(), digest_size=20).hexdigest() if held else None


def _digest(tensors: Iterable[Tensor]) -> str:
    numbers = np.concatenate([np.empty(0), *(tensor.detach().double().cpu().numpy().ravel() for tensor in tensors)])
    mantissa, exponent = np.frexp(numbers)
    rounded = np.ldexp(np.round(np.ldexp(mantissa, _BITS)), exponent - _BITS)
    return hashlib.blake2b(rounded.tobytes(), digest_size=20).hexdigest()
