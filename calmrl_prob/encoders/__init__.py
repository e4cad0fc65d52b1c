"""Encoders for ``calmrl_prob.training``: of vectors, and of images, waveforms and tokens."""

from __future__ import annotations

from typing import TYPE_CHECKING

from calmrl_prob._moved import old_names
from calmrl_prob.encoders.convolutional import (
    ConvEncoder,
    TextEncoder,
    VideoEncoder,
    WaveformEncoder,
    log_spectrogram,
)
from calmrl_prob.encoders.dense import (
    ENCODERS,
    Autoencoder,
    LinearEncoder,
    MLPEncoder,
    ResidualEncoder,
    build_encoders,
    posterior_mean_encoders,
)
from calmrl_prob.encoders.recipes import from_recipe, recipe

__all__ = [
    "ENCODERS",
    "Autoencoder",
    "ConvEncoder",
    "LinearEncoder",
    "MLPEncoder",
    "ResidualEncoder",
    "TextEncoder",
    "VideoEncoder",
    "WaveformEncoder",
    "build_encoders",
    "from_recipe",
    "log_spectrogram",
    "posterior_mean_encoders",
    "recipe",
]

if not TYPE_CHECKING:
    __getattr__ = old_names(__name__)
