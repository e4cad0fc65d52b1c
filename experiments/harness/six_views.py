"""Six views of one thing, drawn: of very different widths, and of a distribution that no linear-Gaussian model has."""

from __future__ import annotations

import numpy as np
import torch

from calmrl_prob.data import MultimodalData
from calmrl_prob.datasets import make_synthetic

#: Numbers of features of the six views, about those of the UCI handwritten digits, the wide ones cut.
DIMS = {"fourier": 76, "profile": 96, "karhunen": 64, "pixel": 96, "zernike": 47, "shape": 6}


def six_views(num_instances: int = 1600, num_classes: int = 10, latent_dim: int = 12, seed: int = 0) -> MultimodalData:
    """Classes, heavy tails, skew, and instances that are noisier than others.

    Loadings are those of :func:`calmrl_prob.datasets.make_synthetic`. The latent is that of the instance's class, half
    of its variance, plus a normal; the noise of every second view is a Student-t of 4 degrees of freedom, that of the
    others an exponential less its mean; each feature has a scale of its own, and each instance of each view one too
    (log-normal).

    Args:
        num_instances: N.
        num_classes: of the latent; the labels.
        latent_dim: K.
        seed: the same seed draws the same data.

    Example:
        >>> six_views(20).dims["shape"]
        6
    """
    synthetic = make_synthetic(num_instances, DIMS, latent_dim, seed=seed)
    rng = np.random.default_rng(seed)
    labels = rng.integers(num_classes, size=num_instances)
    centres = rng.normal(size=(num_classes, latent_dim))
    latents = (centres[labels] + rng.normal(size=(num_instances, latent_dim))) / 2**0.5
    arrays = {}
    for number, (name, loadings) in enumerate(synthetic.truth.loadings.items()):
        shape = (num_instances, len(loadings))
        noise = rng.standard_t(4, shape) / 2**0.5 if number % 2 == 0 else rng.exponential(size=shape) - 1
        scale = 0.7 * np.exp(0.5 * rng.normal(size=(1, shape[1])) + 0.3 * rng.normal(size=(shape[0], 1)))
        arrays[name] = torch.from_numpy(latents @ loadings.numpy().T + scale * noise) + synthetic.truth.intercepts[name]
    return MultimodalData(arrays, labels=labels, attributes={"name": "six views"})
