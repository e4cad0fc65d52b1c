"""Encoders for ``calmrl_prob.training``: of vectors, and of images, waveforms and tokens."""

from __future__ import annotations

from calmrl_prob.encoders.convolutional import ConvEncoder, TextEncoder, WaveformEncoder, log_spectrogram
from calmrl_prob.encoders.dense import (
    ENCODERS,
    Autoencoder,
    LinearEncoder,
    MLPEncoder,
    ResidualEncoder,
    build_encoders,
    posterior_mean_encoders,
)

__all__ = [
    "ENCODERS",
    "Autoencoder",
    "ConvEncoder",
    "LinearEncoder",
    "MLPEncoder",
    "ResidualEncoder",
    "TextEncoder",
    "WaveformEncoder",
    "build_encoders",
    "log_spectrogram",
    "posterior_mean_encoders",
]
