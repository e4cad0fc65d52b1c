"""Data sets that are drawn: assays of few samples, and modalities with much structure of their own."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from calmrl_prob.data import MultimodalData

Array = NDArray[np.float64]

#: Features of each assay, and which of the six factors are active in it.
_ASSAYS = {
    "mrna": (5000, (1, 1, 1, 1, 0, 0)),
    "methylation": (2000, (1, 1, 0, 0, 1, 0)),
    "protein": (150, (1, 0, 1, 0, 0, 1)),
}


def omics(samples: int = 320, test_samples: int = 160, single: float = 0.03, seed: int = 3) -> MultimodalData:
    """Three assays of a few hundred samples: wide, noisy, in batches, in units of their own.

    Six factors, four of them shifted by a subtype of four, act on 40% of the features of the assays that they are
    active in. Half of the features have another mean in each of three batches; noise is log-normal over features.
    Methylation is squeezed to shares between 0 and 1, the genes have units (log-normal) and offsets of their own.

    Args:
        samples: rows of the part "train".
        test_samples: rows of the part "test", which lack nothing.
        single: share of the single protein values of the training rows that are missing.
        seed: the same seed draws the same data.

    Example:
        >>> omics(30, 10, single=0.0).dims
        {'mrna': 5000, 'methylation': 2000, 'protein': 150}
    """
    rng, total = np.random.default_rng(seed), samples + test_samples
    factors = len(next(iter(_ASSAYS.values()))[1])
    subtype, batch = rng.integers(4, size=total), rng.integers(3, size=total)
    centres = 1.2 * rng.normal(size=(4, factors))
    centres[:, 4:] = 0.0  # the last factors tell nothing of the subtype
    latents = centres[subtype] + rng.normal(size=(total, factors))
    arrays: dict[str, Array] = {}
    for name, (width, active) in _ASSAYS.items():
        touched = rng.random((factors, width)) < 0.4
        loadings = rng.normal(size=(factors, width)) * touched * np.array(active)[:, None]
        shifts = 0.7 * rng.normal(size=(3, width)) * (rng.random(width) < 0.5)
        noise = np.exp(rng.normal(0.4, 0.5, width))
        arrays[name] = latents @ loadings + shifts[batch] + noise * rng.normal(size=(total, width))
    arrays["methylation"] = 1.0 / (1.0 + np.exp(-arrays["methylation"] / 3.0))
    width = arrays["mrna"].shape[1]
    arrays["mrna"] = arrays["mrna"] * np.exp(rng.normal(0.0, 0.7, width)) + rng.uniform(2.0, 10.0, width)
    lost = rng.random(arrays["protein"].shape) < single
    lost[samples:] = False
    arrays["protein"][lost] = np.nan
    return _partitioned(arrays, samples, "features" if lost.any() else "modalities", subtype, batch)


def private_structure(
    rows: int = 6000, test_rows: int = 1000, shared: int = 8, private: int = 8, seed: int = 0
) -> MultimodalData:
    """Modalities of 100, 80 and 40 features, in each of which as many latents are its own as are shared by all.

    x^m = A^m z + B^m u^m + noise of variance 1/2, all latents standard normal, columns of A^m and B^m alike.

    Args:
        rows: of the part "train".
        test_rows: of the part "test".
        shared: latents that act on all modalities.
        private: latents of each modality alone.
        seed: the same seed draws the same data.

    Example:
        >>> len(private_structure(20, 10).train)
        20
    """
    rng, total = np.random.default_rng(seed), rows + test_rows
    latents = rng.normal(size=(total, shared))
    arrays: dict[str, Array] = {}
    for name, width in (("a", 100), ("b", 80), ("c", 40)):
        scale = (shared + private) ** -0.5  # each feature then has a variance of about 1 besides its noise
        own = rng.normal(size=(total, private))
        signal = scale * (latents @ rng.normal(size=(shared, width)) + own @ rng.normal(size=(private, width)))
        arrays[name] = signal + 0.5**0.5 * rng.normal(size=(total, width))
    return _partitioned(arrays, rows, "modalities", None)


def _partitioned(
    arrays: dict[str, Array],
    train: int,
    missing: str,
    labels: NDArray[np.int64] | None,
    batch: NDArray[np.int64] | None = None,
) -> MultimodalData:
    total = len(next(iter(arrays.values())))
    return MultimodalData(
        {name: array.astype(np.float32) for name, array in arrays.items()},
        labels=labels,
        partition=np.where(np.arange(total) < train, "train", "test"),
        missing="features" if missing == "features" else "modalities",
        covariates={} if batch is None else {"batch": batch},
    )
