"""The temperature of a softmax: a number, or learned."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from calmrl_prob._support.arguments import real_number
from calmrl_prob.errors import ArgumentError


class Temperature(nn.Module):
    """Temperature that similarities are divided by; called, it returns its inverse.

    A learned one is log(1 / temperature), kept from ever falling below ``least`` by putting the parameter back at the
    next step, as in Radford et al., Learning transferable visual models from natural language supervision (2021).

    Args:
        initial: the temperature, or where learning starts; above 0.
        learnable: learn it, or leave it.
        least: the lowest that a learned one may get.

    Raises:
        ArgumentTypeError: not a number.
        ArgumentError: not above 0, or a start below ``least``.

    Example:
        >>> Temperature(0.5)(), Temperature(0.5, learnable=True)().item()
        (2.0, 2.0)
    """

    def __init__(self, initial: float, *, learnable: bool = False, least: float = 0.01) -> None:
        super().__init__()
        self._initial = checked_temperature("temperature", initial)
        self._most = 1 / checked_temperature("least temperature", least)
        self.register_parameter("log_scale", None)
        if learnable:
            if self._initial < least:
                raise ArgumentError(
                    f"temperature: one that is learnable stays above {least}, so it cannot start at {initial}; start "
                    "higher, or leave it fixed."
                )
            self.log_scale = nn.Parameter(torch.tensor(-math.log(self._initial)))

    def forward(self) -> Tensor | float:
        """1 / temperature."""
        if self.log_scale is None:
            return 1 / self._initial
        if self.training:
            with torch.no_grad():
                self.log_scale.clamp_(max=math.log(self._most))
        return self.log_scale.exp()

    def extra_repr(self) -> str:
        """Settings that a print of the module shows."""
        return f"{self.value:.4g}, learnable={self.log_scale is not None}"

    @property
    def value(self) -> float:
        """The temperature as it is now."""
        return self._initial if self.log_scale is None else math.exp(-self.log_scale.item())


def checked_temperature(argument: str, value: object) -> float:
    """A temperature, if it is one.

    Raises:
        ArgumentTypeError: it is not a number.
        ArgumentError: it is not finite and above 0.
    """
    number = real_number(argument, value, 0.07)
    if not 0 < number < math.inf:
        raise ArgumentError(f"{argument}: expected a number above 0, got {value}; use one such as 0.07.")
    return number
