"""Diagnostics of a route: a mapping whose text is short, however many instances it is of."""

from __future__ import annotations

from typing import Any

import numpy as np

from calmrl_prob._support.frozen import FrozenMapping
from calmrl_prob.posteriors.importance import MAX_K_HAT

#: Arrays of more numbers are summed up in the text.
_FEW = 8


class Diagnostics(FrozenMapping[str, Any]):
    """Diagnostics by name, as they are; the text has of long arrays how many numbers they have and between which.

    Of k-hat it has the worst and the share above 0.7, beyond which weights cannot be relied on.

    Args:
        items: a mapping, or pairs of names and values; copied.

    Example:
        >>> Diagnostics({"k_hat": np.linspace(0, 1, 9), "effective_draws": np.arange(500.0), "converged": True})
        {k_hat: worst 1 of 9, 33% above 0.7; effective_draws: 500 values, 0 to 499; converged: True}
    """

    __slots__ = ()

    def __repr__(self) -> str:
        return "{" + "; ".join(f"{name}: {_summary(name, value)}" for name, value in self.items()) + "}"


def _summary(name: str, value: Any) -> str:  # noqa: ANN401 - of any type
    if isinstance(value, float):
        return f"{value:.4g}"
    long = hasattr(value, "shape") and int(np.prod(value.shape)) > _FEW
    if not long:
        return repr(value)
    numbers = np.asarray(value)
    if name == "k_hat":
        return f"worst {numbers.max():.3g} of {numbers.size}, {np.mean(~(numbers <= MAX_K_HAT)):.0%} above {MAX_K_HAT}"
    return f"{numbers.size} values, {numbers.min():.4g} to {numbers.max():.4g}"
