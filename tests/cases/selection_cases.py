"""Data of which every modality has structure that it shares with no other."""

from __future__ import annotations

import numpy as np

from calmrl_prob import MultimodalData

DIMS = {"a": 20, "b": 14, "c": 8}


def private(number: int = 500, seed: int = 0, missing: float = 0.4) -> MultimodalData:
    """Instances whose modalities share 3 latents and have 4 each of their own, with cells missing at random."""
    generator, weights = np.random.default_rng(seed), np.random.default_rng(99)
    shared, values = generator.normal(size=(number, 3)), {}
    for name, width in DIMS.items():
        own = generator.normal(size=(number, 4))
        signal = shared @ weights.normal(size=(3, width)) + own @ weights.normal(size=(4, width))
        values[name] = signal + generator.normal(size=(number, width))
    return incomplete(values, missing, generator)


def incomplete(values: dict[str, np.ndarray], missing: float, generator: np.random.Generator) -> MultimodalData:
    """Values with cells missing at random, and no instance without any."""
    mask = generator.random((len(next(iter(values.values()))), len(values))) >= missing
    mask[~mask.any(1), 0] = True
    return MultimodalData(values, observed_mask=mask)
