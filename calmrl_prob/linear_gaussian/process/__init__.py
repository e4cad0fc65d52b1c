"""Latents that are coupled between instances by a Gaussian process: posterior and E-step."""

from __future__ import annotations

from typing import TYPE_CHECKING

from calmrl_prob._moved import old_names

if not TYPE_CHECKING:
    __getattr__ = old_names(__name__)
